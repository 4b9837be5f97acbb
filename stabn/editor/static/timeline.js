// The timeline of all source frames. What a drag does is told by its place: over the ruler and the frames it scrubs, over the
// curves it draws, over their levels it paints, in the lowest lane it moves, resizes or adds a segment of the action.

import { line as straight, addRun, moveRun, paint, resizeRun, runs } from "./curve.js";
import { h, percent } from "./dom.js";
import { drawFilm, drawOver, layout, pictures, valueOf } from "./lanes.js";

const GRIP = 7; // pixels at both sides of a segment's edge
const LEAST_MOVE = 4; // pixels: a hand that only clicks moves less
const WIDEST = 120; // pixels of a frame when zoomed in most
const PART = 0.28; // of the window's height
const STEP = 1.25; // of zooming
const EDGE = 0.02; // of the width: so near to an end of what is shown, zooming keeps that end

export class Timeline {
  /**
   * frames: Frames; own: the network's curve; ratio: width by height of a frame.
   * Callbacks: onseek(frame), onpreview(curve), oncommit(curve, what), onpick(first, last), onhover(frame), onview(zoomed).
   */
  constructor({ frames, own, ratio, onseek, onpreview, oncommit, onpick = () => {}, onhover = () => {}, onview = () => {}, readonly = false }) {
    Object.assign(this, { frames, own, ratio, onseek, onpreview, oncommit, onpick, onhover, onview, readonly });
    this.length = own.length;
    this.curve = own;
    this.others = [];
    this.frame = 0;
    this.selection = null;
    this.suggestion = null;
    this.loop = null;
    this.pending = {};
    this.sampled = [];
    this.shown = [];
    this.level = 1;
    this.heat = false;
    this.drag = null;
    this.view = { start: 0, span: this.length };
    this.film = h("canvas", { class: "film" });
    this.over = h("canvas", { class: "over" });
    this.element = h("div", {
      class: "timeline", role: "slider", tabIndex: 0, "aria-label": "Frames of the video",
      "aria-valuemin": 1, "aria-valuemax": this.length, "aria-orientation": "horizontal",
    }, this.film, this.over);
    this.element.addEventListener("pointerdown", (event) => this.#down(event));
    this.element.addEventListener("pointermove", (event) => this.#move(event));
    this.element.addEventListener("pointerup", (event) => this.#up(event));
    this.element.addEventListener("pointercancel", () => this.cancel());
    this.element.addEventListener("pointerleave", () => { if (!this.drag) this.onhover(null); });
    this.element.addEventListener("dblclick", (event) => this.#double(event));
    this.element.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(this.element);
    this.sized = () => this.#layout();
    window.addEventListener("resize", this.sized);
    this.#layout();
  }

  close() {
    this.observer.disconnect();
    window.removeEventListener("resize", this.sized);
    cancelAnimationFrame(this.scheduled);
  }

  /** Change what is shown; any of curve, frame, selection, suggestion, sampled, level, heat, others, pending, loop. */
  show(changes) {
    const film = "heat" in changes && changes.heat !== this.heat;
    Object.assign(this, changes);
    if ("frame" in changes && !this.drag) this.#follow();
    this.#schedule(film);
    const value = this.curve[this.frame];
    this.element.setAttribute("aria-valuenow", this.frame + 1);
    this.element.setAttribute("aria-valuetext",
      `frame ${this.frame + 1} of ${this.length}, mine ${value === null ? "no opinion" : percent(value)}, ` +
      `network ${percent(this.own[this.frame])}`);
  }

  #layout() {
    Object.assign(this, layout(PART * window.innerHeight));
    this.element.style.setProperty("--height", `${this.total}px`);
    this.resize();
  }

  resize() {
    const { width } = this.element.getBoundingClientRect();
    if (!width) return;
    this.width = width;
    const ratio = window.devicePixelRatio || 1;
    for (const canvas of [this.film, this.over]) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(this.total * ratio);
      canvas.getContext("2d").setTransform(ratio, 0, 0, ratio, 0, 0);
    }
    this.#look(this.view.start, this.view.span);
    this.#draw(true);
  }

  // Where things are ---------------------------------------------------------------------------------------------------

  cell() { return this.width / this.view.span; }

  x(frame) { return (frame - this.view.start) * this.cell(); }

  frameAt(x) {
    return Math.min(this.length - 1, Math.max(0, Math.floor(this.view.start + x / this.cell())));
  }

  /** Return the first and last frame in view, and some more at both sides. */
  inView(more) {
    return [Math.max(0, Math.floor(this.view.start) - more), Math.min(this.length - 1, Math.ceil(this.view.start + this.view.span) - 1 + more)];
  }

  get zoomed() { return this.view.span < this.length - 1e-6; }

  // The view -----------------------------------------------------------------------------------------------------------

  /** Show more (factor below 1: fewer) frames, with one of them staying where it is. */
  zoom(factor, frame) {
    const place = frame ?? this.frame + 0.5, { start, span: former } = this.view, span = this.#span(former * factor);
    const part = (place - start) / former, at = part < EDGE ? 0 : part > 1 - EDGE ? 1 : part;
    if (part < 0 || part > 1) this.#look(place - span / 2, span);
    else this.#look(start + at * (former - span), span);
    if (frame === undefined) this.#follow();
  }

  /** Show all frames. */
  fit() { this.#look(0, this.length); }

  /** Show some frames, with a margin. */
  frameUp(first, last) {
    const wide = last - first + 1, span = this.#span(1.5 * wide);
    this.#look(first + wide / 2 - span / 2, span);
  }

  pan(frames) { this.#look(this.view.start + frames, this.view.span); }

  #span(span) {
    return Math.min(this.length, Math.max(Math.min(this.length, this.width / WIDEST), span));
  }

  #look(start, span) {
    const kept = Math.min(span, this.length);
    this.view = { start: Math.max(0, Math.min(start, this.length - kept)), span: kept };
    this.#schedule(true);
    this.onview(this.zoomed);
  }

  /** Bring the playhead back into view. */
  #follow() {
    const { start, span } = this.view;
    if (this.frame < start || this.frame + 1 > start + span) this.#look(this.frame - 0.1 * span, span);
  }

  /** Frames first to last can be drawn now. */
  arrived(first, last) {
    if (this.shown.some(({ frame }) => frame >= first && frame <= last)) this.#schedule(true);
  }

  #schedule(film = false) {
    this.stale ||= film;
    this.scheduled ??= requestAnimationFrame(() => { this.scheduled = null; this.#draw(this.stale); });
  }

  #draw(film) {
    if (!this.width) return;
    if (film) {
      this.stale = false;
      this.shown = pictures(this, this.ratio);
      const [, height] = this.lanes.film;
      this.frames.want(this.shown.map(({ frame }) => frame), Math.round(height * (window.devicePixelRatio || 1)));
      drawFilm(this, this.film.getContext("2d"));
    }
    drawOver(this, this.over.getContext("2d"));
  }

  // The hand -----------------------------------------------------------------------------------------------------------

  #place(event) {
    const box = this.element.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    const lane = Object.keys(this.lanes).findLast((name) => y >= this.lanes[name][0]) ?? "ruler";
    return { x, frame: this.frameAt(x), spot: this.view.start + x / this.cell(), value: valueOf(this.lanes.curve, y), lane: lane === "map" && !this.zoomed ? "track" : lane };
  }

