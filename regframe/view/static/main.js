// The page: landmarks, placing by hand, aligning, saving; the parts that draw are in pictures.js and marks.js.

import { colours, drawings, layers } from "./controls.js";
import { Marks } from "./marks.js";
import { Pictures } from "./pictures.js";
import { Outline } from "./region.js";
import { $, coded, get, listen, made, number, send, soon } from "./talk.js";

const MEANING = { pass: "Confirmed", warn: "Not confirmed", fail: "Contradicted, or no evidence" };
const STAGES = { lddmm: "bend", following: "bend", pose: "placement", straight: "no bend" }; // as on a terminal
const MODES = { overlay: "Moving picture", swipe: "Edge", flicker: "Speed", checker: "Squares", difference: "", side: "" };
const views = { a: $("view-a"), b: $("view-b") };

function notice(words) {
  $("notice").textContent = words || "";
  $("notice").hidden = !words;
}

async function tried(work) {
  try {
    notice("");
    return await work();
  } catch (problem) {
    notice(problem.message);
    if (problem.status === 409) await reload();
    return null;
  }
}

const state = await get("/api/state");
let maps = state.maps;
let list = state.landmarks;
let shown = ""; // key of the map that is on the screen
let wanted = "fresh"; // which of two maps is looked at
let adding = false;
let dragging = false; // the moving picture follows the pointer
let grip = null;

let marks;
const pictures = new Pictures(state, views, () => marks?.again());
marks = new Marks(pictures, views, state.canvas);
const outline = new Outline(pictures, marks, { tried, begins: () => setAdding(false) });
const key = () => shown;
const layered = layers(marks, key, pictures);
const drawn = drawings(state, marks, key);
colours(state, pictures);

// ---- the map ------------------------------------------------------------------------------------------------------------

const looked = () => (maps.fresh && wanted === "fresh" ? maps.fresh : maps.current);

async function show() {
  const map = looked();
  const said = $("verdict");
  said.className = map.verdict || "";
  said.textContent = map.by_hand ? map.title : MEANING[map.verdict] || "";
  tellMaps();
  if (map.key === shown) return;
  shown = map.key;
  window.regframe.changes += 1;
  const first = window.regframe.changes === 1;
  if (first) newList(list);
  await Promise.all([pictures.show(map.key), layered.changed(map), drawn.changed(), first ? null : reload()]);
  pictures.lift(0, 0);
  window.regframe.ready = map.key;
}

function tellMaps() {
  const box = $("map-box");
  const told = (map) => [made("strong", {}, map.title), ...(map.reasons.length ? [made("details", {}, made("summary", {}, "Remarks"),
    made("ul", {}, ...map.reasons.map((words) => made("li", {}, words))))] : [])];
  box.replaceChildren(...told(looked()));
  if (maps.fresh) {
    const which = (value, words) => made("label", {}, made("input", { type: "radio", name: "which", checked: wanted === value,
      onchange: () => { wanted = value; show(); } }), ` ${words} `);
    box.append(made("div", { className: "box", id: "fresh" },
      made("div", { className: "row" }, "Look at", which("current", "the map before"), which("fresh", "the new map")),
      made("div", { className: "row" },
        made("button", { type: "button", className: "main", id: "take", onclick: () => tried(() => send("/api/decide", { take: true })) }, "Take the new map"),
        made("button", { type: "button", id: "leave", onclick: () => tried(() => send("/api/decide", { take: false })) }, "Leave it"))));
  }
  $("stop").disabled = !maps.busy;
  $("align").disabled = maps.busy;
  $("other").hidden = !maps.other;
  $("bar").hidden = !maps.busy;
  if (!maps.busy) $("progress").textContent = "";
  $("save").disabled = Boolean(maps.fresh);
  $("save").title = maps.fresh ? "Take the new map, or leave it, before you save" : "";
}

function newMaps(found) {
  if (found.fresh && found.fresh.key !== maps.fresh?.key) wanted = "fresh";
  maps = found;
  return show();
}

