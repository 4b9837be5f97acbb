// A video's frames. A common video is decoded whole; of a long one only pieces around the playhead are, and small pictures
// for the strip, so that neither the time to open it nor the memory grows with the number of frames.

import { call } from "./api.js";
import { turbo } from "./colors.js";

const PIECE = 16; // frames of one request
const AT_ONCE = 4;
const MIB = 2 ** 20;
const WHOLE_BYTES = 96 * MIB; // decoded, up to which a video is kept whole
const WINDOW_BYTES = 32 * MIB; // decoded, of a longer one
const THUMB_BYTES = 24 * MIB;
const AHEAD = 3, BEHIND = 1; // pieces kept ready around the playhead
const ATTEMPTS = 4, AGAIN_SECONDS = 30;
const LEAST_HEAT = 0.15, MOST_HEAT = 0.7; // opacity of the heat map where the attention is lowest and highest
const SMALL = [32, 24]; // size at which frames are compared for motion
const SAMPLES = 96; // frames of a long video that are compared

const folder = (roundId, videoId) => `frames/${encodeURIComponent(roundId)}/${encodeURIComponent(videoId)}`;
const pieceUrl = (base, first, last) => `${base}/${first}-${last}.mjpeg`;

export class Frames {
  /** video: {video_id, num_frames, width, height, crop}. onframes(first, last): these can be drawn now. */
  constructor(roundId, video) {
    this.base = folder(roundId, video.video_id);
    this.video = video;
    this.length = video.num_frames;
    const bytes = Math.max(1, video.width * video.height * 4) * PIECE;
    this.numPieces = Math.ceil(this.length / PIECE);
    this.whole = this.numPieces * bytes <= WHOLE_BYTES;
    this.room = this.whole ? this.numPieces : Math.max(AHEAD + BEHIND + 3, Math.floor(WINDOW_BYTES / bytes));
    this.pieces = new Map(); // number of the piece: its bitmaps, null where one cannot be decoded
    this.thumbs = new Map(); // frame: small bitmap, the oldest first
    this.wanted = { frames: [], height: 0 };
    this.loading = new Set();
    this.failed = new Set();
    this.focus = { frame: 0, first: 0, last: this.length - 1 };
    this.heat = null;
    this.onframes = () => {};
    this.closed = false;
  }

  /** Fetch what is wanted now; resolves when it is there: to false if something could not be loaded. */
  load() {
    return new Promise((resolve) => {
      this.idle = resolve;
      this.#pump();
    });
  }

  /** Say where the playhead is, and between which frames it plays. */
  at(frame, first = 0, last = this.length - 1) {
    this.focus = { frame, first, last };
    this.#pump();
  }

  /** Say which frames the strip shows, and how high, in pixels of the screen. */
  want(frames, height) {
    if (height > 1.3 * this.wanted.height) this.#forgetThumbs();
    this.wanted = { frames, height: Math.max(height, this.wanted.height) };
    this.#pump();
  }

  /** Return a decoded frame, null if it cannot be shown, undefined if it is not there yet. */
  get(index) {
    const number = Math.floor(index / PIECE);
    return this.failed.has(number) ? null : this.pieces.get(number)?.[index % PIECE];
  }

  /** Return a frame for the strip, large or small. */
  small(index) { return this.thumbs.get(index) ?? this.get(index) ?? null; }

  /** Return the nearest frame that has arrived. */
  nearest(index) {
    for (let distance = 0; distance < Math.min(this.length, 4 * PIECE); distance += 1) {
      const found = this.get(index - distance) ?? this.get(index + distance);
      if (found) return found;
    }
    let best = null;
    for (const frame of this.thumbs.keys()) if (best === null || Math.abs(frame - index) < Math.abs(best - index)) best = frame;
    return best === null ? null : this.thumbs.get(best);
  }

  // Loading ------------------------------------------------------------------------------------------------------------

