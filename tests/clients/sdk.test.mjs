// The SDK, method by method, against a real server with real sandboxes.
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { Drive, Sandbox, Snapshot } from "@vercel/sandbox";
import { dormouseFetch, portUrl } from "dormouse-client";
import WebSocket from "ws";

const server = process.env.DORMOUSE_SERVER;
const credentials = {
  token: process.env.DORMOUSE_KEY,
  teamId: process.env.DORMOUSE_TEAM,
  projectId: "sdk",
  fetch: dormouseFetch(server),
};
const made = new Set();
let number = 0;
const create = async (options = {}) => {
  const sandbox = await Sandbox.create({ ...credentials, name: `sdk-${process.pid}-${number++}`, ...options });
  made.add(sandbox);
  return sandbox;
};
const output = async (sandbox, script, options = {}) => {
  const done = await sandbox.runCommand({ cmd: "bash", args: ["-c", script], ...options });
  assert.equal(done.exitCode, 0, `${script}: ${await done.stderr()}`);
  return (await done.stdout()).trim();
};
const status = (wanted, code) => (error) => {
  assert.equal(error.response?.status, wanted, `${error}`);
  if (code) assert.equal(error.json?.error?.code, code);
  return true;
};

after(async () => {
  for (const sandbox of made) await sandbox.delete({ deleteOrphanSnapshots: true }).catch(() => {});
});

test("what a new sandbox says of itself", async () => {
  const sandbox = await create({
    resources: { vcpus: 1 },
    timeout: 120_000,
    tags: { purpose: "test" },
    env: { FROM_SANDBOX: "yes" },
    keepLastSnapshots: { count: 2 },
    snapshotExpiration: 86_400_000,
    ports: [3000],
    region: "iad1",
  });
  assert.equal(sandbox.status, "running");
  assert.deepEqual([sandbox.vcpus, sandbox.memory, sandbox.timeout], [1, 2048, 120_000]);
  assert.equal(sandbox.cwd, "/vercel/sandbox");
  assert.equal(sandbox.persistent, true);
  assert.deepEqual(sandbox.tags, { purpose: "test" });
  assert.deepEqual(sandbox.keepLastSnapshots, { count: 2, deleteEvicted: true });
  assert.equal(sandbox.snapshotExpiration, 86_400_000);
  assert.equal(sandbox.networkPolicy, "allow-all");
  assert.equal(sandbox.region, "iad1");
  assert.deepEqual(sandbox.failoverRegions, []);
  assert.ok(sandbox.expiresAt > new Date() && sandbox.createdAt <= new Date());
  assert.ok(sandbox.statusUpdatedAt instanceof Date && sandbox.updatedAt instanceof Date);
  for (const absent of ["runtime", "networkId", "currentSnapshotId", "sourceSnapshotId", "mounts"]) {
    assert.equal(sandbox[absent], undefined, absent);
  }
  assert.match(sandbox.domain(3000), /^https:\/\/dm-[a-z2-7]{20}\.vercel\.run$/);
  assert.throws(() => sandbox.domain(3001));
  const session = sandbox.currentSession();
  assert.match(session.sessionId, /^sbx_/);
  assert.ok(session.requestedAt instanceof Date && session.startedAt instanceof Date);
  assert.equal(await output(sandbox, "echo $FROM_SANDBOX"), "yes");
});

