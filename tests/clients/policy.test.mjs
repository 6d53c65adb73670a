// What the systems that serve the session API send with every sandbox: a policy that
// lets everything out and puts their GitHub token on requests, by the SDK of today in its
// own form and by the one that they ship in the older form.
import assert from "node:assert/strict";
import { after, test } from "node:test";
import { Sandbox } from "@vercel/sandbox";
import { Sandbox as BetaSandbox } from "@vercel/sandbox-beta";
import { dormouseFetch } from "dormouse-client";

const credentials = {
  token: process.env.DORMOUSE_KEY,
  teamId: process.env.DORMOUSE_TEAM,
  projectId: "policy",
  fetch: dormouseFetch(process.env.DORMOUSE_SERVER),
};
const token = process.env.DORMOUSE_PRIVATE_TOKEN;
const basic = `Basic ${Buffer.from(`x-access-token:${token}`).toString("base64")}`;
const rule = (authorization) => [{ transform: [{ headers: { authorization } }] }];
const policy = (secret) => ({
  allow: {
    "github.com": rule(`Basic ${Buffer.from(`x-access-token:${secret}`).toString("base64")}`),
    "api.github.com": rule(`Bearer ${secret}`),
    "uploads.github.com": rule(`Bearer ${secret}`),
    "codeload.github.com": rule(`Bearer ${secret}`),
    "*": [],
  },
});
const repository = "https://github.com/private/gadgets.git";
const made = [];
after(() => Promise.all(made.map((sandbox) => sandbox.delete().catch(() => {}))));

for (const [name, Client] of [
  ["today's SDK", Sandbox],
  ["the older SDK", BetaSandbox],
]) {
  const run = async (sandbox, script) => {
    const done = await sandbox.runCommand({ cmd: "bash", args: ["-c", `export GIT_TERMINAL_PROMPT=0; ${script}`] });
    return [done.exitCode, `${await done.stdout()}${await done.stderr()}`.trim()];
  };
  const works = async (sandbox, script) => {
    const [code, text] = await run(sandbox, script);
    assert.equal(code, 0, `${script}: ${text}`);
    return text;
  };

  test(`${name}: a private repository by a header that is never inside`, async () => {
    const options = { ...credentials, name: `policy-${made.length}-${process.pid}`, timeout: 300_000 };
    const sandbox = await Client.create({ ...options, networkPolicy: policy(token) });
    made.push(sandbox);
    const hidden = (value) => {
      const text = JSON.stringify(value);
      assert.ok(!text.includes(token) && !text.includes(basic.slice(6)), text);
      return text;
    };
    assert.match(hidden(sandbox.networkPolicy), /github\.com.*authorization/);
    await works(sandbox, `git clone -q ${repository} gadgets && cat gadgets/file1`);
    await works(sandbox, "cd gadgets && git fetch -q origin");
    const branch = `by-${made.length}`;
    await works(
      sandbox,
      `cd gadgets && git config user.name T && git config user.email t@t.test && echo x > x && git add x && git commit -qm x && git push -q origin HEAD:refs/heads/${branch}`,
    );
    assert.equal(await works(sandbox, `env | grep -c -e ${token.slice(0, 12)} -e x-access-token || :`), "0");
    // A look does not change it; a reconnect sends it again; the next run has it.
    const again = await Client.get({ ...credentials, name: options.name });
    hidden(again.networkPolicy);
    await works(again, "cd gadgets && git fetch -q origin");
    await again.updateNetworkPolicy(policy(token));
    await works(again, "cd gadgets && git fetch -q origin");
    await again.stop();
    await works(again, "cd gadgets && git fetch -q origin");
    // Another token: the old one is gone at once.
    await again.updateNetworkPolicy(policy("ghp_wrongwrongwrongwrong"));
    const [code, said] = await run(again, "cd gadgets && git fetch -q origin");
    assert.notEqual(code, 0, said);
  });

  test(`${name}: a clone as the source, with its policy and with a password of its own`, async () => {
    const source = { type: "git", url: repository, depth: 1 };
    const options = { ...credentials, timeout: 300_000 };
    const byPolicy = await Client.create({
      ...options,
      name: `source-${made.length}-${process.pid}`,
      source,
      networkPolicy: policy(token),
    });
    made.push(byPolicy);
    assert.equal(await works(byPolicy, "cat file1 gadgets/file1 2>/dev/null || :"), "1");
    const byPassword = await Client.create({
      ...options,
      name: `source-${made.length}-${process.pid}`,
      source: { ...source, username: "x-access-token", password: token },
    });
    made.push(byPassword);
    assert.equal(await works(byPassword, "cat file1 gadgets/file1 2>/dev/null || :"), "1");
    assert.equal(await works(byPassword, `grep -rl ${token.slice(0, 12)} . || :`), "");
    const [code] = await run(byPassword, "cd gadgets 2>/dev/null; git fetch -q origin");
    assert.notEqual(code, 0, "the password was for the clone alone");
  });

  test(`${name}: only what is listed`, async () => {
    const sandbox = await Client.create({
      ...credentials,
      name: `listed-${made.length}-${process.pid}`,
      networkPolicy: { allow: ["github.com"] },
    });
    made.push(sandbox);
    assert.deepEqual(sandbox.networkPolicy, { allow: ["github.com"] });
    await works(sandbox, "git ls-remote -q https://github.com/acme/widgets HEAD");
    const [code, said] = await run(sandbox, "curl -sS -m 5 https://api.github.com/");
    assert.equal(code, 6, said);
    await sandbox.updateNetworkPolicy("deny-all");
    assert.notEqual((await run(sandbox, "git ls-remote -q https://github.com/acme/widgets HEAD"))[0], 0);
  });
}
