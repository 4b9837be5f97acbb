// Everything that changes the curve of the open video, and what a change needs: the selection, the level, marks, undo.

import { LEVELS, LEVEL_NAMES, History, fill, invert, lift, merge, paint, resample, runs, segment, smooth } from "./curve.js";
import { percent, say } from "./dom.js";

/** Where the curve of a person's last video is kept: people may share a browser, but no curves. */
export const lastKey = (user) => `stabn/last:${encodeURIComponent(user.name)}`;

export class Editing {
  /** page: an EditorPage; its player, timeline and video are used, and it is told of changes. */
  constructor(page, curve) {
    this.page = page;
    this.length = curve.length;
    this.history = new History(curve);
    this.marks = {};
    this.selection = null;
    this.level = 1;
  }

  get curve() { return this.history.curve; }

  commit(curve, what, keepMarks = false) {
    if (!this.page.mayChange()) return this.page.show(this.curve);
    if (!keepMarks) this.mark({});
    if (this.history.set(curve)) {
      this.page.changed();
      say(what);
    }
    this.page.show(this.curve);
  }

  undo() { this.#travel(() => this.history.undo(), "undone"); }

  redo() { this.#travel(() => this.history.redo(), "redone"); }

  #travel(move, what) {
    if (!this.page.mayChange() || !move()) return;
    this.mark({});
    this.page.changed();
    this.page.show(this.curve);
    say(what);
  }

  fill() { this.commit(fill(this.curve), "filled"); }

  smooth() { this.commit(smooth(this.curve), "smoothed"); }

  invert() { this.commit(invert(this.curve), "inverted"); }

  reset() { this.commit(this.page.video.curve.slice(), "reset to the network’s"); }

  copyLast() {
    const last = localStorage.getItem(lastKey(this.page.context.user));
    if (last) this.commit(resample(JSON.parse(last), this.length), "copied from the video before");
  }

  takeMotion() {
    if (!this.page.suggestion) return;
    const { first, last } = this.page.suggestion;
    this.commit(segment(this.length, first, last), `where most moves: frames ${first + 1} to ${last + 1}`);
  }

  // The selection ------------------------------------------------------------------------------------------------------

  /** Select frames, as a click on a segment does. */
  pick(first, last) {
    this.anchor = first;
    this.#select([first, last]);
  }

  /** Widen the selection by a frame to a side. */
  select(by) {
    const { player } = this.page, frame = Math.min(this.length - 1, Math.max(0, player.frame + by));
    this.anchor = this.selection ? this.anchor : player.frame;
    player.stop();
    player.seek(frame);
    this.#select([Math.min(this.anchor, frame), Math.max(this.anchor, frame)]);
  }

  #select([first, last]) {
    this.selection = [first, last];
    this.page.timeline.show({ selection: this.selection });
    say(`frames ${first + 1} to ${last + 1} selected`);
  }

  unselect() {
    this.selection = null;
    this.page.timeline.show({ selection: null });
  }

  #range() { return this.selection ?? [this.page.player.frame, this.page.player.frame]; }

  /** Go to the next edge of a segment. */
  jump(by) {
    const edges = runs(this.curve).flatMap(({ first, last }) => [first, last]), { frame } = this.page.player;
    const next = by > 0 ? edges.find((edge) => edge > frame) : edges.findLast((edge) => edge < frame);
    if (next === undefined) say(edges.length ? "no further edge" : "there is no segment");
    else this.page.seek(next);
  }

  /** Return the frames to play in a loop: the selected ones, or else the segment here or the next one; null: none. */
  part() {
    const all = runs(this.curve), run = all.find(({ last }) => this.page.player.frame <= last) ?? all.at(-1);
    return this.selection ?? (run ? [run.first, run.last] : null);
  }

  // Levels -------------------------------------------------------------------------------------------------------------

  setLevel(index) {
    this.level = LEVELS[index];
    this.page.timeline.show({ level: this.level });
    this.page.tools();
  }

  /** Paint what is selected; while the video plays, what passes until the key is let go. */
  paintKey(index) {
    this.setLevel(index);
    if (this.page.player.playing) {
      if (this.painting || !this.page.mayChange()) return;
      this.painting = { level: this.level, curve: this.curve, last: this.page.player.frame };
      return this.paintOn(this.page.player.frame);
    }
    const [first, last] = this.#range();
    this.commit(paint(this.curve, first, last, this.level), `frames ${first + 1} to ${last + 1}: ${LEVEL_NAMES[index]}`);
  }

  /** Paint up to the frame that is shown now, if a level's key is down. */
  paintOn(frame) {
    if (!this.painting) return;
    const { last } = this.painting, [from, to] = this.page.player.loop ?? [0, this.length - 1];
    const spans = frame >= last ? [[last, frame]] : [[last, to], [from, frame]]; // it went round
    for (const [a, b] of spans) this.painting.curve = paint(this.painting.curve, a, b, this.painting.level);
    this.painting.last = frame;
    this.page.show(this.painting.curve);
  }

  paintEnd() {
    if (!this.painting) return;
    const { curve } = this.painting;
    this.painting = null;
    this.commit(curve, "painted while playing");
  }

  lift(by) {
    const [first, last] = this.#range(), curve = lift(this.curve, first, last, by, this.page.video.curve);
    this.commit(curve, `frame ${first + 1}: ${percent(curve[first])}`);
  }

  // The action from here to here ---------------------------------------------------------------------------------------

  get marked() { return this.marks.in !== undefined || this.marks.out !== undefined; }

  mark(marks) {
    this.marks = marks;
    const both = "in" in marks && "out" in marks;
    const { base, ...shown } = marks;
    this.page.timeline.show({ pending: both ? {} : shown });
  }

  /** Set where the action begins or ends; with both, the curve becomes that segment, or gets it besides. */
  setEdge(side, add) {
    if (!this.page.mayChange()) return;
    const marks = { ...this.marks, [side]: this.page.player.frame };
    if (marks.in > marks.out) delete marks[side === "in" ? "out" : "in"];
    if (!("in" in marks && "out" in marks)) {
      this.mark(marks);
      say(side === "in" ? `action from frame ${marks.in + 1}` : `action to frame ${marks.out + 1}`);
      return;
    }
    if (add) marks.base ??= this.curve;
    else delete marks.base;
    const shape = segment(this.length, marks.in, marks.out);
    this.mark(marks);
    this.commit(marks.base ? merge(marks.base, shape) : shape, `action from frame ${marks.in + 1} to ${marks.out + 1}`, true);
  }
}