  #pump() {
    while (this.loading.size < AT_ONCE && !this.closed) {
      const job = this.#next();
      if (!job) break;
      this.loading.add(job.key);
      this.#attempt(job).then(() => {
        this.loading.delete(job.key);
        this.#pump();
      });
    }
    if (!this.loading.size && this.idle) {
      this.idle(!this.closed && !this.failed.size);
      this.idle = null;
    }
  }

  #next() {
    const free = (number) => !this.pieces.has(number) && !this.loading.has(number) && !this.failed.has(number);
    const around = this.#around();
    if (free(around[0])) return this.#pieceJob(around[0]);
    const thumb = this.whole ? undefined : this.wanted.frames.find((frame) =>
      !this.thumbs.has(frame) && !this.loading.has(`thumb ${frame}`) && !this.failed.has(`thumb ${frame}`));
    if (thumb !== undefined) return { key: `thumb ${thumb}`, run: () => this.#loadThumb(thumb) };
    const number = (this.whole ? spread(this.numPieces) : around).find(free);
    return number === undefined ? null : this.#pieceJob(number);
  }

  /** Return the pieces that the playhead needs, the most urgent first; it turns back at the end of what is played. */
  #around() {
    const { frame, first, last } = this.focus, span = last - first + 1;
    const numbers = new Set([Math.floor(frame / PIECE)]);
    for (let step = 1; step <= AHEAD; step += 1) {
      const next = frame + step * PIECE;
      numbers.add(Math.floor((next > last && frame <= last ? first + ((next - first) % span) : Math.min(next, this.length - 1)) / PIECE));
    }
    for (let step = 1; step <= BEHIND; step += 1) numbers.add(Math.floor(Math.max(0, frame - step * PIECE) / PIECE));
    return [...numbers];
  }

  async #attempt({ key, run }) {
    for (let attempt = 0; attempt < ATTEMPTS && !this.closed; attempt += 1) {
      try { return await run(); } catch (error) {
        if (error.status && !error.passing) break;
        await new Promise((resolve) => setTimeout(resolve, 1000 * 2 ** attempt));
      }
    }
    this.failed.add(key);
    setTimeout(() => this.failed.delete(key), 1000 * AGAIN_SECONDS);
  }

  #pieceJob(number) { return { key: number, run: () => this.#loadPiece(number) }; }

  async #loadPiece(number) {
    const first = number * PIECE, last = Math.min(this.length, first + PIECE) - 1;
    const bitmaps = await fetchFrames(this.base, first, last);
    if (this.closed) return bitmaps.forEach((bitmap) => bitmap?.close());
    this.pieces.set(number, bitmaps);
    const here = Math.floor(this.focus.frame / PIECE), needed = new Set(this.#around());
    while (this.pieces.size > this.room) {
      const others = [...this.pieces.keys()].filter((other) => !needed.has(other) && other !== number);
      const far = others.reduce((a, b) => (Math.abs(b - here) > Math.abs(a - here) ? b : a), others[0] ?? number);
      this.pieces.get(far).forEach((bitmap) => bitmap?.close());
      this.pieces.delete(far);
    }
    this.onframes(first, last);
  }

  async #loadThumb(frame) {
    const { height } = this.wanted, size = { resizeHeight: Math.min(height, this.video.height), resizeQuality: "medium" };
    const bitmap = this.get(frame) ?? await (await call("GET", `${this.base}/${frame}.jpg`, undefined, { whole: true })).blob();
    const small = await createImageBitmap(bitmap, size);
    if (this.closed) return small.close();
    this.thumbs.set(frame, small);
    const most = Math.max(64, THUMB_BYTES / (small.width * small.height * 4));
    for (const [old, picture] of this.thumbs) {
      if (this.thumbs.size <= most) break;
      if (this.wanted.frames.includes(old)) continue;
      picture.close();
      this.thumbs.delete(old);
    }
    this.onframes(frame, frame);
  }

  #forgetThumbs() {
    this.thumbs.forEach((bitmap) => bitmap.close());
    this.thumbs.clear();
  }

  // Motion -------------------------------------------------------------------------------------------------------------

  /** Return {energies, step}: the mean difference of frames from the one before, smoothed; of a long video every so many frames. */
  async motion() {
    const canvas = new OffscreenCanvas(...SMALL), context = canvas.getContext("2d", { willReadFrequently: true });
    const look = (bitmap) => {
      if (bitmap) context.drawImage(bitmap, 0, 0, ...SMALL);
      return context.getImageData(0, 0, ...SMALL).data;
    };
    const energies = [], step = this.whole ? 1 : Math.ceil(this.length / SAMPLES);
    for (let frame = 0, former; frame < this.length && !this.closed; frame += step) {
      let data;
      if (this.whole) data = look(this.get(frame));
      else {
        const [bitmap] = await fetchFrames(this.base, frame, frame, { priority: "low" });
        data = look(bitmap);
        bitmap?.close();
      }
      energies.push(former ? difference(data, former) : 0);
      former = data;
    }
    energies[0] = energies[1] ?? 0;
    return { step, energies: energies.map((value, i) => (value * 2 + (energies[i - 1] ?? value) + (energies[i + 1] ?? value)) / 4) };
  }

  // The heat map -------------------------------------------------------------------------------------------------------

  /** Fetch the spatial attention of all frames, a few bytes each. */
  async loadHeat() {
    if (this.heat) return;
    const path = `api/videos/${encodeURIComponent(this.video.video_id)}/spatial`;
    const response = await call("GET", path, undefined, { whole: true });
    const height = Number(response.headers.get("X-Height")), width = Number(response.headers.get("X-Width"));
    const values = new Uint8Array(await response.arrayBuffer());
    const low = values.reduce((a, b) => Math.min(a, b), 255), high = values.reduce((a, b) => Math.max(a, b), 0);
    this.heat = { values, low, high, image: new ImageData(width, height), canvas: new OffscreenCanvas(width, height) };
  }

  #heatPicture(frame) {
    const { values, low, high, image, canvas } = this.heat, size = image.width * image.height;
    for (let i = 0; i < size; i += 1) {
      const value = (values[frame * size + i] - low) / Math.max(1, high - low);
      image.data.set(turbo[Math.round(255 * value)], i * 4);
      image.data[i * 4 + 3] = 255 * (LEAST_HEAT + (MOST_HEAT - LEAST_HEAT) * value);
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas;
  }

  /** Draw a frame whole into a box; with the heat map where the network looked. False: nothing is there to draw yet. */
  draw(context, index, x, y, width, height, { strip = false, heat = false } = {}) {
    const bitmap = strip ? this.small(index) : this.get(index) ?? this.nearest(index);
    if (!bitmap) return false;
    const scale = Math.min(width / bitmap.width, height / bitmap.height);
    const left = x + (width - bitmap.width * scale) / 2, top = y + (height - bitmap.height * scale) / 2;
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, left, top, bitmap.width * scale, bitmap.height * scale);
    if (heat && this.heat) {
      const { crop } = this.video, unit = scale * (bitmap.width / this.video.width);
      context.drawImage(this.#heatPicture(index), left + crop.left * unit, top + crop.top * unit, crop.side * unit, crop.side * unit);
    }
    return true;
  }

  close() {
    this.closed = true;
    this.pieces.forEach((bitmaps) => bitmaps.forEach((bitmap) => bitmap?.close()));
    this.pieces.clear();
    this.#forgetThumbs();
  }
}

