// The picture on CTSRDial: both ends of the dial lie over each other, and the upper one's opacity is t. That is a blend of
// pictures where the model blends latents, so it is called a preview until the next run has given the exact one.
// Without this file the node is a plain slider.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const BRUSH = 256; // pixels of what is painted
const NONE = "linear-gradient(#0000, #0000)";
const WORDS = {
  en: { input: "input", clear: "clear", before: "run once", exact: "exact", preview: "preview" },
  zh: { input: "输入", clear: "清除", before: "先运行一次", exact: "精确", preview: "预览" },
  ja: { input: "入力", clear: "消去", before: "まず一度実行", exact: "確定", preview: "プレビュー" },
};
const STYLE = `
.ctsr-dial { display: flex; flex-direction: column; width: 100%; height: 100%; font: 12px sans-serif; color: #ccc; }
.ctsr-dial .plane { position: relative; flex: 1; min-height: 0; background: #111; overflow: hidden; }
.ctsr-dial .plane > * { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; }
.ctsr-dial canvas { opacity: 0; cursor: crosshair; touch-action: none; }
.ctsr-dial .bar { display: flex; gap: 6px; align-items: center; padding: 4px 0; }
.ctsr-dial .bar input { flex: 1; min-width: 40px; }
`;

function make(tag, properties = {}, parent = undefined) {
  const element = Object.assign(document.createElement(tag), properties);
  parent?.append(element);
  return element;
}

function address({ filename, subfolder, type }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type, rand: Math.random() })}`);
}

class Dial {
  constructor(node) {
    this.words = WORDS[app.extensionManager?.setting?.get("Comfy.Locale")] ?? WORDS.en;
    this.widgets = Object.fromEntries(node.widgets.map((widget) => [widget.name, widget]));
    this.exact = {}; // t and painting of the decode that is shown
    this.root = make("div", { className: "ctsr-dial" });
    const plane = make("div", { className: "plane" }, this.root);
    this.layers = {};
    for (const name of ["realistic", "faithful", "painted", "exact", "input"]) {
      this.layers[name] = make("img", { draggable: false, hidden: true }, plane);
    }
    this.canvas = make("canvas", {}, plane);
    this.canvas.onpointerdown = this.canvas.onpointermove = (event) => this.paint(event);
    this.canvas.onpointerup = () => { this.widgets.painted.value = this.canvas.toDataURL(); this.draw(); };
    const bar = make("div", { className: "bar" }, this.root);
    make("span", { textContent: this.words.input }, bar);
    this.slider = make("input", { type: "range", min: 0, max: 100, value: 0, oninput: () => this.draw() }, bar);
    make("button", { textContent: this.words.clear, onclick: () => this.clear() }, bar);
    this.word = make("span", { textContent: this.words.before }, bar);
    const dragged = this.widgets.t.callback;
    this.widgets.t.callback = (...values) => { dragged?.apply(this.widgets.t, values); this.draw(); };
  }

  show(told) {
    for (const [name, layer] of Object.entries(this.layers)) {
      const file = told[name === "painted" ? "faithful" : name];
      layer.hidden = !file;
      if (file) layer.src = address(file);
    }
    this.exact = { t: told.t, painted: told.painted };
    const { faithful } = this.layers;
    faithful.onload = () => {
      const height = Math.max(1, Math.round((BRUSH * faithful.naturalHeight) / faithful.naturalWidth));
      if (this.canvas.height !== height) Object.assign(this.canvas, { width: BRUSH, height });
      this.draw();
    };
    this.draw();
  }

  draw() {
    const { t, painted } = this.widgets;
    const isExact = Math.abs(this.exact.t - t.value) < 1e-6 && (this.exact.painted || "") === (painted.value || "");
    this.layers.faithful.style.opacity = t.value;
    this.layers.painted.style.maskImage = painted.value ? `url(${painted.value})` : NONE;
    Object.assign(this.layers.painted.style, { maskSize: "contain", maskRepeat: "no-repeat", maskPosition: "center" });
    this.layers.exact.style.opacity = isExact ? 1 : 0;
    this.layers.input.style.clipPath = `inset(0 ${100 - this.slider.value}% 0 0)`;
    if (!this.layers.faithful.hidden) this.word.textContent = this.words[isExact ? "exact" : "preview"];
  }

  paint(event) {
    event.stopPropagation();
    if (!event.buttons) return;
    const { canvas } = this, area = canvas.getBoundingClientRect(), pen = canvas.getContext("2d");
    // The picture is fitted into its area: so is the canvas, whose own pixels have the picture's proportions.
    const zoom = Math.min(area.width / canvas.width, area.height / canvas.height);
    const x = (event.clientX - area.left - (area.width - zoom * canvas.width) / 2) / zoom;
    const y = (event.clientY - area.top - (area.height - zoom * canvas.height) / 2) / zoom;
    pen.fillStyle = "#fff";
    pen.beginPath();
    pen.arc(x, y, BRUSH / 24, 0, 2 * Math.PI);
    pen.fill();
    this.layers.painted.style.maskImage = `url(${canvas.toDataURL()})`;
    this.layers.exact.style.opacity = 0;
  }

  clear() {
    this.canvas.getContext("2d").clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.widgets.painted.value = "";
    this.draw();
  }
}

app.registerExtension({
  name: "CTSR.Dial",
  setup() {
    make("style", { textContent: STYLE }, document.head);
  },
  nodeCreated(node) {
    if (node.comfyClass !== "CTSRDial") return;
    const painted = node.widgets.find((widget) => widget.name === "painted");
    painted.hidden = true;
    painted.computeSize = () => [0, -4];
    const dial = new Dial(node);
    node.addDOMWidget("dial", "CTSR_DIAL", dial.root, { serialize: false, getMinHeight: () => 260 });
    node.ctsrDial = dial;
    node.setSize?.([Math.max(node.size[0], 360), Math.max(node.size[1], 520)]);
    const executed = node.onExecuted;
    node.onExecuted = function (output) {
      executed?.apply(this, arguments);
      if (output?.ctsr_dial) dial.show(output.ctsr_dial[0]);
    };
  },
});
