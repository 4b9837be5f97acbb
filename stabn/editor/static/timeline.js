// The strip of all source frames: above it the bars (drag to paint a level), over it the curves (drag to draw), below it
// the action's segments (drag an edge, or drag from here to there to make one).

import { themed, viridis } from "./colors.js";
import { line, moveRun, paint, runs, segment } from "./curve.js";
import { h, percent } from "./dom.js";

const BAR = 24, GAP = 6, TRACK = 26, GRIP = 9, SNAP = 7;
const TALL = 132;

export class Timeline {
  /**
   * frames: Frames; own: the network's curve; others: further curves {curve, color, dash}.
   * Callbacks: onseek(frame), onpreview(curve), oncommit(curve, what), onselect(first, last).
   */
  constructor({ frames, own, onseek, onpreview, oncommit, onhover = () => {}, readonly = false, height = TALL }) {
    Object.assign(this, { frames, own, onseek, onpreview, oncommit, onhover, readonly, tall: height });
    this.length = own.length;
    this.curve = own;
    this.others = [];
    this.frame = 0;
    this.selection = null;
    this.suggestion = null;
    this.pending = {};
    this.sampled = [];
    this.level = 1;
    this.heat = false;
    this.drag = null;
    this.film = h("canvas", { class: "film" });
    this.over = h("canvas", { class: "over" });
    this.element = h("div", {
      class: readonly ? "timeline readonly" : "timeline", role: "slider", tabIndex: 0, "aria-label": "Frames of the video",
      "aria-valuemin": 1, "aria-valuemax": this.length, "aria-orientation": "horizontal",
    }, this.film, this.over);
    this.element.addEventListener("pointerdown", (event) => this.#down(event));
    this.element.addEventListener("pointermove", (event) => this.#move(event));
    this.element.addEventListener("pointerup", (event) => this.#up(event));
    this.element.addEventListener("pointercancel", () => this.#cancel());
    this.element.addEventListener("pointerleave", () => { if (!this.drag) this.onhover(null); });
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(this.element);
    this.element.style.setProperty("--height", `${BAR + GAP + this.tall + GAP + TRACK}px`);
  }

  close() { this.observer.disconnect(); }

  /** Change what is shown; any of curve, frame, selection, suggestion, sampled, level, heat, others, pending. */
  show(changes) {
    const film = "heat" in changes && changes.heat !== this.heat;
    Object.assign(this, changes);
    if (film) this.drawFilm();
    this.#schedule();
    const value = this.curve[this.frame];
    this.element.setAttribute("aria-valuenow", this.frame + 1);
    this.element.setAttribute("aria-valuetext",
      `frame ${this.frame + 1} of ${this.length}, mine ${value === null ? "no opinion" : percent(value)}, ` +
      `network ${percent(this.own[this.frame])}`);
  }

  resize() {
    const { width } = this.element.getBoundingClientRect();
    if (!width) return;
    this.width = width;
    const ratio = window.devicePixelRatio || 1, height = BAR + GAP + this.tall + GAP + TRACK;
    for (const canvas of [this.film, this.over]) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      canvas.getContext("2d").setTransform(ratio, 0, 0, ratio, 0, 0);
    }
    this.drawFilm();
    this.draw();
  }

  x(frame) { return (frame * this.width) / this.length; }

  y(value) { return BAR + GAP + SNAP + (1 - value) * (this.tall - 2 * SNAP); }

  /** Draw the frames; only when they or the size change. */
  drawFilm(only) {
    if (!this.width) return;
    const context = this.film.getContext("2d"), top = BAR + GAP;
    const cell = this.width / this.length;
    context.fillStyle = themed("film");
    if (only === undefined) context.fillRect(0, top, this.width, this.tall);
    for (let frame = 0; frame < this.length; frame += 1) {
      if (only !== undefined && frame !== only) continue;
      const gap = cell > 8 ? 1 : 0;
      this.frames.draw(context, frame, this.x(frame), top, cell - gap, this.tall, { cover: true, heat: this.heat });
    }
  }

  #schedule() {
    if (this.scheduled) return;
    this.scheduled = requestAnimationFrame(() => { this.scheduled = null; this.draw(); });
  }

  draw() {
    if (!this.width) return;
    const context = this.over.getContext("2d");
    context.clearRect(0, 0, this.width, BAR + GAP + this.tall + GAP + TRACK);
    this.#bars(context);
    this.#shade(context);
    this.#curve(context, this.own, "rgb(205 207 213)", 1.75, [5, 4]);
    this.others.forEach((other) => this.#curve(context, other.curve, other.color, 2.5, other.dash ?? []));
    if (!this.readonly || this.own !== this.curve) this.#curve(context, this.curve, themed("mine-bright"), 2.75, []);
    this.#track(context);
    this.#playhead(context);
  }

  #bars(context) {
    const cell = this.width / this.length, muted = themed("line");
    for (let frame = 0; frame < this.length; frame += 1) {
      const value = this.curve[frame], left = this.x(frame), wide = cell - (cell > 5 ? 1 : 0);
      if (value !== null) {
        context.fillStyle = viridis(value);
        context.fillRect(left, 0, wide, BAR);
        continue;
      }
      context.save();
      context.beginPath();
      context.rect(left, 0, wide, BAR);
      context.clip();
      context.strokeStyle = muted;
      context.lineWidth = 1.5;
      for (let start = left - BAR; start < left + cell; start += 6) {
        context.beginPath();
        context.moveTo(start, BAR);
        context.lineTo(start + BAR, 0);
        context.stroke();
      }
      context.restore();
    }
  }

  #shade(context) {
    const top = BAR + GAP;
    const gradient = context.createLinearGradient(0, top, 0, top + this.tall);
    gradient.addColorStop(0, "rgb(10 11 14 / 0.16)");
    gradient.addColorStop(1, "rgb(10 11 14 / 0.34)");
    context.fillStyle = gradient;
    context.fillRect(0, top, this.width, this.tall);
    if (this.selection) {
      const [first, last] = this.selection;
      context.fillStyle = "rgb(255 255 255 / 0.22)";
      context.fillRect(this.x(first), top, this.x(last + 1) - this.x(first), this.tall);
      context.strokeStyle = "rgb(255 255 255 / 0.9)";
      context.lineWidth = 1;
      context.strokeRect(this.x(first) + 0.5, top + 0.5, this.x(last + 1) - this.x(first) - 1, this.tall - 1);
    }
  }

  #curve(context, curve, color, width, dash) {
    const path = new Path2D(), area = new Path2D(), cell = this.width / this.length, floor = this.y(0) + SNAP;
    let open = false, left = 0;
    const end = (frame) => {
      if (!open) return;
      area.lineTo(this.x(frame) - cell / 2, floor);
      area.lineTo(left, floor);
      open = false;
    };
    curve.forEach((value, frame) => {
      if (value === null) return end(frame);
      const x = this.x(frame) + cell / 2, y = this.y(value);
      if (open) { path.lineTo(x, y); area.lineTo(x, y); }
      else { path.moveTo(x, y); area.moveTo(x, y); left = x; open = true; }
    });
    end(curve.length);
    context.save();
    context.lineJoin = "round";
    context.lineCap = "round";
    if (!dash.length) {
      context.fillStyle = color;
      context.globalAlpha = 0.16;
      context.fill(area);
      context.globalAlpha = 1;
    }
    context.setLineDash(dash);
    context.strokeStyle = "rgb(10 11 14 / 0.62)";
    context.lineWidth = width + 2.5;
    context.stroke(path);
    context.strokeStyle = color;
    context.lineWidth = width;
    context.stroke(path);
    context.setLineDash([]);
    if (!dash.length && cell >= 12) {
      context.fillStyle = color;
      curve.forEach((value, frame) => {
        if (value === null) return;
        context.beginPath();
        context.arc(this.x(frame) + cell / 2, this.y(value), 3, 0, 7);
        context.fill();
      });
    }
    context.restore();
  }

