// A video's frames, fetched by index in an order in which the strip fills evenly, and its spatial attention.

import { call } from "./api.js";
import { turbo } from "./colors.js";

const AT_ONCE = 6;
const LEAST_HEAT = 0.15, MOST_HEAT = 0.7; // opacity of the heat map where the attention is lowest and highest
const SMALL = [32, 24]; // size at which frames are compared for motion

export class Frames {
  constructor(roundId, video) {
    this.base = `frames/${encodeURIComponent(roundId)}/${encodeURIComponent(video.video_id)}`;
    this.video = video;
    this.bitmaps = new Array(video.num_frames).fill(null);
    this.loaded = 0;
    this.failed = 0;
    this.heat = null;
    this.onframe = () => {};
    this.closed = false;
  }

  url(index) { return `${this.base}/${index}.jpg`; }

  /** Fetch all frames; resolves when none is missing any more. */
  async load() {
    const order = spread(this.video.num_frames);
    const work = async () => {
      while (order.length && !this.closed) await this.#fetch(order.shift());
    };
    await Promise.all(Array.from({ length: AT_ONCE }, work));
    return !this.closed && !this.failed;
  }

  async #fetch(index) {
    for (let attempt = 0; attempt < 4 && !this.closed; attempt += 1) {
      try {
        const response = await call("GET", this.url(index), undefined, { whole: true });
        const bitmap = await createImageBitmap(await response.blob());
        if (this.closed) return bitmap.close();
        this.bitmaps[index] = bitmap;
        this.loaded += 1;
        return this.onframe(index);
      } catch (error) {
        if (error.status && !error.passing) break;
        await new Promise((resolve) => setTimeout(resolve, 1000 * 2 ** attempt));
      }
    }
    this.failed += 1;
  }

  /** Return the nearest frame that has arrived. */
  nearest(index) {
    for (let distance = 0; distance < this.bitmaps.length; distance += 1) {
      const found = this.bitmaps[index - distance] ?? this.bitmaps[index + distance];
      if (found) return found;
    }
    return null;
  }

  /** Return the mean difference of each frame from the one before, smoothed. */
  motion() {
    const canvas = new OffscreenCanvas(...SMALL);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    let former = null;
    const energies = this.bitmaps.map((bitmap) => {
      context.drawImage(bitmap, 0, 0, ...SMALL);
      const { data } = context.getImageData(0, 0, ...SMALL);
      let sum = 0;
      if (former) for (let i = 0; i < data.length; i += 4) sum += Math.abs(data[i + 1] - former[i + 1]);
      former = data;
      return sum;
    });
    energies[0] = energies[1] ?? 0;
    return energies.map((value, i) => (value * 2 + (energies[i - 1] ?? value) + (energies[i + 1] ?? value)) / 4);
  }

  /** Fetch the spatial attention; the maps become small pictures, one per frame. */
  async loadHeat() {
    if (this.heat) return;
    const path = `api/videos/${encodeURIComponent(this.video.video_id)}/spatial`;
    const response = await call("GET", path, undefined, { whole: true });
    const height = Number(response.headers.get("X-Height")), width = Number(response.headers.get("X-Width"));
    const values = new Uint8Array(await response.arrayBuffer());
    const low = values.reduce((a, b) => Math.min(a, b), 255), high = values.reduce((a, b) => Math.max(a, b), 0);
    const size = height * width;
    this.heat = this.bitmaps.map((_, frame) => {
      const canvas = new OffscreenCanvas(width, height);
      const image = new ImageData(width, height);
      for (let i = 0; i < size; i += 1) {
        const value = (values[frame * size + i] - low) / Math.max(1, high - low);
        image.data.set(turbo[Math.round(255 * value)], i * 4);
        image.data[i * 4 + 3] = 255 * (LEAST_HEAT + (MOST_HEAT - LEAST_HEAT) * value);
      }
      canvas.getContext("2d").putImageData(image, 0, 0);
      return canvas;
    });
  }

  /** Draw a frame into a box, whole or filling it; with the heat map where the network looked. */
  draw(context, index, x, y, width, height, { cover = false, heat = false } = {}) {
    const bitmap = this.bitmaps[index] ?? (cover ? null : this.nearest(index));
    if (!bitmap) return;
    const choose = cover ? Math.max : Math.min;
    const scale = choose(width / bitmap.width, height / bitmap.height);
    const left = x + (width - bitmap.width * scale) / 2, top = y + (height - bitmap.height * scale) / 2;
    context.save();
    context.beginPath();
    context.rect(x, y, width, height);
    context.clip();
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, left, top, bitmap.width * scale, bitmap.height * scale);
    if (heat && this.heat) {
      const { crop } = this.video;
      const unit = scale * (bitmap.width / this.video.width);
      context.drawImage(this.heat[index], left + crop.left * unit, top + crop.top * unit, crop.side * unit, crop.side * unit);
    }
    context.restore();
  }

  close() {
    this.closed = true;
    this.bitmaps.forEach((bitmap) => bitmap?.close());
  }
}

/** Return all indices so that any first part of them is spread over the whole. */
function spread(length) {
  const order = [], seen = new Set();
  for (let step = 16; step >= 1; step /= 2) {
    for (let index = 0; index < length; index += step) {
      if (!seen.has(index)) { seen.add(index); order.push(index); }
    }
  }
  return order;
}

/** Put a video's frames into the browser's cache before it is opened. */
export function prefetch(roundId, videoId, numFrames) {
  const base = `frames/${encodeURIComponent(roundId)}/${encodeURIComponent(videoId)}`;
  const order = spread(numFrames);
  const work = async () => {
    while (order.length) {
      try { await (await fetch(`${base}/${order.shift()}.jpg`, { priority: "low" })).blob(); } catch { return; }
    }
  };
  work();
  work();
}
