// The two pictures: one over the other in six ways, or side by side with linked pan and zoom.

const OSD = window.OpenSeadragon;
const CLEAR = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"; // one clear pixel
const SQUARES = 8; // squares of the checkerboard along the view's width, about

function drop(world, item) {
  if (world.getIndexOfItem(item) >= 0) world.removeItem(item);
}

export class Pictures {
  constructor(state, views, changed) {
    this.canvas = state.canvas;
    this.atOnce = Math.min(4, Math.max(2, state.cores)); // tiles asked for together: more of them would only wait for a core
    this.plane = ""; // of a pair of volumes: which one is shown, as "z:12"
    this.sides = state.sides;
    this.style = { fixed: "", moving: "" };
    this.mode = "overlay";
    this.amount = 0.5;
    this.key = "";
    this.items = { a: {}, b: {} }; // what is on the screen
    this.coming = { a: {}, b: {} }; // what is being loaded to take its place
    this.viewers = {};
    this.serial = 0;
    for (const [name, element] of Object.entries(views)) this.viewers[name] = this.open(element);
    if (!this.sides.moving.pixels) { // a viewer without any picture does not move
      if (!this.sides.fixed.pixels) this.blank("a");
      this.blank("b");
    }
    this.edge = document.createElement("div");
    this.edge.className = "edge";
    this.edge.hidden = true;
    views.a.append(this.edge);
    this.linking = false;
    const link = (from, to) => {
      from.addHandler("update-viewport", () => { changed(); this.follow(); });
      for (const event of ["animation", "zoom", "pan", "resize"]) {
        from.addHandler(event, () => {
          if (this.linking || this.mode !== "side") return;
          this.linking = true;
          to.viewport.zoomTo(from.viewport.getZoom(), null, true);
          to.viewport.panTo(from.viewport.getCenter(), true);
          this.linking = false;
        });
      }
    };
    link(this.viewers.a, this.viewers.b);
    link(this.viewers.b, this.viewers.a);
  }

