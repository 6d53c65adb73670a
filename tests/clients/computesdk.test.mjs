// ComputeSDK with its Vercel provider, which brings version 1 of the SDK: a
// program that knows nothing of us, pointed here by the preload alone.
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { createRequire } from "node:module";
import { test } from "node:test";
import { register } from "dormouse-client";

register(process.env.DORMOUSE_SERVER);
const { compute } = await import("computesdk");
const { vercel } = await import("@computesdk/vercel");
// The SDK that the provider brings, not ours.
const require = createRequire(createRequire(import.meta.url).resolve("@computesdk/vercel"));
const { Sandbox, Snapshot } = require("@vercel/sandbox");

const credentials = { token: process.env.DORMOUSE_KEY, teamId: process.env.DORMOUSE_TEAM, projectId: "compute" };

test("ComputeSDK", async () => {
  compute.setConfig({ provider: vercel(credentials) });
  const sandbox = await compute.sandbox.create({ ports: [3000], runtime: "node24", timeout: 120_000 });
  const done = await sandbox.runCommand("echo out; echo err >&2; exit 4");
  assert.deepEqual([done.stdout, done.stderr, done.exitCode], ["out\n", "err\n", 4]);
  assert.equal((await sandbox.runCommand("node --version")).stdout, "v24.21.0\n");
  assert.equal((await sandbox.runCommand("printenv A; pwd", { env: { A: "b c" }, cwd: "/tmp" })).stdout, "b c\n/tmp\n");
  await sandbox.filesystem.mkdir("/tmp/dir");
  await sandbox.filesystem.writeFile("/tmp/dir/file", "wörd\n");
  assert.equal(await sandbox.filesystem.readFile("/tmp/dir/file"), "wörd\n");
  await assert.rejects(sandbox.filesystem.readFile("/tmp/none"));
  assert.match(await sandbox.getUrl({ port: 3000 }), /^https:\/\/dm-[a-z0-9]+\.vercel\.run$/);
  const found = await compute.sandbox.getById(sandbox.sandboxId);
  assert.equal(found.sandboxId, sandbox.sandboxId);
  assert.equal((await found.runCommand("cat /tmp/dir/file")).stdout, "wörd\n");

  const snapshot = await compute.snapshot.create(sandbox.sandboxId);
  // It spreads the SDK's object, whose getters do not come along.
  const { id } = snapshot.snapshot;
  assert.match(id, /^snap_/);
  const second = await compute.sandbox.create({ snapshotId: id });
  assert.equal((await second.runCommand("cat /tmp/dir/file")).stdout, "wörd\n");
  await second.destroy();
  assert.equal((await Sandbox.get({ ...credentials, sandboxId: second.sandboxId })).status, "stopped");
  await compute.snapshot.delete(id);
  assert.equal((await Snapshot.get({ ...credentials, snapshotId: id })).status, "deleted");
  assert.equal(await compute.sandbox.getById("sbx_unknown"), null);
});

test("version 1 of the SDK", async () => {
  const source = { type: "git", url: "https://github.com/acme/widgets.git", depth: 1 };
  const options = { ...credentials, source, env: { FROM: "v1" }, resources: { vcpus: 1 }, timeout: 60_000 };
  const sandbox = await Sandbox.create({ ...options, networkPolicy: "deny-all" });
  assert.deepEqual([sandbox.status, sandbox.timeout], ["running", 60_000]);
  const run = async (script, more = {}) => {
    const done = await sandbox.runCommand({ cmd: "bash", args: ["-c", script], ...more });
    return [done.exitCode, (await done.stdout()).trim()];
  };
  assert.deepEqual(await run("echo $FROM; pwd; git log --format=%s -1"), [0, "v1\n/vercel/sandbox\ncommit 3"]);
  assert.deepEqual(await run("id -un", { sudo: true }), [0, "root"]);
  const content = randomBytes(1 << 20);
  await sandbox.writeFiles([{ path: "sub/f.bin", content, mode: 0o755 }]);
  assert.deepEqual(await sandbox.readFileToBuffer({ path: "sub/f.bin" }), content);
  assert.equal(await sandbox.readFile({ path: "none" }), null);
  await sandbox.mkDir("made");
  const detached = await sandbox.runCommand({ cmd: "sleep", args: ["1000"], detached: true });
  await detached.kill("SIGTERM");
  assert.equal((await detached.wait()).exitCode, 143);
  assert.equal((await sandbox.getCommand(detached.cmdId)).exitCode, 143);
  await sandbox.extendTimeout(30_000);
  assert.equal(sandbox.timeout, 90_000);
  await sandbox.updateNetworkPolicy("allow-all");
  assert.equal(sandbox.networkPolicy.mode ?? sandbox.networkPolicy, "allow-all");
  const newest = (await Sandbox.list({ ...credentials, limit: 1 })).json ?? (await Sandbox.list({ ...credentials, limit: 1 }));
  assert.equal(newest.sandboxes[0].id, sandbox.sandboxId);
  if (newest.pagination.next !== null) {
    const older = await Sandbox.list({ ...credentials, limit: 10, until: newest.pagination.next });
    assert.ok(!(older.json ?? older).sandboxes.some((one) => one.id === sandbox.sandboxId));
  }
  const snapshot = await sandbox.snapshot({ expiration: 86_400_000 });
  assert.equal(snapshot.sourceSandboxId, sandbox.sandboxId);
  assert.ok(snapshot.expiresAt > new Date());
  const listed = await Snapshot.list({ ...credentials, limit: 5 });
  assert.ok((listed.json ?? listed).snapshots.some((one) => one.id === snapshot.snapshotId));
  await snapshot.delete();
  // It has no second life.
  await assert.rejects(sandbox.runCommand("true"), (error) => error.response?.status === 410);
  await sandbox.stop();
});