// ---- landmarks ----------------------------------------------------------------------------------------------------------

async function reload() {
  newList(await get(`/api/landmarks?key=${shown}`));
}

function newList(found) {
  list = found;
  marks.pairs = list.pairs;
  if (!list.pairs.some((pair) => pair.id === marks.chosen)) marks.chosen = null;
  marks.later();
  tellPairs();
}

const bare = (pair) => ({ id: pair.id, name: pair.name, fixed: pair.fixed, moving: pair.moving, on: pair.on, trusted: pair.trusted });

let changing = 0; // of them on their way
let heard = 0; // the last revision that the server spoke of
let turn = Promise.resolve(); // changes of the list wait for each other: each begins with what the one before left

function inTurn(work) {
  changing += 1;
  turn = turn.then(async () => {
    const found = await tried(work);
    changing -= 1;
    if (!found) return;
    newList(found);
    if (found.problem) notice(found.problem);
    if (found.maps) newMaps(found.maps);
    if (!changing && heard > list.revision) await reload(); // another window's change, heard of meanwhile
  });
  return turn;
}

async function commit(pairs) { // what the list becomes, as a function of what it is by then
  await inTurn(() => send("/api/landmarks", { ...now(), revision: list.revision, pairs: pairs(list.pairs).map(bare) }, "PUT"));
}

const now = () => ({ key: shown, follow: $("follow").checked });

async function followed() {
  if ($("follow").checked && list.used) {
    const found = await tried(() => send("/api/follow"));
    if (found) await newMaps(found);
  }
}

const change = (id, changes) => commit((pairs) => pairs.map((pair) => (pair.id === id ? { ...pair, ...changes } : pair)));
const remove = (id) => commit((pairs) => pairs.filter((pair) => pair.id !== id));

async function add(view, at) {
  const side = pictures.mode === "side" && view === "b" ? "moving" : "fixed";
  const here = marks.position(at);
  const told = await tried(async () => {
    const moving = (await send("/api/predict", { key: shown, side: "fixed", at: here })).at;
    return { fixed: here, moving };
  });
  if (!told) return;
  await commit((pairs) => {
    const id = Math.max(0, ...pairs.map((pair) => pair.id)) + 1;
    marks.chosen = id;
    return [...pairs, { id, name: String(id), ...told, on: true, trusted: false }];
  });
  if (side === "moving") marks.later();
}

async function moved(id, side, at) {
  const here = marks.position(at);
  if (side === "fixed") return change(id, { fixed: here });
  const told = await tried(() => send("/api/predict", { key: shown, side: "fixed", at: here }));
  return told && change(id, { moving: told.at });
}

function tellPairs() {
  const unit = state.canvas.unit;
  $("count").textContent = list.pairs.length ? `(${list.pairs.length})` : "";
  $("undo").disabled = !list.undo;
  $("redo").disabled = !list.redo;
  const focus = document.activeElement?.dataset?.focus;
  const rows = [...list.pairs].sort((a, b) => Number(b.odd) - Number(a.odd) || (b.off ?? b.residual) - (a.off ?? a.residual) || a.id - b.id);
  $("pairs").replaceChildren(...rows.map((pair) => {
    const name = made("input", { type: "text", value: pair.name, maxLength: 200, ariaLabel: `Name of landmark ${pair.name}`,
      onchange: (event) => change(pair.id, { name: event.target.value }), onfocus: () => choose(pair.id) });
    name.dataset.focus = `name-${pair.id}`;
    const counts = made("input", { type: "checkbox", checked: pair.on, ariaLabel: `Landmark ${pair.name} counts`,
      onchange: (event) => change(pair.id, { on: event.target.checked }) });
    counts.dataset.focus = `on-${pair.id}`;
    const cell = made("td", {}, `${number(pair.residual < state.canvas.spacing[0] / 1000 ? 0 : pair.residual)} ${unit}`);
    if (marks.plane) cell.append(made("div", { className: "hint" }, sliceWords(pair)));
    if (pair.odd && pair.on) {
      cell.append(made("div", { className: "why" }, pair.trusted ? `trusted, though ${number(pair.off)} ${unit} from the others`
        : `disagrees with the others by ${number(pair.off)} ${unit}: left out`));
      cell.append(made("button", { type: "button", onclick: () => change(pair.id, { trusted: !pair.trusted }) }, pair.trusted ? "Do not trust" : "Trust it"));
    }
    const row = made("tr", { className: `${pair.odd && pair.on ? "odd" : ""} ${pair.id === marks.chosen ? "chosen" : ""}`,
      onclick: () => choose(pair.id) }, made("td", {}, name), cell, made("td", {}, counts), made("td", {},
      made("button", { type: "button", ariaLabel: `Show landmark ${pair.name}`, onclick: () => look(pair) }, "◎"),
      made("button", { type: "button", ariaLabel: `Delete landmark ${pair.name}`, onclick: (event) => { event.stopPropagation(); remove(pair.id); } }, "×")));
    row.dataset.id = pair.id;
    return row;
  }));
  if (focus) $("pairs").querySelector(`[data-focus="${focus}"]`)?.focus();
}

