// Curves: arrays of numbers in [0, 1], one per source frame, null where there is no opinion. Nothing here changes its input.

export const LEVEL = 0.5; // frames from this attention on belong to the action
export const RAMP = 2; // frames over which a segment rises before and falls after the action
export const LEVELS = [0, 0.25, 0.5, 0.75, 1, null];
export const LEVEL_NAMES = ["0", "¼", "½", "¾", "1", "none"];

const clamp = (value) => Math.min(1, Math.max(0, value));
const tidy = (value) => (value === null ? null : Math.round(clamp(value) * 1e5) / 1e5);

/** 1 from frame first to last (both inclusive), a linear ramp beside it, 0 elsewhere. */
export function segment(length, first, last, ramp = RAMP) {
  return Array.from({ length }, (_, frame) => {
    const distance = Math.max(first - frame, frame - last, 0);
    return tidy(1 - distance / (ramp + 1));
  });
}

/** The larger of two curves, frame by frame: a further segment beside what is there. */
export const merge = (a, b) => a.map((value, i) => (value === null ? b[i] : b[i] === null ? value : Math.max(value, b[i])));

/** Runs of frames at or above LEVEL without the ramps beside them, as {first, last} (inclusive): what `segment` was given. */
export function runs(curve) {
  const found = [];
  curve.forEach((value, frame) => {
    if (value === null || value < LEVEL) return;
    const open = found.at(-1);
    if (open && open.last === frame - 1) open.last = frame;
    else found.push({ first: frame, last: frame });
  });
  return found.map(({ first, last }) => {
    const top = 0.9 * curve.slice(first, last + 1).reduce((a, b) => Math.max(a, b));
    let from = first, to = last;
    while (from < first + RAMP && from < to && curve[from] < top && curve[from] < curve[from + 1]) from += 1;
    while (to > last - RAMP && to > from && curve[to] < top && curve[to] < curve[to - 1]) to -= 1;
    return { first: from, last: to };
  });
}

/** Return the last frame of the run before, and the first of the run after; -1 and the length if there is none. */
function neighbours(curve, run) {
  const others = runs(curve).filter((other) => other.first !== run.first);
  return [others.findLast((other) => other.last < run.first)?.last ?? -1, others.find((other) => other.first > run.last)?.first ?? curve.length];
}

/**
 * Put a run elsewhere: `inside(frame)` from first to last, ramps beside it, 0 where it was. What else is in the curve stays,
 * other runs first of all.
 */
function putRun(curve, run, first, last, inside) {
  const [before, after] = neighbours(curve, run);
  const was = (frame) => {
    const distance = Math.max(run.first - frame, frame - run.last), value = curve[frame];
    if (distance <= 0) return true;
    const ramp = curve[frame < run.first ? run.first : run.last] * (1 - distance / (RAMP + 1));
    return distance <= RAMP && value !== null && (value >= LEVEL || Math.abs(value - ramp) < 0.01);
  };
  return curve.map((value, frame) => {
    if (frame <= before || frame >= after) return value;
    if (frame >= first && frame <= last) return tidy(inside(frame));
    const distance = Math.max(first - frame, frame - last), edge = inside(frame < first ? first : last);
    const ramp = distance <= RAMP && edge !== null ? edge * (1 - distance / (RAMP + 1)) : 0;
    if (was(frame)) return tidy(ramp);
    return value === null || value >= ramp ? value : tidy(ramp);
  });
}

/** Move a run by some frames, up to its neighbours; its shape comes along. */
export function moveRun(curve, run, by) {
  const [before, after] = neighbours(curve, run);
  const shift = Math.max(before + 1 - run.first, Math.min(after - 1 - run.last, by));
  return shift ? putRun(curve, run, run.first + shift, run.last + shift, (frame) => curve[frame - shift]) : curve.slice();
}

/** Move a run's edges, up to its neighbours; what is in it stays, and what it grows by gets the level of its edge. */
export function resizeRun(curve, run, first, last) {
  const [before, after] = neighbours(curve, run);
  const from = Math.max(first, before + 1), to = Math.min(last, after - 1);
  if (from === run.first && to === run.last) return curve.slice();
  return putRun(curve, run, from, to, (frame) => curve[Math.min(run.last, Math.max(run.first, frame))]);
}

