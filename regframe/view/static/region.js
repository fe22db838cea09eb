// Correct here: an outline drawn on the fixed picture, corner by corner or as a rectangle, and what is asked for with it.

import { $, send } from "./talk.js";

const NEAR = 10; // pixels of the screen within which a click on the first corner closes the outline

export class Outline {
  constructor(pictures, marks, hooks) {
    this.pictures = pictures;
    this.marks = marks;
    this.hooks = hooks;
    this.corners = []; // on the canvas
    this.drawing = "";
    this.closed = false;
    this.start = null;
    for (const how of ["rectangle", "outline"]) $(`draw-${how}`).addEventListener("click", () => this.draw(this.drawing === how ? "" : how));
    $("region-clear").addEventListener("click", () => this.clear());
    $("region-go").addEventListener("click", () => this.go());
    this.tell();
  }

  draw(how) {
    if (how) this.hooks.begins();
    this.drawing = how;
    if (how) { this.corners = []; this.closed = false; }
    this.start = null;
    this.tell();
  }

  clear() { this.corners = []; this.closed = false; this.draw(""); }

  tell() {
    for (const how of ["rectangle", "outline"]) $(`draw-${how}`).setAttribute("aria-pressed", String(this.drawing === how));
    $("region-clear").disabled = !this.corners.length;
    $("region-go").disabled = !this.closed;
    $("stage").classList.toggle("drawing", Boolean(this.drawing));
    $("region-said").textContent = this.drawing === "rectangle" ? "Drag from one corner to the other."
      : this.drawing ? "Click corner after corner; click the first one, or press Enter, to close." : this.closed
        ? "Add landmarks inside, then correct. The correction fades towards the outline." : "";
    this.marks.region = this.corners.length ? { corners: this.corners, closed: this.closed } : null;
    this.marks.later();
  }

  close() {
    if (this.corners.length < 3) return;
    this.closed = true;
    this.draw("");
  }

  middle() { // by keys alone: a rectangle over the middle half of the view
    const { clientWidth: w, clientHeight: h } = this.pictures.viewers.a.element;
    const [a, b] = [{ x: w / 4, y: h / 4 }, { x: (3 * w) / 4, y: (3 * h) / 4 }].map((at) => this.pictures.toCanvas("a", at));
    this.rectangle(a, b);
    this.close();
  }

  rectangle(a, b) { this.corners = [{ x: a.x, y: a.y }, { x: b.x, y: a.y }, { x: b.x, y: b.y }, { x: a.x, y: b.y }]; }

  // ---- the pointer; each says whether it took the event

  press(view, at) {
    if (this.drawing !== "rectangle") return false;
    this.start = this.pictures.toCanvas(view, at);
    return true;
  }

  drag(view, at) {
    if (!this.start) return false;
    this.rectangle(this.start, this.pictures.toCanvas(view, at));
    this.tell();
    return true;
  }

  release() {
    if (!this.start) return false;
    this.start = null;
    this.close();
    return true;
  }

  click(view, at) {
    if (this.drawing !== "outline") return false;
    const here = this.pictures.toCanvas(view, at);
    const [first] = this.corners;
    if (first && this.corners.length > 2 && Math.hypot(first.x - here.x, first.y - here.y) * this.pictures.frame(view).scale < NEAR) this.close();
    else { this.corners = [...this.corners, here]; this.tell(); }
    return true;
  }

  key(name) {
    if (!this.drawing) return false;
    if (name === "Escape") this.clear();
    else if (name === "Enter") this.drawing === "rectangle" || this.corners.length < 3 ? this.middle() : this.close();
    else return false;
    return true;
  }

  async go() {
    if (!this.closed) return;
    await this.hooks.tried(async () => {
      $("region-said").textContent = "correcting …";
      try {
        await send("/api/correct", { region: [this.corners.map((at) => this.marks.position(at))] });
      } catch (problem) { this.tell(); throw problem; }
    });
  }
}
