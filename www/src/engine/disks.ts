// The worker's disks: what lies on open images, by the package's second module, which is loaded when it is first needed.

import type { Image } from "cowshed";
import type { Disk, Fault, Volume } from "cowshed/disk";
import type { DiskFacts, SaveArguments, SaveResult, SearchProgress, VolumeFacts } from "./protocol.js";
import { intoSink } from "./sink.js";

/** The names in the browser's own storage that a file and a folder are saved under where there is no other. */
const KEPT_FILE = "file";
const KEPT_TREE = "folder.tar";
/** Faults that are told of one archive; more are counted. */
const FAULTS_MAX = 100;

const disks = new Map<number, Promise<Disk>>();

/** The disk of an open image. */
async function diskOf(handle: number, image: Image): Promise<Disk> {
  const { Disk } = await import("cowshed/disk");
  const known = disks.get(handle);
  if (known) return known;
  // Not with the signal of who asks first: others may wait for it.
  const opening = Disk.open(image);
  disks.set(handle, opening);
  // The next one tries again.
  opening.catch(() => disks.delete(handle));
  return opening;
}

/** Gives back what an image's disk holds. */
export function leaveDisk(handle: number): void {
  const disk = disks.get(handle);
  disks.delete(handle);
  void disk?.then((one) => one.close()).catch(() => undefined);
}

export async function factsOf(handle: number, image: Image): Promise<DiskFacts> {
  const { table, findings, volumes } = await diskOf(handle, image);
  return {
    table,
    findings,
    volumes: volumes.map(
      ({ start, length, partition, files, problem, foreign }): VolumeFacts => ({
        number: partition?.number ?? 0,
        start,
        length,
        partition,
        files,
        problem,
        foreign,
      }),
    ),
  };
}

/** A volume, by its place in the list. */
export async function volumeOf(handle: number, image: Image, index: number): Promise<Volume> {
  const volume = (await diskOf(handle, image)).volumes[index];
  if (!volume) throw new Error(`the disk has no volume ${index}`);
  return volume;
}

/** Looks for names that have `wanted` in them, whatever their case. */
export async function search(
  volume: Volume,
  path: Uint8Array,
  wanted: string,
  signal: AbortSignal,
  tell: (progress: SearchProgress) => void,
): Promise<SearchProgress> {
  const low = wanted.toLowerCase();
  const sum: SearchProgress = { looked: 0, unread: 0, found: [] };
  for await (const one of volume.walk(path, { signal })) {
    sum.looked += 1;
    if (one.unread !== undefined) sum.unread += 1;
    else if (one.name.toLowerCase().includes(low)) {
      sum.found.push({ path: one.path, kind: one.kind, size: one.size, modified: one.modified });
    }
    if (sum.looked % 256 === 0) tell({ ...sum, found: sum.found.splice(0) });
  }
  return sum;
}

/** Writes a file, or a folder as a tar archive. */
export async function save(
  volume: Volume,
  { path, tree, to }: SaveArguments,
  signal: AbortSignal,
  tell: (done: number) => void,
): Promise<SaveResult> {
  const faults: Fault[] = [];
  let faultCount = 0;
  const onFault = (fault: Fault): void => {
    faultCount += 1;
    if (faults.length < FAULTS_MAX) faults.push(fault);
  };
  const stream = tree ? volume.tar(path, { signal, onFault }) : volume.stream(path, { signal });
  const file = await intoSink(to, tree ? KEPT_TREE : KEPT_FILE, async (sink) => {
    let done = 0;
    for await (const bytes of stream) {
      await sink.write(done, bytes);
      done += bytes.length;
      tell(done);
    }
    return done;
  });
  return { file, faults, faultCount };
}

