// Dev servers in a sandbox, by their URL, in a browser: what is saved inside is
// on the page without a reload.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { after, before, test } from "node:test";
import { Sandbox } from "@vercel/sandbox";
import { dormouseFetch, portUrl } from "dormouse-client";
import { chromium } from "playwright-core";

const bundle = "/etc/ssl/certs/ca-certificates.crt";
const credentials = {
  token: process.env.DORMOUSE_KEY,
  teamId: process.env.DORMOUSE_TEAM,
  projectId: "hmr",
  fetch: dormouseFetch(process.env.DORMOUSE_SERVER),
};
let sandbox;
let browser;

const run = async (script) => {
  const done = await sandbox.runCommand("bash", ["-c", script]);
  assert.equal(done.exitCode, 0, `${script}: ${await done.stdout()}${await done.stderr()}`);
  return (await done.stdout()).trim();
};

before(async () => {
  sandbox = await Sandbox.create({
    ...credentials,
    ports: [5173, 3000],
    timeout: 1_200_000,
    resources: { vcpus: 2 },
    env: { NODE_EXTRA_CA_CERTS: bundle, NEXT_TELEMETRY_DISABLED: "1", CI: "1" },
  });
  // The registries' certificates, as this machine knows them.
  await sandbox.writeFiles([{ path: "/tmp/bundle", content: await readFile(bundle) }]);
  await run(`sudo cp /tmp/bundle ${bundle}`);
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu"] });
});

after(async () => {
  await browser?.close();
  await sandbox?.delete();
});

// Opens `port` until `text` is there, changes `file`, and wants `changed` on the same page.
const edits = async (port, file, text, changed) => {
  const page = await browser.newPage();
  const errors = [];
  page.on("pageerror", (error) => errors.push(String(error)));
  for (let left = 60; ; left -= 1) {
    const answer = await page.goto(portUrl(sandbox, port)).catch(() => null);
    if (answer?.ok()) break;
    assert.ok(left > 0, `port ${port} answers ${answer?.status()}`);
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
  await page.getByText(text).waitFor({ timeout: 60_000 });
  // Hydrated and connected: a reload would lose this.
  await page.waitForLoadState("networkidle");
  await page.evaluate(() => { window.notReloaded = true; });
  await run(`sed -i 's/${text}/${changed}/' ${file}`);
  await page.getByText(changed).waitFor({ timeout: 60_000 });
  assert.equal(await page.evaluate(() => window.notReloaded), true);
  assert.deepEqual(errors, []);
  await page.close();
};

test("Vite", { timeout: 400_000 }, async () => {
  await run("npx --yes create-vite@9.3.0 vite-app --template react --no-interactive < /dev/null && cd vite-app && npm install --silent");
  await run(`cd vite-app && cat > src/App.jsx <<'JSX'
export default function App() {
  return <h1>before the change</h1>;
}
JSX`);
  await run("cd vite-app && npm run build 2>&1 | grep -q 'built in'");
  await sandbox.runCommand({ cmd: "npm", args: ["run", "dev", "--", "--host", "--port", "5173"], cwd: "/vercel/sandbox/vite-app", detached: true });
  await edits(5173, "vite-app/src/App.jsx", "before the change", "after the change");
});

test("Next", { timeout: 600_000 }, async () => {
  await run("npx --yes create-next-app@16.4.3 next-app --ts --no-eslint --no-tailwind --app --no-src-dir --import-alias '@/*' --use-npm --disable-git --yes < /dev/null 2>&1 | tail -3");
  await run(`cd next-app && cat > app/page.tsx <<'TSX'
export default function Page() {
  return <h1>before the change</h1>;
}
TSX`);
  await run("cd next-app && npm run build 2>&1 | tail -20");
  await sandbox.runCommand({ cmd: "npm", args: ["run", "dev"], cwd: "/vercel/sandbox/next-app", detached: true });
  await edits(3000, "next-app/app/page.tsx", "before the change", "after the change");
});
