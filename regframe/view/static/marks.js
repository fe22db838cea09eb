// What is drawn over the pictures: layers, lines, cells and outlines, landmarks.

const RING = 9; // radius of a landmark's circle on the screen, in pixels
const FADES = 3; // slices of a volume over which a mark fades that lies on another one
const MANY = 5000; // positions from which they are written pixel by pixel
const COLOURS = { fixed: "#ffd21f", moving: "#35e0ff", odd: "#ff4b3e", off: "#b9bec2" };

export class Marks {
  constructor(pictures, views, unit) {
    this.pictures = pictures;
    this.unit = unit;
    this.pairs = [];
    this.plane = null; // of volumes: {axis: 0 … 2, at, step}, the slice that is shown
    this.chosen = null;
    this.held = null; // {id, side, x, y}: what is being dragged, on the canvas
    this.layer = null;
    this.layerAmount = 0.6;
    this.lines = {};
    this.drawings = [];
    this.sheets = {};
    for (const [name, element] of Object.entries(views)) {
      const sheet = document.createElement("canvas");
      sheet.className = "marks";
      sheet.setAttribute("aria-hidden", "true");
      element.append(sheet);
      this.sheets[name] = sheet;
    }
    this.seen = {};
    this.waiting = false;
  }

  later() {
    this.seen = {};
    this.again();
  }

