// Reading a disk in sequence through the engine, in Chromium, against plain slices of a Blob of the same size in the same run.
// The package is loaded as it is published, without a bundler.

import assert from "node:assert/strict";
import test from "node:test";
import { launch } from "./browser.mjs";
import { folder, qcow2 } from "./images.mjs";
import { servePackage } from "./published.mjs";

const LENGTH_MIB = Number(process.env.COWSHED_SPEED_MIB ?? 128);
// The best of each side counts; where other work disturbs them, more runs find it.
const RUNS_MIN = 5;
const RUNS_MAX = 20;
const SHARE_MIN = 0.8;

test("reading_in_sequence_is_nearly_as_fast_as_slices", async () => {
  const files = folder();
  const file = qcow2(files.at("data.qcow2"), `${LENGTH_MIB}M`, { commands: [`write -P 0x5a 0 ${LENGTH_MIB}M`] });
  const server = await servePackage();
  const browser = await launch();
  try {
    const page = await browser.newPage();
    await page.goto(server.origin);
    await page.locator("input").setInputFiles(file);
    const times = await page.evaluate(async (runs) => {
      const { Image } = await import("/index.js");
      const [file] = document.querySelector("input").files;
      const image = await Image.open(file);
      const length = Number(image.virtualSize);
      const piece = 1 << 20;
      const slices = async () => {
        for (let at = 0; at < length; at += piece) {
          const bytes = new Uint8Array(await file.slice(at, at + piece).arrayBuffer());
          if (bytes.length === 0) throw new Error("the file is shorter than the disk");
        }
      };
      const engine = async () => {
        for (let at = 0; at < length; at += piece) {
          const bytes = await image.read(at, Math.min(piece, length - at));
          if (bytes[bytes.length - 1] !== 0x5a) throw new Error(`wrong byte near ${at}`);
        }
      };
      const taken = async (work) => {
        const begun = performance.now();
        await work();
        return performance.now() - begun;
      };
      await slices();
      await engine();
      const times = { slices: [], engine: [] };
      const share = () => Math.min(...times.slices) / Math.min(...times.engine);
      for (let run = 0; run < runs.max && (run < runs.min || share() < runs.share); run += 1) {
        times.slices.push(await taken(slices));
        times.engine.push(await taken(engine));
      }
      await image.close();
      return times;
    }, { min: RUNS_MIN, max: RUNS_MAX, share: SHARE_MIN });
    const best = (list) => Math.min(...list);
    const speed = (ms) => `${Math.round((LENGTH_MIB / ms) * 1000)} MiB/s`;
    const share = best(times.slices) / best(times.engine);
    console.log(`in sequence: slices ${speed(best(times.slices))}, engine ${speed(best(times.engine))}: ${share.toFixed(2)}`);
    assert.ok(share >= SHARE_MIN, `${share.toFixed(2)} of the speed of slices`);
  } finally {
    await browser.close();
    server.close();
    files.remove();
  }
});