function sliceWords(pair) {
  const plane = state.planes[marks.plane.axis];
  const [circle, cross] = [pair.fixed, pair.shown].map((at) => Math.round((at[marks.plane.axis] - plane.first) / plane.step) + 1);
  return circle === cross ? `slice ${circle}` : `slice ${circle}, cross on ${cross}`;
}

function choose(id) {
  marks.chosen = id;
  for (const row of $("pairs").children) row.classList.toggle("chosen", Number(row.dataset.id) === id);
  marks.later();
}

async function look(pair) {
  choose(pair.id);
  if (marks.plane) {
    const { axis, first, step } = state.planes[marks.plane.axis];
    sliced[axis] = Math.round((pair.fixed[marks.plane.axis] - first) / step);
    await slice(axis, false);
  }
  const at = marks.place(pair, "fixed");
  pictures.look(at.x, at.y);
}

function setAdding(on) {
  if (on && outline.drawing) outline.draw("");
  adding = on;
  $("add").setAttribute("aria-pressed", String(on));
  $("stage").classList.toggle("adding", on);
}

// ---- the pointer --------------------------------------------------------------------------------------------------------

for (const [view, viewer] of Object.entries(pictures.viewers)) {
  viewer.addHandler("canvas-press", (event) => {
    grip = null;
    if (outline.press(view, event.position)) return;
    const found = marks.hit(view, event.position, event.originalEvent.shiftKey);
    if (found) {
      choose(found.id);
      grip = { ...found, view };
    } else if (dragging) grip = { start: pictures.toCanvas(view, event.position), view };
  });
  viewer.addHandler("canvas-drag", (event) => {
    if (outline.drag(view, event.position)) {
      event.preventDefaultAction = true;
      return;
    }
    if (!grip) return;
    event.preventDefaultAction = true;
    const at = pictures.toCanvas(view, event.position);
    grip.moved = true;
    if (grip.start) pictures.lift(at.x - grip.start.x, at.y - grip.start.y);
    else marks.held = { id: grip.id, side: grip.side, ...at };
    grip.at = at;
    marks.later();
  });
  viewer.addHandler("canvas-drag-end", (event) => {
    if (grip) event.preventDefaultAction = true;
  });
  viewer.addHandler("canvas-release", async () => {
    const held = grip;
    grip = null;
    if (outline.release()) return;
    if (!held?.moved) return;
    if (held.start) {
      const { spacing } = state.canvas;
      const shift = [(held.at.y - held.start.y) * spacing[0], (held.at.x - held.start.x) * spacing[1]];
      await place({ shift });
    } else {
      await moved(held.id, held.side, held.at);
      marks.held = null;
      marks.later();
    }
  });
  viewer.addHandler("canvas-click", (event) => {
    if (event.quick && outline.click(view, event.position)) {
      event.preventDefaultAction = true;
      return;
    }
    if (!event.quick || !adding || marks.hit(view, event.position, false)) return;
    event.preventDefaultAction = true;
    add(view, pictures.toCanvas(view, event.position));
  });
  const values = soon(60, async (at) => {
    try {
      const [y, x] = marks.flatPosition(at);
      tellValues(await get(`/api/values?key=${shown}&y=${y}&x=${x}&plane=${pictures.plane}`));
    } catch { $("under").textContent = ""; }
  });
  views[view].addEventListener("pointermove", (event) => {
    if (grip) return;
    const box = views[view].getBoundingClientRect();
    values(pictures.toCanvas(view, { x: event.clientX - box.left, y: event.clientY - box.top }));
  });
}