  #track(context) {
    const top = BAR + GAP + this.tall + GAP, cell = this.width / this.length;
    context.fillStyle = themed("sunken");
    round(context, 0, top, this.width, TRACK, 6);
    context.fill();
    context.fillStyle = themed("muted");
    this.sampled.forEach((frame) => {
      context.beginPath();
      context.arc(this.x(frame) + cell / 2, top + TRACK - 3, 1.75, 0, 7);
      context.fill();
    });
    if (this.suggestion) {
      const { first, last } = this.suggestion;
      context.strokeStyle = themed("other");
      context.setLineDash([4, 3]);
      context.lineWidth = 1.5;
      round(context, this.x(first) + 1, top + 2, this.x(last + 1) - this.x(first) - 2, TRACK - 4, 5);
      context.stroke();
      context.setLineDash([]);
    }
    for (const { first, last } of runs(this.curve)) {
      const left = this.x(first), wide = this.x(last + 1) - left;
      context.fillStyle = themed("mine-soft");
      round(context, left, top + 4, wide, TRACK - 8, 5);
      context.fill();
      context.fillStyle = themed("mine-bright");
      round(context, left, top + 4, 4, TRACK - 8, 2);
      context.fill();
      round(context, left + wide - 4, top + 4, 4, TRACK - 8, 2);
      context.fill();
      if (wide > 64) {
        context.fillStyle = themed("ink");
        context.font = "600 11px system-ui, sans-serif";
        context.textAlign = "center";
        context.textBaseline = "middle";
        context.fillText(`${first + 1} – ${last + 1}`, left + wide / 2, top + TRACK / 2 + 0.5);
      }
    }
    for (const [name, frame] of Object.entries(this.pending)) {
      const x = name === "in" ? this.x(frame) : this.x(frame + 1);
      context.fillStyle = themed("mine-bright");
      context.fillRect(x - 1.5, BAR + GAP, 3, this.tall + GAP + TRACK);
    }
  }

  #playhead(context) {
    const cell = this.width / this.length, left = this.x(this.frame), top = BAR + GAP;
    context.strokeStyle = "rgb(10 11 14 / 0.75)";
    context.lineWidth = 4;
    context.strokeRect(left, top - 1, cell, this.tall + 2);
    context.strokeStyle = "#fff";
    context.lineWidth = 2;
    context.strokeRect(left, top - 1, cell, this.tall + 2);
    context.fillStyle = themed("ink");
    const middle = left + cell / 2;
    context.beginPath();
    context.moveTo(middle - 5, BAR + GAP + this.tall + GAP - 1);
    context.lineTo(middle + 5, BAR + GAP + this.tall + GAP - 1);
    context.lineTo(middle, BAR + GAP + this.tall - 5);
    context.fill();
  }

  #place(event) {
    const box = this.element.getBoundingClientRect();
    const x = event.clientX - box.left, y = event.clientY - box.top;
    const frame = Math.min(this.length - 1, Math.max(0, Math.floor((x / this.width) * this.length)));
    const value = Math.min(1, Math.max(0, 1 - (y - BAR - GAP - SNAP) / (this.tall - 2 * SNAP)));
    const row = y < BAR + GAP / 2 ? "bars" : y < BAR + GAP + this.tall + GAP / 2 ? "strip" : "track";
    return { x, y, frame, value, row };
  }

  #edge(x) {
    for (const run of runs(this.curve)) {
      const left = Math.abs(x - this.x(run.first)), right = Math.abs(x - this.x(run.last + 1));
      if (Math.min(left, right) <= GRIP) return { run, side: left <= right ? "first" : "last" };
    }
    return null;
  }

  #down(event) {
    if (event.button !== 0) return;
    this.element.setPointerCapture(event.pointerId);
    const place = this.#place(event);
    this.onseek(place.frame);
    if (this.readonly) { this.drag = { kind: "seek" }; return; }
    const base = this.curve;
    if (place.row === "bars") this.drag = { kind: "paint", base, from: place.frame };
    else if (place.row === "strip") this.drag = { kind: "draw", base, last: place, at: [event.clientX, event.clientY] };
    else {
      const edge = this.#edge(place.x);
      this.drag = edge ? { kind: "edge", base, ...edge } : { kind: "make", base, from: place.frame };
    }
    if (place.row === "bars") this.#continue(place, event);
  }

  #move(event) {
    const place = this.#place(event);
    this.onhover(place.frame);
    if (!this.drag) {
      if (!this.readonly) this.element.dataset.row = place.row === "track" && this.#edge(place.x) ? "edge" : place.row;
      return;
    }
    this.#continue(place, event);
  }

  #continue(place, event) {
    const { drag } = this;
    if (place.frame !== this.frame) this.onseek(place.frame);
    let curve = null;
    if (drag.kind === "paint") curve = paint(drag.base, drag.from, place.frame, this.level);
    else if (drag.kind === "draw") {
      if (!drag.moved && Math.hypot(event.clientX - drag.at[0], event.clientY - drag.at[1]) < 4) return;
      drag.moved = true;
      curve = line(drag.preview ?? drag.base, drag.last.frame, drag.last.value, place.frame, place.value);
      drag.last = place;
    } else if (drag.kind === "edge") {
      const { first, last } = drag.run;
      curve = drag.side === "first" ? moveRun(drag.base, drag.run, Math.min(place.frame, last), last)
        : moveRun(drag.base, drag.run, first, Math.max(place.frame, first));
    } else if (drag.kind === "make") {
      if (place.frame === drag.from && !drag.preview) return;
      curve = segment(this.length, Math.min(drag.from, place.frame), Math.max(drag.from, place.frame));
    }
    if (curve) { drag.preview = curve; this.onpreview(curve); }
  }

  #up() {
    const { drag } = this;
    this.drag = null;
    const names = { paint: "painted", draw: "curve drawn", edge: "segment moved", make: "segment set" };
    if (drag?.preview) this.oncommit(drag.preview, names[drag.kind]);
  }

  #cancel() {
    if (this.drag?.preview) this.onpreview(this.drag.base);
    this.drag = null;
  }
}

function round(context, x, y, width, height, radius) {
  context.beginPath();
  context.roundRect(x, y, Math.max(0, width), height, Math.min(radius, Math.max(0, width / 2)));
}
