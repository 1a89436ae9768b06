// Paths of a disk in the page's address: every byte comes back.

import assert from "node:assert/strict";
import test from "node:test";
import { diskHash, diskPlaceOf, fileName, joined, stepsOf } from "../../.unit/model/path.js";

const bytes = (text) => new TextEncoder().encode(text);

test("every_byte_of_a_path_survives_the_address", () => {
  const path = Uint8Array.from([0x2f, ...Array.from({ length: 255 }, (_, at) => at + 1)]);
  const hash = diskHash({ volume: 3, path });
  assert.match(hash, /^#disk\/3\/[\x21-\x7e]*$/);
  assert.deepEqual(diskPlaceOf(hash), { volume: 3, path });
  assert.deepEqual(diskPlaceOf("#disk/0"), { volume: 0, path: bytes("/") });
  assert.deepEqual(diskPlaceOf("#disk/1/100%"), { volume: 1, path: bytes("/100%") });
  assert.deepEqual(diskPlaceOf("#disk/1/%zz%2"), { volume: 1, path: bytes("/%zz%2") });
  assert.equal(diskPlaceOf("#disk"), null);
  assert.equal(diskPlaceOf("#disk/x/etc"), null);
});

test("steps_are_the_folders_on_the_way", () => {
  assert.deepEqual(
    stepsOf(bytes("//home/a b/c")).map(({ name, path }) => [name, new TextDecoder().decode(path)]),
    [["home", "//home"], ["a b", "//home/a b"], ["c", "//home/a b/c"]],
  );
  assert.deepEqual(stepsOf(bytes("/")), []);
  assert.equal(new TextDecoder().decode(joined(bytes("/"), bytes("etc"))), "/etc");
  assert.equal(new TextDecoder().decode(joined(bytes("/etc"), bytes("x"))), "/etc/x");
});

test("a_name_to_save_under_is_one_for_a_file", () => {
  assert.equal(fileName("../../etc/passwd", "disk"), "_.._etc_passwd");
  assert.equal(fileName("..", "disk"), "disk");
  assert.equal(fileName("", "disk"), "disk");
  assert.equal(fileName("a\u0000b\u202ec:d", "disk"), "a_b_c_d");
  assert.equal(fileName("x".repeat(300), "disk").length, 200);
});
