// What the timeline draws, lane by lane: a ruler, the frames, the curves, their levels, the action's segments, and where one is.

import { themed, viridis } from "./colors.js";
import { runs } from "./curve.js";

const RULER = 18, BARS = 16, TRACK = 26, MAP = 10, GAP = 4;
const INSET = 7; // of the curves within their lane, so that 0 and 1 can be told from its edges
const LEAST = 110; // height of the frames and the curves together
const FONT = "11px system-ui, sans-serif";

/** Return where each lane lies: {name: [top, height]}, and their sum, in a timeline of about this height. */
export function layout(height) {
  const rest = Math.max(LEAST, Math.round(height) - RULER - BARS - TRACK - MAP - 4 * GAP), film = Math.round(0.48 * rest);
  const lanes = {};
  let top = 0;
  for (const [name, size, gap] of [["ruler", RULER, 0], ["film", film, GAP], ["curve", rest - film, 2], ["bars", BARS, GAP], ["track", TRACK, GAP], ["map", MAP, 0]]) {
    lanes[name] = [top, size];
    top += size + gap;
  }
  return { lanes, total: top };
}

/** Return the height of a value in the lane of the curves, and back. */
export const yOf = ([top, height], value) => top + INSET + (1 - value) * (height - 2 * INSET);
export const valueOf = ([top, height], y) => Math.min(1, Math.max(0, 1 - (y - top - INSET) / (height - 2 * INSET)));

/** Return which frames stand for all of those in view, [{frame, left, wide}], so that each picture is whole. */
export function pictures(line, ratio) {
  const [, height] = line.lanes.film, cell = line.cell();
  const step = Math.max(1, Math.ceil((height * ratio) / cell));
  const found = [];
  for (let first = Math.floor(line.view.start / step) * step; first < Math.min(line.length, line.view.start + line.view.span); first += step) {
    const last = Math.min(line.length, first + step) - 1;
    found.push({ frame: Math.floor((first + last) / 2), left: line.x(first), wide: step * cell });
  }
  return found;
}

/** Draw the frames; only when they, the view or the size change. */
export function drawFilm(line, context) {
  const [top, height] = line.lanes.film;
  context.fillStyle = themed("film");
  context.fillRect(0, top, line.width, height);
  for (const { frame, left, wide } of line.shown) {
    line.frames.draw(context, frame, left, top, wide - 1, height, { strip: true, heat: line.heat });
  }
}

/** Draw all that changes with the curve and the playhead. */
export function drawOver(line, context) {
  context.clearRect(0, 0, line.width, line.total);
  ruler(line, context);
  ground(line, context);
  curve(line, context, line.own, themed("muted"), 1.75, [5, 4]);
  line.others.forEach((other) => curve(line, context, other.curve, other.color, 2.25, other.dash ?? []));
  if (!line.readonly || line.own !== line.curve) curve(line, context, line.curve, themed("mine-bright"), 2.5, []);
  bars(line, context);
  track(line, context);
  selection(line, context);
  playhead(line, context);
  map(line, context);
}

function ruler(line, context) {
  const [top, height] = line.lanes.ruler, cell = line.cell();
  if (line.loop) {
    context.fillStyle = themed("info-soft");
    context.fillRect(line.x(line.loop[0]), top, line.x(line.loop[1] + 1) - line.x(line.loop[0]), height);
  }
  const least = 52 / cell, power = 10 ** Math.floor(Math.log10(Math.max(1, least)));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= least) ?? Math.ceil(least);
  context.fillStyle = themed("muted");
  context.font = FONT;
  context.textAlign = "center";
  context.textBaseline = "middle";
  const to = line.view.start + line.view.span;
  for (let number = Math.max(1, Math.floor(line.view.start / step) * step); number <= Math.min(line.length, to + 1); number += number === 1 && step > 1 ? step - 1 : step) {
    const x = line.x(number - 1) + cell / 2;
    context.fillRect(Math.round(x), top + height - 4, 1, 4);
    if (x > 8 && x < line.width - 8) context.fillText(String(number), x, top + (height - 4) / 2);
  }
}

