// Plays a user of ComfyUI in a real chromium.
//
//   NODE_PATH=<folder of playwright-core> node driver.mjs URL CHROMIUM
//
// Commands come and are answered as loop.mjs says.

import { answer, openPage } from "./loop.mjs";

const AGAIN = 5_000; // ms after which a click that nothing came of is made again
const VIEW = { width: 1600, height: 900 };
const BEYOND = 30; // pixels past the end of a slider, which in Nodes 2.0 lags behind the mouse by up to 12
const ROOM = 300; // of the canvas, more than half of a node that is placed in its middle
const MOST_MISSED = 4; // wires, before a name that is not listed ends a way
const PASTED = [400, 300]; // where a pasted picture lies, so that panels at the sides leave room for two nodes more
const LISTED = 1_000; // ms in which the search box's list follows what is typed
const WIRE = 100; // pixels of the window between a node's output and the next node
const ENDINGS = ["execution_success", "execution_error", "execution_interrupted"];
const EVENTS = ["execution_cached", "executed", ...ENDINGS];
const AT_ONCE = 2_000; // ms for what follows a key or click without the host
// Each selector names older frontends' element first, then newer ones'.
const DIALOG = ".p-dialog:visible, [role=dialog]:visible, [data-testid=error-overlay]:visible";
const CLOSE = ".p-dialog-close-button, [data-testid=error-overlay-dismiss], button:has(.pi-times), [aria-label^=Close]";
const SEARCH_BOX = "input[id*='node-search-box-input'], input[placeholder^='Add a node']";
const OPTION = ".p-autocomplete-option, [data-testid=result-item]";
const LIBRARY_TAB = ".node-library-tab-button, button[aria-label^='Node Library']";
const LIBRARY_SEARCH = ".node-lib-search-box input, input[role=combobox][placeholder^=Search]";
const LIBRARY_ENTRY = ".tree-leaf, [role=treeitem]";
const TEMPLATES_TAB = ".templates-tab-button, button[aria-label=Templates]";
const TEMPLATE = ".template-card, [data-testid^=template-workflow-]";
const ERROR_DETAILS = "[data-testid=error-overlay-see-errors]";
const ERROR_PANEL = "[data-testid=runtime-error-panel]";

const [url, executablePath] = process.argv.slice(2);
const { page, takeComplaints } = await openPage(executablePath, VIEW);

// --- in the page: functions that run in the browser --------------------------------------------------------------------

function prepare(names) {
  window.findNode = (name) => app.graph.nodes.find((node) => node.type === name || node.title === name);
  // What a node shows: several pictures are only in the page in Nodes 2.0.
  window.imagesOf = (node) => node.imgs ?? [...document.querySelectorAll(`[data-node-id="${node.id}"] img[src*=view]`)];
  window.presses = 0;
  addEventListener("pointerdown", ({ isTrusted }) => (window.presses += isTrusted), true);
  window.moves = []; // ms from each move of a drag to the end of the frame after it
  const time = (event) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => window.moves.push(performance.now() - event.timeStamp);
    requestAnimationFrame(() => port2.postMessage(null));
  };
  addEventListener("pointermove", (event) => event.buttons && time(event), true);
  window.seen = [];
  for (const name of names) app.api.addEventListener(name, ({ detail }) => window.seen.push({ name, detail }));
}

function dropFile({ name, text }) {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([text], name, { type: "application/json" }));
  const canvas = document.querySelector("#graph-canvas");
  const { x, y, width, height } = canvas.getBoundingClientRect();
  const at = { clientX: x + width / 2, clientY: y + height - 20 };
  window.before = new Set(app.graph.nodes);
  for (const kind of ["dragenter", "dragover", "drop"]) {
    canvas.dispatchEvent(new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer, ...at }));
  }
}

function readDial() {
  const { layers, word } = window.findNode("CTSRDial").ctsrDial;
  const opacity = ({ style }) => Number(style.opacity);
  return {
    word: word.textContent,
    faithful: opacity(layers.faithful),
    exact: opacity(layers.exact),
    urls: Object.fromEntries(["realistic", "faithful", "exact"].map((name) => [name, layers[name].src])),
    moves: window.moves,
    heard: window.seen.length,
  };
}

function isReplaced() {
  return app.graph.nodes.length > 0 && !app.graph.nodes.some((node) => window.before.has(node));
}