test("commands", async () => {
  const sandbox = await create();
  const done = await sandbox.runCommand("sh", ["-c", "echo out; echo err >&2; exit 3"]);
  assert.deepEqual([done.exitCode, await done.stdout(), await done.stderr()], [3, "out\n", "err\n"]);
  assert.equal(await done.output("both"), "out\nerr\n");
  assert.equal(await output(sandbox, "pwd", { cwd: "/tmp" }), "/tmp");
  assert.equal(await output(sandbox, "echo $A$B", { env: { A: "1", B: "zwei ä" } }), "1zwei ä");
  assert.equal(await output(sandbox, "id -un; echo $USER $SUDO_USER", { sudo: true }), "root\nroot ubuntu");
  assert.equal((await sandbox.runCommand("no-such-program")).exitCode, 127);
  await assert.rejects(sandbox.runCommand(""), status(400));
  // Time limits are the server's, detached or not.
  assert.equal((await sandbox.runCommand({ cmd: "sleep", args: ["60"], timeoutMs: 200 })).exitCode, 137);

  const detached = await sandbox.runCommand({ cmd: "bash", args: ["-c", "echo a; read -r x < <(sleep 0.3); echo b"], detached: true });
  assert.equal(detached.exitCode, null);
  const again = await sandbox.getCommand(detached.cmdId);
  assert.deepEqual([again.cmdId, again.cwd], [detached.cmdId, "/vercel/sandbox"]);
  const seen = [];
  for await (const line of detached.logs()) seen.push([line.stream, line.data]);
  assert.equal(seen.map(([, data]) => data).join(""), "a\nb\n");
  assert.equal((await again.wait()).exitCode, 0);
  // Replay, for several readers, after the end.
  const texts = await Promise.all([1, 2, 3].map(async () => {
    let text = "";
    for await (const line of again.logs()) text += line.data;
    return text;
  }));
  assert.deepEqual(texts, ["a\nb\n", "a\nb\n", "a\nb\n"]);

  for (const [signal, code] of [["SIGINT", 130], ["SIGTERM", 143], ["SIGKILL", 137]]) {
    const child = await sandbox.runCommand({ cmd: "bash", args: ["-c", "sleep 60 & wait"], detached: true });
    await child.kill(signal);
    assert.equal((await child.wait()).exitCode, code, signal);
  }
  const streamed = { out: "", err: "" };
  const sink = (key) => new (class extends (awaitWritable) {
    _write(chunk, _encoding, callback) { streamed[key] += chunk; callback(); }
  })();
  await sandbox.runCommand({ cmd: "sh", args: ["-c", "echo 1; echo 2 >&2"], stdout: sink("out"), stderr: sink("err") });
  assert.deepEqual(streamed, { out: "1\n", err: "2\n" });
  const controller = new AbortController();
  const aborted = sandbox.runCommand({ cmd: "sleep", args: ["31.7"], signal: controller.signal });
  setTimeout(() => controller.abort(), 200);
  await assert.rejects(aborted);
  assert.equal(await output(sandbox, "pgrep -fc '^sleep 31.7'"), "1", "the command goes on");
});

test("files, byte by byte", async () => {
  const sandbox = await create();
  const big = randomBytes(5 << 20);
  await sandbox.writeFiles([
    { path: "dir/sub/big.bin", content: big },
    { path: "/tmp/run.sh", content: Buffer.from("#!/bin/sh\necho ran\n"), mode: 0o755 },
    { path: "empty", content: Buffer.alloc(0) },
    { path: "text", content: "as text: ü" },
  ]);
  assert.deepEqual(await sandbox.readFileToBuffer({ path: "dir/sub/big.bin" }), big);
  const sum = createHash("sha256").update(big).digest("hex");
  assert.equal((await output(sandbox, "sha256sum dir/sub/big.bin")).split(" ")[0], sum);
  assert.equal(await output(sandbox, "/tmp/run.sh; stat -c '%U %a' /tmp/run.sh text"), "ran\nubuntu 755\nubuntu 644");
  assert.equal((await sandbox.readFileToBuffer({ path: "empty" })).length, 0);
  const chunks = [];
  for await (const chunk of await sandbox.readFile({ path: "text", cwd: "/vercel/sandbox" })) chunks.push(chunk);
  assert.equal(Buffer.concat(chunks).toString(), "as text: ü");
  assert.equal(await sandbox.readFile({ path: "missing" }), null);
  assert.equal(await sandbox.readFileToBuffer({ path: "missing" }), null);
  await assert.rejects(sandbox.readFileToBuffer({ path: "/etc/shadow" }));
  await assert.rejects(sandbox.readFileToBuffer({ path: "/tmp" }));

  await sandbox.mkDir("made");
  assert.equal(await output(sandbox, "stat -c '%F %U' made"), "directory ubuntu");
  await assert.rejects(sandbox.mkDir("a/b/c"), status(400));
  const local = await mkdtemp(join(tmpdir(), "dormouse-sdk-"));
  try {
    const path = await sandbox.downloadFile({ path: "dir/sub/big.bin" }, { path: "x/y.bin", cwd: local }, { mkdirRecursive: true });
    assert.deepEqual(await readFile(path), big);
    assert.equal(await sandbox.downloadFile({ path: "missing" }, { path: "z", cwd: local }), null);
  } finally {
    await rm(local, { recursive: true });
  }
});