function ground(line, context) {
  const [top, height] = line.lanes.curve;
  context.fillStyle = themed("sunken");
  context.fillRect(0, top, line.width, height);
  context.fillStyle = themed("line");
  for (const value of [0, 0.5, 1]) context.fillRect(0, Math.round(yOf(line.lanes.curve, value)), line.width, 1);
}

function curve(line, context, values, color, width, dash) {
  const path = new Path2D(), area = new Path2D(), half = line.cell() / 2, floor = yOf(line.lanes.curve, 0);
  const [from, to] = line.inView(1);
  let left = null;
  const end = (frame) => {
    if (left === null) return;
    area.lineTo(line.x(frame) - half, floor);
    area.lineTo(left, floor);
    left = null;
  };
  for (let frame = from; frame <= to; frame += 1) {
    const value = values[frame];
    if (value === null) { end(frame); continue; }
    const x = line.x(frame) + half, y = yOf(line.lanes.curve, value);
    if (left !== null) { path.lineTo(x, y); area.lineTo(x, y); }
    else { path.moveTo(x, y); path.lineTo(x + 0.01, y); area.moveTo(x, y); left = x; }
  }
  end(to + 1);
  const [top, height] = line.lanes.curve;
  context.save();
  context.beginPath();
  context.rect(0, top, line.width, height);
  context.clip();
  context.lineJoin = context.lineCap = "round";
  context.strokeStyle = context.fillStyle = color;
  if (!dash.length) {
    context.globalAlpha = 0.16;
    context.fill(area);
    context.globalAlpha = 1;
  }
  context.setLineDash(dash);
  context.lineWidth = width;
  context.stroke(path);
  if (!dash.length && half >= 6) {
    for (let frame = from; frame <= to; frame += 1) {
      if (values[frame] === null) continue;
      context.beginPath();
      context.arc(line.x(frame) + half, yOf(line.lanes.curve, values[frame]), 3, 0, 7);
      context.fill();
    }
  }
  context.restore();
}

function bars(line, context) {
  const [top, height] = line.lanes.bars, cell = line.cell(), stripes = hatch(context, height);
  const draw = (frame, left, wide) => {
    const value = line.curve[frame];
    context.fillStyle = value === null ? stripes : viridis(value);
    context.fillRect(left, top, wide, height);
  };
  if (cell < 1) { // a pixel shows the frame that lies under it
    for (let x = 0; x < line.width; x += 1) draw(line.frameAt(x), x, 1);
    return;
  }
  const [from, to] = line.inView(0);
  for (let frame = from; frame <= to; frame += 1) draw(frame, line.x(frame), cell - (cell > 5 ? 1 : 0));
}

function hatch(context, size) {
  const tile = new OffscreenCanvas(6, size), pen = tile.getContext("2d");
  pen.strokeStyle = themed("line-strong");
  pen.lineWidth = 1.2;
  for (let start = -size; start <= 6 + size; start += 6) {
    pen.beginPath();
    pen.moveTo(start, size);
    pen.lineTo(start + size, 0);
    pen.stroke();
  }
  return context.createPattern(tile, "repeat");
}