function tellValues(found) {
  const colour = (values) => (values ? Object.entries(values).slice(0, 6).map(([name, value]) => `${name} ${number(value)}`).join(", ") : "outside");
  const at = [...found.fixed_at].reverse().map((value, i) => `${"xyz"[i]} ${number(value)}`);
  const words = [`${at.join(", ")} ${found.unit}`];
  if (state.sides.fixed.pixels) words.push(`fixed: ${colour(found.fixed)}`);
  if (state.sides.moving.pixels) words.push(`moving: ${colour(found.moving)}`);
  const names = { weight: "matching", sd: "within", area: state.planes.length ? "volume" : "area", bend: "bend" };
  for (const [name, value] of Object.entries(found.layers)) {
    if (value !== null) words.push(`${names[name] || name} ${name === "area" ? "×" : ""}${number(value)}${name === "sd" || name === "bend" ? ` ${found.unit}` : ""}`);
  }
  $("under").textContent = words.join(" · ");
}

// ---- controls -----------------------------------------------------------------------------------------------------------

function setMode(mode) {
  $("mode").value = mode;
  $("amount-label").textContent = MODES[mode] || "Moving picture";
  $("amount").hidden = $("amount-label").hidden = !MODES[mode];
  pictures.setMode(mode);
  for (const badge of document.querySelectorAll(".side-name")) badge.remove();
  if (mode === "side") {
    views.a.append(made("div", { className: "side-name" }, `fixed: ${state.sides.fixed.name}`));
    views.b.append(made("div", { className: "side-name" }, `moving: ${state.sides.moving.name}`));
  }
  setTimeout(() => marks.later(), 50);
}

// ---- planes of volumes ------------------------------------------------------------------------------------------------

const sliced = { z: 0, y: 0, x: 0 };

async function slice(axis, turned) {
  const plane = state.planes.find((one) => one.axis === axis);
  const at = Math.min(Math.max(sliced[axis], 0), plane.count - 1);
  sliced[axis] = at;
  $("slice").max = plane.count - 1;
  $("slice").value = at;
  $("slice-at").textContent = `${at + 1} of ${plane.count}`;
  $("slice").setAttribute("aria-valuetext", `${at + 1} of ${plane.count}, at ${number(plane.first + at * plane.step)} ${plane.unit}`);
  marks.plane = { axis: "zyx".indexOf(axis), at: plane.first + at * plane.step, step: plane.step };
  const work = pictures.slice(`${axis}:${at}`, turned ? plane : null);
  marks.later();
  tellPairs();
  await Promise.all([work, shown ? layered.changed(looked()) : null]);
  window.regframe.sliced = `${axis}:${at}`;
}

function planes() {
  $("planes").hidden = $("of-slices").hidden = false;
  for (const part of document.querySelectorAll(".flat")) part.hidden = true;
  $("begin").querySelector("[value=shown]").remove();
  $("import-label").textContent = "Import (one file of both sides)";
  for (const { axis, count } of state.planes) sliced[axis] = Math.floor(count / 2);
  $("axis").append(...state.planes.map(({ axis }) => made("option", { value: axis }, axis)));
  $("axis").addEventListener("change", (event) => slice(event.target.value, true));
  const soonest = soon(40, () => slice($("axis").value, false));
  $("slice").addEventListener("input", (event) => {
    sliced[$("axis").value] = Number(event.target.value);
    $("slice-at").textContent = `${Number(event.target.value) + 1} of ${state.planes.find((one) => one.axis === $("axis").value).count}`;
    soonest();
  });
  slice("z", false);
}