test("sandbox.fs", async () => {
  const { fs } = await create();
  await fs.mkdir("/tmp/t/deep", { recursive: true });
  await fs.writeFile("/tmp/t/a", "one");
  await fs.appendFile("/tmp/t/a", "two");
  assert.equal(await fs.readFile("/tmp/t/a", "utf8"), "onetwo");
  assert.deepEqual(Buffer.from(await fs.readFile("/tmp/t/a")), Buffer.from("onetwo"));
  assert.deepEqual((await fs.readdir("/tmp/t")).sort(), ["a", "deep"]);
  const entries = await fs.readdir("/tmp/t", { withFileTypes: true });
  assert.deepEqual(entries.map((entry) => [entry.name, entry.isDirectory()]).sort(), [["a", false], ["deep", true]]);
  const stat = await fs.stat("/tmp/t/a");
  assert.deepEqual([stat.size, stat.isFile(), stat.isDirectory()], [6, true, false]);
  await fs.symlink("/tmp/t/a", "/tmp/t/link");
  assert.equal((await fs.lstat("/tmp/t/link")).isSymbolicLink(), true);
  assert.equal(await fs.readlink("/tmp/t/link"), "/tmp/t/a");
  assert.equal(await fs.realpath("/tmp/t/link"), "/tmp/t/a");
  await fs.copyFile("/tmp/t/a", "/tmp/t/b");
  await fs.rename("/tmp/t/b", "/tmp/t/c");
  assert.deepEqual([await fs.exists("/tmp/t/b"), await fs.exists("/tmp/t/c")], [false, true]);
  await fs.access("/tmp/t/c");
  await fs.chmod("/tmp/t/c", 0o600);
  assert.equal((await fs.stat("/tmp/t/c")).mode & 0o777, 0o600);
  await fs.chown("/tmp/t/c", 1000, 1000);
  await fs.truncate("/tmp/t/c", 3);
  assert.equal(await fs.readFile("/tmp/t/c", "utf8"), "one");
  assert.match(await fs.mkdtemp("/tmp/t/x-"), /^\/tmp\/t\/x-.{6}$/);
  await fs.unlink("/tmp/t/c");
  await fs.rmdir("/tmp/t/deep");
  await assert.rejects(fs.readFile("/tmp/t/none"), { code: "ENOENT" });
  await assert.rejects(fs.mkdir("/tmp/t"), status(400));
  await assert.rejects(fs.rmdir("/tmp/t"), { code: "ENOTEMPTY" });
  await fs.rm("/tmp/t", { recursive: true });
  assert.equal(await fs.exists("/tmp/t"), false);
});

test("Linux users and groups", async () => {
  const sandbox = await create();
  const [alice, bob] = [await sandbox.createUser("alice"), await sandbox.createUser("bob")];
  await assert.rejects(sandbox.createUser("alice"), { name: "SandboxUserAlreadyExistsError" });
  assert.equal(await (await alice.runCommand("whoami")).stdout(), "alice\n");
  await alice.writeFiles([{ path: "notes/hello.txt", content: Buffer.from("hi") }]);
  assert.equal(await output(sandbox, "stat -c '%U' /home/alice/notes/hello.txt", { sudo: true }), "alice");
  assert.equal((await alice.readFileToBuffer({ path: "notes/hello.txt" })).toString(), "hi");
  assert.notEqual((await bob.runCommand("cat", ["/home/alice/notes/hello.txt"])).exitCode, 0);
  assert.notEqual((await bob.runCommand("sudo", ["-n", "true"])).exitCode, 0, "made users have no sudo");
  await alice.mkDir("own");
  assert.equal((await alice.readFile({ path: "none" })), null);
  await sandbox.createGroup("team");
  await sandbox.addUserToGroup("alice", "team");
  await bob.addToGroup("team");
  await alice.runCommand("sh", ["-c", "echo shared > /shared/team/f; chmod 664 /shared/team/f"]);
  assert.equal(await (await bob.runCommand("cat", ["/shared/team/f"])).stdout(), "shared\n");
  assert.equal(await output(sandbox, "stat -c '%G' /shared/team/f", { sudo: true }), "team");
  await sandbox.removeUserFromGroup("alice", "team");
  await bob.removeFromGroup("team");
  assert.equal(await (await sandbox.asUser("alice").runCommand("id", ["-Gn"])).stdout(), "alice\n");
});

