// A chromium that is told what to do line by line.
//
// Reads one command a line from standard input, {"command": name, "arguments": [...]}, and answers each with one line:
// {"result": ...} or {"error": message}. Ends with its input.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const { chromium } = createRequire(import.meta.url)("playwright-core"); // `import` would not look into NODE_PATH

export const LIMIT = 120_000; // ms for a command
const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

let browser;

// A new page of a user of its own; takeComplaints gives console errors and uncaught exceptions since the last time.
export async function openPage(executablePath, viewport) {
  browser ??= await chromium.launch({ executablePath, headless: true, args: FLAGS });
  const page = await (await browser.newContext({ viewport })).newPage();
  page.setDefaultTimeout(LIMIT);
  const complaints = [];
  page.on("console", (message) => {
    if (message.type() === "error") complaints.push(`${message.text()} (${message.location().url})`);
  });
  page.on("pageerror", (error) => complaints.push(`uncaught: ${error.message}`));
  const takeComplaints = () => complaints.splice(0);
  return { page, takeComplaints };
}

function limited(promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer in ${LIMIT / 1000} s`)), LIMIT);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

// Does what each line asks for, by commands of that name, until there are no more.
export async function answer(commands) {
  for await (const line of createInterface({ input: process.stdin })) {
    const { command, arguments: values } = JSON.parse(line);
    let reply;
    try {
      reply = { result: (await limited(commands[command](...values))) ?? null };
    } catch (error) {
      reply = { error: `${command}: ${error.message}` };
    }
    process.stdout.write(`${JSON.stringify(reply)}\n`);
  }
  await browser.close();
}
