// Plays users of `ctsr app` in a real chromium, each in a browser context of its own.
//
//   NODE_PATH=<folder of playwright-core> node app_driver.mjs URL CHROMIUM
//
// Commands come and are answered as loop.mjs says; the first argument of each is the user's name.

import { readFile } from "node:fs/promises";
import { answer, openPage } from "./loop.mjs";

const VIEW = { width: 1600, height: 900 };
const TOAST = ".toast-body";
const [url, executablePath] = process.argv.slice(2);
const users = {};

// --- in the page: functions that run in the browser --------------------------------------------------------------------

// From every move of a slider to the end of the frame that shows it, in milliseconds.
function timeMoves() {
  window.times = [];
  const measure = (event) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => window.times.push(performance.now() - event.timeStamp);
    requestAnimationFrame(() => port2.postMessage(null));
  };
  addEventListener("input", (event) => { if (event.target.type === "range") measure(event); }, true);
}

function readState() {
  const style = (name) => getComputedStyle(document.querySelector(name));
  const value = (name) => document.querySelector(name).value;
  const stage = document.querySelector(".ctsr-stage");
  return {
    t: Number(value("#ctsr-t input[type=number]")),
    reasons: value("#ctsr-reasons textarea"),
    report: value("#ctsr-report textarea"),
    ...(stage && {
      title: document.querySelector(".ctsr-bar span").textContent,
      opacity: Number(style(".ctsr-faithful").opacity),
      exact: Number(style(".ctsr-exact").opacity),
      cut: style(".ctsr-input").clipPath,
      word: getComputedStyle(document.querySelector(".ctsr-bar output"), "::before").content.replaceAll('"', ""),
      width: document.querySelector(".ctsr-realistic").getBoundingClientRect().width,
    }),
  };
}

// Another picture is a new element, so that the one before is known by a mark.
function isNew() {
  const shown = document.querySelector(".ctsr-exact");
  return shown?.dataset.old !== "1" && shown?.complete && getComputedStyle(shown).opacity === "1";
}

function isExact(before) {
  const shown = document.querySelector(".ctsr-exact");
  return shown?.src !== before && shown?.complete && getComputedStyle(shown).opacity === "1";
}

// --- commands ----------------------------------------------------------------------------------------------------------

const layer = (user, name) => users[user].page.locator(`.ctsr-${name}`).getAttribute("src");

const commands = {
  async open(user) {
    const { page, takeComplaints } = await openPage(executablePath, VIEW);
    users[user] = { page, takeComplaints, asked: [] };
    page.on("request", (request) => users[user].asked.push(request.url()));
    await page.addInitScript(timeMoves);
    await page.goto(url);
    await page.waitForSelector("#ctsr-file button");
  },

  // Chooses a file where pictures go, in place of the one before.
  async choose(user, { name, base64 }) {
    const { page } = users[user];
    const remove = page.locator("#ctsr-file button[aria-label='Clear']");
    if (await remove.count()) await remove.click();
    const buffer = Buffer.from(base64, "base64");
    await page.setInputFiles("#ctsr-file input[type=file]", { name, mimeType: "application/octet-stream", buffer });
    await remove.waitFor();
  },

  // Clicks Upscale; the message of what went wrong, or null once the exact picture is shown.
  async upscale(user) {
    const { page } = users[user];
    for (const toast of await page.locator(`${TOAST} button`).all()) await toast.click();
    await page.waitForFunction((toast) => !document.querySelector(toast), TOAST);
    await page.evaluate(() => document.querySelector(".ctsr-exact")?.setAttribute("data-old", "1"));
    await page.click("#ctsr-start");
    const shown = page.waitForFunction(isNew).then(() => null);
    const refused = page.waitForSelector(TOAST).then((toast) => toast.innerText());
    return await Promise.race([shown, refused]);
  },

  // Drags t over values in [0, 1]; the page's state and what it asked of the server before the button was released.
  async drag(user, values) {
    const { page } = users[user];
    const before = await layer(user, "exact");
    const range = await page.locator("#ctsr-t input[type=range]").boundingBox();
    const place = (value) => [range.x + range.width * value, range.y + range.height / 2];
    await page.mouse.move(...place((await page.evaluate(readState)).t));
    await page.mouse.down();
    users[user].asked = [];
    for (const value of values) {
      await page.mouse.move(...place(value));
      await page.evaluate(() => new Promise(requestAnimationFrame));
    }
    const state = { ...(await page.evaluate(readState)), asked: [...users[user].asked] };
    await page.mouse.up();
    await page.waitForFunction(isExact, before);
    return state;
  },

  // Presses a key on t's slider; its end is shown exactly where the key moves t.
  async key(user, name, moves) {
    const { page } = users[user];
    const before = await layer(user, "exact");
    await page.locator("#ctsr-t input[type=range]").press(name);
    if (moves) await page.waitForFunction(isExact, before);
  },

  // Paints along a line between two points, each in parts of the picture's sides.
  async paint(user, from, to) {
    const { page } = users[user];
    const before = await layer(user, "exact");
    const { x, y, width, height } = await page.locator(".ctsr-plane").boundingBox();
    await page.mouse.move(x + width * from[0], y + height * from[1]);
    await page.mouse.down();
    await page.mouse.move(x + width * to[0], y + height * to[1], { steps: 20 });
    await page.mouse.up();
    await page.waitForFunction(isExact, before);
  },

  // Moves the slider that lays the input over the result, in percent.
  async compare(user, percent) {
    await users[user].page.locator(".ctsr-bar input").fill(String(percent));
  },

  async press(user, name) {
    await users[user].page.getByRole("button", { name, exact: true }).click();
  },

  async report(user) {
    const { page } = users[user];
    await page.click("#ctsr-ask");
    await page.waitForFunction(() => document.querySelector("#ctsr-report textarea").value !== "");
  },

  // The saved file: its name and its bytes in base64.
  async save(user) {
    const { page } = users[user];
    const [download] = await Promise.all([page.waitForEvent("download"), page.click("#ctsr-save")]);
    const bytes = await readFile(await download.path());
    return { name: download.suggestedFilename(), base64: bytes.toString("base64") };
  },

  async state(user) {
    return await users[user].page.evaluate(readState);
  },

  // The address of one of the pictures that lie over each other.
  layer,

  async times(user) {
    return await users[user].page.evaluate(() => window.times);
  },

  async asked(user) {
    return users[user].asked;
  },

  async look(user) {
    return (await users[user].page.screenshot()).toString("base64");
  },

  async complaints(user) {
    return users[user].takeComplaints();
  },
};

await answer(commands);
