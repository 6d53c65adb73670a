// The `sandbox` command line, through the preload, against a real server.
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";

const program = join(import.meta.dirname ?? new URL(".", import.meta.url).pathname, "node_modules/.bin/sandbox");
const scope = ["--token", process.env.DORMOUSE_KEY, "--scope", process.env.DORMOUSE_TEAM, "--project", "cli"];
const env = { ...process.env, NODE_OPTIONS: "--import dormouse-client/register", NO_COLOR: "1" };
const name = `cli-${process.pid}`;

/** Runs a subcommand: exit code and what it printed. */
function sandbox(command, ...args) {
  const [head, ...rest] = command.split(" ");
  return new Promise((resolve) => {
    execFile(program, [head, ...rest, ...scope, ...args], { env }, (error, stdout, stderr) => {
      resolve({ code: error?.code ?? 0, stdout, all: stdout + stderr });
    });
  });
}
async function ok(...args) {
  const done = await sandbox(...args);
  assert.equal(done.code, 0, `${args}: ${done.all}`);
  return done;
}

after(async () => {
  for (const one of [name, `${name}-fork`, `${name}-run`]) await sandbox("rm", one);
});

test("from create to remove", async () => {
  await ok("create", "--name", name, "--timeout", "5m", "--vcpus", "1", "--tag", "a=b", "--env", "E=value", "--publish-port", "3000");
  assert.match((await ok("list")).stdout, new RegExp(`${name} +running.* 1 `));
  const done = await sandbox("exec", name, "--", "bash", "-c", "echo $E; echo err >&2; exit 4");
  assert.deepEqual([done.code, done.stdout], [4, "value\n"]);
  assert.equal((await ok("exec", "--sudo", name, "--", "id", "-un")).stdout, "root\n");

  const dir = await mkdtemp(join(tmpdir(), "dormouse-cli-"));
  try {
    await writeFile(join(dir, "in"), "copied\n");
    await ok("cp", join(dir, "in"), `${name}:/tmp/in`);
    await ok("cp", `${name}:/tmp/in`, join(dir, "out"));
    assert.equal(await readFile(join(dir, "out"), "utf8"), "copied\n");
  } finally {
    await rm(dir, { recursive: true });
  }

  const id = (await ok("snapshot", "--stop", name)).all.match(/snap_\w+/)[0];
  assert.match((await ok("snapshots list")).stdout, new RegExp(`${id} +created`));
  assert.match((await ok("snapshots get", id)).all, new RegExp(id));
  assert.match((await ok("snapshots tree", name)).all, new RegExp(`${id}.*current`));
  await ok("fork", name, "--name", `${name}-fork`);
  assert.equal((await ok("exec", `${name}-fork`, "--", "cat", "/tmp/in")).stdout, "copied\n");
  await ok("config vcpus", name, "2");
  await ok("config network-policy", name, "--network-policy", "deny-all");
  await ok("config timeout", name, "6m");
  const config = (await ok("config list", name)).stdout;
  for (const line of [/vCPUs +2/, /Timeout +6 minutes/, /Network policy +deny-all/, /Tags +a/]) assert.match(config, line);
  await ok("exec", name, "--", "true");
  assert.match((await ok("sessions list", "--all", name)).stdout, /running[^]*stopped/);
  await ok("stop", name);
  const refused = await sandbox("create", "--name", "x", "--region", "sfo1");
  assert.notEqual(refused.code, 0);
  assert.match(refused.all, /iad1/);
  const run = await sandbox("run", "--name", `${name}-run`, "--", "sh", "-c", "echo ran; exit 6");
  assert.deepEqual([run.code, run.stdout.includes("ran\n")], [6, true], run.all);
  await ok("snapshots delete", id);
  await ok("rm", name, `${name}-fork`);
  assert.doesNotMatch((await ok("list", "--all")).stdout, new RegExp(`${name}\\b(?!-run)`));
});

test("connect, under a pseudo-terminal", async () => {
  await ok("create", "--name", name);
  const line = [program, "connect", ...scope, name].join(" ");
  const child = spawn("script", ["-qec", `stty cols 80 rows 24; ${line}`, "/dev/null"], { env });
  let shown = "";
  let typed = false;
  child.stdout.on("data", (data) => {
    shown += data;
    // The prompt names the working directory.
    if (!typed && shown.includes("/vercel/sandbox/")) {
      typed = true;
      child.stdin.write("echo in-$((40+2))-side; tty; exit 5\r");
    }
  });
  const code = await new Promise((resolve) => child.on("close", resolve));
  assert.equal(code, 5, shown);
  assert.match(shown, /in-42-side/);
  assert.match(shown, /\/dev\/pts\/\d/);
});
