// What the network says: its own top 5 in grey, and the one under my attention in colour, which moves after each edit.

import { post } from "./api.js";
import { h, icon, percent } from "./dom.js";

const RETRY_SECONDS = 3;

export class Verdict {
  /** classes: names; video: as the server sent it; onsampled(frames): which source frames the network sees. */
  constructor({ classes, video, whatIf, onsampled, onchange }) {
    Object.assign(this, { classes, video, onsampled, onchange });
    this.own = new Map(video.top.map((entry) => [entry.class_index, entry.score]));
    this.rows = new Map();
    this.list = h("ol", { class: "verdict", "aria-label": "The five most likely actions" });
    this.truth = h("p", { class: "truth" });
    this.note = h("p", { class: "note", role: "note" });
    this.element = h("section", { class: "panel", "aria-labelledby": "verdict-title" },
      h("div", { class: "panel-head" }, h("h2", { id: "verdict-title" }, "The network says"),
        h("p", { class: "legend" }, h("span", { class: "swatch mine" }), "with mine", h("span", { class: "swatch own" }), "with its own")),
      this.list, this.truth, this.note);
    this.state = whatIf.state;
    if (this.state === "off" || this.state === "failed") {
      this.note.textContent = `The network is not at hand: ${whatIf.reason}. Corrections work all the same.`;
    } else if (this.state === "loading") this.note.textContent = "The network is being loaded …";
    this.show(video.top, null);
  }

  /** Ask what the network says of a curve; while one question is on its way only the newest of the others waits. */
  ask(curve) {
    if (this.closed || this.state === "off" || this.state === "failed") return;
    this.waiting = curve;
    if (!this.busy) this.#send();
  }

  async #send() {
    this.busy = true;
    while (this.waiting && !this.closed) {
      const curve = this.waiting;
      this.waiting = null;
      try {
        const path = `api/videos/${encodeURIComponent(this.video.video_id)}/what-if`;
        const answer = await post(path, { edited_attention: curve });
        this.note.textContent = "";
        this.onsampled(answer.sampled);
        this.show(answer.top, answer.true);
      } catch (error) {
        if (error.code === "no_network" && error.body.state !== "loading") {
          this.state = "failed";
          this.note.textContent = `The network is not at hand: ${error.message}. Corrections work all the same.`;
        } else if (error.passing) {
          this.note.textContent = error.message;
          this.waiting ??= curve;
          await new Promise((resolve) => setTimeout(resolve, 1000 * RETRY_SECONDS));
        } else break;
      }
    }
    this.busy = false;
  }

  /** Show a top 5; rows of the same action move to their new place. */
  show(top, truth) {
    const { class_index: target } = this.video;
    const first = this.best;
    this.best = top[0].class_index;
    const kept = new Set(top.map((entry) => entry.class_index));
    for (const [index, row] of this.rows) if (!kept.has(index)) { row.remove(); this.rows.delete(index); }
    top.forEach(({ class_index: index, score }, rank) => {
      if (!this.rows.has(index)) this.rows.set(index, this.#row(index));
      const row = this.rows.get(index), own = this.own.get(index);
      row.style.setProperty("--rank", rank);
      row.style.setProperty("--score", score);
      row.style.setProperty("--own", own ?? 0);
      row.classList.toggle("unknown", own === undefined);
      row.querySelector(".score").textContent = percent(score);
      row.querySelector(".said").textContent = own === undefined ? "" : `, with its own attention ${percent(own)}`;
      this.list.append(row);
    });
    this.list.style.setProperty("--rows", top.length);
    const rank = truth?.rank ?? top.findIndex((entry) => entry.class_index === target) + 1;
    if (rank && rank <= top.length) this.truth.textContent = "";
    else this.truth.textContent = truth ? `The true action is number ${rank}, ${percent(truth.score)}` : "The true action is not among them";
    if (first !== undefined && first !== this.best) this.onchange(`${this.classes[this.best]}, ${percent(top[0].score)}`);
  }

  #row(index) {
    const right = index === this.video.class_index;
    return h("li", { class: right ? "right" : "", "data-class": index },
      h("span", { class: "name", title: this.classes[index] }, right ? icon("check") : null, this.classes[index],
        right ? h("span", { class: "visually-hidden" }, " (the true action)") : null),
      h("span", { class: "score" }), h("span", { class: "said visually-hidden" }),
      h("span", { class: "bar", "aria-hidden": "true" }, h("span", { class: "now" }), h("span", { class: "then" })));
  }

  close() { this.closed = true; }
}
