// The page of one video: it joins the player, the timeline, the network's answer, the changes of the curve and their saving.

import { post } from "./api.js";
import { LEVELS, busiest, same } from "./curve.js";
import { REASON_NAMES, ask, clock, h, percent, put, say, stateChip } from "./dom.js";
import { Editing, lastKey } from "./editing.js";
import { editorKeys } from "./editor-keys.js";
import { banners, build } from "./editor-view.js";
import { Frames } from "./frames.js";
import { bind, keyCap, pressed } from "./keys.js";
import { Player } from "./player.js";
import { Presence } from "./presence.js";
import { Saver } from "./saver.js";
import { Timeline } from "./timeline.js";
import { Verdict } from "./verdict.js";
import { askRevision, askVersion } from "./versions.js";

const PASSED = "stabn/passed";
const FINAL = ["edited", "skipped"];

/** Return {element, close} of a video's page. context: {user, round, go, action, setStatus, toggleTheme}. */
export async function editorPage(context, videoId, { slot = null, takeOver = false } = {}) {
  const path = `api/videos/${encodeURIComponent(videoId)}`;
  const video = await post(`${path}/open`, { take_over: takeOver, slot });
  return new EditorPage(context, path, video);
}

class EditorPage {
  constructor(context, path, video) {
    Object.assign(this, { context, path, video });
    const own = video.edit?.editor === context.user.name;
    this.length = video.num_frames;
    this.locked = video.edit?.review?.verdict === "accepted" && context.user.role !== "lead";
    this.readonly = !video.lease.mine || this.locked;
    this.done = FINAL.includes(video.edit?.status) && video.state !== "automatic";
    this.note = own ? video.edit.note : "";
    this.editing = new Editing(this, video.edit?.edited_attention ?? video.curve);
    this.frames = new Frames(context.round.round_id, video);
    this.player = new Player({
      frames: this.frames, length: this.length, size: [video.width, video.height], onframe: (frame) => this.#at(frame),
      onstop: () => this.editing.paintEnd(),
    });
    this.timeline = new Timeline({
      frames: this.frames, own: video.curve, ratio: video.width / video.height, readonly: this.readonly,
      onseek: (frame) => this.seek(frame), onpick: (first, last) => this.editing.pick(first, last),
      onview: (zoomed) => { if (this.fitButton) this.fitButton.disabled = !zoomed; },
      onpreview: (curve) => { this.show(curve); this.verdict.ask(curve); },
      oncommit: (curve, what) => this.editing.commit(curve, what), onhover: (frame) => this.#readout(frame),
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
    this.presence = new Presence({
      path, slot: video.slot, seconds: own ? video.edit.seconds : 0, readonly: this.readonly, leaseSeconds: context.round.lease_seconds,
      onlease: (lease) => this.#lease(lease), onleave: () => this.saver.flush({ keepalive: true }),
    });
    this.element = build(this);
    this.player.range = () => this.timeline.view;
    this.frames.onframes = (first, last) => {
      this.timeline.arrived(first, last);
      if (!this.player.playing) this.player.draw();
    };
    this.frames.load().then((whole) => this.#loaded(whole));
    this.show(this.editing.curve);
    this.player.seek(0);
    bind(editorKeys(this));
    this.#recover();
    this.verdict.ask(this.editing.curve);
    if (this.readonly) this.#saveState("readonly");
    this.presence.fetchNext(context.round.round_id, video.video_id, context.action);
  }

  close() {
    this.saver.flush({ keepalive: true });
    this.closed = true;
    [this.presence, this.player, this.timeline, this.verdict, this.frames, this.saver].forEach((part) => part.close());
    this.context.setStatus("");
  }

  // What is shown ------------------------------------------------------------------------------------------------------

  show(curve) {
    this.timeline.show({ curve, selection: this.editing.selection });
    this.#readout(null);
  }

  #readout(hovered) {
    const frame = hovered ?? this.player.frame, value = this.timeline.curve[frame];
    put(this.readout, hovered === null ? "" : `frame ${frame + 1}: `, h("b", { class: "mine" }, value === null ? "no opinion" : percent(value)),
      `, network ${percent(this.video.curve[frame])}`);
  }

  #at(frame) {
    this.timeline?.show({ frame });
    this.editing.paintOn(frame);
    if (this.readout) this.#readout(null);
  }

  seek(frame) {
    this.player.stop();
    this.editing.unselect();
    this.player.seek(frame);
  }

  /** Say again how the video stands. */
  tell() {
    put(this.banner, banners(this));
    put(this.chip, stateChip(this.video.state));
  }

  tools() {
    const { history, level } = this.editing;
    this.undoButton.disabled = this.readonly || !history.past.length;
    this.redoButton.disabled = this.readonly || !history.future.length;
    this.copyButton.disabled = this.readonly || !localStorage.getItem(lastKey(this.context.user));
    this.motionButton.disabled = this.readonly || !this.suggestion;
    [...this.levels.children].forEach((child, i) => child.setAttribute("aria-pressed", LEVELS[i] === level));
  }

  #loaded(whole) {
    if (this.closed) return;
    if (!whole) return say("Some frames could not be loaded; reload the page to try again.", { toast: true });
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
    this.tools();
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

  /** Play a part again and again: what is selected, the segment here or the next one; once more: the whole video. */
  toggleLoop() {
    const part = this.editing.part(), { player } = this;
    if (!player.loop && !part) return say("There is no segment to play in a loop yet.", { toast: true });
    player.loop = player.loop ? null : part;
    this.timeline.show({ loop: player.loop });
    this.loopButton.setAttribute("aria-pressed", Boolean(player.loop));
    if (player.loop && !player.playing) player.toggle();
    say(player.loop ? `frames ${part[0] + 1} to ${part[1] + 1} in a loop` : "the whole video again");
  }

  escape() {
    const { editing } = this;
    if (this.timeline.cancel()) say("given up");
    else if (document.activeElement === this.noteField) this.noteField.blur();
    else if (editing.selection || editing.marked) {
      editing.mark({});
      editing.unselect();
    } else this.context.go("#/");
  }

  // Changes and their saving -------------------------------------------------------------------------------------------

  /** Tell whether the curve may change: what is done has to be opened again first, so that no stray key undoes it. */
  mayChange() {
    if (this.done && !this.readonly) say("This video is done; press E to change it again.", { toast: true });
    return !(this.readonly || this.done || this.finishing);
  }

  editAgain() {
    if (this.readonly || !this.done) return;
    this.done = false;
    this.noteField.disabled = false;
    this.tell();
    this.timeline.element.focus({ preventScroll: true });
    say("You can change it again.");
  }

  changed() {
    this.intended = null;
    this.saver.change(this.#content("draft"));
    this.verdict.ask(this.editing.curve);
    this.tools();
  }

  #content(status, reason = null) {
    return { edited_attention: this.editing.curve, status, skip_reason: reason, note: this.note, seconds: this.presence.count() };
  }

  async showRevisions() {
    const { path, video: { slot, curve: own } } = this, mayRestore = !(this.readonly || this.done || this.finishing);
    await this.saver.flush();
    try {
      const chosen = await askRevision({ path, slot, own, mayRestore });
      if (chosen && !this.closed) this.editing.commit([...chosen.edited_attention], `revision ${chosen.revision} restored`);
    } catch (error) { say(error.message, { toast: true }); }
  }

  #saved(edit) {
    this.video.edit = edit;
    this.video.state = edit.status === "draft" && edit.review?.verdict === "sent_back" ? "sent_back" : edit.status;
    this.done = FINAL.includes(edit.status);
    if (!this.closed) this.tell();
    if (edit.status === "draft" || edit.status !== this.intended) return;
    this.intended = null;
    if (edit.status === "edited") localStorage.setItem(lastKey(this.context.user), JSON.stringify(edit.edited_attention));
    if (this.closed) return;
    say({ edited: "Done", skipped: "Skipped", second_opinion: "Another person is asked" }[edit.status], { toast: true });
    this.next(false);
  }

