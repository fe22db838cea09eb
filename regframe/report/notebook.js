// The viewer of a result in a notebook: two pictures of one place over each other, with swipe, flicker and opacity. It is an ES
// module as anywidget loads it, and reads nothing but its model: no address, no library.
const MODES = { swipe: ["Swipe", "Edge"], flicker: ["Flicker", "Pace"], opacity: ["Opacity", "Moving side"] };
const STYLE = `
.regframe-viewer { font: 13px/1.4 system-ui, sans-serif; color: inherit; max-width: 100%; }
.regframe-viewer .bar { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; margin: 4px 0; }
.regframe-viewer button { font: inherit; color: inherit; background: transparent; border: 1px solid currentColor; border-radius: 6px;
  padding: 2px 10px; cursor: pointer; }
.regframe-viewer button[aria-pressed="true"] { background: #1f5fae; border-color: #1f5fae; color: #fff; }
.regframe-viewer .stage { position: relative; overflow: hidden; touch-action: none; max-width: 100%; line-height: 0; }
.regframe-viewer .stage img { width: 100%; user-select: none; -webkit-user-drag: none; }
.regframe-viewer .stage img + img { position: absolute; inset: 0; height: 100%; }
.regframe-viewer label { display: flex; gap: 6px; align-items: center; }
.regframe-viewer p { margin: 4px 0; max-width: 70ch; }
`;

function made(name, properties, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

function picture(model, name) {
  const data = model.get(name), bytes = data instanceof DataView ? data : new Uint8Array(data);
  return URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
}

function render({ model, el }) {
  const urls = ["fixed", "moving"].map((name) => picture(model, name));
  const [below, above] = urls.map((src) => made("img", { src, alt: "", draggable: false }));
  const stage = made("div", { className: "stage" }, below, above);
  const amount = made("input", { type: "range", min: 0, max: 100, step: 1 });
  const word = made("span", {});
  const bar = made("div", { className: "bar", role: "group" });
  const buttons = Object.entries(MODES).map(([mode, [title]]) => {
    const button = made("button", { type: "button", textContent: title });
    button.dataset.mode = mode;
    button.addEventListener("click", () => { model.set("mode", mode); model.save_changes(); draw(); });
    return button;
  });
  bar.append(...buttons, made("label", {}, word, amount));
  const caption = made("p", { textContent: model.get("caption") });
  const verdict = made("p", {}, made("b", { textContent: model.get("headline") }));
  const root = made("div", { className: "regframe-viewer" }, made("style", { textContent: STYLE }), verdict, bar, stage, caption);
  stage.setAttribute("role", "img");
  stage.setAttribute("aria-label", "Fixed, and the moving side carried onto it");
  stage.style.width = `${model.get("width")}px`;
  el.append(root);
  let timer = 0;

  function draw() {
    const mode = model.get("mode"), value = model.get("amount"), style = above.style;
    clearInterval(timer);
    style.clipPath = style.opacity = style.visibility = "";
    amount.value = value;
    word.textContent = MODES[mode][1];
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
    stage.style.cursor = mode === "swipe" ? "ew-resize" : "default";
    if (mode === "swipe") style.clipPath = `inset(-2px -2px -2px ${value}%)`;
    if (mode === "opacity") style.opacity = value / 100;
    if (mode === "flicker") {
      timer = setInterval(() => { style.visibility = style.visibility ? "" : "hidden"; }, 1500 - 11 * value);
    }
  }

  const put = (value) => {
    model.set("amount", Math.round(Math.min(100, Math.max(0, value))));
    model.save_changes();
    draw();
  };
  amount.addEventListener("input", () => put(Number(amount.value)));
  let held = false;
  const drag = (event) => {
    if (!held || model.get("mode") !== "swipe") return;
    const box = stage.getBoundingClientRect();
    put(100 * (event.clientX - box.left) / box.width);
  };
  stage.addEventListener("pointerdown", (event) => { held = true; stage.setPointerCapture(event.pointerId); drag(event); });
  stage.addEventListener("pointermove", drag);
  for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, () => { held = false; });
  model.on("change:mode", draw);
  model.on("change:amount", draw);
  draw();
  return () => {
    clearInterval(timer);
    model.off("change:mode", draw);
    model.off("change:amount", draw);
    urls.forEach((url) => URL.revokeObjectURL(url));
  };
}

export default { render };