test("stop, resume, snapshots, trees", async () => {
  const sandbox = await create();
  await output(sandbox, "echo 0 > /tmp/f; sudo sh -c 'echo 0 > /home/f'; echo 0 > f");
  let session = sandbox.currentSession().sessionId;
  for (let cycle = 1; cycle <= 10; cycle++) {
    const stopped = await sandbox.stop();
    assert.equal(stopped.status, "stopped");
    assert.ok(sandbox.currentSnapshotId, "known at once");
    const ended = sandbox.currentSession();
    assert.ok(ended.requestedStopAt >= ended.startedAt && ended.stoppedAt >= ended.requestedStopAt);
    assert.ok(ended.duration >= 0 && ended.duration === ended.stoppedAt - ended.startedAt);
    assert.equal(ended.abortedAt, undefined);
    assert.equal(stopped.snapshot.id, sandbox.currentSnapshotId);
    const seen = await output(sandbox, `cat /tmp/f /home/f f; for f in /tmp/f f; do echo ${cycle} > $f; done; sudo sh -c 'echo ${cycle} > /home/f'`);
    assert.equal(seen, `${cycle - 1}\n${cycle - 1}\n${cycle - 1}`);
    assert.notEqual(sandbox.currentSession().sessionId, session, "a new session");
    session = sandbox.currentSession().sessionId;
  }
  const snapshot = await sandbox.snapshot({ expiration: 3_600_000 });
  assert.match(snapshot.snapshotId, /^snap_/);
  assert.equal(snapshot.status, "created");
  assert.ok(snapshot.sizeBytes >= 0 && snapshot.createdAt instanceof Date && snapshot.updatedAt instanceof Date);
  const left = snapshot.expiresAt - Date.now();
  assert.ok(left > 3_500_000 && left <= 3_600_000, `${left}`);
  assert.equal((await Snapshot.get({ ...credentials, snapshotId: snapshot.snapshotId })).sourceSessionId, session);

  const sessions = await (await sandbox.listSessions({ limit: 4 })).toArray();
  assert.equal(sessions.length, 11);
  const snapshots = await (await sandbox.listSnapshots({ limit: 3 })).toArray();
  assert.equal(snapshots.length, 11);
  assert.equal(snapshots[0].id, snapshot.snapshotId, "newest first");
  assert.equal(snapshots[1].creationMethod, "automatic");
  const up = await Snapshot.tree({ ...credentials, snapshotId: snapshot.snapshotId, sortOrder: "desc", limit: 3 });
  assert.deepEqual(up.snapshots.map((node) => node.snapshot.id), snapshots.slice(1, 4).map((s) => s.id));
  assert.equal(up.anchor.snapshot.id, snapshot.snapshotId);
  const down = await Snapshot.tree({ ...credentials, snapshotId: snapshots[2].id, sortOrder: "asc", limit: 1 });
  assert.equal(down.snapshots[0].snapshot.id, snapshots[1].id);
  const whole = await Snapshot.tree({ ...credentials, snapshotId: snapshot.snapshotId, sortOrder: "desc", limit: 4 });
  assert.equal((await whole.toArray()).length, 10);
  assert.ok((await (await Snapshot.list({ ...credentials, limit: 5 })).toArray()).length >= 11);

  // From a snapshot, and from another sandbox.
  const copy = await create({ source: { type: "snapshot", snapshotId: snapshot.snapshotId } });
  assert.equal(copy.sourceSnapshotId, snapshot.snapshotId);
  assert.equal(await output(copy, "cat /tmp/f"), "10");
  const fork = await Sandbox.fork({ ...credentials, sourceSandbox: sandbox.name, tags: { kind: "fork" } });
  made.add(fork);
  assert.equal(await output(fork, "cat f; echo mine > f"), "10");
  assert.equal(await output(sandbox, "cat f"), "10", "nothing comes back");
  assert.deepEqual(fork.tags, { kind: "fork" });
  await assert.rejects(Sandbox.fork({ ...credentials, sourceSandbox: "nobody" }), status(404));

  // A deleted snapshot has the right code at each place.
  await copy.stop();
  const own = copy.currentSnapshotId;
  await (await Snapshot.get({ ...credentials, snapshotId: own })).delete();
  assert.equal((await Snapshot.get({ ...credentials, snapshotId: own })).status, "deleted");
  await assert.rejects(Sandbox.get({ ...credentials, name: copy.name, resume: true }), status(410, "snapshot_not_found"));
  await assert.rejects(create({ source: { type: "snapshot", snapshotId: own } }), status(410, "snapshot_not_found"));
  await assert.rejects(Snapshot.get({ ...credentials, snapshotId: "snap_none" }), status(404));
  await assert.rejects(copy.update({ currentSnapshotId: "snap_none" }), status(404));
  // … and getOrCreate begins anew.
  const anew = await Sandbox.getOrCreate({ ...credentials, name: copy.name, resume: true });
  assert.equal(await output(anew, "ls /tmp/f 2>/dev/null || echo gone"), "gone");
});

