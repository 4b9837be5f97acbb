// The player: frames by index at 12 frames per second times the speed, in a loop over the video or a part of it.

import { button, h, icon } from "./dom.js";

export const SPEEDS = [0.25, 0.5, 0.75, 1, 1.5, 2];
const FPS = 12;

export class Player {
  /** onframe(frame): it is shown now; onstop(): playing ended; size: width and height of a frame. */
  constructor({ frames, length, onframe, onstop = () => {}, size }) {
    Object.assign(this, { frames, length, onframe, onstop });
    this.frame = 0;
    this.loop = null; // [first, last] of what is played again and again; null: the video
    this.speed = Number(localStorage.getItem("stabn/speed")) || 1;
    this.range = () => ({ start: 0, span: length }); // the frames over which the picture scrubs
    this.playing = false;
    this.heat = false;
    this.canvas = h("canvas", { class: "picture", role: "img", "aria-label": "The present frame" });
    this.stage = h("div", { class: "stage", vars: { "--ratio": `${size[0]} / ${size[1]}` } }, this.canvas);
    this.field = h("input", {
      class: "frame-number", "aria-label": "Frame", inputmode: "numeric", autocomplete: "off", value: "1", title: "Go to a frame  T",
      vars: { "--digits": String(length).length },
      onfocus: () => { this.stop(); this.field.select(); },
      onkeydown: (event) => { if (event.key === "Enter") this.field.blur(); if (event.key === "Escape") { this.field.value = this.frame + 1; this.field.blur(); } },
      onchange: () => this.#goTo(this.field.value),
      onblur: () => { this.field.value = this.frame + 1; },
    });
    this.count = h("span", { class: "count" }, this.field, ` / ${length}`);
    this.playButton = button("Play", { class: "round", onclick: () => this.toggle(), "aria-keyshortcuts": "Space" });
    this.speeds = h("div", { class: "segmented", role: "group", "aria-label": "Speed" },
      SPEEDS.map((speed) => button(`${speed}×`, { onclick: () => this.setSpeed(speed) })));
    this.transport = h("div", { class: "transport" },
      button("", { class: "quiet", "aria-label": "One frame back", title: "One frame back  ←", onclick: () => this.step(-1) }, icon("first")),
      this.playButton,
      button("", { class: "quiet", "aria-label": "One frame on", title: "One frame on  →", onclick: () => this.step(1) }, icon("last")),
      this.count, this.speeds);
    for (const name of ["pointerdown", "pointermove"]) this.stage.addEventListener(name, (event) => this.#scrub(event));
    this.stage.title = "Drag over the picture to scrub";
    this.observer = new ResizeObserver(() => this.#resize());
    this.observer.observe(this.stage);
    this.setSpeed(SPEEDS.includes(this.speed) ? this.speed : 1);
    this.#label();
  }

  toggle() {
    this.playing = !this.playing;
    this.#label();
    this.clock = null;
    if (!this.playing) this.onstop();
    if (this.playing) this.request = requestAnimationFrame((time) => this.#tick(time));
  }

  stop() { if (this.playing) this.toggle(); }

  step(by) {
    this.stop();
    this.seek(Math.min(this.length - 1, Math.max(0, this.frame + by)));
  }

  /** Show a frame. */
  seek(frame) {
    this.frame = frame;
    if (document.activeElement !== this.field) this.field.value = frame + 1;
    this.frames.at(frame, ...(this.playing && this.loop ? this.loop : []));
    this.draw();
    this.onframe(frame);
  }

  setSpeed(speed) {
    this.speed = speed;
    localStorage.setItem("stabn/speed", speed);
    [...this.speeds.children].forEach((child, i) => child.setAttribute("aria-pressed", SPEEDS[i] === speed));
  }

  faster(by) {
    const at = SPEEDS.indexOf(this.speed) + by;
    if (SPEEDS[at]) this.setSpeed(SPEEDS[at]);
    return this.speed;
  }

  draw() {
    const { width, height } = this.canvas, context = this.canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    this.frames.draw(context, this.frame, 0, 0, width, height, { heat: this.heat });
  }

  close() {
    this.playing = false;
    cancelAnimationFrame(this.request);
    this.observer.disconnect();
  }

  /** Go to the frame that somebody wrote: 1 is the first. */
  #goTo(text) {
    const number = Number(text);
    if (text.trim() && Number.isFinite(number)) this.step(Math.round(number) - 1 - this.frame);
  }

  #scrub(event) {
    if (!(event.buttons & 1)) return;
    if (event.type === "pointerdown") {
      event.preventDefault();
      this.stage.setPointerCapture(event.pointerId);
    }
    this.stop();
    const { left, width } = this.stage.getBoundingClientRect(), { start, span } = this.range();
    const frame = Math.floor(start + ((event.clientX - left) / width) * span);
    this.seek(Math.min(this.length - 1, Math.max(0, frame)));
  }

  #tick(time) {
    if (!this.playing) return;
    this.clock ??= time;
    const steps = Math.floor(((time - this.clock) / 1000) * FPS * this.speed);
    if (steps > 0) {
      const [first, last] = this.loop ?? [0, this.length - 1], inside = this.frame >= first && this.frame <= last;
      const next = inside ? first + ((this.frame - first + steps) % (last - first + 1)) : first;
      if (this.frames.get(next) === undefined) this.#wait(next, first, last, time);
      else {
        this.clock += (steps * 1000) / (FPS * this.speed);
        this.seek(next);
      }
    }
    this.request = requestAnimationFrame((next) => this.#tick(next));
  }

  /** Stay on a frame until the next one has arrived. */
  #wait(next, first, last, time) {
    this.frames.at(next, first, last);
    this.clock = time - 1000 / (FPS * this.speed);
  }

  #label() {
    this.playButton.replaceChildren(icon(this.playing ? "pause" : "play"));
    this.playButton.setAttribute("aria-label", this.playing ? "Pause" : "Play");
    this.playButton.title = this.playing ? "Pause  Space" : "Play  Space";
  }

  #resize() {
    const box = this.stage.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(box.width * ratio);
    this.canvas.height = Math.round(box.height * ratio);
    this.draw();
  }
}
