// Playwright's driver on the browser of the image, with the options that everybody
// gives it: none.
import { createRequire } from "node:module";
const { chromium } = createRequire("/usr/local/lib/node_modules/")("playwright");
const browser = await chromium.launch();
const page = await browser.newPage();
await page.setContent(`<button onclick="this.textContent = 'clicked'">click me</button>`);
await page.getByText("click me").click();
console.log(await page.locator("button").textContent());
await browser.close();
