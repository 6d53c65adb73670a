// Times the provider API as programs meet it: the SDK from the registry against
// a running server, beside a plain HTTP upload in the same run. Prints rows of
// the same table as the rest of the benchmark.
//
// DORMOUSE_SERVER, DORMOUSE_KEY and DORMOUSE_TEAM say which server; the SDK is
// that of tests/clients.
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { createRequire } from "node:module";
import { promisify } from "node:util";
import { gzip } from "node:zlib";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { dormouseFetch } from "../packages/client/index.js";

const require = createRequire(new URL("../tests/clients/", import.meta.url));
const { Sandbox } = require("@vercel/sandbox");
const server = process.env.DORMOUSE_SERVER;
const credentials = {
  token: process.env.DORMOUSE_KEY,
  teamId: process.env.DORMOUSE_TEAM,
  projectId: "bench",
  fetch: dormouseFetch(server),
};

function at(times, percent) {
  return times[Math.floor(((times.length - 1) * percent) / 100)];
}
function show(name, width, times, tried = times.length) {
  times.sort((a, b) => a - b);
  const cells = [50, 95, 99].map((percent) => at(times, percent).toFixed(2).padStart(10));
  const done = times.length === tried ? "" : `  ${times.length} of ${tried} succeeded`;
  console.log(`${name.padEnd(32)} ${String(width).padStart(5)} ${cells.join(" ")}${done}`);
  return at(times, 50);
}
function ratio(name, ours, other) {
  console.log(`${name.padEnd(32)} ${"1".padStart(5)} ${(ours / other).toFixed(2).padStart(10)}`);
}
async function timed(work) {
  const began = performance.now();
  await work();
  return performance.now() - began;
}
async function oneByOne(name, count, work) {
  const times = [];
  for (let n = 0; n < count; n++) times.push(await timed(() => work(n)));
  return show(name, 1, times);
}
const gone = (sandboxes) => Promise.all(sandboxes.splice(0).map((one) => one.delete({ deleteOrphanSnapshots: true })));
const first = async (sandbox) => {
  const done = await sandbox.runCommand("true");
  if (done.exitCode !== 0) throw new Error(`true exited ${done.exitCode}`);
};

const made = [];
// The first call pays for what is loaded once.
made.push(await Sandbox.create(credentials));
await first(made[0]);
await gone(made);

await oneByOne("SDK: create to first command", 40, async () => {
  const sandbox = await Sandbox.create(credentials);
  made.push(sandbox);
  await first(sandbox);
});
await gone(made);
for (const width of [8, 32, 100]) {
  const attempts = await Promise.allSettled(
    Array.from({ length: width }, () =>
      timed(async () => {
        const sandbox = await Sandbox.create(credentials);
        made.push(sandbox);
        await first(sandbox);
      }),
    ),
  );
  const times = attempts.filter((one) => one.status === "fulfilled").map((one) => one.value);
  show("SDK: create to first command", width, times, width);
  for (const failed of attempts.filter((one) => one.status === "rejected").slice(0, 3)) console.error(failed.reason);
  await gone(made);
}

const sandbox = await Sandbox.create({ ...credentials, name: "bench-source" });
await oneByOne("SDK: command round trip", 200, () => first(sandbox));
const stopped = [];
for (let n = 0; n < 30; n++) {
  const one = await Sandbox.create({ ...credentials, name: `bench-resume-${n}` });
  await one.stop();
  stopped.push(one.name);
}
await oneByOne("SDK: resume to first command", 30, async (n) => {
  const one = await Sandbox.get({ ...credentials, name: stopped[n], resume: true });
  made.push(one);
  await first(one);
});
await gone(made);
await sandbox.stop();
await oneByOne("SDK: fork to first command", 30, async () => {
  const one = await Sandbox.fork({ ...credentials, sourceSandbox: "bench-source" });
  made.push(one);
  await first(one);
});
await gone(made);

