// A stream of bytes that come piece by piece, for disks, files and archives.

/** What `next` gives, until that is null. It is given a signal: the caller's, which cancelling the stream aborts, too. */
export function streamOf(signal, next) {
  const cancelled = new AbortController();
  const both = signal ? AbortSignal.any([signal, cancelled.signal]) : cancelled.signal;
  return new ReadableStream(
    {
      pull: async (controller) => {
        const bytes = await next(both);
        if (bytes === null) controller.close();
        else controller.enqueue(bytes);
      },
      cancel: (reason) => cancelled.abort(reason),
    },
    { highWaterMark: 1 },
  );
}
