// SDK 2.0.0-beta.11, which existing users of the session API ship: version 2 of
// the paths, the older policy form, a stop that polls, logs in a second call.
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { test } from "node:test";
import { Sandbox } from "@vercel/sandbox-beta";
import { dormouseFetch } from "dormouse-client";

const credentials = {
  token: process.env.DORMOUSE_KEY,
  teamId: process.env.DORMOUSE_TEAM,
  projectId: "beta",
  fetch: dormouseFetch(process.env.DORMOUSE_SERVER),
};

test("the jobs that its users have", async () => {
  const name = `beta-${process.pid}`;
  const source = { type: "git", url: "https://github.com/acme/widgets.git", depth: 1 };
  const sandbox = await Sandbox.create({ ...credentials, name, source, env: { A: "b" }, ports: [3000], timeout: 300_000 });
  const run = async (script) => {
    const done = await sandbox.runCommand({ cmd: "bash", args: ["-c", script] });
    return [done.exitCode, (await done.stdout()).trim()];
  };
  try {
    assert.deepEqual(await run("echo $A; git rev-parse --is-inside-work-tree; pwd"), [0, "b\ntrue\n/vercel/sandbox"]);
    assert.deepEqual(await run("exit 9"), [9, ""]);
    const content = randomBytes(1 << 20);
    await sandbox.writeFiles([{ path: "sub/f.bin", content }]);
    assert.deepEqual(await sandbox.readFileToBuffer({ path: "sub/f.bin" }), content);
    await sandbox.mkDir("made");
    assert.match(sandbox.domain(3000), /^https:\/\/dm-/);
    const policy = { subnets: { allow: ["192.0.2.0/24"] } };
    assert.deepEqual(await sandbox.updateNetworkPolicy(policy), policy);
    await sandbox.extendTimeout(60_000);
    await sandbox.stop();
    assert.deepEqual(await run("ls -d sub made"), [0, "made\nsub"]);
    assert.equal((await run("cat sub/f.bin | wc -c"))[1], String(1 << 20), "everything came back");
    const again = await Sandbox.get({ ...credentials, name });
    assert.equal(again.name, name);
  } finally {
    await sandbox.delete();
  }
});
