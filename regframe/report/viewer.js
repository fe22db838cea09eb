// The viewer of a report: two pictures of one place over each other. It reads nothing but the page it stands in, and is the
// only script that the page's policy lets run: the policy names it by its SHA-256.
"use strict";
(() => {
  const get = (id) => document.getElementById(id);
  const live = get("live");
  if (!live) return;
  const [stage, layer, below, above, amount, word] = ["stage", "layer", "below", "above", "amount", "word"].map(get);
  const words = { swipe: "Edge", flicker: "Pace", opacity: "Moving side", check: "Squares" };
  const held = { swipe: 50, flicker: 50, opacity: 50, check: 30 };
  let mode = "swipe", zoom = 1, x = 0, y = 0, timer = 0, drag = null;

  const fit = () => {
    const ratio = below.naturalWidth / below.naturalHeight || 1, style = getComputedStyle(live);
    const room = live.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    stage.style.width = `${Math.min(room, 0.82 * innerHeight * ratio)}px`;
    draw();
  };

  const place = () => {
    const w = stage.clientWidth, h = stage.clientHeight;
    x = Math.min(0, Math.max(w * (1 - zoom), x));
    y = Math.min(0, Math.max(h * (1 - zoom), y));
    layer.style.transform = `translate(${x}px, ${y}px) scale(${zoom})`;
    stage.style.cursor = zoom > 1 ? "grab" : mode === "swipe" ? "ew-resize" : "default";
    below.style.imageRendering = above.style.imageRendering = zoom > 3 ? "pixelated" : "auto";
  };

  const draw = () => {
    const value = Number(amount.value), style = above.style;
    held[mode] = value;
    clearInterval(timer);
    style.clipPath = style.maskImage = style.opacity = style.visibility = "";
    word.textContent = words[mode];
    if (mode === "swipe") style.clipPath = `inset(-2px -2px -2px ${value}%)`;
    if (mode === "opacity") style.opacity = value / 100;
    if (mode === "check") {
      const side = 2 * stage.clientWidth / (2 + Math.round(value / 5));
      style.maskImage = "repeating-conic-gradient(#000 0 25%, transparent 0 50%)";
      style.maskSize = `${side}px ${side}px`;
    }
    if (mode === "flicker") {
      timer = setInterval(() => { style.visibility = style.visibility ? "" : "hidden"; }, 1500 - 11 * value);
    }
    place();
  };

  const scaled = (factor, px, py) => {
    const next = Math.min(16, Math.max(1, zoom * factor)), by = next / zoom;
    x = px - (px - x) * by;
    y = py - (py - y) * by;
    zoom = next;
    place();
  };
  const middle = (factor) => scaled(factor, stage.clientWidth / 2, stage.clientHeight / 2);

  const pressed = (buttons, chosen) => buttons.forEach((b) => b.setAttribute("aria-pressed", String(b === chosen)));
  const modes = [...live.querySelectorAll("[data-mode]")], spots = [...live.querySelectorAll("[data-fixed]")];
  modes.forEach((button) => button.addEventListener("click", () => {
    mode = button.dataset.mode;
    amount.value = held[mode];
    pressed(modes, button);
    draw();
  }));
  const show = (button) => {
    below.src = get(button.dataset.fixed).src;
    above.src = get(button.dataset.moving).src;
    pressed(spots, button);
    zoom = 1;
    x = y = 0;
    draw();
  };
  spots.forEach((button) => button.addEventListener("click", () => show(button)));
  amount.addEventListener("input", draw);
  get("closer").addEventListener("click", () => middle(1.5));
  get("wider").addEventListener("click", () => middle(1 / 1.5));

  const at = (event) => {
    const box = stage.getBoundingClientRect();
    return [event.clientX - box.left - stage.clientLeft, event.clientY - box.top - stage.clientTop];
  };
  stage.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && document.activeElement !== stage) return;  // the page scrolls on until the picture is chosen
    event.preventDefault();
    scaled(event.deltaY < 0 ? 1.25 : 0.8, ...at(event));
  }, { passive: false });
  stage.addEventListener("pointerdown", (event) => {
    drag = at(event);
    stage.setPointerCapture(event.pointerId);
    if (zoom === 1 && mode === "swipe") { amount.value = 100 * drag[0] / stage.clientWidth; draw(); }
  });
  stage.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const now = at(event);
    if (zoom > 1) { x += now[0] - drag[0]; y += now[1] - drag[1]; place(); }
    else if (mode === "swipe") { amount.value = 100 * now[0] / stage.clientWidth; draw(); }
    drag = now;
  });
  ["pointerup", "pointercancel"].forEach((name) => stage.addEventListener(name, () => { drag = null; }));
  const keys = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] };
  stage.addEventListener("keydown", (event) => {
    if (event.key === "+" || event.key === "=") middle(1.5);
    else if (event.key === "-") middle(1 / 1.5);
    else if (keys[event.key] && zoom > 1) { x += keys[event.key][0]; y += keys[event.key][1]; place(); }
    else return;
    event.preventDefault();
  });
  addEventListener("resize", fit);
  below.addEventListener("load", fit);

  live.hidden = false;
  get("still").removeAttribute("open");
  show(spots[0]);
})();
