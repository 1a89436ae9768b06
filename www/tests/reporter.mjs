// One line a test, what went wrong below it, and the count at the end.

export default async function* report(events) {
  let passed = 0;
  let failed = 0;
  for await (const { type, data } of events) {
    if (type === "test:pass" || type === "test:fail") {
      // Suites and files are events too; only tests count.
      if (data.details?.type === "suite" || (data.nesting === 0 && data.name.endsWith(".test.mjs"))) {
        if (type === "test:fail" && data.details.error?.failureType === "testCodeFailure" && data.name.endsWith(".mjs")) {
          failed += 1;
          yield `FAILED  ${data.name}\n${indent(data.details.error)}\n`;
        }
        continue;
      }
      if (type === "test:pass") {
        passed += 1;
        yield `ok      ${data.name} (${Math.round(data.details.duration_ms)} ms)\n`;
      } else {
        failed += 1;
        yield `FAILED  ${data.name}\n${indent(data.details.error)}\n`;
      }
    } else if (type === "test:stderr" || type === "test:stdout") {
      yield data.message;
    }
  }
  yield `${passed} passed, ${failed} failed\n`;
}

function indent(error) {
  const cause = error?.cause ?? error;
  return String(cause?.stack ?? cause)
    .split("\n")
    .map((line) => `        ${line}`)
    .join("\n");
}