function track(line, context) {
  const [top, height] = line.lanes.track, half = line.cell() / 2;
  context.fillStyle = themed("sunken");
  round(context, 0, top, line.width, height, 6);
  context.fill();
  context.fillStyle = themed("muted");
  line.sampled.forEach((frame) => {
    context.beginPath();
    context.arc(line.x(frame) + half, top + height - 3, 1.75, 0, 7);
    context.fill();
  });
  if (line.suggestion) {
    const { first, last } = line.suggestion;
    context.strokeStyle = themed("other");
    context.setLineDash([4, 3]);
    context.lineWidth = 1.5;
    round(context, line.x(first) + 1, top + 2, line.x(last + 1) - line.x(first) - 2, height - 4, 5);
    context.stroke();
    context.setLineDash([]);
  }
  for (const { first, last } of runs(line.curve)) {
    const left = line.x(first), wide = Math.max(3, line.x(last + 1) - left);
    context.fillStyle = themed("mine-soft");
    round(context, left, top + 4, wide, height - 8, 5);
    context.fill();
    context.fillStyle = themed("mine-bright");
    for (const x of wide > 12 ? [left, left + wide - 4] : [left]) {
      round(context, x, top + 4, Math.min(4, wide), height - 8, 2);
      context.fill();
    }
    const from = Math.max(0, left), to = Math.min(line.width, left + wide);
    if (to - from > 72) {
      context.fillStyle = themed("ink");
      context.font = `600 ${FONT}`;
      context.textAlign = "center";
      context.textBaseline = "middle";
      context.fillText(`${first + 1} – ${last + 1}`, (from + to) / 2, top + height / 2 + 0.5);
    }
  }
  for (const [name, frame] of Object.entries(line.pending)) {
    const x = name === "in" ? line.x(frame) : line.x(frame + 1), [from] = line.lanes.film;
    context.fillStyle = themed("mine-bright");
    context.fillRect(x - 1.5, from, 3, top + height - from);
  }
}

function selection(line, context) {
  if (!line.selection) return;
  const [first, last] = line.selection, [top] = line.lanes.film, [end, height] = line.lanes.track;
  const left = line.x(first), wide = line.x(last + 1) - left;
  context.fillStyle = "rgb(120 140 255 / 0.18)";
  context.fillRect(left, top, wide, end + height - top);
  context.strokeStyle = themed("focus");
  context.lineWidth = 1;
  context.strokeRect(left + 0.5, top + 0.5, Math.max(1, wide - 1), end + height - top - 1);
}

function playhead(line, context) {
  const [top, height] = line.lanes.ruler, [end, size] = line.lanes.track, cell = line.cell();
  const left = line.x(line.frame), middle = left + cell / 2, wide = Math.max(2, cell);
  context.strokeStyle = themed("bg");
  context.lineWidth = 3.5;
  context.strokeRect(middle - wide / 2, top + height, wide, end + size - top - height);
  context.strokeStyle = themed("ink");
  context.lineWidth = 1.75;
  context.strokeRect(middle - wide / 2, top + height, wide, end + size - top - height);
  context.fillStyle = themed("ink");
  context.beginPath();
  context.moveTo(middle - 6, top + height - 8);
  context.lineTo(middle + 6, top + height - 8);
  context.lineTo(middle, top + height + 1);
  context.fill();
}

/** Draw the whole video and, of it, what is in view: to be dragged. */
function map(line, context) {
  if (!line.zoomed) return;
  const [top, height] = line.lanes.map, scale = line.width / line.length;
  context.fillStyle = themed("sunken");
  round(context, 0, top, line.width, height, 5);
  context.fill();
  context.fillStyle = themed("mine-bright");
  for (const { first, last } of runs(line.curve)) context.fillRect(first * scale, top + 3, Math.max(2, (last - first + 1) * scale), height - 6);
  context.fillStyle = "rgb(120 125 140 / 0.35)";
  context.strokeStyle = themed("muted");
  context.lineWidth = 1.25;
  round(context, line.view.start * scale + 0.5, top + 0.5, Math.max(14, line.view.span * scale - 1), height - 1, 5);
  context.fill();
  context.stroke();
  context.fillStyle = themed("ink");
  context.fillRect(line.frame * scale, top, 2, height);
}

function round(context, x, y, width, height, radius) {
  context.beginPath();
  context.roundRect(x, y, Math.max(0, width), height, Math.min(radius, Math.max(0, width / 2)));
}
