// That somebody sits at an open video: its lease is kept, the time they look at it is counted, the next one is fetched.

import { call, post } from "./api.js";
import { prefetch } from "./frames.js";

const AWAY_SECONDS = 30; // without any input for so long, the time is not counted
const KEEP_SECONDS = 300; // a page without input for so long lets its lease expire
const PREFETCH_SECONDS = 1.5;
const EVENTS = ["pointermove", "pointerdown", "keydown"];

export class Presence {
  /** path: the video's address; onlease({mine, holder}): the lease was looked at; onleave(): the page is left or hidden. */
  constructor({ path, slot, seconds, readonly, leaseSeconds, onlease, onleave }) {
    Object.assign(this, { path, slot, seconds, readonly, onlease });
    this.input = this.counted = Date.now();
    this.touch = () => { this.input = Date.now(); };
    this.hide = () => { if (document.visibilityState === "hidden") onleave(); };
    this.gone = () => { onleave(); this.release(); };
    for (const name of EVENTS) document.addEventListener(name, this.touch, { passive: true });
    document.addEventListener("visibilitychange", this.hide);
    window.addEventListener("pagehide", this.gone);
    this.timers = [setInterval(() => this.count(), 1000), setInterval(() => this.#keep(), (1000 * leaseSeconds) / 3)];
  }

  /** Add the time since the last look, and return the seconds in all. */
  count() {
    const now = Date.now(), passed = (now - this.counted) / 1000;
    this.counted = now;
    if (document.visibilityState === "visible" && now - this.input < 1000 * AWAY_SECONDS) this.seconds += Math.min(passed, 5);
    return Math.round(this.seconds * 10) / 10;
  }

  async #keep() {
    if (this.readonly || Date.now() - this.input > 1000 * KEEP_SECONDS) return;
    try { await this.onlease(await post(`${this.path}/lease`, { slot: this.slot })); } catch { /* offline: the next one will do */ }
  }

  /** End the lease; once. */
  release() {
    if (this.readonly || this.released) return null;
    this.released = true;
    return call("DELETE", `${this.path}/lease`, { slot: this.slot }, { keepalive: true }).catch(() => {});
  }

  /** Fetch frames of the video that would probably be next. */
  async fetchNext(round, video, action) {
    const query = new URLSearchParams({ current: video, ...(action === null ? {} : { action }) });
    try {
      const { video_id: id, num_frames: length } = await call("GET", `api/next?${query}`);
      if (id && !this.closed) this.early = setTimeout(() => prefetch(round, id, length), 1000 * PREFETCH_SECONDS);
    } catch { /* it is only early */ }
  }

  close() {
    this.closed = true;
    [...this.timers, this.early].forEach(clearInterval);
    for (const name of EVENTS) document.removeEventListener(name, this.touch);
    document.removeEventListener("visibilitychange", this.hide);
    window.removeEventListener("pagehide", this.gone);
    this.release();
  }
}
