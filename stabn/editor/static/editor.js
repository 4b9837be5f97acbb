// The page of one video: player, strip, the network's answer, and everything that changes the curve.

import { call, post } from "./api.js";
import { LEVELS, LEVEL_NAMES, History, busiest, fill, invert, lift, merge, paint, resample, runs, same, segment, smooth } from "./curve.js";
import { REASON_NAMES, ask, button, clock, h, icon, percent, say, stateChip } from "./dom.js";
import { finishedLine } from "./finished.js";
import { Frames, prefetch } from "./frames.js";
import { bind, keyCap, pressed, showKeys } from "./keys.js";
import { Player } from "./player.js";
import { Saver } from "./saver.js";
import { Timeline } from "./timeline.js";
import { Verdict } from "./verdict.js";
import { curvePicture } from "./picture.js";

const lastKey = (user) => `stabn/last:${encodeURIComponent(user.name)}`; // people may share a browser, but no curves
const PASSED = "stabn/passed";
const AWAY_SECONDS = 30; // without any input for so long, the time is not counted
const KEEP_SECONDS = 300; // a page without input for so long lets its lease expire
const STEP = 0.1;

/** Return {element, close} of a video's page. context: {user, round, go, action, setStatus, toggleTheme}. */
export async function editorPage(context, videoId, { slot = null, takeOver = false } = {}) {
  const path = `api/videos/${encodeURIComponent(videoId)}`;
  const video = await post(`${path}/open`, { take_over: takeOver, slot });
  return new EditorPage(context, path, video);
}

