// The dial, the brush and the slider of `ctsr app`: all in the browser, so that they answer at once.
window.ctsr = {
  set(name, value) { document.documentElement.style.setProperty(`--ctsr-${name}`, value); },
  dial(t) { this.set("t", t); this.set("exact", 0); this.set("word", '"preview"'); },
  exact(source) {
    if (source) document.querySelector(".ctsr-exact").src = source;
    this.set("exact", 1); this.set("word", '"exact"');
  },
  key({ target, key }) {
    if (target.type === "range" && target.closest("#ctsr-t") && /^(Arrow|Page|Home|End)/.test(key)) this.again();
  },
  again() { document.querySelector("#ctsr-again").click(); },
  mask() { const canvas = document.querySelector(".ctsr-plane canvas"); return canvas?.dataset.used ? canvas.toDataURL() : ""; },
  clear(again) {
    const canvas = document.querySelector(".ctsr-plane canvas");
    if (!canvas) return;
    canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
    delete canvas.dataset.used;
    this.set("mask", "linear-gradient(#0000, #0000)");
    if (!again) return;
    this.set("exact", 0); this.set("word", '"preview"'); this.again();
  },
  paint(event) {
    if (!event.buttons) return;
    const canvas = event.target, area = canvas.getBoundingClientRect(), pen = canvas.getContext("2d");
    pen.fillStyle = "#fff";
    pen.beginPath();
    pen.arc((event.clientX - area.left) / area.width * canvas.width, (event.clientY - area.top) / area.height * canvas.height,
      canvas.width / 24, 0, 7);
    pen.fill();
    canvas.dataset.used = "1";
    this.set("mask", `url(${canvas.toDataURL()})`);
    this.set("exact", 0); this.set("word", '"preview"');
  },
};
document.addEventListener("keyup", (event) => window.ctsr.key(event));  // gradio's release is of a mouse alone