const place = (values) => tried(async () => newMaps(await send("/api/place", values)));

$("mode").addEventListener("change", (event) => setMode(event.target.value));
$("amount").addEventListener("input", (event) => pictures.setAmount(event.target.value / 100));
$("zoom-in").addEventListener("click", () => pictures.zoom(1.5));
$("zoom-out").addEventListener("click", () => pictures.zoom(1 / 1.5));
$("fit").addEventListener("click", () => pictures.fit());
$("add").addEventListener("click", () => setAdding(!adding));
for (const way of ["undo", "redo"]) {
  $(way).addEventListener("click", async () => {
    await inTurn(() => send(`/api/landmarks/${way}`, now()));
  });
}
$("follow").addEventListener("change", followed);
for (const button of document.querySelectorAll("[data-turn]")) button.addEventListener("click", () => place({ turn: Number(button.dataset.turn) }));
$("turn-go").addEventListener("click", () => place({ turn: Number($("turn").value) }));
$("scale-go").addEventListener("click", () => place({ scale: Number($("scale").value) }));
$("mirror").addEventListener("click", () => place({ mirror: true }));
$("reset").addEventListener("click", () => place({ to: "reset" }));
$("other").addEventListener("click", () => place({ to: "other" }));
$("drag").addEventListener("click", () => {
  dragging = !dragging;
  $("drag").setAttribute("aria-pressed", String(dragging));
});
$("align").addEventListener("click", () => tried(async () => {
  $("progress").textContent = "beginning …";
  await newMaps(await send("/api/align", { begin: $("begin").value }));
}));
$("stop").addEventListener("click", () => tried(async () => newMaps(await send("/api/stop"))));
$("save").addEventListener("click", () => tried(async () => {
  $("saved").textContent = "saving …";
  try { tellSaved(await send("/api/save")); } catch (problem) { $("saved").textContent = ""; throw problem; }
}));

function tellSaved(found) {
  $("saved").replaceChildren(made("p", {}, `Saved in ${found.folder}. The same without a browser:`), made("code", {}, found.command));
}

const NAMES = { csv: "regframe (CSV)", bigwarp: "BigWarp (CSV)", "bigwarp-json": "BigWarp, Warpy (JSON)", explorer: "Xenium Explorer keypoints", "qupath-fixed": "QuPath, fixed side",
  "qupath-moving": "QuPath, moving side", "napari-fixed": "napari, fixed side", "napari-moving": "napari, moving side",
  "imagej-fixed": "ImageJ table, fixed side", "imagej-moving": "ImageJ table, moving side", "imagej-roi-fixed": "ImageJ multipoint (.roi), fixed side", "imagej-roi-moving": "ImageJ multipoint (.roi), moving side",
  "stalign-fixed": "STalign, fixed side",
  "stalign-moving": "STalign, moving side" };
$("export").append(...state.exports.map((name) => made("option", { value: name }, NAMES[name] || name)));
$("export-go").addEventListener("click", () => {
  made("a", { href: `/api/export/${$("export").value}`, download: "" }).click();
});
$("import").addEventListener("change", (event) => tried(async () => {
  const texts = await Promise.all([...event.target.files].map((file) => (/\.(npy|roi|zip)$/i.test(file.name) ? coded(file) : file.text())));
  if (texts.length > 2) throw new Error("wanted one file of both sides, or two of one side each, got more");
  const value = texts.length === 1 ? { both: texts[0] } : { fixed: texts[0], moving: texts[1] };
  newList(await send("/api/import", { ...value, key: shown }));
  event.target.value = "";
  await followed();
}));