function describeGraph() {
  const isKnown = ({ type }) => type in LiteGraph.registered_node_types || app.graph.subgraphs.has(type);
  return {
    types: app.graph.nodes.map((node) => node.type),
    missing: app.graph.nodes.filter((node) => !isKnown(node) || node.has_errors).map((node) => node.type),
  };
}

// Pixels of the window: of the middle of a node's title and its box, or of a slider's ends.
function locate({ type, widget }) {
  const node = window.findNode(type);
  const element = document.querySelector(`[data-node-id="${node.id}"]`); // of Nodes 2.0
  if (element) {
    const box = (selector) => (selector ? element.querySelector(selector) : element).getBoundingClientRect();
    const { left, right, top, bottom } = box(widget && `[data-slot=slider][aria-label=${widget}]`);
    const header = box("[data-testid^=node-header]");
    const [x, y] = [(header.left + header.right) / 2, (header.top + header.bottom) / 2];
    if (!widget) return { title: [x, y], box: [[left, top], [right, bottom]] };
    const { min, max } = node.widgets.find(({ name }) => name === widget).options;
    return { low: [left, (top + bottom) / 2], high: [right, (top + bottom) / 2], min, max };
  }
  const { scale, offset } = app.canvas.ds;
  const canvas = app.canvas.canvas.getBoundingClientRect();
  const place = (x, y) => [
    canvas.x + (node.pos[0] + x + offset[0]) * scale,
    canvas.y + (node.pos[1] + y + offset[1]) * scale,
  ];
  const title = place(node.size[0] / 2, -LiteGraph.NODE_TITLE_HEIGHT / 2);
  if (!widget) return { title, box: [place(0, 0), place(...node.size)] };
  const { last_y, options } = node.widgets.find(({ name }) => name === widget);
  const [margin, y] = [15, last_y + LiteGraph.NODE_WIDGET_HEIGHT / 2];
  return { low: place(margin, y), high: place(node.size[0] - margin, y), min: options.min, max: options.max };
}

// Pans until nothing lies in the middle of the canvas; returns its middle in pixels of the window.
function freeTheMiddle(room) {
  const right = Math.max(...app.graph.nodes.map(({ pos, size }) => pos[0] + size[0]));
  const { x, y, width, height } = app.canvas.canvas.getBoundingClientRect();
  app.canvas.ds.offset[0] = width / 2 / app.canvas.ds.scale - right - room;
  app.canvas.setDirty(true, true);
  return [x + width / 2, y + height / 2];
}

function readWidgets(type) {
  return Object.fromEntries(window.findNode(type).widgets.map(({ name, value }) => [name, value]));
}

function isFinished(names) {
  return window.seen.some(({ name }) => names.includes(name));
}

function readPictures() {
  return app.graph.nodes.flatMap((node) => {
    const images = window.imagesOf(node);
    const sizes = images.map((image) => [image.naturalWidth, image.naturalHeight]);
    return images.length ? [{ type: node.type, title: node.title, sizes, urls: images.map(({ src }) => src) }] : [];
  });
}

// Whether output nodes show what the host said last; videos are no pictures.
function arePicturesLoaded() {
  const told = window.seen.filter(({ name, detail }) => name === "executed" && !detail.output?.animated);
  return told.every(({ detail }) => {
    const shown = window.imagesOf(app.graph.getNodeById(detail.node));
    const names = (detail.output?.images ?? []).map(({ filename }) => encodeURIComponent(filename));
    const isTold = ({ src, naturalWidth }) => naturalWidth > 0 && names.some((name) => src.includes(name));
    return names.length === 0 || (shown.length > 0 && shown.every(isTold)); // Nodes 2.0 may show one of several
  });
}

function addNode({ type, values }) {
  const node = LiteGraph.createNode(type);
  for (const [name, value] of Object.entries(values)) node.widgets.find((widget) => widget.name === name).value = value;
  node.pos = [0, 1000];
  app.graph.add(node);
}

// Titles of the cards in the template browser.
function readTitles(card) {
  return [...document.querySelectorAll(`:is(${card}) h3`)].map((title) => title.title);
}

// Other cards than those before, which stay for a while after a pack was chosen.
function areOthers({ card, before }) {
  const titles = [...document.querySelectorAll(`:is(${card}) h3`)].map((title) => title.title);
  return titles.length > 0 && titles.join() !== before.join();
}

// Titles and the widths of their pictures, once all are loaded: a card that was may be made anew and load again.
function readCards(card) {
  const cards = [...document.querySelectorAll(card)];
  const missing = cards.find((card) => !card.querySelector("img")?.naturalWidth);
  missing?.scrollIntoView(); // pictures out of sight are loaded late
  const read = (card) => [card.querySelector("h3").title, card.querySelector("img").naturalWidth];
  return cards.length > 0 && missing === undefined && Object.fromEntries(cards.map(read));
}

