"""Charts of the report as inline HTML and SVG: coloured by the page's CSS variables, so they follow light and dark.

Rows of points are SVG in percent coordinates, which stay legible at any width; line charts scale as a whole. A series'
tone is the name of a CSS colour variable of report.html.jinja: `before`, `after`, `control`, `edit`, `muted`.
"""

import base64
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from PIL import Image

from stabn.evaluation.significance import Difference, points

Matrix = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Series:
    """One line of a chart; x and y have the same length, y may be NaN where there is no value."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    tone: str
    dashed: bool = False


@dataclass(frozen=True)
class ClassChange:
    """Top-1 of one class before and after, 0 to 1, on `support` videos; `control` is None without a control run."""

    name: str
    before: float
    after: float
    control: float | None
    support: int
    selected: bool


def line_chart(
    title: str, series: Sequence[Series], *, percent: bool = False, x_label: str = "epoch", unit: bool = False
) -> Markup:
    """Draw lines over epochs or frames, each labelled at its right end; over epochs with its last value.

    With `unit` the axis goes from 0 to 1 whatever the values, so that charts can be compared.
    """
    width, height, left, right, top, bottom = 400.0, 216.0, 44.0, 116.0, 10.0, 30.0
    values = np.array([y for s in series for y in s.y if math.isfinite(y)])
    if not values.size:
        return Markup("")
    ticks = _ticks(0.0, 1.0) if unit else _ticks(float(values.min()), float(values.max()))
    low, high = ticks[0], ticks[-1]
    x_low, x_high = min(min(s.x) for s in series), max(max(s.x) for s in series)
    x_span = x_high - x_low or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across = 0.5 if x_high == x_low else (x - x_low) / x_span
        return left + across * (width - left - right), top + (high - y) / (high - low) * (height - top - bottom)

    parts = [Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(width, height, title)]
    for tick in ticks:
        y = place(x_low, tick)[1]
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(left, width - right, y, y)
        )
        parts.append(Markup('<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
            left - 6, y + 3.5, _tick_text(tick, percent)))  # fmt: skip
    for x_tick in _whole_ticks(x_low, x_high):
        parts.append(Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{:g}</text>').format(
            place(x_tick, low)[0], height - bottom + 15, x_tick))  # fmt: skip
    middle = (left + width - right) / 2
    parts.append(
        Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(middle, height - 2, x_label)
    )
    ends = []
    for line in series:
        where = [place(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
        if not where:
            continue
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in where)
        dash = Markup(' stroke-dasharray="4 3"') if line.dashed else Markup("")
        parts.append(Markup('<polyline class="line {}" points="{}"{}/>').format(line.tone, path, dash))
        parts.append(Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(line.tone, *where[-1]))
        last = next(y for y in reversed(line.y) if math.isfinite(y))
        ends.append((where[-1][1], line, _value_text(last, percent) if x_label == "epoch" else ""))
    for y, line, text in _spread(ends, 13.0, top, height - bottom):
        parts.append(Markup('<text class="end {}" x="{}" y="{:.1f}">{} {}</text>').format(
            line.tone, width - right + 8, y + 4, line.label, text))  # fmt: skip
    parts.append(Markup("</svg>"))
    return Markup('<figure class="chart"><figcaption>{}</figcaption>{}</figure>').format(title, Markup("").join(parts))


def intervals(groups: Sequence[tuple[str, Sequence[tuple[str, Difference]]]]) -> Markup:
    """Draw differences of top-1 with their 95% intervals around a zero line, grouped under headings."""
    every = [d for _, rows in groups for _, d in rows]
    limit = max([0.01, *(max(abs(d.low), abs(d.high)) for d in every)]) * 1.08
    across = lambda share: 50 + 50 * share / limit  # noqa: E731
    parts = []
    for heading, rows in groups:
        parts.append(Markup('<div class="interval-group">{}</div>').format(heading))
        for label, difference in rows:
            kind = "good" if difference.low > 0 else "bad" if difference.high < 0 else "muted"
            parts.append(
                Markup(
                    '<div class="interval"><span class="label">{label}</span>'
                    '<span class="cell"><svg class="track" role="img" aria-label="{text}">'
                    '<line class="zero" x1="50%" x2="50%" y1="0" y2="100%"/>'
                    '<line class="bar {kind}" x1="{low:.2f}%" x2="{high:.2f}%" y1="50%" y2="50%"/>'
                    '<circle class="dot {kind}" cx="{mean:.2f}%" cy="50%" r="5"/></svg></span>'
                    '<span class="value"><b>{text}</b> <span class="range">{range}</span></span></div>'
                ).format(
                    label=label,
                    kind=kind,
                    text=points(difference.mean),
                    range=f"{points(difference.low)} to {points(difference.high)}",
                    low=across(difference.low),
                    high=across(difference.high),
                    mean=across(difference.mean),
                )
            )
    axis = Markup('<div class="interval axis"><span></span><span class="ends"><span>← worse</span><span>0</span>'
                  "<span>better →</span></span><span></span></div>")  # fmt: skip
    return Markup('<div class="intervals">{}{}</div>').format(Markup("").join(parts), axis)


def dumbbells(changes: Sequence[ClassChange]) -> Markup:
    """Draw one row per class: top-1 before, after and of the control on a line from 0% to 100%, with its support."""
    rows = []
    for change in changes:
        control = Markup("")
        if change.control is not None:
            control = Markup('<line class="mark control" x1="{0:.2f}%" x2="{0:.2f}%" y1="20%" y2="80%"/>').format(
                100 * change.control
            )
        kind = "good" if change.after > change.before else "bad" if change.after < change.before else "muted"
        rows.append(
            Markup(
                '<div class="dumbbell{selected}"><span class="label">{name}</span>'
                '<span class="cell"><svg class="track" role="img" aria-label="{text}">{grid}{control}'
                '<line class="bar {kind}" x1="{before:.2f}%" x2="{after:.2f}%" y1="50%" y2="50%"/>'
                '<circle class="dot before" cx="{before:.2f}%" cy="50%" r="4.5"/>'
                '<circle class="dot after" cx="{after:.2f}%" cy="50%" r="4.5"/></svg></span>'
                '<span class="value">{text}</span><span class="support">{support}</span></div>'
            ).format(
                selected=" selected" if change.selected else "",
                name=change.name,
                text=f"{100 * change.before:.1f} → {100 * change.after:.1f}",
                grid=_PERCENT_GRID,
                control=control,
                kind=kind,
                before=100 * change.before,
                after=100 * change.after,
                support=f"{change.support:,}",
            )
        )
    axis = Markup(
        '<div class="dumbbell axis"><span></span><span class="ends"><span>0%</span><span>50%</span><span>100%</span>'
        '</span><span class="value">top-1, %</span><span class="support">videos</span></div>'
    )
    return Markup('<div class="dumbbells">{}{}</div>').format(axis, Markup("").join(rows))


_PERCENT_GRID = Markup("").join(
    Markup('<line class="grid" x1="{0}%" x2="{0}%" y1="0" y2="100%"/>').format(x) for x in (0, 25, 50, 75, 100)
)


def confusion_table(matrix: Matrix, names: Sequence[str], shown: Sequence[int], selected: Sequence[int]) -> Markup:
    """Draw the confusion of some classes as a table of annotated cells, rows the true class.

    Columns are numbered like the rows; what is predicted as a class that is not shown is counted in the last column,
    so that a row adds up to the class's videos. A cell's colour is its share of the row.
    """
    rest = matrix[list(shown)].sum(axis=1) - matrix[np.ix_(shown, shown)].sum(axis=1)
    heads = [str(column + 1) for column in range(len(shown))] + (["other"] if len(shown) < len(names) else [])
    parts = [Markup('<table class="confusion"><thead><tr><th class="corner">true ↓ predicted →</th>')]
    parts += [Markup("<th>{}</th>").format(head) for head in heads]
    parts.append(Markup("</tr></thead><tbody>"))
    for row, index in enumerate(shown):
        counts = [int(matrix[index, column]) for column in shown] + (
            [int(rest[row])] if len(heads) > len(shown) else []
        )
        mark = Markup(' class="selected"') if index in selected else Markup("")
        parts.append(Markup('<tr{}><th title="{}"><i>{}</i><span>{}</span></th>').format(
            mark, names[index], row + 1, names[index]))  # fmt: skip
        for column, count in enumerate(counts):
            share = count / max(1, sum(counts))
            kind = "hit" if column == row else "miss"
            strong = " strong" if share > 0.65 else ""
            predicted = names[shown[column]] if column < len(shown) else "other"
            parts.append(Markup('<td class="{}{}" style="--share:{:.3f}" title="{}">{}</td>').format(
                kind, strong, share, f"{names[index]} → {predicted}: {count}",
                count or ""))  # fmt: skip
        parts.append(Markup("</tr>"))
    parts.append(Markup("</tbody></table>"))
    return Markup("").join(parts)


def confusion_image(matrix: Matrix, caption: str) -> Markup:
    """Draw a large confusion matrix as an image, one pixel a cell, with its counts for the page's pointer read-out."""
    share = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    diagonal = np.eye(len(matrix), dtype=bool)[:, :, None]
    pixels = np.where(diagonal, np.array([64, 132, 214]), np.array([224, 96, 48])).astype(np.uint8)
    # The square root keeps rare confusions visible beside a strong diagonal.
    alpha = (255 * np.sqrt(share)).round().astype(np.uint8)[:, :, None]
    rows, columns = np.nonzero(matrix)
    counts = [[int(r), int(c), int(matrix[r, c])] for r, c in zip(rows, columns, strict=True)]
    return Markup(
        '<figure class="matrix"><figcaption>{}</figcaption>'
        '<img src="{}" width="{n}" height="{n}" alt="{}" data-counts="{}"/><output>&nbsp;</output></figure>'
    ).format(
        caption, data_uri(png(np.concatenate([pixels, alpha], axis=2))), caption,
        json.dumps(counts, separators=(",", ":")), n=len(matrix),
    )  # fmt: skip


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode (height, width, 3 or 4) uint8 as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def data_uri(picture: bytes) -> str:
    """Return a PNG as a `data:` URI, which keeps the page one file."""
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def _ticks(low: float, high: float) -> list[float]:
    """Return 3 to 6 round numbers that enclose [low, high]."""
    span = high - low or abs(high) or 1.0
    magnitude = 10 ** math.floor(math.log10(span / 4))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if span / (m * magnitude) <= 4.5)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _whole_ticks(low: float, high: float) -> list[float]:
    """Return about five whole numbers in [low, high] with both ends."""
    step = max(1, math.ceil((high - low) / 5))
    inner = [x for x in range(math.ceil(low), math.floor(high) + 1) if x % step == 0 and low < x < high]
    return [low, *(float(x) for x in inner if min(x - low, high - x) >= step / 2), *([high] if high > low else [])]


def _tick_text(value: float, percent: bool) -> str:
    return f"{round(100 * value, 6):g}%" if percent else f"{round(value, 12):g}"


def _value_text(value: float, percent: bool) -> str:
    return f"{100 * value:.1f}%" if percent else f"{value:.3g}"


def _spread(ends: list[tuple[float, Any, str]], gap: float, top: float, bottom: float) -> list[tuple[float, Any, str]]:
    """Move labels apart vertically until none is closer than `gap` to the next."""
    ends = sorted(ends, key=lambda end: end[0])
    placed: list[tuple[float, Any, str]] = []
    for y, line, text in ends:
        placed.append((max(y, placed[-1][0] + gap) if placed else max(y, top), line, text))
    for i in range(len(placed) - 1, -1, -1):
        limit = bottom if i == len(placed) - 1 else placed[i + 1][0] - gap
        placed[i] = (min(placed[i][0], limit), *placed[i][1:])
    return placed