document.addEventListener("keydown", (event) => {
  const field = event.target.matches?.("input, select, textarea");
  const typing = field && event.target.matches("select, textarea, [type=text], [type=number], [type=color], [type=file]");
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" && event.target.type !== "text") {
    event.preventDefault();
    $(event.shiftKey ? "redo" : "undo").click();
    return;
  }
  if (!typing && !event.target.matches?.("button, summary") && outline.key(event.key)) {
    event.preventDefault();
    event.stopPropagation();
    return;
  }
  if (typing || event.ctrlKey || event.metaKey) return;
  const pair = list.pairs.find((one) => one.id === marks.chosen);
  const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (field && (arrow || event.key === "Enter")) return;
  if (state.planes.length && (event.key === "PageUp" || event.key === "PageDown")) {
    event.preventDefault();
    sliced[$("axis").value] += event.key === "PageUp" ? 1 : -1;
    slice($("axis").value, false);
    return;
  }
  if (event.key === "m" || event.key === "M") {
    const modes = Object.keys(MODES);
    setMode(modes[(modes.indexOf(pictures.mode) + 1) % modes.length]);
  } else if (event.key === "a" || event.key === "A") setAdding(!adding);
  else if (event.key === "Escape") { setAdding(false); choose(null); }
  else if (event.key === "Delete" && pair) remove(pair.id);
  else if (event.key === "Enter" && adding && !event.target.matches("button, summary")) {
    add("a", pictures.toCanvas("a", { x: views.a.clientWidth / 2, y: views.a.clientHeight / 2 }));
  } else if (event.key === "+") pictures.zoom(1.5);
  else if (event.key === "-") pictures.zoom(1 / 1.5);
  else if (event.key === "0") pictures.fit();
  else if (arrow && pair && !event.target.matches("summary")) {
    const side = event.altKey ? "fixed" : "moving";
    const step = (event.shiftKey ? 10 : 1) / pictures.frame("a").scale;
    const at = marks.held?.id === pair.id && marks.held.side === side ? marks.held : marks.place(pair, side);
    marks.held = { id: pair.id, side, x: at.x + arrow[0] * step, y: at.y + arrow[1] * step };
    marks.later();
    nudged();
  } else return;
  event.preventDefault();
  event.stopPropagation();
}, true);

const nudged = soon(250, async () => {
  const held = marks.held;
  if (!held) return;
  await moved(held.id, held.side, held);
  if (marks.held === held) marks.held = null;
  marks.later();
});

listen({
  maps: (found) => newMaps(found),
  landmarks: ({ revision }) => {
    heard = revision;
    if (!changing && revision !== list.revision) reload();
  },
  progress: (step) => {
    $("bar").hidden = false;
    $("bar").value = (step.level + step.done / Math.max(1, step.total)) / Math.max(1, step.n_levels);
    $("progress").textContent = `${STAGES[step.stage] || step.stage}, level ${step.level + 1} of ${step.n_levels}, step ${step.done}`;
  },
  problem: ({ text }) => notice(text),
  settled: () => { window.regframe.settled += 1; outline.tell(); },
  saved: tellSaved,
  lost: () => notice("The server does not answer: it was ended, or the connection broke. Landmarks are kept; run regframe view again."),
  back: () => { notice(""); reload(); },
});

addEventListener("resize", () => marks.later());
$("names").textContent = `${state.sides.moving.name} on ${state.sides.fixed.name}`;
$("output").textContent = `into ${state.output}`;
document.title = `${state.sides.moving.name} on ${state.sides.fixed.name} – regframe`;
if (state.said) notice(state.said);
pictures.viewers.a.addOnceHandler("tile-drawn", () => { window.regframe.first = performance.now(); });
window.regframe = { pictures, marks, outline, settled: 0, changes: 0, ready: "", list: () => list, maps: () => maps };
if (state.planes.length) planes();
pictures.fit();
setMode(state.maps.current.by_hand ? "side" : "overlay");
await show();
if (state.planes.length) pictures.fit(); // the row of tools has grown by the slider