/** Add a segment beside what is there; in place of the network's own curve if that has no segment. */
export function addRun(curve, own, first, last) {
  const shape = segment(curve.length, first, last);
  return same(curve, own) && !runs(curve).length ? shape : merge(curve, shape);
}

/** Set frames first to last to a value. */
export const paint = (curve, first, last, value) =>
  curve.map((old, frame) => (frame >= Math.min(first, last) && frame <= Math.max(first, last) ? tidy(value) : old));

/** Set frames from a to b on the line between two values. */
export function line(curve, a, valueA, b, valueB) {
  const [first, last, from, to] = a <= b ? [a, b, valueA, valueB] : [b, a, valueB, valueA];
  return curve.map((old, frame) => {
    if (frame < first || frame > last) return old;
    return tidy(first === last ? valueB : from + ((to - from) * (frame - first)) / (last - first));
  });
}

/** Raise or lower frames; one without an opinion starts from the network's level. */
export const lift = (curve, first, last, by, own) =>
  curve.map((old, frame) => (frame >= first && frame <= last ? tidy((old ?? own[frame]) + by) : old));

/** Fill frames without an opinion on the line between their neighbours. */
export function fill(curve) {
  const known = curve.flatMap((value, frame) => (value === null ? [] : [frame]));
  if (!known.length) return curve.slice();
  let at = 0; // of the first known frame that is not before this one
  return curve.map((value, frame) => {
    if (value !== null) return value;
    while (at < known.length && known[at] < frame) at += 1;
    const before = known[at - 1], after = known[at];
    if (before === undefined) return curve[after];
    if (after === undefined) return curve[before];
    return tidy(curve[before] + ((curve[after] - curve[before]) * (frame - before)) / (after - before));
  });
}

/** Average with the neighbours, 1-2-1; frames without an opinion stay out. */
export function smooth(curve) {
  return curve.map((value, frame) => {
    if (value === null) return null;
    let sum = 2 * value, weight = 2;
    for (const other of [curve[frame - 1], curve[frame + 1]]) {
      if (other !== null && other !== undefined) { sum += other; weight += 1; }
    }
    return tidy(sum / weight);
  });
}

export const invert = (curve) => curve.map((value) => (value === null ? null : tidy(1 - value)));

/** Stretch a curve to another number of frames. */
export function resample(curve, length) {
  return Array.from({ length }, (_, frame) => {
    const place = length === 1 ? 0 : (frame * (curve.length - 1)) / (length - 1);
    const low = Math.floor(place), high = Math.min(curve.length - 1, low + 1);
    if (curve[low] === null || curve[high] === null) return curve[Math.round(place)];
    return tidy(curve[low] + (curve[high] - curve[low]) * (place - low));
  });
}

/** The stretch of frames that moves most above the average; energies are mean frame differences. Null if nothing moves. */
export function busiest(energies) {
  const mean = energies.reduce((sum, value) => sum + value, 0) / energies.length;
  if (!(mean > 0)) return null;
  let best = null, sum = 0, first = 0;
  energies.forEach((value, frame) => {
    if (sum <= 0) { sum = 0; first = frame; }
    sum += value - mean;
    if (sum > 0 && (!best || sum > best.sum)) best = { sum, first, last: frame };
  });
  return best && { first: best.first, last: best.last };
}

export const same = (a, b) => a.length === b.length && a.every((value, i) => value === b[i]);

/** A curve with all its earlier and undone states. */
export class History {
  constructor(curve) {
    this.curve = curve;
    this.past = [];
    this.future = [];
  }

  /** Make a curve the present one; false if nothing changes. */
  set(curve) {
    if (same(curve, this.curve)) return false;
    this.past.push(this.curve);
    this.future = [];
    this.curve = curve;
    return true;
  }

  undo() { return this.#move(this.past, this.future); }

  redo() { return this.#move(this.future, this.past); }

  #move(from, to) {
    if (!from.length) return false;
    to.push(this.curve);
    this.curve = from.pop();
    return true;
  }
}