test("a sandbox that keeps nothing", async () => {
  const sandbox = await create({ persistent: false });
  await output(sandbox, "echo x > /tmp/f");
  const stopped = await sandbox.stop();
  assert.equal(stopped.snapshot, undefined);
  assert.equal(await output(sandbox, "ls /tmp/f 2>/dev/null || echo gone"), "gone");
  await output(sandbox, "echo y > /tmp/f");
  for (let round = 0; round < 2; round++) {
    await sandbox.snapshot();
    assert.equal(await output(sandbox, "cat /tmp/f"), "y", "kept by hand");
  }
});

test("retention", async () => {
  const sandbox = await create({ keepLastSnapshots: { count: 2 } });
  for (let round = 0; round < 4; round++) {
    await sandbox.stop();
    await sandbox.resume();
  }
  const statuses = (await (await sandbox.listSnapshots()).toArray()).map((snapshot) => snapshot.status);
  assert.deepEqual(statuses, ["created", "created", "deleted", "deleted"]);
  await sandbox.update({ keepLastSnapshots: null });
  assert.equal(sandbox.keepLastSnapshots, undefined);
});

test("getOrCreate, lists, updates, names", async () => {
  const name = `list-${process.pid}`;
  let calls = 0;
  const options = { ...credentials, name: `${name}-b`, tags: { group: name }, onCreate: () => { calls++; } };
  const first = await Sandbox.getOrCreate(options);
  made.add(first);
  const second = await Sandbox.getOrCreate(options);
  assert.equal(calls, 1);
  assert.equal(second.currentSession().sessionId, first.currentSession().sessionId);
  const other = await create({ name: `${name}-a`, tags: { group: name } });
  await assert.rejects(create({ name: `${name}-a`, tags: { group: name } }), status(409));
  await assert.rejects(create({ name: "not a name" }), status(400));
  const names = async (query) => (await (await Sandbox.list({ ...credentials, ...query })).toArray()).map((s) => s.name);
  assert.deepEqual(await names({ tags: { group: name }, limit: 1 }), [`${name}-a`, `${name}-b`]);
  assert.deepEqual(await names({ sortBy: "name", sortOrder: "asc", namePrefix: name, limit: 1 }), [`${name}-a`, `${name}-b`]);
  assert.deepEqual(await names({ sortBy: "statusUpdatedAt", sortOrder: "asc", tags: { group: name } }), [`${name}-b`, `${name}-a`]);
  assert.deepEqual(await names({ tags: { group: "nobody" } }), []);

  await other.update({ timeout: 600_000, resources: { vcpus: 4 }, tags: { a: "b" }, persistent: false, ports: [8080] });
  assert.deepEqual([other.timeout, other.vcpus, other.tags, other.persistent], [600_000, 4, { a: "b" }, false]);
  assert.match(other.domain(8080), /^https:/);
  await other.update({ ports: [] });
  assert.throws(() => other.domain(8080));
  const before = other.expiresAt;
  await other.extendTimeout(60_000);
  assert.ok(other.expiresAt - before >= 60_000);
  await assert.rejects(other.extendTimeout(10 * 3_600_000), status(400, "sandbox_timeout_invalid"));
  await other.stop();
  await other.update({ resources: { vcpus: 2 } });
  await other.resume();
  assert.equal(other.currentSession().vcpus, 2, "an update holds from the next session on");

  // A name is free again at once, and what is gone is gone at once.
  await other.delete();
  await assert.rejects(Sandbox.get({ ...credentials, name: `${name}-a` }), status(404));
  const again = await create({ name: `${name}-a` });
  assert.notEqual(again.currentSession().sessionId, other.currentSession().sessionId);
});