  /** Return what a drag from a place would do. */
  #deed({ lane, x, frame }) {
    if (lane === "map") return { kind: "pan" };
    if (this.readonly || lane === "ruler" || lane === "film") return { kind: "scrub" };
    if (lane === "curve") return { kind: "draw" };
    if (lane === "bars") return { kind: "paint" };
    const near = (place) => Math.abs(x - this.x(place));
    let best = null;
    for (const run of runs(this.curve)) {
      const wide = this.x(run.last + 1) - this.x(run.first), grip = Math.min(GRIP, Math.max(2, wide / 4)); // a body is left between
      const inside = x >= this.x(run.first) && x <= this.x(run.last + 1);
      for (const [side, distance] of [["first", near(run.first)], ["last", near(run.last + 1)]]) {
        if (distance <= (inside ? grip : GRIP) && (!best || distance < best.distance)) best = { kind: "resize", run, side, distance };
      }
      if (inside && best?.run !== run) best = { kind: "move", run, distance: 0.5 };
    }
    return best ?? { kind: "add", from: frame };
  }

  #down(event) {
    if (event.button !== 0 || this.drag) return;
    this.element.setPointerCapture(event.pointerId);
    const place = this.#place(event), deed = this.#deed(place);
    this.drag = { ...deed, base: this.curve, from: place.frame, last: place, at: [event.clientX, event.clientY] };
    if (deed.kind === "pan") return this.#panTo(place.x);
    this.onseek(place.frame);
    if (deed.kind === "paint") this.#change(paint(this.curve, place.frame, place.frame, this.level));
  }

  #move(event) {
    const place = this.#place(event);
    this.onhover(place.frame);
    if (this.drag) this.#continue(place, event);
    else this.element.dataset.deed = this.#deed(place).kind;
  }

  #continue(place, event) {
    const { drag } = this;
    if (drag.kind === "pan") return this.#panTo(place.x);
    if (place.x < 0 || place.x > this.width) this.pan((place.x < 0 ? place.x : place.x - this.width) / this.cell() / 4);
    drag.moved ||= Math.hypot(event.clientX - drag.at[0], event.clientY - drag.at[1]) >= LEAST_MOVE;
    if (drag.kind !== "scrub" && !drag.moved) return;
    if (place.frame !== this.frame) this.onseek(place.frame);
    const by = Math.round(place.spot - drag.last.spot), { base, run } = drag;
    if (drag.kind === "paint") this.#change(paint(base, drag.from, place.frame, this.level));
    else if (drag.kind === "draw") {
      this.#change(straight(drag.preview ?? base, drag.last.frame, drag.last.value, place.frame, place.value));
      drag.last = place;
    } else if (drag.kind === "move") this.#change(moveRun(base, run, by));
    else if (drag.kind === "resize") {
      const edge = drag.side === "first" ? Math.min(run.last, run.first + by) : Math.max(run.first, run.last + by);
      this.#change(drag.side === "first" ? resizeRun(base, run, edge, run.last) : resizeRun(base, run, run.first, edge));
    } else if (drag.kind === "add") this.#change(addRun(base, this.own, Math.min(drag.from, place.frame), Math.max(drag.from, place.frame)));
  }

  #change(curve) {
    this.drag.preview = curve;
    this.onpreview(curve);
  }

  #panTo(x) { this.#look((x / this.width) * this.length - this.view.span / 2, this.view.span); }

  #up() {
    const { drag } = this;
    this.drag = null;
    const names = { paint: "painted", draw: "curve drawn", move: "segment moved", resize: "segment resized", add: "segment added" };
    if (drag?.preview) this.oncommit(drag.preview, names[drag.kind]);
    else if (drag?.kind === "move") this.onpick(drag.run.first, drag.run.last);
  }

  /** Give a drag up: nothing was changed; true if there was one. */
  cancel() {
    const { drag } = this;
    this.drag = null;
    if (drag?.preview) this.onpreview(drag.base);
    return Boolean(drag);
  }

  #double(event) {
    const place = this.#place(event), run = runs(this.curve).find(({ first, last }) => place.frame >= first && place.frame <= last);
    if (place.lane === "track" && run) this.frameUp(run.first, run.last);
  }

  #wheel(event) {
    event.preventDefault();
    const sideways = Math.abs(event.deltaX) > Math.abs(event.deltaY), unit = event.deltaMode === 0 ? 1 : 33;
    if (sideways || event.shiftKey) return this.pan(((sideways ? event.deltaX : event.deltaY) * unit) / this.cell());
    this.zoom(STEP ** Math.max(-4, Math.min(4, (event.deltaY * unit) / 60)), this.#place(event).spot);
  }
}