/** Return frames first to last, decoded; null in place of one that is damaged. */
async function fetchFrames(base, first, last, options = {}) {
  const response = await call("GET", pieceUrl(base, first, last), undefined, { whole: true, ...options });
  const data = await response.arrayBuffer();
  let start = 0;
  return Promise.all(response.headers.get("X-Frame-Sizes").split(",").map((size) => {
    const jpeg = new Blob([new Uint8Array(data, start, Number(size))], { type: "image/jpeg" });
    start += Number(size);
    return createImageBitmap(jpeg).catch(() => null);
  }));
}

function difference(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i += 4) sum += Math.abs(a[i + 1] - b[i + 1]);
  return sum;
}

/** Return all numbers below length so that any first part of them is spread over the whole. */
function spread(length) {
  const order = new Set();
  for (let step = 4; step >= 1; step /= 2) for (let number = 0; number < length; number += step) order.add(number);
  return [...order];
}

/** Put the beginning of a video, or all of a common one, into the browser's cache before it is opened. */
export async function prefetch(roundId, videoId, numFrames) {
  const base = folder(roundId, videoId), last = Math.min(numFrames, 8 * PIECE);
  for (let first = 0; first < last; first += PIECE) {
    const url = pieceUrl(base, first, Math.min(numFrames, first + PIECE) - 1);
    try { await (await fetch(url, { priority: "low" })).blob(); } catch { return; }
  }
}