// A plain server that writes what it is sent to a file, and sends it back.
const dir = await mkdtemp(join(tmpdir(), "dormouse-bench-plain-"));
const plain = spawn(process.execPath, ["--input-type=module", "-e", `
  import { createServer } from "node:http";
  import { createReadStream, createWriteStream } from "node:fs";
  import { pipeline } from "node:stream/promises";
  createServer(async (request, response) => {
    const path = ${JSON.stringify(join(dir, "file"))};
    if (request.method === "PUT") await pipeline(request, createWriteStream(path)), response.end();
    else await pipeline(createReadStream(path), response);
  }).listen(0, "127.0.0.1", function () { console.log(this.address().port); });
`], { stdio: ["ignore", "pipe", "inherit"] });
const port = Number(await new Promise((resolve) => plain.stdout.once("data", (data) => resolve(String(data)))));

/** A tar with one file (POSIX ustar). */
function tar(name, content) {
  const header = Buffer.alloc(512);
  header.write(name, 0);
  header.write("0000644\0", 100);
  header.write("0000000\0", 108);
  header.write("0000000\0", 116);
  header.write(content.length.toString(8).padStart(11, "0"), 124);
  header.write("00000000000", 136);
  header.write("0ustar\0" + "00", 156);
  header.fill(" ", 148, 156);
  const sum = header.reduce((total, byte) => total + byte, 0);
  header.write(`${sum.toString(8).padStart(6, "0")}\0`, 148);
  const padding = Buffer.alloc(((512 - (content.length % 512)) % 512) + 1024);
  return Buffer.concat([header, content, padding]);
}

const target = await Sandbox.create(credentials);
made.push(target);
const session = target.currentSession().sessionId;
const headers = { authorization: `Bearer ${credentials.token}` };
const raw = async (path, more, body) => {
  const url = `${server}/api/v2/sandboxes/sessions/${session}/${path}?teamId=${credentials.teamId}`;
  const answer = await fetch(url, { method: "POST", headers: { ...headers, ...more }, body });
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
  return Buffer.from(await answer.arrayBuffer());
};
for (const [label, size, count] of [["1 KiB", 1 << 10, 60], ["1 MiB", 1 << 20, 30], ["100 MiB", 100 << 20, 4]]) {
  const content = randomBytes(size);
  const archive = tar("tmp/raw", content);
  const [plainWrite, packedWrite, ownWrite, sdkWrite, plainRead, ownRead, sdkRead] = [[], [], [], [], [], [], []];
  // By turns: what else the machine does then weighs on all alike.
  for (let n = 0; n < count; n++) {
    plainWrite.push(await timed(async () => {
      await (await fetch(`http://127.0.0.1:${port}/`, { method: "PUT", body: content })).arrayBuffer();
    }));
    plainRead.push(await timed(async () => (await fetch(`http://127.0.0.1:${port}/`)).arrayBuffer()));
    // What the SDK does before it sends anything.
    packedWrite.push(await timed(async () => {
      const body = await promisify(gzip)(archive);
      await (await fetch(`http://127.0.0.1:${port}/`, { method: "PUT", body })).arrayBuffer();
    }));
    ownWrite.push(await timed(() => raw("fs/write", { "content-type": "application/x-tar", "x-cwd": "/" }, archive)));
    sdkWrite.push(await timed(() => target.writeFiles([{ path: "/tmp/sdk", content }])));
    const json = { "content-type": "application/json" };
    let back;
    ownRead.push(await timed(async () => (back = await raw("fs/read", json, JSON.stringify({ path: "/tmp/sdk" })))));
    if (!back.equals(content)) throw new Error("a file came back changed");
    sdkRead.push(await timed(() => target.readFileToBuffer({ path: "/tmp/raw" })));
  }
  const write = show(`plain HTTP upload, ${label}`, 1, plainWrite);
  const own = show(`API: write, ${label}`, 1, ownWrite);
  ratio("  ratio to the plain upload", own, write);
  const packed = show(`gzip and plain upload, ${label}`, 1, packedWrite);
  ratio("  ratio to gzip and plain upload", show(`SDK: write, ${label}`, 1, sdkWrite), packed);
  const read = show(`plain HTTP download, ${label}`, 1, plainRead);
  ratio("  ratio to the plain download", show(`API: read, ${label}`, 1, ownRead), read);
  ratio("  SDK, ratio", show(`SDK: read, ${label}`, 1, sdkRead), read);
}
plain.kill();
await rm(dir, { recursive: true });
await gone(made);
await sandbox.delete({ deleteOrphanSnapshots: true });
