// The player: frames by index at 12 frames per second times the speed, in a loop.

import { button, h, icon } from "./dom.js";

export const SPEEDS = [0.25, 0.5, 0.75, 1, 1.5, 2];
const FPS = 12;

export class Player {
  constructor({ frames, length, onframe, size }) {
    Object.assign(this, { frames, length, onframe });
    this.frame = 0;
    this.speed = Number(localStorage.getItem("stabn/speed")) || 1;
    this.playing = false;
    this.heat = false;
    this.canvas = h("canvas", { class: "picture", role: "img", "aria-label": "The present frame" });
    this.stage = h("div", { class: "stage", vars: { "--ratio": `${size[0]} / ${size[1]}` } }, this.canvas);
    this.count = h("span", { class: "count" });
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
    this.count.textContent = `${frame + 1} / ${this.length}`;
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

  #scrub(event) {
    if (!(event.buttons & 1)) return;
    if (event.type === "pointerdown") {
      event.preventDefault();
      this.stage.setPointerCapture(event.pointerId);
    }
    this.stop();
    const { left, width } = this.stage.getBoundingClientRect();
    const frame = Math.floor(((event.clientX - left) / width) * this.length);
    this.seek(Math.min(this.length - 1, Math.max(0, frame)));
  }

  #tick(time) {
    if (!this.playing) return;
    this.clock ??= time;
    const steps = Math.floor(((time - this.clock) / 1000) * FPS * this.speed);
    if (steps > 0) {
      this.clock += (steps * 1000) / (FPS * this.speed);
      this.seek((this.frame + steps) % this.length);
    }
    this.request = requestAnimationFrame((next) => this.#tick(next));
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