// Text of the help page; "" while the frontend fetches it.
function readHelp() {
  return document.querySelector(".node-help-content")?.innerText.trim() ?? "";
}

function readOptions() {
  const options = [...document.querySelectorAll("[role=option], [data-testid*=result]")];
  return options.map((option) => option.innerText.split("\n")[0].trim()).filter(Boolean);
}

// Connects a node's outputs and inputs by their names, as a user's drag does.
function connectNodes(links) {
  for (const [source, output, target, input] of links) {
    const [from, to] = [window.findNode(source), window.findNode(target)];
    from.connect(from.findOutputSlot(output), to, to.findInputSlot(input));
  }
}

function copyPicture(picture) {
  const bytes = Uint8Array.from(atob(picture), (letter) => letter.charCodeAt(0));
  return navigator.clipboard.write([new ClipboardItem({ "image/png": new Blob([bytes], { type: "image/png" }) })]);
}

// Pixels of the window where only the canvas is.
function findFreePlace() {
  const { canvas, ds } = app.canvas;
  const { left, right, top, bottom } = canvas.getBoundingClientRect();
  for (let y = bottom - 20; y > top; y -= 20) {
    for (let x = left + 20; x < right; x += 20) {
      const [graphX, graphY] = [(x - left) / ds.scale - ds.offset[0], (y - top) / ds.scale - ds.offset[1]];
      const isFree = !app.graph.getNodeOnPos(graphX, graphY) && !app.graph.getGroupOnPos(graphX, graphY);
      if (isFree && document.elementFromPoint(x, y) === canvas) return [x, y];
    }
  }
}

function locateOutput(title) {
  const [x, y] = window.findNode(title).getConnectionPos(false, 0);
  const { canvas, ds } = app.canvas;
  const { left, top } = canvas.getBoundingClientRect();
  return [left + (x + ds.offset[0]) * ds.scale, top + (y + ds.offset[1]) * ds.scale];
}

// Place of a name in the search box's list, from 1; 0 while it is not there.
function findOption({ option, name }) {
  const lines = [...document.querySelectorAll(option)].map((found) => found.innerText.split("\n"));
  return 1 + lines.findIndex((texts) => texts.some((text) => text.trim() === name));
}

function isFollowing() {
  return (app.canvas.state.ghostNodeId ?? null) !== null;
}

// Where the mouse at a place must go for the node that follows it, not always at its side, to have its middle there.
function aimFor([x, y]) {
  const { canvas, ds, state } = app.canvas;
  const { left, top } = canvas.getBoundingClientRect();
  const { pos, size } = app.graph.getNodeById(state.ghostNodeId);
  const middle = pos[0] + size[0] / 2;
  return [2 * x - left - (middle + ds.offset[0]) * ds.scale, 2 * y - top - (pos[1] + ds.offset[1]) * ds.scale];
}

function isSearchGone(box) {
  return document.querySelector(box) === null && document.querySelector("[role=dialog]") === null;
}

// --- commands ----------------------------------------------------------------------------------------------------------

// Shows a pack's cards in the template browser.
async function openTemplates(pack) {
  await page.locator(TEMPLATES_TAB).click();
  await page.waitForFunction((card) => document.querySelector(card) !== null, TEMPLATE);
  const before = await page.evaluate(readTitles, TEMPLATE);
  await page.locator(DIALOG).getByText(pack, { exact: true }).click();
  try {
    await page.waitForFunction(areOthers, { card: TEMPLATE, before }, { timeout: AGAIN });
  } catch (error) {
    if (error.name !== "TimeoutError") throw error; // a host that has none of its own shows the same ones
  }
}

// Drags a wire from a node's first output; returns where it is let go.
async function pullWire(title) {
  await page.waitForTimeout(300); // the canvas is drawn with the next frames
  const [x, y] = await page.evaluate(locateOutput, title);
  await page.mouse.move(x, y);
  await page.mouse.down();
  await page.mouse.move(x + WIRE, y, { steps: 8 });
  await page.mouse.up();
  return [x + WIRE, y];
}

