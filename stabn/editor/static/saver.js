// Autosave: every change goes to this computer at once and to the server soon; what the server did not confirm is kept.

import { call } from "./api.js";

const IDLE_SECONDS = 1.5, LONGEST_SECONDS = 8;
const PREFIX = "stabn/unsaved";

const journalKey = (round, user, video, slot) => [PREFIX, round, user, video, slot].map(encodeURIComponent).join(":");

/** Return what this computer keeps of a round that the server did not confirm: [{key, video, slot}]. */
export function unsaved(round, user) {
  const found = [], mine = journalKey(round, user, "", "").slice(0, -1);
  for (let i = 0; i < localStorage.length; i += 1) {
    const key = localStorage.key(i);
    if (!key.startsWith(mine)) continue;
    const [video, slot] = key.slice(mine.length).split(":").map(decodeURIComponent);
    found.push({ key, video, slot: Number(slot) });
  }
  return found;
}

/** Hand a person what this computer keeps of a video, as a file. */
export function keepCopy(key, video) {
  const text = localStorage.getItem(key);
  if (text === null) return;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = `video-${video}-not-saved.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/**
 * Send what is kept here of videos that no page of this browser has open; what the server refuses stays for its page.
 * Web Locks tell of other tabs; where the browser has none (plain http), everything waits for its page. Returns how many went.
 */
export async function sendUnsaved(round, user) {
  let sent = 0;
  for (const { key, video, slot } of navigator.locks ? unsaved(round, user) : []) {
    try {
      sent += await navigator.locks.request(key, { ifAvailable: true }, (lock) => (lock ? send(key, video, slot) : 0));
    } catch (error) {
      if (error.passing || error.status === 401) break;
    }
  }
  return sent;
}

async function send(key, video, slot) {
  const kept = localStorage.getItem(key), path = `api/videos/${encodeURIComponent(video)}`;
  if (kept === null) return 0; // its page or another tab sent it
  const { edit } = await call("PUT", `${path}/edit`, { ...JSON.parse(kept), slot });
  if (localStorage.getItem(key) === kept) localStorage.removeItem(key);
  if (edit.status === "draft") await call("DELETE", `${path}/lease`, { slot });
  return 1;
}

export class Saver {
  /**
   * onstate(name, error): saved, waiting, saving, conflict; offline: no connection; delayed: the server may take it later;
   * failed: it will not. onconflict(error); onsaved(edit).
   */
  constructor({ round, user, video, slot, revision, onstate, onconflict, onsaved }) {
    Object.assign(this, { video, slot, revision, onstate, onconflict, onsaved });
    this.key = journalKey(round, user, video, slot);
    this.content = null;
    this.attempt = 0;
    const open = new Promise((resolve) => { this.free = resolve; });
    navigator.locks?.request(this.key, () => open); // until the page is closed, nobody else sends what it keeps
    this.online = () => { if (this.content && !this.sending) this.flush(); };
    window.addEventListener("online", this.online);
    document.addEventListener("signed-in", this.online);
  }

  /** Return what an earlier page left unsaved. */
  journal() {
    try { return JSON.parse(localStorage.getItem(this.key)); } catch { return null; }
  }

  /** Remember a change, and save it soon. */
  change(content) {
    this.content = content;
    this.#keep();
    this.onstate("waiting");
    this.since ??= Date.now();
    clearTimeout(this.timer);
    const left = 1000 * LONGEST_SECONDS - (Date.now() - this.since);
    this.timer = setTimeout(() => this.flush(), Math.max(0, Math.min(1000 * IDLE_SECONDS, left)));
  }

  /** Save now; resolves to whether everything is saved. */
  async flush(options = {}) {
    clearTimeout(this.timer);
    if (this.sending) await this.sending;
    if (!this.content) return true;
    this.sending = this.#send(options);
    const done = await this.sending;
    this.sending = null;
    return done;
  }

  /** Go on from a revision that somebody else saved. */
  rebase(revision) { this.revision = revision; }

  forget() {
    this.content = null;
    clearTimeout(this.timer);
    localStorage.removeItem(this.key);
  }

  close() {
    clearTimeout(this.timer);
    window.removeEventListener("online", this.online);
    document.removeEventListener("signed-in", this.online);
    this.closed = true;
    Promise.resolve(this.sending).then(this.free);
  }

  #keep() {
    try {
      localStorage.setItem(this.key, JSON.stringify({ ...this.content, based_on: this.revision }));
    } catch { /* a full or forbidden local store: the server still gets it */ }
  }

  async #send(options) {
    const sent = this.content;
    this.since = null;
    this.onstate("saving");
    try {
      const path = `api/videos/${encodeURIComponent(this.video)}/edit`;
      const { edit } = await call("PUT", path, { ...sent, slot: this.slot, based_on: this.revision }, options);
      this.revision = edit.revision;
      this.attempt = 0;
      if (this.content === sent) this.forget();
      else this.#keep();
      this.onsaved(edit);
      this.onstate(this.content ? "waiting" : "saved");
      if (this.content && !this.closed) this.timer = setTimeout(() => this.flush(), 1000 * IDLE_SECONDS);
      return !this.content;
    } catch (error) {
      if (error.code === "conflict" || error.code === "lease") {
        this.onstate("conflict", error);
        this.onconflict(error);
      } else if (error.passing || error.status === 401 || error.code === "csrf") {
        this.onstate(error.code === "offline" ? "offline" : "delayed", error);
        this.attempt += 1;
        if (!this.closed) this.timer = setTimeout(() => this.flush(), Math.min(15, 2 ** this.attempt) * 1000);
      } else this.onstate("failed", error);
      return false;
    }
  }
}