  again() { // the pictures were drawn: the marks are drawn only where the view has moved
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      for (const view of this.pictures.mode === "side" ? ["a", "b"] : ["a"]) {
        const { x, y, scale } = this.pictures.frame(view);
        const now = `${x} ${y} ${scale} ${this.sheets[view].clientWidth} ${this.sheets[view].clientHeight}`;
        if (this.seen[view] === now) continue;
        this.seen[view] = now;
        this.draw(view);
      }
    });
  }

  draw(view) {
    const sheet = this.sheets[view];
    const [width, height] = [sheet.clientWidth, sheet.clientHeight];
    if (!width || !height) return;
    const ratio = window.devicePixelRatio || 1;
    if (sheet.width !== Math.round(width * ratio) || sheet.height !== Math.round(height * ratio)) {
      sheet.width = Math.round(width * ratio);
      sheet.height = Math.round(height * ratio);
    }
    const pen = sheet.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const frame = this.pictures.frame(view);
    const { canvas } = this.pictures;
    if (this.layer) {
      pen.globalAlpha = this.layerAmount;
      pen.drawImage(this.layer, frame.x, frame.y, canvas.width * frame.scale, canvas.height * frame.scale);
      pen.globalAlpha = 1;
    }
    for (const [name, lines] of Object.entries(this.lines)) this.stroke(pen, frame, lines, name === "arrows");
    for (const drawing of this.drawings) if (drawing.on && drawing.at) this.cells(pen, frame, drawing, width, height);
    if (this.region) this.outline(pen, frame, this.region);
    const both = this.pictures.mode !== "side";
    for (const pair of this.pairs) this.landmark(pen, frame, pair, both || view === "a", both || view === "b");
  }

  outline(pen, frame, { corners, closed }) {
    for (const [style, width, dash] of [["#000", 4, []], ["#ffffff", 2, [7, 5]]]) {
      pen.strokeStyle = style;
      pen.lineWidth = width;
      pen.setLineDash(dash);
      pen.beginPath();
      corners.forEach((at, i) => pen[i ? "lineTo" : "moveTo"](frame.x + at.x * frame.scale, frame.y + at.y * frame.scale));
      if (closed || corners.length === 1) pen.closePath();
      pen.stroke();
    }
    pen.setLineDash([]);
    if (closed) return;
    for (const [style, half] of [["#000", 5], ["#ffffff", 3]]) {
      pen.fillStyle = style;
      for (const at of corners) pen.fillRect(frame.x + at.x * frame.scale - half, frame.y + at.y * frame.scale - half, 2 * half, 2 * half);
    }
  }

  stroke(pen, frame, lines, arrows) {
    pen.lineWidth = 1.2;
    pen.strokeStyle = arrows ? "#ff8a1f" : "#22c55e";
    pen.beginPath();
    for (const line of lines) {
      line.forEach(([x, y], i) => pen[i ? "lineTo" : "moveTo"](frame.x + x * frame.scale, frame.y + y * frame.scale));
      if (!arrows || line.length < 2) continue;
      const [[x0, y0], [x1, y1]] = line;
      const angle = Math.atan2(y1 - y0, x1 - x0);
      const size = Math.min(7, 0.5 * Math.hypot(x1 - x0, y1 - y0) * frame.scale);
      for (const turn of [2.6, -2.6]) {
        pen.moveTo(frame.x + x1 * frame.scale, frame.y + y1 * frame.scale);
        pen.lineTo(frame.x + x1 * frame.scale + size * Math.cos(angle + turn), frame.y + y1 * frame.scale + size * Math.sin(angle + turn));
      }
    }
    pen.stroke();
  }

  cells(pen, frame, drawing, width, height) {
    const { at, offsets } = drawing;
    const colour = COLOURS[drawing.side];
    if (offsets.length > 1) {
      pen.strokeStyle = colour;
      pen.lineWidth = 1.2;
      pen.beginPath();
      for (let i = 0; i + 1 < offsets.length; i += 1) {
        for (let k = offsets[i]; k < offsets[i + 1]; k += 1) {
          const [x, y] = [frame.x + at[2 * k] * frame.scale, frame.y + at[2 * k + 1] * frame.scale];
          if (k === offsets[i]) pen.moveTo(x, y); else pen.lineTo(x, y);
        }
      }
      pen.stroke();
      return;
    }
    const size = Math.min(5, Math.max(1.5, 1.5 * Math.sqrt((frame.scale * 1000 * Math.sqrt(50000 / Math.max(1, at.length))) / 100)));
    if (at.length > 2 * MANY) {
      this.crowd(pen, frame, at, colour, size, width, height);
      return;
    }
    const half = size / 2;
    pen.fillStyle = colour;
    for (let k = 0; k < at.length; k += 2) {
      const [x, y] = [frame.x + at[k] * frame.scale, frame.y + at[k + 1] * frame.scale];
      if (x > -size && y > -size && x < width + size && y < height + size) pen.fillRect(x - half, y - half, size, size);
    }
  }

  crowd(pen, frame, at, colour, size, width, height) { // written pixel by pixel: ten times as fast as one rectangle each
    const ratio = window.devicePixelRatio || 1;
    const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (!this.buffer || this.buffer.width !== w || this.buffer.height !== h) this.buffer = new ImageData(w, h);
    const pixels = new Uint32Array(this.buffer.data.buffer);
    pixels.fill(0);
    const [r, g, b] = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
    const value = new Uint32Array(new Uint8ClampedArray([r, g, b, 255]).buffer)[0];
    const side = Math.max(1, Math.round(size * ratio));
    const [x0, y0, scale] = [frame.x * ratio - side / 2, frame.y * ratio - side / 2, frame.scale * ratio];
    for (let k = 0; k < at.length; k += 2) {
      const [x, y] = [Math.round(x0 + at[k] * scale), Math.round(y0 + at[k + 1] * scale)];
      if (!(x >= 0 && y >= 0 && x + side <= w && y + side <= h)) continue;
      for (let row = y * w + x, end = row + side * w; row < end; row += w) pixels.fill(value, row, row + side);
    }
    this.plate ??= document.createElement("canvas");
    this.plate.width = w;
    this.plate.height = h;
    this.plate.getContext("2d").putImageData(this.buffer, 0, 0);
    pen.drawImage(this.plate, 0, 0, width, height);
  }

  flat(at) { return this.plane ? at.filter((_, axis) => axis !== this.plane.axis) : at; }

  away(pair, side) { // how many slices a mark lies off the one that is shown; 0 of flat pictures
    if (!this.plane || (this.held && this.held.id === pair.id && this.held.side === side)) return 0;
    const { axis, at, step } = this.plane;
    return ((side === "fixed" ? pair.fixed : pair.shown)[axis] - at) / step;
  }

  place(pair, side) { // on the canvas
    if (this.held && this.held.id === pair.id && this.held.side === side) return this.held;
    const [y, x] = this.flat(side === "fixed" ? pair.fixed : pair.shown);
    const { origin, spacing } = this.unit;
    return { x: (x - origin[1]) / spacing[1] + 0.5, y: (y - origin[0]) / spacing[0] + 0.5 };
  }

  flatPosition(at) { // (y, x) in the fixed unit, of volumes on the slice that is shown
    const { origin, spacing } = this.unit;
    return [origin[0] + (at.y - 0.5) * spacing[0], origin[1] + (at.x - 0.5) * spacing[1]];
  }

  position(at) { // in the fixed unit: (y, x), of volumes (z, y, x)
    const found = this.flatPosition(at);
    if (this.plane) found.splice(this.plane.axis, 0, this.plane.at);
    return found;
  }

  landmark(pen, frame, pair, fixed, moving) {
    const on = (at) => [frame.x + at.x * frame.scale, frame.y + at.y * frame.scale];
    const [fx, fy] = on(this.place(pair, "fixed"));
    const [mx, my] = on(this.place(pair, "moving"));
    const colour = (side) => (!pair.on ? COLOURS.off : pair.odd && !pair.trusted ? COLOURS.odd : COLOURS[side]);
    const strength = (side) => Math.max(pair.id === this.chosen ? 0.35 : 0, 1 - Math.max(0, Math.abs(this.away(pair, side)) - 0.5) / FADES);
    fixed = fixed && strength("fixed") > 0;
    moving = moving && strength("moving") > 0;
    if (!fixed && !moving) return;
    const twice = (width, path, side) => { // dark under light: seen on any tissue
      pen.globalAlpha = strength(side);
      for (const [style, more] of [["#000", 2], [colour(side), 0]]) {
        pen.strokeStyle = style;
        pen.lineWidth = width + more;
        pen.beginPath();
        path();
        pen.stroke();
      }
    };
    const thick = this.chosen === pair.id ? 3.5 : 2;
    if (fixed && moving) twice(1.5, () => { pen.moveTo(mx, my); pen.lineTo(fx, fy); }, "moving");
    if (fixed) twice(thick, () => pen.arc(fx, fy, RING, 0, 7), "fixed");
    if (moving) {
      const r = RING * 0.8;
      twice(thick, () => { pen.moveTo(mx - r, my - r); pen.lineTo(mx + r, my + r); pen.moveTo(mx + r, my - r); pen.lineTo(mx - r, my + r); }, "moving");
    }
    const [x, y] = fixed ? [fx, fy] : [mx, my];
    pen.font = "600 13px system-ui, sans-serif";
    pen.lineWidth = 3;
    pen.strokeStyle = "#000";
    pen.globalAlpha = strength(fixed ? "fixed" : "moving");
    pen.strokeText(pair.name.slice(0, 40), x + RING + 4, y + 4);
    pen.fillStyle = "#fff";
    pen.fillText(pair.name.slice(0, 40), x + RING + 4, y + 4);
    pen.globalAlpha = 1;
  }

  hit(view, at, fixedFirst) { // the landmark under a place of the screen
    const frame = this.pictures.frame(view);
    const sides = this.pictures.mode === "side" ? [view === "a" ? "fixed" : "moving"] : fixedFirst ? ["fixed", "moving"] : ["moving", "fixed"];
    let best = null;
    for (const side of sides) {
      for (const pair of this.pairs) {
        if (Math.abs(this.away(pair, side)) > FADES && pair.id !== this.chosen) continue;
        const place = this.place(pair, side);
        const away = Math.hypot(frame.x + place.x * frame.scale - at.x, frame.y + place.y * frame.scale - at.y);
        if (away < 1.6 * RING && (!best || away < best.away - 4)) best = { away, id: pair.id, side };
      }
    }
    return best;
  }
}