// Takes what the open search box lists under a name for a text.
async function take(text, name) {
  await page.locator(SEARCH_BOX).last().fill(text, { timeout: AGAIN });
  await page.waitForTimeout(LISTED);
  const found = await page.waitForFunction(findOption, { option: OPTION, name }, { timeout: AGAIN });
  const index = await found.jsonValue();
  for (let step = 1; step < index; step += 1) await page.keyboard.press("ArrowDown");
  await page.keyboard.press("Enter");
  await page.waitForFunction((name) => window.findNode(name), name, { timeout: AGAIN });
}

// Clicks where a new node shall lie if it follows the mouse; returns how many clicks that took.
async function putDown(place) {
  if (!(await page.evaluate(isFollowing))) return 0;
  await page.waitForFunction(isSearchGone, SEARCH_BOX); // it takes clicks while it fades
  const aim = await page.evaluate(aimFor, place);
  await page.mouse.move(...aim, { steps: 5 });
  await page.mouse.click(...aim);
  await page.waitForFunction(() => app.canvas.state.ghostNodeId === null);
  return 1;
}

const commands = {
  // Loads the page and waits until it knows a type of node.
  async open(type) {
    await page.goto(url);
    await page.waitForFunction((name) => window.LiteGraph?.registered_node_types?.[name] && window.app?.graph, type);
    await page.waitForFunction(() => app.extensionManager?.workflow?.activeWorkflow);
    await page.waitForLoadState("networkidle"); // the workflow that newer frontends begin with
    await page.waitForFunction(() => document.querySelector(".p-blockui-mask") === null);
    await page.evaluate(prepare, EVENTS);
  },

  // Drops a file on the canvas; returns the types of its nodes and those that are missing.
  async drop(file) {
    await page.evaluate(dropFile, file);
    await page.waitForFunction(isReplaced);
    return await page.evaluate(describeGraph);
  },

  // Clicks Run and waits for the end, or for a dialog that says why there is none.
  async run() {
    await page.evaluate(() => (window.seen.length = 0));
    await page.getByRole("button", { name: "Run", exact: true }).first().click(); // newer ones have a menu beside it
    await Promise.race([page.waitForFunction(isFinished, ENDINGS), page.waitForSelector(DIALOG)]);
    if (await page.evaluate(isFinished, ENDINGS)) await page.waitForFunction(arePicturesLoaded);
    return await page.evaluate(() => window.seen);
  },

  // Drags a slider to the part of its way that the value asks for, past its ends for them; returns the value it took.
  async slide(type, widget, value) {
    const { low, high, min, max } = await page.evaluate(locate, { type, widget });
    const past = BEYOND * ((value === max) - (value === min));
    const [x, y] = [low[0] + ((high[0] - low[0]) * (value - min)) / (max - min) + past, low[1]];
    await page.mouse.move((low[0] + high[0]) / 2, y);
    await page.mouse.down();
    await page.mouse.move(x, y, { steps: 5 });
    await page.mouse.up();
    return (await commands.widgets(type))[widget];
  },

  // What the live dial shows, how soon it followed the drags so far, and how much was heard of the host since Run.
  async dial() {
    return await page.evaluate(readDial);
  },

  async widgets(type) {
    return await page.evaluate(readWidgets, type);
  },

  async pictures() {
    return await page.evaluate(readPictures);
  },

  // What the window shows where a node is, as a PNG in base64.
  async look(type) {
    await page.waitForTimeout(300); // the canvas is drawn with the next frames
    const [[left, top], [right, bottom]] = (await page.evaluate(locate, { type })).box;
    const image = await page.screenshot({ clip: { x: left, y: top, width: right - left, height: bottom - top } });
    return image.toString("base64");
  },

  // Text of the dialog; newer frontends show the host's own words in a panel beside the canvas.
  async dialog() {
    const details = page.locator(ERROR_DETAILS);
    if (!(await details.isVisible())) return await page.locator(DIALOG).first().innerText();
    await details.click();
    return await page.locator(ERROR_PANEL).innerText();
  },

  async dismiss() {
    await page.keyboard.press("Escape");
    try {
      await page.waitForSelector(DIALOG, { state: "hidden", timeout: AT_ONCE });
    } catch {
      await page.locator(DIALOG).locator(CLOSE).first().click();
      await page.waitForSelector(DIALOG, { state: "hidden" });
    }
  },

  // The help page that the info button of a selected node opens. A click on a canvas that is still being laid out selects
  // nothing, and a button that is drawn anew loses its click: so select and click again until the page is there.
  async help(type) {
    for (;;) {
      const { title } = await page.evaluate(locate, { type });
      await page.mouse.click(...title);
      try {
        await page.getByTestId("info-button").click({ timeout: AGAIN });
        return await (await page.waitForFunction(readHelp, null, { timeout: AGAIN })).jsonValue();
      } catch (error) {
        if (error.name !== "TimeoutError") throw error;
      }
    }
  },

  // Places what the node library finds first under a name in the middle of the canvas, from which the others are moved.
  async place(name) {
    const middle = await page.evaluate(freeTheMiddle, ROOM);
    await page.locator(LIBRARY_TAB).click();
    await page.locator(LIBRARY_SEARCH).first().fill(name);
    const before = await page.evaluate(() => app.graph.nodes.length);
    await page.locator(LIBRARY_ENTRY).getByText(name, { exact: true }).first().click(); // newer hosts list a pack's too
    try {
      await page.waitForFunction((count) => app.graph.nodes.length > count, before, { timeout: AT_ONCE });
    } catch {
      await page.mouse.click(...middle); // on newer frontends it follows the mouse until a click
      await page.waitForFunction((count) => app.graph.nodes.length > count, before);
    }
    await page.locator(LIBRARY_TAB).click();
    return await page.evaluate(describeGraph);
  },

  // Names that the search box, opened by a double click on the empty canvas, lists for a text.
  async search(text) {
    for (let tries = 1; ; tries += 1) {
      await page.keyboard.press("Escape");
      const { x, y, width, height } = await page.locator("#graph-canvas").boundingBox();
      await page.mouse.dblclick(x + 0.6 * width, y + 0.7 * height);
      try {
        await page.locator(SEARCH_BOX).last().fill(text, { timeout: AGAIN });
        await page.waitForTimeout(LISTED);
        const names = await page.evaluate(readOptions);
        await page.keyboard.press("Escape");
        if (names.length === 0 && tries < 5) continue; // a box that was opened before the list was ready stays empty
        return names;
      } catch (error) {
        if (error.name !== "TimeoutError") throw error;
      }
    }
  },

  async clear() {
    await page.evaluate(() => app.graph.clear());
  },

  // Adds a node below the others, with values of its widgets.
  async add(type, values) {
    await page.evaluate(addNode, { type, values });
  },

  async connect(links) {
    await page.evaluate(connectNodes, links);
  },

  // Loads a pack's template from the template browser.
  async choose(pack, title) {
    await page.evaluate(() => (window.before = new Set(app.graph.nodes)));
    await openTemplates(pack);
    await page.locator(TEMPLATE).filter({ hasText: title }).first().click();
    await page.waitForFunction(isReplaced);
    return await page.evaluate(describeGraph);
  },

  // Shows the workflow that the host begins with.
  async begin() {
    await page.evaluate(() => app.loadGraphData());
  },

  // Empties the canvas, and pastes a picture: base64 of a PNG. Keys reach the canvas once it was clicked.
  async paste(picture) {
    await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
    await page.evaluate(copyPicture, picture);
    const free = await page.evaluate(findFreePlace);
    await page.mouse.click(...free);
    await page.keyboard.press("Control+a");
    await page.keyboard.press("Delete");
    await page.waitForFunction(() => app.graph.nodes.length === 0);
    await page.mouse.move(...PASTED);
    await page.keyboard.press("Control+v");
    await page.waitForFunction(() => app.graph.nodes.some((node) => window.imagesOf(node)[0]?.naturalWidth));
  },

  // Drags a wire from a node's first output to the empty canvas, and takes what the search box lists under a name by the
  // keys. Returns the presses beyond that: `placed`, for the node, which follows the mouse on newer frontends, and `missed`,
  // for wires that a page which is being laid out missed.
  async follow(title, text, name) {
    for (let missed = 0; ; missed += 1) {
      let end;
      try {
        end = await pullWire(title);
        await take(text, name);
      } catch (error) {
        if (error.name !== "TimeoutError" || missed === MOST_MISSED) throw error;
        await page.keyboard.press("Escape");
        continue;
      }
      return { missed, placed: await putDown(end) };
    }
  },

  // How often a button of the mouse was pressed since the page was opened.
  async presses() {
    return await page.evaluate(() => window.presses);
  },

  // Console errors and uncaught exceptions since the last time.
  complaints: takeComplaints,

  // The template browser's cards of a pack: the width of each one's picture.
  async templates(pack) {
    await openTemplates(pack);
    const widths = await (await page.waitForFunction(readCards, TEMPLATE)).jsonValue();
    await commands.dismiss();
    return widths;
  },
};

await answer(commands);
