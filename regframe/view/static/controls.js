// Colours and contrast, layers, drawings: what changes the look alone.

import { $, bytes, get, made, number, soon } from "./talk.js";

const LAYERS = {
  weight: "matching tissue: how likely both sides show the same here",
  sd: "how sure: 9 positions in 10 lie within this distance",
  area: "change of area: how much tissue was widened or narrowed here",
  bend: "bend: distance from a map without bends",
};

function styleOf(channels) {
  const on = channels.filter((channel) => channel.on);
  return on.map((c) => `${c.index}:${c.color}:${c.low}:${c.high}`).join(",") || "none";
}

export function colours(state, pictures) {
  const box = $("channels");
  let some = false;
  for (const side of ["fixed", "moving"]) {
    const { channels, kind, name } = state.sides[side];
    if (kind !== "channels") continue;
    some = true;
    channels.forEach((channel, index) => { channel.index = index; });
    const again = soon(120, () => pictures.restyle(side, styleOf(channels)));
    box.append(made("h3", { className: "hint" }, `${side}: ${name}`));
    for (const channel of channels) {
      const label = `${channel.name} (${side})`;
      const step = (channel.most - channel.least) / 500 || 1;
      const slider = (what, words) => made("input", {
        type: "range", min: channel.least, max: channel.most, step, value: channel[what], ariaLabel: `${words} of ${label}`,
        oninput: (event) => { channel[what] = Number(event.target.value); again(); },
      });
      box.append(made("div", { className: "channel" },
        made("input", { type: "checkbox", checked: channel.on, ariaLabel: `Show ${label}`,
          onchange: (event) => { channel.on = event.target.checked; again(); } }),
        made("span", { className: "name", title: channel.name }, channel.name),
        made("input", { type: "color", value: `#${channel.color}`, ariaLabel: `Colour of ${label}`,
          oninput: (event) => { channel.color = event.target.value.slice(1); again(); } }),
        made("span", { className: "span" }, "dark", slider("low", "Darkest value"), slider("high", "Brightest value"), "bright")));
    }
  }
  if (!some) box.append(made("p", { className: "hint" }, "Both pictures are shown in their own colours."));
}

const IN_VOLUMES = { area: "change of volume: how much tissue was widened or narrowed here" };

export function layers(marks, key, pictures) {
  const select = $("layer");
  const choose = async () => {
    const name = select.value;
    $("legend").replaceChildren();
    marks.layer = null;
    marks.later();
    if (!name) return;
    const picture = new Image();
    const { plane } = pictures;
    picture.src = `/layers/${key()}/${name}?plane=${plane}`;
    const legend = await get(`/layers/${key()}/${name}/legend?plane=${plane}`);
    await picture.decode();
    if (select.value !== name || pictures.plane !== plane) return;
    marks.layer = picture;
    marks.later();
    const ramp = made("div", { className: "ramp", role: "img", ariaLabel: `colours from ${number(legend.low)} to ${number(legend.high)} ${legend.unit}` });
    ramp.style.background = `linear-gradient(to right, ${legend.ramp.map((colour) => `#${colour}`).join(", ")})`;
    $("legend").append(ramp, made("div", { className: "ends" },
      made("span", {}, `${number(legend.low)} ${legend.unit}`), made("span", {}, `${number(legend.high)} ${legend.unit}`)));
  };
  const lines = async (name) => {
    if ($(name).checked) marks.lines[name] = await get(`/lines/${key()}/${name}?plane=${pictures.plane}`);
    else delete marks.lines[name];
    marks.later();
  };
  select.addEventListener("change", choose);
  $("layer-amount").addEventListener("input", (event) => { marks.layerAmount = event.target.value / 100; marks.later(); });
  for (const name of ["grid", "arrows"]) $(name).addEventListener("change", () => lines(name));
  return {
    async changed(map) {
      const before = select.value;
      select.replaceChildren(made("option", { value: "" }, "none"), ...map.layers.map((name) => made("option", { value: name }, (pictures.plane && IN_VOLUMES[name]) || LAYERS[name] || name)));
      select.value = map.layers.includes(before) ? before : "";
      await Promise.all([choose(), lines("grid"), lines("arrows")]);
    },
  };
}

export function drawings(state, marks, key) {
  marks.drawings = state.drawings.map((drawing) => ({ ...drawing, on: true, at: null }));
  const load = async (index) => {
    const drawing = marks.drawings[index];
    drawing.at = new Float32Array(await bytes(`/drawn/${key()}/${index}`));
    marks.later();
  };
  marks.drawings.forEach((drawing, index) => {
    const left = drawing.left_out ? `, ${drawing.left_out} more are not drawn` : "";
    $("drawings").append(made("div", { className: "row" }, made("label", {},
      made("input", { type: "checkbox", checked: true, onchange: (event) => { drawing.on = event.target.checked; marks.later(); } }),
      ` ${drawing.name} (${drawing.side}, ${drawing.count} positions${left})`)));
  });
  return { changed: () => Promise.all(marks.drawings.map((drawing, i) => (drawing.at && drawing.side === "fixed" ? null : load(i)))) };
}