class EditorPage {
  constructor(context, path, video) {
    Object.assign(this, { context, path, video });
    this.length = video.num_frames;
    this.readonly = !video.lease.mine;
    this.done = ["edited", "skipped"].includes(video.state);
    this.history = new History(video.edit?.edited_attention ?? video.curve);
    this.note = video.edit?.editor === context.user.name ? video.edit.note : "";
    this.seconds = video.edit?.editor === context.user.name ? video.edit.seconds : 0;
    this.marks = {};
    this.selection = null;
    this.level = 1;
    this.input = this.counted = Date.now();
    this.frames = new Frames(context.round.round_id, video);
    this.player = new Player({
      frames: this.frames, length: this.length, size: [video.width, video.height], onframe: (frame) => this.#at(frame),
      onstop: () => this.#paintEnd(),
    });
    this.timeline = new Timeline({
      frames: this.frames, own: video.curve, ratio: video.width / video.height, readonly: this.readonly,
      onseek: (frame) => this.#seek(frame), onpick: (first, last) => this.#pick(first, last), onview: (zoomed) => this.#zoomed(zoomed),
      onpreview: (curve) => { this.#show(curve); this.verdict.ask(curve); },
      oncommit: (curve, what) => this.#commit(curve, what), onhover: (frame) => this.#readout(frame),
    });
    this.verdict = new Verdict({
      classes: context.round.classes, video, whatIf: video.what_if, onsampled: (sampled) => this.timeline.show({ sampled }),
      onchange: (best) => say(`The network now says: ${best}`),
    });
    this.saver = new Saver({
      round: context.round.round_id, user: context.user.name, video: video.video_id, slot: video.slot,
      revision: video.edit?.revision ?? 0, onstate: (name, error) => this.#saveState(name, error),
      onconflict: (error) => this.#conflict(error), onsaved: (edit) => this.#saved(edit),
    });
    this.element = this.#build();
    this.player.range = () => this.timeline.view;
    this.frames.onframes = (first, last) => {
      this.timeline.arrived(first, last);
      if (!this.player.playing) this.player.draw();
    };
    this.frames.load().then((whole) => this.#loaded(whole));
    this.#show(this.history.curve);
    this.player.seek(0);
    this.#bindKeys();
    this.#recover();
    this.verdict.ask(this.history.curve);
    this.timers = [
      setInterval(() => this.#count(), 1000),
      setInterval(() => this.#keepLease(), (1000 * context.round.lease_seconds) / 3),
    ];
    this.touch = () => { this.input = Date.now(); };
    this.hide = () => { if (document.visibilityState === "hidden") this.saver.flush({ keepalive: true }); };
    this.gone = () => this.#leave();
    for (const name of ["pointermove", "pointerdown", "keydown"]) document.addEventListener(name, this.touch, { passive: true });
    document.addEventListener("visibilitychange", this.hide);
    window.addEventListener("pagehide", this.gone);
    if (this.readonly) this.#saveState("readonly");
    this.#prefetch();
  }

  close() {
    this.saver.flush();
    this.#leave();
    this.timers.forEach(clearInterval);
    for (const name of ["pointermove", "pointerdown", "keydown"]) document.removeEventListener(name, this.touch);
    document.removeEventListener("visibilitychange", this.hide);
    window.removeEventListener("pagehide", this.gone);
    this.closed = true;
    [this.player, this.timeline, this.verdict, this.frames, this.saver].forEach((part) => part.close());
    this.context.setStatus("");
  }

  // What is on the page ------------------------------------------------------------------------------------------------

  #build() {
    const { video } = this;
    const name = this.context.round.classes[video.class_index];
    const key = (text, caps, run, props = {}) => button("", { class: "tool", onclick: run, disabled: this.readonly, ...props },
      h("span", {}, text), caps ? keyCap(caps) : null);
    this.levels = h("div", { class: "segmented levels", role: "group", "aria-label": "Level to paint" },
      LEVELS.map((value, i) => button("", {
        "aria-label": value === null ? "No opinion" : `Level ${value}`, disabled: this.readonly,
        title: `${value === null ? "No opinion" : "Level"} ${value ?? ""}  key ${i + 1}`, onclick: () => this.#setLevel(i),
      }, h("span", { class: `level-dot level-${i}` }), LEVEL_NAMES[i])));
    this.undoButton = button("", { class: "quiet", "aria-label": "Undo", title: "Undo  Z", onclick: () => this.undo() }, icon("undo"));
    this.redoButton = button("", { class: "quiet", "aria-label": "Redo", title: "Redo  Y", onclick: () => this.redo() }, icon("redo"));
    this.motionButton = key("Motion", "g", () => this.takeMotion(), { title: "Take the stretch that moves most" });
    this.copyButton = key("Copy last", "c", () => this.copyLast(), { title: "Take the curve of the video before" });
    this.heatButton = button("", { class: "tool", "aria-pressed": "false", onclick: () => this.toggleHeat(), title: "Where the network looked" },
      h("span", {}, "Heat map"), keyCap("h"));
    this.loopButton = button("", { class: "tool", "aria-pressed": "false", onclick: () => this.toggleLoop(), title: "Play the segment in a loop" },
      h("span", {}, "Loop"), keyCap("l"));
    this.player.speeds.before(this.loopButton);
    this.player.transport.append(this.heatButton);
    this.fitButton = button("", { class: "quiet", disabled: true, "aria-label": "All frames", title: "All frames  0", onclick: () => this.timeline.fit() }, icon("fit"));
    const zoom = (name, label, factor) => button("", { class: "quiet", "aria-label": label, title: `${label}  ${factor < 1 ? "+" : "−"}`, onclick: () => this.timeline.zoom(factor) }, icon(name));
    this.readout = h("p", { class: "readout", "aria-hidden": "true" });
    this.player.count.after(this.readout);
    this.noteField = h("textarea", {
      id: "note", rows: 1, maxlength: 2000, value: this.note, disabled: this.readonly || this.done, placeholder: "Note for the lead", "aria-keyshortcuts": "w",
      oninput: (event) => { this.note = event.target.value; this.#changed(); },
    });
    this.main = key("Done, next", "Enter", () => this.finish("edited"), { class: "primary big" });
    return h("article", { class: "editor", "aria-labelledby": "video-title" },
      h("div", { class: "workplace" },
        h("section", { class: "view", "aria-label": "Video" },
          h("header", { class: "video-head" },
            h("p", { class: "eyebrow" }, "True action"),
            h("p", { class: "about" }, `Video ${video.video_id} · ${this.length} frames`, " ", stateChip(video.state),
              this.context.user.role === "lead" && video.edit
                ? h("a", { href: `#/compare/${encodeURIComponent(video.video_id)}` }, "Review") : null,
              video.shared ? h("span", { class: "chip plain" }, "given to several people") : null),
            h("h1", { id: "video-title" }, name)),
          this.banner = h("div", { class: "banners" }, this.#banners()),
          this.player.stage, this.player.transport),
        h("aside", { class: "side" },
          this.verdict.element,
          h("section", { class: "panel actions", "aria-label": "Finish" },
            this.main,
            h("div", { class: "row" },
              key("Skip …", "x", () => this.skip()), key("Second opinion", "q", () => this.finish("second_opinion")),
              button("", { class: "tool", onclick: () => this.next(true) }, h("span", {}, "Later"), keyCap("n"))),
            h("label", { for: "note", class: "visually-hidden" }, "Note for the lead"), this.noteField))),
      h("section", { class: "bench", "aria-label": "Attention per frame" },
        h("div", { class: "toolbar", role: "toolbar", "aria-label": "Change the curve" },
          this.levels,
          h("span", { class: "hint" }, "action from ", keyCap("i"), " to ", keyCap("o")),
          key("Fill", "f", () => this.#commit(fill(this.history.curve), "filled"), { title: "Fill frames without an opinion" }),
          key("Smooth", "s", () => this.#commit(smooth(this.history.curve), "smoothed")),
          key("Invert", "v", () => this.#commit(invert(this.history.curve), "inverted")),
          key("Reset", "r", () => this.#commit(video.curve.slice(), "reset to the network’s"), { title: "Back to the network’s own curve" }),
          this.copyButton, this.motionButton,
          h("span", { class: "more" }, this.undoButton, this.redoButton, zoom("less", "Zoom out", 2), zoom("more", "Zoom in", 1 / 2), this.fitButton)),
        this.timeline.element,
        h("p", { class: "legend" },
          h("span", { class: "swatch mine" }), "my attention", h("span", { class: "swatch own dashed" }), "the network’s own",
          h("span", { class: "swatch motion" }), "where most moves", h("span", { class: "dot" }), "frames that the network sees",
          h("span", { class: "grow" }), h("span", { class: "hint" }, "Drag: frames scrub · curve draws · colours paint · segments move and resize, beside them you add one. Wheel: zoom."))));
  }

  #banners() {
    const { video, context } = this, { edit } = video;
    const notes = [finishedLine(context.round, "What is changed from now on is not learnt from.")].filter(Boolean);
    const said = (text) => (text ? [": ", h("q", {}, text)] : ["."]);
    if (this.readonly) {
      notes.push(h("p", { class: "banner warn" }, h("strong", {}, `${video.lease.holder} is editing this video now. `),
        button("Edit it all the same", { class: "link", onclick: () => context.reopen({ slot: video.slot, takeOver: true }) })));
    }
    if (video.blind) notes.push(h("p", { class: "banner" }, "Another person corrects this video too, each on their own."));
    if (!edit) return notes;
    const other = edit.editor !== context.user.name;
    if (this.done && !this.readonly) {
      notes.push(h("p", { class: "banner" }, `${other ? edit.editor : "You"} finished this video at ${clock(edit.edited_at)}. `,
        button("Change it again", { class: "link", onclick: () => this.editAgain() }), " ", keyCap("e")));
    } else if (edit.review?.verdict === "sent_back" && edit.status === "draft") {
      notes.push(h("p", { class: "banner warn" }, h("strong", {}, `${edit.review.reviewer} sent it back`), said(edit.review.note)));
    } else if (video.state === "automatic") {
      notes.push(h("p", { class: "banner" }, "This correction was made automatically; nobody has looked at it yet."));
    } else if (other && edit.status === "second_opinion") {
      notes.push(h("p", { class: "banner" }, h("strong", {}, `${edit.editor} asks for a second opinion`), said(edit.note)));
    } else if (other) {
      notes.push(h("p", { class: "banner" }, `${edit.editor} worked on this video at ${clock(edit.edited_at)}; what you change becomes a new revision.`));
    }
    return notes;
  }

  #show(curve) {
    this.timeline.show({ curve, selection: this.selection });
    this.#readout(null);
  }

  #readout(hovered) {
    const frame = hovered ?? this.player.frame, value = this.timeline.curve[frame];
    this.readout.replaceChildren(hovered === null ? "" : `frame ${frame + 1}: `, h("b", { class: "mine" }, value === null ? "no opinion" : percent(value)),
      `, network ${percent(this.video.curve[frame])}`);
  }

  #at(frame) {
    this.timeline?.show({ frame });
    if (this.painting) this.#paintOn(frame);
    if (this.readout) this.#readout(null);
  }

  // Moving about -------------------------------------------------------------------------------------------------------

  /** Select frames, as a click on a segment does. */
  #pick(first, last) {
    this.anchor = first;
    this.selection = [first, last];
    this.timeline.show({ selection: this.selection });
    say(`frames ${first + 1} to ${last + 1} selected`);
  }

  /** Play a part again and again: what is selected, the segment here or the next one; once more: the whole video. */
  toggleLoop() {
    const all = runs(this.history.curve), { frame } = this.player;
    const run = all.find(({ last }) => frame <= last) ?? all.at(-1);
    const part = this.selection ?? (run ? [run.first, run.last] : null);
    if (!this.player.loop && !part) return say("There is no segment to play in a loop yet.", { toast: true });
    this.player.loop = this.player.loop ? null : part;
    this.timeline.show({ loop: this.player.loop });
    this.loopButton.setAttribute("aria-pressed", Boolean(this.player.loop));
    if (this.player.loop && !this.player.playing) this.player.toggle();
    say(this.player.loop ? `frames ${part[0] + 1} to ${part[1] + 1} in a loop` : "the whole video again");
  }

  /** Go to the next edge of a segment. */
  jump(by) {
    const edges = runs(this.history.curve).flatMap(({ first, last }) => [first, last]), { frame } = this.player;
    const next = by > 0 ? edges.find((edge) => edge > frame) : edges.findLast((edge) => edge < frame);
    if (next === undefined) say(edges.length ? "no further edge" : "there is no segment");
    else this.#seek(next);
  }

  #zoomed(zoomed) {
    if (this.fitButton) this.fitButton.disabled = !zoomed;
  }

  // Painting while the video plays -------------------------------------------------------------------------------------

  #paintOn(frame) {
    const { last } = this.painting, [from, to] = this.player.loop ?? [0, this.length - 1];
    const spans = frame >= last ? [[last, frame]] : [[last, to], [from, frame]]; // it went round
    for (const [a, b] of spans) this.painting.curve = paint(this.painting.curve, a, b, this.painting.level);
    this.painting.last = frame;
    this.#show(this.painting.curve);
  }

  #paintEnd() {
    if (!this.painting) return;
    const { curve } = this.painting;
    this.painting = null;
    this.#commit(curve, "painted while playing");
  }

  #seek(frame) {
    this.player.stop();
    this.selection = null;
    this.timeline.show({ selection: null });
    this.player.seek(frame);
  }