test("one resume for two who ask at once", async () => {
  const sandbox = await create();
  await sandbox.stop();
  const [a, b] = await Promise.all([1, 2].map(() => Sandbox.get({ ...credentials, name: sandbox.name, resume: true })));
  assert.equal(a.currentSession().sessionId, b.currentSession().sessionId);
  // A stop under way is waited for.
  const stopping = a.stop();
  const resumed = await Sandbox.get({ ...credentials, name: sandbox.name, resume: true });
  assert.equal(resumed.status, "running");
  await stopping;
  const asleep = await Sandbox.get({ ...credentials, name: sandbox.name, resume: false });
  assert.equal(asleep.currentSession().sessionId, resumed.currentSession().sessionId);
});

test("network policies", async () => {
  const sandbox = await create({ networkPolicy: "deny-all" });
  const dns = "getent hosts github.com >/dev/null && echo up || echo down";
  assert.equal(sandbox.networkPolicy, "deny-all");
  assert.equal(await output(sandbox, dns), "down", "from the first instruction on");
  await sandbox.updateNetworkPolicy("allow-all");
  assert.equal(await output(sandbox, dns), "up");
  await sandbox.update({ networkPolicy: { subnets: { allow: ["192.0.2.0/24"], deny: ["192.0.2.1/32"] } } });
  assert.deepEqual(sandbox.networkPolicy, { subnets: { allow: ["192.0.2.0/24"], deny: ["192.0.2.1/32"] } });
  assert.equal(await output(sandbox, dns), "down");
  await sandbox.stop();
  assert.equal(await output(sandbox, dns), "down", "and of every later session");
  const rules = { allow: { "a.test": [{ transform: [{ headers: { authorization: "Bearer s3cret" } }] }], "b.test": [] } };
  const shown = JSON.stringify(await sandbox.updateNetworkPolicy(rules));
  assert.match(shown, /"a\.test".*authorization/);
  assert.match(JSON.stringify((await Sandbox.get({ ...credentials, name: sandbox.name })).networkPolicy), /"a\.test".*authorization.*redacted/);
  for (const refused of [{ allow: ["no domain"] }, { allow: { "a.test": [{ transform: [{ headers: { host: "b" } }] }] } }]) {
    await assert.rejects(sandbox.updateNetworkPolicy(refused), status(400, "bad_request"));
  }
});

test("sources", async () => {
  const url = "https://github.com/acme/widgets.git";
  const cloned = await create({ source: { type: "git", url, depth: 2 } });
  assert.equal(await output(cloned, "git -C widgets rev-list --count HEAD; git -C widgets remote get-url origin"), `2\n${url}`);
  const head = await output(cloned, "git -C widgets rev-parse HEAD");
  const at = await create({ source: { type: "git", url, revision: head } });
  assert.equal(await output(at, "git -C widgets rev-parse HEAD"), head);
  const branch = await create({ source: { type: "git", url, revision: "main" }, networkPolicy: "deny-all" });
  assert.equal(await output(branch, "git -C widgets branch --show-current"), "main");
  await assert.rejects(create({ source: { type: "git", url: "https://github.com/acme/none.git" } }), status(400));
  await assert.rejects(create({ source: { type: "git", url: "file:///etc" } }), status(400));
  await assert.rejects(create({ source: { type: "tarball", url: "http://127.0.0.1:1/x.tgz" } }), status(400));
});

test("what this server does not have is refused by name", async () => {
  await assert.rejects(create({ region: "sfo1" }), /region/);
  await assert.rejects(create({ failoverRegions: ["sfo1"] }), /failoverRegions/);
  await assert.rejects(create({ networkId: "net_1" }), /networkId/);
  await assert.rejects(create({ runtime: "cobol85" }), /cobol85/);
  await assert.rejects(create({ image: "nobody/nothing:1" }), /nobody\/nothing/);
  await assert.rejects(create({ ports: Array.from({ length: 16 }, (_, i) => 3000 + i) }), /ports/);
  await assert.rejects(Sandbox.list({ ...credentials, teamId: "acc_somebody_else" }), status(403));
});