  #saveState(name, error) {
    if (this.closed) return;
    const why = (error?.message ?? "").replace(/\.$/, "");
    const texts = {
      saved: `Saved ${clock(new Date().toISOString())}`, waiting: "Saving soon …", saving: "Saving …", conflict: "Changed elsewhere", readonly: "Read only",
      offline: "No connection · kept on this computer", delayed: `Not saved yet, ${why} · kept on this computer`, failed: `Not saved: ${why}`,
    };
    this.context.setStatus(texts[name], name);
    if (["offline", "delayed", "failed"].includes(name)) say(texts[name]);
    if (name === "failed" || (name === "saved" && this.refused)) {
      this.refused = name === "failed" ? why : null;
      this.tell();
    }
  }

  /** Give up what the server does not take, and show what it has. */
  discard() {
    this.saver.forget();
    this.refused = null;
    this.context.reopen({ slot: this.video.slot });
  }

  // Finishing ----------------------------------------------------------------------------------------------------------

  async finish(status, reason = null) {
    if (this.finishing) return;
    if (this.readonly || (this.done && status === "edited")) return this.next(false);
    const { curve, history } = this.editing;
    if (status === "edited" && curve.every((value) => value === null)) {
      return say("No frame has a value: set one, or skip the video.", { toast: true });
    }
    const before = this.video.edit, own = before?.editor === this.context.user.name;
    const looked = history.past.length || own || this.confirmed;
    if (status === "edited" && !looked) {
      this.confirmed = true;
      return say("You have changed nothing. If the curve is right as it is, press Enter again.", { toast: true });
    }
    const untouched = !this.saver.content && own && before.status === status && before.skip_reason === reason &&
      same(before.edited_attention, curve) && before.note === this.note;
    if (untouched) return this.next(false);
    this.intended = status;
    this.finishing = true;
    this.saver.change(this.#content(status, reason));
    const sent = await this.saver.flush();
    this.finishing = false;
    if (!sent && this.intended && !this.refused) say("Kept on this computer; it is sent when the server answers.", { toast: true });
  }

  async skip() {
    if (this.readonly) return;
    const reason = await ask("Skip this video because …", (close) => h("div", { class: "choices" },
      Object.entries(REASON_NAMES).map(([value, text], i) => h("button", { type: "button", class: "tool", "data-key": i + 1, onclick: () => close(value) },
        h("span", {}, text), keyCap(String(i + 1)))),
      h("span", { hidden: true, tabIndex: -1 })));
    if (reason) this.finish("skipped", reason);
  }

  async next(later) {
    const passed = JSON.parse(sessionStorage.getItem(PASSED) ?? "[]").filter((id) => id !== this.video.video_id);
    if (later) passed.push(this.video.video_id);
    sessionStorage.setItem(PASSED, JSON.stringify(passed.slice(-200)));
    try {
      if (later) { await this.saver.flush(); await this.presence.release(); }
      const { video_id: id } = await post("api/next", { passed, action: this.context.action });
      if (!id || (later && id === this.video.video_id)) {
        say("Nothing else is left for you just now.", { toast: true });
        this.context.go("#/");
      } else this.context.go(`#/video/${encodeURIComponent(id)}`);
    } catch (error) {
      say(error.message, { toast: true });
    }
  }

  // Others who edit the same, and what was left unsaved ------------------------------------------------------------------

  #recover() {
    const journal = this.saver.journal();
    this.tools();
    if (!journal || journal.edited_attention?.length !== this.length) return;
    if (this.locked) {
      this.refused = `${this.video.edit.review.reviewer} has accepted the curve`;
      return this.tell();
    }
    if (this.readonly) return;
    this.note = journal.note;
    this.noteField.value = journal.note;
    this.presence.seconds = Math.max(this.presence.seconds, journal.seconds);
    this.editing.history.set(journal.edited_attention);
    this.show(this.editing.curve);
    const theirs = this.video.edit;
    const { based_on: base, ...content } = journal;
    this.saver.content = content;
    if (theirs && theirs.revision > base && !same(theirs.edited_attention, journal.edited_attention)) {
      this.saver.revision = base;
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
    if (theirs?.review?.verdict === "accepted" && this.context.user.role !== "lead") return this.#lock(theirs);
    this.asking = true;
    const intended = this.intended;
    const choice = await askVersion({ mine: this.editing.curve, theirs, own: this.video.curve, holder, user: this.context.user });
    this.asking = false;
    if (this.closed || choice === null || choice === "later") return;
    if (theirs) this.saver.rebase(theirs.revision);
    if (choice === "theirs") return this.#take(theirs);
    try {
      if (holder) await post(`${this.path}/open`, { take_over: true, slot: this.context.user.role === "lead" ? this.video.slot : null });
      this.intended = intended;
      if (await this.saver.flush()) say("Yours is the newest revision now.", { toast: true });
    } catch (failure) {
      say(failure.message, { toast: true });
    }
  }

  /** A lead accepted the curve: from now on it only can be looked at. */
  #lock(edit) {
    this.video.edit = edit;
    this.locked = this.readonly = this.timeline.readonly = this.noteField.disabled = true;
    this.#saveState("failed", { message: `${edit.review.reviewer} has accepted the curve` });
    this.tools();
  }

  #take(theirs) {
    this.saver.forget();
    this.editing.history.set(theirs.edited_attention);
    this.note = theirs.editor === this.context.user.name ? theirs.note : "";
    this.noteField.value = this.note;
    this.show(this.editing.curve);
    this.tools();
    this.verdict.ask(this.editing.curve);
    this.#saveState("saved");
  }

  async #lease({ mine, holder }) {
    const open = !this.context.round.finished, closedNow = (await this.context.refresh()).finished && open;
    if (this.closed) return;
    if (!mine && this.taken !== holder) say(`${holder} is editing this video now.`, { toast: true });
    if (closedNow || (!mine && this.taken !== holder)) {
      this.taken = mine ? null : holder;
      this.tell();
    }
  }
}

document.addEventListener("keydown", (event) => {
  const choices = pressed(event).map((key) => document.querySelector(`dialog[open] [data-key="${CSS.escape(key)}"]`));
  const choice = choices.find(Boolean);
  if (choice) { event.preventDefault(); choice.click(); }
});