  #loaded(whole) {
    if (this.closed) return;
    if (!whole) {
      say("Some frames could not be loaded; reload the page to try again.", { toast: true });
      return;
    }
    this.element.dataset.ready = "";
    this.#findMotion();
  }

  async #findMotion() {
    try {
      const { energies, step } = await this.frames.motion(), found = busiest(energies);
      if (this.closed || !found) return;
      this.suggestion = { first: Math.max(0, (found.first - 1) * step + 1), last: found.last * step };
    } catch { return; } // it is only a hint
    this.timeline.show({ suggestion: this.suggestion });
    this.motionButton.disabled = this.readonly;
  }

  // Changing the curve -------------------------------------------------------------------------------------------------

  /** Tell whether the curve may change: what is done has to be opened again first, so that no stray key undoes it. */
  #mayChange() {
    if (this.done && !this.readonly) say("This video is done; press E to change it again.", { toast: true });
    return !(this.readonly || this.done || this.finishing);
  }

  editAgain() {
    if (this.readonly || !this.done) return;
    this.done = false;
    this.noteField.disabled = false;
    this.banner.replaceChildren(...this.#banners());
    this.timeline.element.focus({ preventScroll: true });
    say("You can change it again.");
  }

  #commit(curve, what, keepMarks = false) {
    if (!this.#mayChange()) return this.#show(this.history.curve);
    if (!keepMarks) this.#mark({});
    if (this.history.set(curve)) {
      this.#changed();
      say(what);
    }
    this.#show(this.history.curve);
  }

  #changed() {
    this.intended = null;
    this.saver.change(this.#content("draft"));
    this.verdict.ask(this.history.curve);
    this.#tools();
  }

  #content(status, reason = null) {
    this.#count();
    const seconds = Math.round(this.seconds * 10) / 10;
    return { edited_attention: this.history.curve, status, skip_reason: reason, note: this.note, seconds };
  }

  #tools() {
    this.undoButton.disabled = this.readonly || !this.history.past.length;
    this.redoButton.disabled = this.readonly || !this.history.future.length;
    this.copyButton.disabled = this.readonly || !localStorage.getItem(lastKey(this.context.user));
    this.motionButton.disabled = this.readonly || !this.suggestion;
    [...this.levels.children].forEach((child, i) => child.setAttribute("aria-pressed", LEVELS[i] === this.level));
  }

  undo() { this.#travel(() => this.history.undo(), "undone"); }

  redo() { this.#travel(() => this.history.redo(), "redone"); }

  #travel(move, what) {
    if (!this.#mayChange() || !move()) return;
    this.#mark({});
    this.#changed();
    this.#show(this.history.curve);
    say(what);
  }

  #range() { return this.selection ?? [this.player.frame, this.player.frame]; }

  #setLevel(index) {
    this.level = LEVELS[index];
    this.timeline.show({ level: this.level });
    this.#tools();
  }

  #paintKey(index) {
    this.#setLevel(index);
    if (this.player.playing) {
      if (this.painting || !this.#mayChange()) return;
      this.painting = { level: this.level, curve: this.history.curve, last: this.player.frame };
      return this.#paintOn(this.player.frame);
    }
    const [first, last] = this.#range();
    this.#commit(paint(this.history.curve, first, last, this.level), `frames ${first + 1} to ${last + 1}: ${LEVEL_NAMES[index]}`);
  }

  #lift(by) {
    const [first, last] = this.#range();
    const curve = lift(this.history.curve, first, last, by, this.video.curve);
    this.#commit(curve, `frame ${first + 1}: ${percent(curve[first])}`);
  }

  #mark(marks) {
    this.marks = marks;
    const both = "in" in marks && "out" in marks;
    const { base, ...shown } = marks;
    this.timeline.show({ pending: both ? {} : shown });
  }

  /** Set where the action begins or ends; with both, the curve becomes that segment, or gets it besides. */
  setEdge(side, add) {
    if (!this.#mayChange()) return;
    const marks = { ...this.marks, [side]: this.player.frame };
    if (marks.in > marks.out) delete marks[side === "in" ? "out" : "in"];
    if (!("in" in marks && "out" in marks)) {
      this.#mark(marks);
      say(side === "in" ? `action from frame ${marks.in + 1}` : `action to frame ${marks.out + 1}`);
      return;
    }
    if (add) marks.base ??= this.history.curve;
    else delete marks.base;
    const shape = segment(this.length, marks.in, marks.out);
    this.#mark(marks);
    this.#commit(marks.base ? merge(marks.base, shape) : shape, `action from frame ${marks.in + 1} to ${marks.out + 1}`, true);
  }

  takeMotion() {
    if (!this.suggestion) return;
    const { first, last } = this.suggestion;
    this.#commit(segment(this.length, first, last), `where most moves: frames ${first + 1} to ${last + 1}`);
  }

  copyLast() {
    const last = localStorage.getItem(lastKey(this.context.user));
    if (last) this.#commit(resample(JSON.parse(last), this.length), "copied from the video before");
  }

  select(by) {
    const frame = Math.min(this.length - 1, Math.max(0, this.player.frame + by));
    this.anchor = this.selection ? this.anchor : this.player.frame;
    this.player.stop();
    this.player.seek(frame);
    this.selection = [Math.min(this.anchor, frame), Math.max(this.anchor, frame)];
    this.timeline.show({ selection: this.selection });
    say(`frames ${this.selection[0] + 1} to ${this.selection[1] + 1} selected`);
  }

  async toggleHeat() {
    const heat = !this.player.heat;
    try { if (heat) await this.frames.loadHeat(); } catch (error) { return say(error.message, { toast: true }); }
    if (this.closed) return;
    this.player.heat = heat;
    this.player.draw();
    this.timeline.show({ heat });
    this.heatButton.setAttribute("aria-pressed", heat);
  }

  // Finishing ----------------------------------------------------------------------------------------------------------

  async finish(status, reason = null) {
    if (this.finishing) return;
    if (this.readonly || (this.done && status === "edited")) return this.next(false);
    if (status === "edited" && this.history.curve.every((value) => value === null)) {
      return say("No frame has a value: set one, or skip the video.", { toast: true });
    }
    const before = this.video.edit;
    const looked = this.history.past.length || before?.editor === this.context.user.name || this.confirmed;
    if (status === "edited" && !looked) {
      this.confirmed = true;
      return say("You have changed nothing. If the curve is right as it is, press Enter again.", { toast: true });
    }
    const untouched = !this.saver.content && before && before.editor === this.context.user.name && before.status === status &&
      before.skip_reason === reason && same(before.edited_attention, this.history.curve) && before.note === this.note;
    if (untouched) return this.next(false);
    this.intended = status;
    this.finishing = true;
    this.saver.change(this.#content(status, reason));
    const sent = await this.saver.flush();
    this.finishing = false;
    if (!sent && this.intended) {
      say("Kept on this computer; it is sent when the server answers.", { toast: true });
    }
  }

  async skip() {
    if (this.readonly) return;
    const names = Object.entries(REASON_NAMES);
    const reason = await ask("Skip this video because …", (close) => h("div", { class: "choices" },
      names.map(([value, text], i) => h("button", { type: "button", class: "tool", "data-key": i + 1, onclick: () => close(value) },
        h("span", {}, text), keyCap(String(i + 1)))),
      h("span", { hidden: true, tabIndex: -1 })));
    if (reason) this.finish("skipped", reason);
  }

  async next(later) {
    const passed = JSON.parse(sessionStorage.getItem(PASSED) ?? "[]").filter((id) => id !== this.video.video_id);
    if (later) passed.push(this.video.video_id);
    sessionStorage.setItem(PASSED, JSON.stringify(passed.slice(-200)));
    try {
      if (later) { await this.saver.flush(); await this.#release(); }
      const { video_id: id } = await post("api/next", { passed, action: this.context.action });
      if (!id || (later && id === this.video.video_id)) {
        say("Nothing else is left for you just now.", { toast: true });
        this.context.go("#/");
      } else this.context.go(`#/video/${encodeURIComponent(id)}`);
    } catch (error) {
      say(error.message, { toast: true });
    }
  }

  #saved(edit) {
    this.video.edit = edit;
    this.done = ["edited", "skipped"].includes(edit.status);
    if (edit.status === "draft" || edit.status !== this.intended) return;
    this.intended = null;
    if (edit.status === "edited") localStorage.setItem(lastKey(this.context.user), JSON.stringify(edit.edited_attention));
    if (this.closed) return;
    say({ edited: "Done", skipped: "Skipped", second_opinion: "Another person is asked" }[edit.status], { toast: true });
    this.next(false);
  }

  #saveState(name, error) {
    if (this.closed) return;
    const texts = {
      saved: `Saved ${clock(new Date().toISOString())}`, waiting: "Saving soon …", saving: "Saving …",
      offline: "No connection · kept on this computer", conflict: "Changed elsewhere", readonly: "Read only",
      failed: `Not saved: ${error?.message ?? ""}`,
    };
    this.context.setStatus(texts[name], name);
    if (name === "offline" || name === "failed") say(texts[name]);
  }

  // Others who edit the same, and what was left unsaved ------------------------------------------------------------------

  #recover() {
    const journal = this.saver.journal();
    this.#tools();
    if (!journal || journal.edited_attention?.length !== this.length) return;
    if (this.readonly) return;
    this.note = journal.note;
    this.noteField.value = journal.note;
    this.seconds = Math.max(this.seconds, journal.seconds);
    this.history.set(journal.edited_attention);
    this.#show(this.history.curve);
    const theirs = this.video.edit;
    this.saver.content = { ...journal, based_on: undefined };
    delete this.saver.content.based_on;
    if (theirs && theirs.revision > journal.based_on && !same(theirs.edited_attention, journal.edited_attention)) {
      this.saver.revision = journal.based_on;
      this.#conflict({ code: "conflict", body: { theirs } });
    } else {
      this.done = false;
      this.saver.change(this.#content(journal.status, journal.skip_reason));
      say("What was not saved the last time is here again.", { toast: true });
    }
  }

  async #conflict(error) {
    const { theirs, holder } = error.body;
    if (this.asking || this.closed) return;
    this.asking = true;
    const intended = this.intended;
    const choice = await ask(holder ? `${holder} is editing this video now` : `${theirs.editor} saved this video in the meantime`, (close) => [
      h("p", {}, "Nothing is lost: both versions are here. What you choose becomes the newest revision, the other one stays in the history."),
      h("div", { class: "versions" },
        version("Mine", this.history.curve, this.video.curve, "mine", ""),
        version(theirs ? `${theirs.editor}, ${clock(theirs.edited_at)}` : "Nothing saved yet", theirs?.edited_attention ?? this.video.curve,
          this.video.curve, "other", theirs?.note ?? "")),
      h("div", { class: "dialog-foot" },
        h("button", { type: "button", class: "tool", onclick: () => close("later") }, "Decide later"),
        h("button", { type: "button", class: "tool", disabled: !theirs, onclick: () => close("theirs") }, "Take theirs"),
        h("button", { type: "button", class: "primary", onclick: () => close("mine") }, "Keep mine")),
    ], { wide: true });
    this.asking = false;
    if (this.closed || choice === null || choice === "later") return;
    if (theirs) this.saver.rebase(theirs.revision);
    if (choice === "theirs") {
      this.saver.forget();
      this.history.set(theirs.edited_attention);
      this.note = theirs.editor === this.context.user.name ? theirs.note : "";
      this.noteField.value = this.note;
      this.#show(this.history.curve);
      this.#tools();
      this.verdict.ask(this.history.curve);
      this.#saveState("saved");
      return;
    }
    try {
      if (holder) await post(`${this.path}/open`, { take_over: true, slot: this.context.user.role === "lead" ? this.video.slot : null });
      this.intended = intended;
      if (await this.saver.flush()) say("Yours is the newest revision now.", { toast: true });
    } catch (failure) {
      say(failure.message, { toast: true });
    }
  }

  async #keepLease() {
    if (this.readonly || Date.now() - this.input > 1000 * KEEP_SECONDS) return;
    try {
      const { mine, holder } = await post(`${this.path}/lease`, { slot: this.video.slot });
      const open = !this.context.round.finished;
      if ((await this.context.refresh()).finished && open && !this.closed) this.banner.replaceChildren(...this.#banners());
      if (!mine && !this.closed && this.warned !== holder) {
        this.warned = holder;
        say(`${holder} is editing this video now.`, { toast: true });
        this.banner.replaceChildren(h("p", { class: "banner warn" }, h("strong", {}, `${holder} took this video over. `),
          "What you change is kept here; saving it asks which version counts."));
      }
    } catch { /* offline: the next one will do */ }
  }

  #release() {
    if (this.readonly || this.released) return null;
    this.released = true;
    return call("DELETE", `${this.path}/lease`, { slot: this.video.slot }, { keepalive: true }).catch(() => {});
  }

  #leave() {
    this.saver.flush({ keepalive: true });
    this.#release();
  }

  #count() {
    const now = Date.now(), passed = (now - this.counted) / 1000;
    this.counted = now;
    if (document.visibilityState === "visible" && now - this.input < 1000 * AWAY_SECONDS) this.seconds += Math.min(passed, 5);
  }

  async #prefetch() {
    const query = new URLSearchParams({ current: this.video.video_id });
    if (this.context.action !== null) query.set("action", this.context.action);
    try {
      const { video_id: id, num_frames: length } = await call("GET", `api/next?${query}`);
      if (id && !this.closed) setTimeout(() => { if (!this.closed) prefetch(this.context.round.round_id, id, length); }, 1500);
    } catch { /* it is only early */ }
  }

  // Keys ---------------------------------------------------------------------------------------------------------------

  #bindKeys() {
    const { player } = this;
    const entry = (group, keys, label, run) => ({ group, keys: [keys].flat(), label, run });
    const once = (...parts) => ({ ...entry(...parts), once: true });
    bind([
      entry("Video", " ", "play or pause", () => player.toggle()),
      entry("Video", "ArrowLeft", "one frame back", () => { this.selection = null; this.timeline.show({ selection: null }); player.step(-1); }),
      entry("Video", "ArrowRight", "one frame on", () => { this.selection = null; this.timeline.show({ selection: null }); player.step(1); }),
      entry("Video", "PageUp", "ten frames back", () => player.step(-10)),
      entry("Video", "PageDown", "ten frames on", () => player.step(10)),
      entry("Video", "Home", "first frame", () => this.#seek(0)),
      entry("Video", "End", "last frame", () => this.#seek(this.length - 1)),
      entry("Video", ",", "slower", () => say(`speed ${player.faster(-1)}`)),
      entry("Video", ".", "faster", () => say(`speed ${player.faster(1)}`)),
      entry("Video", "t", "go to a frame by its number", () => player.field.focus()),
      entry("Video", "l", "play the segment, or what is selected, in a loop", () => this.toggleLoop()),
      entry("Video", "j", "to the edge of a segment before", () => this.jump(-1)),
      entry("Video", "k", "to the next edge of a segment", () => this.jump(1)),
      entry("Video", ["+", "="], "zoom in, as the wheel does", () => this.timeline.zoom(1 / 2)),
      entry("Video", "-", "zoom out", () => this.timeline.zoom(2)),
      entry("Video", "0", "all frames", () => this.timeline.fit()),
      entry("Video", "h", "heat map of where the network looked", () => this.toggleHeat()),
      entry("Action", "i", "the action begins here", () => this.setEdge("in", false)),
      entry("Action", "o", "the action ends here", () => this.setEdge("out", false)),
      entry("Action", "Shift+i", "a further stretch begins here", () => this.setEdge("in", true)),
      entry("Action", "Shift+o", "a further stretch ends here", () => this.setEdge("out", true)),
      entry("Action", "g", "take the stretch that moves most", () => this.takeMotion()),
      ...LEVELS.map((value, i) => ({
        ...entry("Level", String(i + 1), value === null ? "no opinion" : `level ${LEVEL_NAMES[i]}`, () => this.#paintKey(i)), release: () => this.#paintEnd(),
      })),
      entry("Level", ["Delete", "Backspace"], "no opinion", () => this.#paintKey(5)),
      entry("Level", "ArrowUp", "raise", () => this.#lift(STEP)),
      entry("Level", "ArrowDown", "lower", () => this.#lift(-STEP)),
      entry("Level", "Shift+ArrowLeft", "select to the left", () => this.select(-1)),
      entry("Level", "Shift+ArrowRight", "select to the right", () => this.select(1)),
      entry("Curve", "f", "fill frames without an opinion", () => this.#commit(fill(this.history.curve), "filled")),
      entry("Curve", "s", "smooth", () => this.#commit(smooth(this.history.curve), "smoothed")),
      entry("Curve", "v", "invert", () => this.#commit(invert(this.history.curve), "inverted")),
      entry("Curve", "r", "back to the network’s", () => this.#commit(this.video.curve.slice(), "reset to the network’s")),
      entry("Curve", "c", "copy from the video before", () => this.copyLast()),
      entry("Curve", ["z", "Ctrl+z"], "undo", () => this.undo()),
      entry("Curve", ["y", "Ctrl+y", "Ctrl+Shift+z"], "redo", () => this.redo()),
      once("Video done", "Enter", "done, next video", () => this.finish("edited")),
      once("Video done", "x", "skip, with a reason (then 1, 2 or 3)", () => this.skip()),
      once("Video done", "q", "ask for a second opinion", () => this.finish("second_opinion")),
      once("Video done", "n", "later: next video, this one stays", () => this.next(true)),
      once("Video done", "e", "change a video again that is done", () => this.editAgain()),
      entry("Video done", "w", "write a note", () => this.noteField.focus()),
      entry("Page", "Escape", "leave the note or the selection; then the queue", () => this.#escape()),
      entry("Page", "Ctrl+s", "save now", () => this.saver.flush()),
      entry("Page", "d", "light or dark", () => this.context.toggleTheme()),
      entry("Page", "?", "these keys", () => showKeys()),
    ]);
  }

  #escape() {
    if (this.timeline.cancel()) say("given up");
    else if (document.activeElement === this.noteField) this.noteField.blur();
    else if (this.selection || this.marks.in !== undefined || this.marks.out !== undefined) {
      this.selection = null;
      this.#mark({});
      this.timeline.show({ selection: null });
    } else this.context.go("#/");
  }
}

function version(title, curve, own, color, note) {
  return h("figure", {}, h("figcaption", {}, title), curvePicture([{ curve: own, color: "own" }, { curve, color }]), note ? h("p", { class: "note" }, note) : null);
}

document.addEventListener("keydown", (event) => {
  const choices = pressed(event).map((key) => document.querySelector(`dialog[open] [data-key="${CSS.escape(key)}"]`));
  const choice = choices.find(Boolean);
  if (choice) { event.preventDefault(); choice.click(); }
});
