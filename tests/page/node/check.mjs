// Opens pages of the status page in Chromium, at two widths in both colour schemes, and has axe look for what keeps
// people from using them. Then filters and sorts one of them. Called with one JSON object:
// {chromium, root, pages, large, shots}: paths of pages below root; large: the one to filter and sort; shots: a
// folder for pictures, or "". Prints one JSON object: {pages, violations: [text], faults: [text]}.
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const WIDTHS = { 390: 844, 1280: 900 };
const SCHEMES = ["light", "dark"];
const asked = JSON.parse(process.argv[2]);
const root = pathToFileURL(`${asked.root}/`).href;
const axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
// Chromium's sandbox refuses to run as root.
const args = process.getuid() === 0 ? ["--no-sandbox"] : [];
const browser = await chromium.launch({ executablePath: asked.chromium, args });
const violations = [];
const faults = [];

function expect(what, found, wanted) {
  const [one, other] = [JSON.stringify(found), JSON.stringify(wanted)];
  if (one !== other) faults.push(`${what}: ${one}, not ${other}`);
}

async function opened(context, path) {
  const page = await context.newPage();
  page.on("console", (message) => message.type() === "error" && faults.push(`${path}: ${message.text()}`));
  page.on("pageerror", (error) => faults.push(`${path}: ${error.message}`));
  page.on("request", (request) => {
    if (!request.url().startsWith(root) && !request.url().startsWith("data:")) faults.push(`${path}: asks for ${request.url()}`);
  });
  await page.goto(root + path);
  return page;
}

for (const [width, height] of Object.entries(WIDTHS)) {
  for (const colorScheme of SCHEMES) {
    const context = await browser.newContext({ viewport: { width: Number(width), height }, colorScheme });
    for (const path of asked.pages) {
      const where = `${path} at ${width} px, ${colorScheme}`;
      const page = await opened(context, path);
      const over = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
      if (over > 0) faults.push(`${where}: ${over} px wider than the screen`);
      if (asked.shots) {
        const name = `${path.replaceAll("/", "-").replace(".html", "")}-${width}-${colorScheme}.png`;
        await page.screenshot({ path: `${asked.shots}/${name}`, fullPage: path !== asked.large });
      }
      await page.evaluate(axe);
      const found = await page.evaluate(() => window.axe.run({ preload: false }));
      for (const { id, help, nodes } of found.violations) {
        violations.push(`${where}: ${id}: ${help}: ${nodes.length} times, first ${nodes[0].html.slice(0, 200)}`);
      }
      await page.close();
    }
    await context.close();
  }
}

const rows = (page) => page.locator("tbody tr:visible");
const column = (page, number) =>
  page.locator("tbody tr").evaluateAll((all, at) => all.map((row) => row.cells[at].dataset.value ?? ""), number);

async function tryTable() {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
  let page = await opened(context, asked.large);
  const count = await rows(page).count();
  await page.keyboard.press("Tab");
  expect("the first stop of Tab", await page.evaluate(() => document.activeElement.className), "skip");

  const kl = page.getByRole("button", { name: "KL" });
  await kl.focus();
  await page.keyboard.press("Enter");
  const values = (await column(page, 5)).map((text) => (text === "" ? Infinity : Number(text)));
  expect("KL in order", values, [...values].sort((a, b) => a - b));
  await page.keyboard.press("Enter");
  const falling = (await column(page, 5)).filter(Boolean).map(Number);
  expect("KL in the other order", falling, [...falling].sort((a, b) => b - a));
  expect("aria-sort", await page.locator("[aria-sort]").evaluateAll((all) => all.map((head) => head.ariaSort)), ["descending"]);
  expect("the focus", await page.evaluate(() => document.activeElement.textContent), "KL");

  await page.getByRole("searchbox").fill("qwen v1");
  await page.getByRole("button", { name: /^Published/ }).focus();
  await page.keyboard.press("Space");
  const texts = (await rows(page).allTextContents()).map((text) => text.toLowerCase());
  expect("fewer rows", texts.length > 0 && texts.length < count, true);
  expect("rows that fit", texts.every((text) => ["qwen", "v1", "published"].every((word) => text.includes(word))), true);
  expect("what is announced", await page.getByRole("status").textContent(), `${texts.length} of ${count} models`);
  expect("the address", new URL(page.url()).hash, "#q=qwen+v1&state=published&sort=-kl");

  const address = page.url();
  await page.close();
  page = await context.newPage();
  await page.goto(address);
  expect("the same rows by the address", (await rows(page).allTextContents()).map((text) => text.toLowerCase()), texts);
  await page.getByRole("link", { name: "Skip to the content" }).focus();
  await page.keyboard.press("Enter");
  expect("rows after a link within the page", await rows(page).count(), texts.length);
  await context.close();

  const plain = await browser.newContext({ javaScriptEnabled: false });
  page = await plain.newPage();
  await page.goto(root + asked.large);
  expect("rows without a script", await rows(page).count(), count);
  expect("a filter without a script", await page.locator("form:visible").count(), 0);
  expect("counts without a script", await page.locator(".counts:visible").count(), 1);
  await plain.close();
}

await tryTable();
await browser.close();
console.log(JSON.stringify({ pages: asked.pages.length, violations, faults }));