  open(element) {
    const viewer = new OSD.Viewer({
      element, drawer: "canvas", showNavigationControl: false, showNavigator: false, animationTime: 0.3, springStiffness: 10,
      maxZoomPixelRatio: 16, minZoomImageRatio: 0.5, visibilityRatio: 0.2, timeout: 120000, imageLoaderLimit: this.atOnce, maxTilesPerFrame: 4,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: false }, gestureSettingsTouch: { clickToZoom: false, dblClickToZoom: false },
      gestureSettingsPen: { clickToZoom: false, dblClickToZoom: false }, loadTilesWithAjax: false, crossOriginPolicy: false,
    });
    viewer.canvas.setAttribute("role", "application");
    viewer.canvas.setAttribute("aria-label", element.getAttribute("aria-label") + "; arrows move it, + and − zoom");
    return viewer;
  }

  blank(view) {
    const { width, height } = this.canvas;
    this.viewers[view].addTiledImage({
      tileSource: { width, height, tileSize: Math.max(width, height), minLevel: 0, maxLevel: 0, getTileUrl: () => CLEAR },
    });
  }

  source(side, key) {
    const { width, height, levels, tile } = this.canvas;
    const style = encodeURIComponent(this.style[side]);
    const plane = this.plane && `&plane=${this.plane}`;
    let least = levels;
    while (least > 0 && Math.max(width, height) / 2 ** (levels - least) > tile) least -= 1;
    return {
      width, height, tileSize: tile, tileOverlap: 0, minLevel: least, maxLevel: levels,
      getTileUrl: (level, x, y) => `/tiles/${side}/${key}/${level}/${x}/${y}?style=${style}${plane}`,
    };
  }

  put(view, side, key) {
    if (!this.sides[side].pixels) return Promise.resolve();
    if (view === "b" && this.mode !== "side") { // made when it is looked at
      this.owed = key;
      return Promise.resolve();
    }
    const { world } = this.viewers[view];
    const hidden = Boolean(this.items[view][side]); // the picture before it stays until this one is whole, so that it is drawn once
    const turn = (this.serial += 1);
    return new Promise((resolve) => {
      this.viewers[view].addTiledImage({
        tileSource: this.source(side, key), index: side === "fixed" ? 0 : undefined, opacity: hidden ? 0 : 1, preload: true,
        success: ({ item }) => {
          item.turn = turn;
          const before = this.coming[view][side];
          if (before && turn < before.turn) { drop(world, item); resolve(); return; }
          if (before) drop(world, before);
          this.coming[view][side] = item;
          if (hidden) {
            item.immediateRender = true; // the sharpest tiles alone: the coarser ones would be seen for a moment only
            item.needsDraw = () => false;
          } else this.enter(view, side, item);
          const ended = Date.now() + 4000;
          const look = () => { // the event of the viewer may have come before this handler, or never where nothing is in view
            const gone = world.getIndexOfItem(item) < 0;
            if (!gone && !item.getFullyLoaded() && Date.now() < ended) { setTimeout(look, 20); return; }
            if (!gone && hidden) this.enter(view, side, item);
            if (this.coming[view][side] === item) this.coming[view][side] = null;
            resolve();
          };
          look();
        },
      });
    });
  }

  enter(view, side, item) { // puts a picture in the place of the one before
    const old = this.items[view][side];
    delete item.needsDraw;
    this.items[view][side] = item;
    if (view === "b" || side === "fixed") item.setOpacity(1);
    if (old) drop(this.viewers[view].world, old);
    this.apply();
  }

  async show(key) {
    const first = this.key === "";
    this.key = key;
    const work = [this.put("a", "moving", key), this.put("b", "moving", key)];
    if (first) work.push(this.put("a", "fixed", key));
    await Promise.all(work);
  }

  async slice(plane, canvas) { // another plane; of another canvas where one is given
    this.plane = plane;
    if (canvas) {
      Object.assign(this.canvas, canvas);
      for (const viewer of Object.values(this.viewers)) viewer.world.removeAll();
      this.items = { a: {}, b: {} };
      this.coming = { a: {}, b: {} };
      this.place = this.squares = null;
    }
    if (!this.key) return;
    const work = [this.put("a", "fixed", this.key), this.put("a", "moving", this.key), this.put("b", "moving", this.key)];
    await Promise.all(work);
    if (canvas) for (const viewer of Object.values(this.viewers)) viewer.viewport.goHome(true);
  }

  async restyle(side, style) {
    this.style[side] = style;
    await Promise.all(side === "fixed" ? [this.put("a", side, this.key)] : [this.put("a", side, this.key), this.put("b", side, this.key)]);
  }

  setMode(mode) {
    this.mode = mode;
    clearInterval(this.timer);
    this.lit = true;
    const twin = this.viewers.b.element;
    twin.hidden = mode !== "side";
    if (mode === "flicker") this.flick();
    requestAnimationFrame(() => {
      if (mode === "side") {
        const from = this.viewers.a.viewport;
        this.viewers.b.viewport.resize(new OSD.Point(twin.clientWidth, twin.clientHeight), false);
        this.viewers.b.viewport.zoomTo(from.getZoom(), null, true);
        this.viewers.b.viewport.panTo(from.getCenter(), true);
      }
      if (mode === "side" && this.owed) {
        this.put("b", "moving", this.owed);
        this.owed = "";
      }
      this.apply();
    });
  }

  setAmount(amount) {
    this.amount = amount;
    if (this.mode === "flicker") this.flick();
    this.apply();
  }

  flick() {
    clearInterval(this.timer);
    this.timer = setInterval(() => { this.lit = !this.lit; this.apply(); }, 1500 - 1300 * this.amount);
  }

  apply() {
    const moving = this.items.a.moving;
    if (!moving) return;
    const { mode, amount } = this;
    const opacity = { overlay: amount, flicker: this.lit ? 1 : 0, side: this.sides.fixed.pixels ? 0 : 1 }[mode] ?? 1;
    moving.setOpacity(opacity);
    moving.setCompositeOperation(mode === "difference" ? "difference" : "source-over");
    if (mode !== "swipe") moving.setClip(null);
    if (mode !== "checker") { moving.resetCroppingPolygons(); this.squares = ""; }
    this.edge.hidden = mode !== "swipe";
    this.follow();
    this.viewers.a.forceRedraw();
  }

  follow() { // what hangs on the screen, not on the picture
    const moving = this.items.a.moving;
    if (!moving || (this.mode !== "swipe" && this.mode !== "checker")) return;
    const { viewport } = this.viewers.a;
    const bounds = viewport.getBounds(true);
    const { width, height } = this.canvas;
    if (this.mode === "swipe") {
      const x = Math.min(Math.max((bounds.x + bounds.width * this.amount) * width, 0), width - 1e-3);
      this.edge.style.left = `${100 * this.amount}%`;
      const place = Math.round(x * 8) / 8;
      if (this.place !== place || !moving.getClip()) {
        this.place = place;
        moving.setClip(new OSD.Rect(place, 0, Math.max(width - place, 1e-3), height));
      }
      return;
    }
    const side = 2 ** Math.round(Math.log2((bounds.width * width) / SQUARES)) * (0.5 + this.amount);
    const first = [Math.floor((bounds.y * width) / side) - 1, Math.floor((bounds.x * width) / side) - 1];
    const last = [Math.ceil(((bounds.y + bounds.height) * width) / side), Math.ceil(((bounds.x + bounds.width) * width) / side)];
    const squares = `${side} ${first} ${last}`;
    if (squares === this.squares) return;
    this.squares = squares;
    const polygons = [];
    for (let row = first[0]; row <= last[0]; row += 1) {
      for (let column = first[1]; column <= last[1]; column += 1) {
        if ((row + column) % 2) continue;
        const [y, x] = [row * side, column * side];
        polygons.push([{ x, y }, { x: x + side, y }, { x: x + side, y: y + side }, { x, y: y + side }]);
      }
    }
    moving.setCroppingPolygons(polygons);
  }

  // ---- places: on the canvas in its pixels, on the screen of a view in its pixels

  frame(view) {
    const { viewport } = this.viewers[view];
    const zero = viewport.pixelFromPoint(new OSD.Point(0, 0), true);
    const one = viewport.pixelFromPoint(new OSD.Point(1, 0), true);
    return { x: zero.x, y: zero.y, scale: (one.x - zero.x) / this.canvas.width };
  }

  toCanvas(view, at) {
    const { x, y, scale } = this.frame(view);
    return { x: (at.x - x) / scale, y: (at.y - y) / scale };
  }

  zoom(factor) { this.viewers.a.viewport.zoomBy(factor).applyConstraints(); }

  fit() { this.viewers.a.viewport.goHome(); }

  look(x, y) { this.viewers.a.viewport.panTo(new OSD.Point(x / this.canvas.width, y / this.canvas.width)); }

  lift(dx, dy) { // shows the moving picture displaced, before the server knows
    for (const view of ["a", "b"]) {
      this.items[view].moving?.setPosition(new OSD.Point(dx / this.canvas.width, dy / this.canvas.width), true);
    }
  }
}