test("drives", async () => {
  const name = `drive-${process.pid}`;
  const drive = await Drive.getOrCreate({ ...credentials, name, maxSize: 64 << 20 });
  assert.deepEqual([drive.name, drive.maxSize, drive.region], [name, 64 << 20, "iad1"]);
  assert.equal((await Drive.getOrCreate({ ...credentials, name })).driveId, drive.driveId);
  const writer = await create({ mounts: { "/data": drive } });
  const quota = "head -c 100M /dev/zero > /data/big; rm /data/big; echo kept > /data/file; stat -c %U /data/file";
  const over = await writer.runCommand("bash", ["-c", quota]);
  assert.equal((await over.stdout()).trim(), "ubuntu");
  assert.match(await over.stderr(), /Disk quota exceeded/);
  // One writes, several see what was there when they came.
  await assert.rejects(create({ mounts: { "/data": drive } }), status(409));
  const readers = [await create({ mounts: { "/ro": drive.snapshot() } }), await create({ mounts: { "/ro": drive.snapshot() } })];
  await output(writer, "echo later > /data/file");
  for (const reader of readers) {
    assert.equal(await output(reader, "cat /ro/file; echo x 2>/dev/null > /ro/y || echo refused"), "kept\nrefused");
  }
  const listed = [];
  for await (const found of await Drive.list(credentials)) if (found.name === name) listed.push(found.currentSandboxName);
  assert.deepEqual(listed, [writer.name]);
  await assert.rejects(drive.delete(), status(409));
  // A stop gives it back; a resume takes it again.
  await writer.stop();
  const next = await create({ mounts: { "/home/ubuntu/deep/data": drive } });
  assert.equal(await output(next, "cat deep/data/file", { cwd: "/home/ubuntu" }), "later");
  await next.delete();
  assert.equal(await output(writer, "cat /data/file"), "later");
  await writer.delete();
  await Promise.all(readers.map((reader) => reader.delete()));
  // The SDK has no method for these yet.
  const call = async (method, path, body) => {
    const url = `${server}/api/v2/sandboxes/drives/${path}?teamId=${credentials.teamId}&projectId=${credentials.projectId}`;
    const headers = { authorization: `Bearer ${credentials.token}`, "content-type": "application/json" };
    const reply = await fetch(url, { method, headers, body: body && JSON.stringify(body) });
    return [reply.status, await reply.json()];
  };
  assert.equal((await call("POST", `${name}/fork`, { name: `${name}-fork` }))[0], 200);
  const fork = await Drive.getOrCreate({ ...credentials, name: `${name}-fork` });
  const forked = await create({ mounts: { "/data": fork } });
  await output(forked, "echo forked > /data/file");
  const original = await create({ mounts: { "/data": drive } });
  assert.equal(await output(original, "cat /data/file"), "later");
  await forked.delete();
  await original.delete();
  await fork.delete();
  await drive.delete();
  assert.deepEqual((await call("GET", name)).map((part) => part.error?.code ?? part), [404, "not_found"]);
  await assert.rejects(create({ mounts: { "/data": drive } }), status(404));
  const five = Object.fromEntries([1, 2, 3, 4, 5].map((n) => [`/d${n}`, drive]));
  await assert.rejects(create({ mounts: five }), status(400));
});

test("ports", async () => {
  const sandbox = await create({ ports: [3000, 3001] });
  const url = portUrl(sandbox, 3000);
  // A name under localhost resolves nowhere on some machines: the host header says it too.
  const { host } = new URL(url);
  const via = (path, init = {}) => fetchHost(host, path, init);
  const closed = await via("/");
  assert.equal(closed.status, 502);
  assert.equal((await closed.json()).error.code, "SANDBOX_NOT_LISTENING");
  await sandbox.writeFiles([{ path: "server.mjs", content: Buffer.from(`
    import { createServer } from "node:http";
    import { createHash } from "node:crypto";
    const server = createServer((request, response) => {
      const hash = createHash("sha256");
      request.on("data", (chunk) => hash.update(chunk));
      request.on("end", () => {
        response.setHeader("x-host", request.headers.host);
        response.end(request.method + " " + request.url + " " + hash.digest("hex"));
      });
    });
    server.on("upgrade", (request, socket) => {
      const key = createHash("sha1").update(request.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest("base64");
      socket.write("HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\nSec-WebSocket-Accept: " + key + "\\r\\n\\r\\n");
      socket.write(Buffer.from([0x81, 5, ...Buffer.from("hello")]));
    });
    server.listen(3000, "127.0.0.1");
  `) }]);
  await sandbox.runCommand({ cmd: "node", args: ["server.mjs"], detached: true });
  let answer;
  for (let i = 0; i < 100; i++) {
    answer = await via("/a?b=c", { method: "POST", body: "x" });
    if (answer.status === 200) break;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  const sum = (data) => createHash("sha256").update(data).digest("hex");
  assert.equal(await answer.text(), `POST /a?b=c ${sum("x")}`);
  assert.equal(answer.headers["x-host"], host);
  const big = randomBytes(20 << 20);
  assert.equal(await (await via("/", { method: "PUT", body: big })).text(), `PUT / ${sum(big)}`);
  const greeting = await new Promise((resolve, reject) => {
    const socket = new WebSocket(server.replace("http", "ws"), { headers: { host } });
    socket.on("message", (data) => { resolve(String(data)); socket.close(); });
    socket.on("error", reject);
  });
  assert.equal(greeting, "hello");
  await sandbox.stop();
  const asleep = await via("/");
  assert.deepEqual([asleep.status, (await asleep.json()).error.code], [410, "SANDBOX_STOPPED"]);
  const unknown = await fetchHost(`dm-${"a".repeat(20)}.vercel.run`, "/");
  assert.deepEqual([unknown.status, (await unknown.json()).error.code], [404, "SANDBOX_NOT_FOUND"]);
});

test("terminals", async () => {
  const sandbox = await create();
  const { url, token } = await sandbox.openInteractive();
  const shown = await new Promise((resolve, reject) => {
    const socket = new WebSocket(`${url}?token=${encodeURIComponent(token)}`);
    let text = "";
    socket.on("open", () => {
      socket.send(JSON.stringify({ type: "start", command: "bash", args: ["--norc"], env: ["TERM=xterm-256color", "PS1=> "], cwd: "/tmp", cols: 91, rows: 33 }));
      socket.send(Buffer.from("stty size; tty; pwd; echo $TERM\n"));
      setTimeout(() => {
        socket.send(JSON.stringify({ type: "resize", cols: 77, rows: 22 }));
        socket.send(Buffer.from("stty size; exit 7\n"));
      }, 400);
    });
    socket.on("message", (data, binary) => {
      if (binary) return (text += data);
      const message = JSON.parse(data);
      if (message.type === "exit") resolve({ text, code: message.code });
    });
    socket.on("close", () => reject(new Error(`closed: ${text}`)));
    socket.on("error", reject);
  });
  assert.equal(shown.code, 7);
  for (const part of ["33 91", "/dev/pts/", "/tmp", "xterm-256color", "22 77"]) assert.ok(shown.text.includes(part), `${part} in ${shown.text}`);
  // A ticket is good once.
  const again = await new Promise((resolve) => {
    const socket = new WebSocket(`${url}?token=${encodeURIComponent(token)}`);
    socket.on("unexpected-response", (request, response) => {
      resolve(response.statusCode);
      request.destroy();
    });
    socket.on("open", () => resolve("open"));
    socket.on("error", () => {});
  });
  assert.equal(again, 403);
});

// --- helpers that need more than one line ---

import { request } from "node:http";
import { Writable as awaitWritable } from "node:stream";

/** One request to the server with a host header of its own. */
function fetchHost(host, path, { method = "GET", body } = {}) {
  return new Promise((resolve, reject) => {
    const { hostname, port } = new URL(server);
    const call = request({ hostname, port, path, method, headers: { host, ...(body && { "content-length": Buffer.byteLength(body) }) } }, (answer) => {
      const chunks = [];
      answer.on("data", (chunk) => chunks.push(chunk));
      answer.on("end", () => {
        const text = async () => Buffer.concat(chunks).toString();
        resolve({ status: answer.statusCode, headers: answer.headers, text, json: async () => JSON.parse(await text()) });
      });
      answer.on("error", reject);
    });
    call.on("error", reject);
    call.end(body);
  });
}
