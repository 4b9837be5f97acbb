"""Pictures of attention, like figures 3 and 4 of the paper."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stabn.data.transforms import Crop

FRAME_HEIGHT = 112
GAP, MARGIN, BAR = 4, 20, 20
INK, MUTED, GRID, PAPER = (28, 28, 32), (110, 112, 120), (226, 227, 232), (255, 255, 255)
GOOD, BAD, EDIT = (18, 122, 74), (186, 42, 42), (216, 108, 20)
HEAT_OPACITY = 0.5


@dataclass(frozen=True)
class Panel:
    """What one network makes of a video.

    Attributes:
        title: such as `before: Pushing something from left to right, 43%`.
        correct: whether the prediction is right; None when the true action is not known.
        temporal: float (num_source,), temporal attention per source frame, in [0, 1].
        spatial: float or uint8 (num_source, h, w), spatial attention over `crop`; None: no heat maps.
        crop: part of the frame that the network sees; None: all of it.
    """

    title: str
    correct: bool | None
    temporal: np.ndarray
    spatial: np.ndarray | None = None
    crop: Crop | None = None


def attention_figure(
    frames: np.ndarray,
    panels: Sequence[Panel],
    *,
    heading: str,
    edited: np.ndarray | None = None,
    num_columns: int = 8,
) -> bytes:
    """Draw frames with a colour bar of their temporal attention above and the spatial attention below.

    Several panels (before, after) stand under each other; at the bottom, their curves over all source frames.

    Args:
        frames: uint8 (num_source, H, W, 3) RGB.
        panels: one per network.
        heading: the video and its true action.
        edited: float (num_source,), a person's curve, NaN where there is no opinion; drawn beside the networks'.
        num_columns: frames shown, evenly spread.

    Returns:
        A PNG.
    """
    columns = np.unique(np.linspace(0, len(frames) - 1, num_columns).round().astype(int))
    frame_width = round(FRAME_HEIGHT * frames.shape[2] / frames.shape[1])
    width = max(640, len(columns) * (frame_width + GAP) - GAP + 2 * MARGIN)
    blocks = [_text_block(heading, width, 17, bold=True)]
    for panel in panels:
        mark = {True: "✓ ", False: "✗ ", None: ""}[panel.correct]
        color = {True: GOOD, False: BAD, None: INK}[panel.correct]
        blocks += [
            _text_block(mark + panel.title, width, 14, color=color),
            _strip(frames, panel, columns, frame_width, width),
        ]
    blocks.append(_curves(panels, edited, columns, width))
    canvas = Image.new("RGB", (width, sum(block.height for block in blocks) + MARGIN), PAPER)
    top = MARGIN // 2
    for block in blocks:
        canvas.paste(block, (0, top))
        top += block.height
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def heat_map_overlay(frame: np.ndarray, attention: np.ndarray, crop: Crop | None = None) -> np.ndarray:
    """Lay a spatial attention map over a frame.

    Args:
        frame: uint8 (H, W, 3) RGB.
        attention: float in [0, 1] or uint8 (h, w), over `crop`.
        crop: part of the frame that the map covers, in the frame's pixels; outside it the frame is dimmed.

    Returns:
        uint8 (H, W, 3) RGB.
    """
    height, width = frame.shape[:2]
    crop = crop or Crop(0, 0, min(height, width))
    values = attention if attention.dtype == np.uint8 else (np.clip(attention, 0, 1) * 255).astype(np.uint8)
    values = cv2.resize(values, (crop.side, crop.side), interpolation=cv2.INTER_CUBIC)
    heat = _palette("turbo")[values]
    result = (frame * 0.35 + 160).astype(np.uint8)
    inside = (slice(crop.top, crop.top + crop.side), slice(crop.left, crop.left + crop.side))
    part = frame[inside]
    result[inside] = (part * (1 - HEAT_OPACITY) + heat[: part.shape[0], : part.shape[1]] * HEAT_OPACITY).astype(
        np.uint8
    )
    return result


def stretch(spatial: np.ndarray) -> np.ndarray:
    """Scale a video's maps so that its lowest value is 0 and its highest 1: only differences within it are seen."""
    values = spatial.astype(np.float32)
    low, high = float(values.min()), float(values.max())
    return (values - low) / max(high - low, 1e-6)


def preview_frames(frames: np.ndarray, temporal: np.ndarray) -> Iterator[np.ndarray]:
    """Yield frames for a preview video: a bar of all temporal attention on top, with the current frame marked."""
    width = frames.shape[2]
    bar_height = max(8, frames.shape[1] // 14)
    bar = cv2.resize(_palette("viridis")[(np.clip(temporal, 0, 1) * 255).astype(np.uint8)][None], (width, bar_height),
                     interpolation=cv2.INTER_NEAREST)  # fmt: skip
    for index, frame in enumerate(frames):
        picture = frame.copy()
        picture[:bar_height] = bar
        left = round((index + 0.5) / len(frames) * width)
        picture[: bar_height + 4, max(0, left - 1) : left + 1] = 255
        yield picture


def _strip(frames: np.ndarray, panel: Panel, columns: np.ndarray, frame_width: int, width: int) -> Image.Image:
    rows = 1 if panel.spatial is None else 2
    image = Image.new("RGB", (width, BAR + rows * (FRAME_HEIGHT + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(image)
    spatial = None if panel.spatial is None else stretch(panel.spatial)
    for place, index in enumerate(columns):
        left = MARGIN + place * (frame_width + GAP)
        value = float(panel.temporal[index])
        color = tuple(int(v) for v in _palette("viridis")[int(np.clip(value, 0, 1) * 255)])
        draw.rectangle((left, 0, left + frame_width - 1, BAR - 3), fill=color)
        ink = INK if value > 0.55 else PAPER
        draw.text((left + frame_width / 2, BAR / 2 - 1), f"{value:.2f}", font=_font(12), fill=ink, anchor="mm")
        pictures = [frames[index]]
        if spatial is not None:
            pictures.append(heat_map_overlay(frames[index], spatial[index], panel.crop))
        for row, picture in enumerate(pictures):
            small = Image.fromarray(picture).resize((frame_width, FRAME_HEIGHT), Image.Resampling.LANCZOS)
            image.paste(small, (left, BAR + row * (FRAME_HEIGHT + GAP)))
    return image


def _curves(panels: Sequence[Panel], edited: np.ndarray | None, columns: np.ndarray, width: int) -> Image.Image:
    height, top, bottom, left = 150, 30, 26, MARGIN + 30
    image = Image.new("RGB", (width, height), PAPER)
    plot_width, plot_height = width - left - MARGIN, height - top - bottom
    tones = [MUTED, (36, 96, 188), (120, 60, 160)] if len(panels) > 1 else [(36, 96, 188)]
    names = [panel.title.split(":")[0] if len(panels) > 1 else "temporal attention" for panel in panels]
    curves = [(name, panel.temporal, tone) for name, panel, tone in zip(names, panels, tones, strict=False)]
    if edited is not None:
        curves.append(("edited", edited, EDIT))
    scale = 3
    big = image.resize((width * scale, height * scale))
    draw = ImageDraw.Draw(big)
    num_source = len(panels[0].temporal)

    def point(index: float, value: float) -> tuple[float, float]:
        x = left + plot_width * index / max(1, num_source - 1)
        return scale * x, scale * (top + plot_height * (1 - value))

    for value in (0.0, 0.5, 1.0):
        draw.line([point(0, value), point(num_source - 1, value)], fill=GRID, width=scale)
        draw.text(
            (scale * (left - 6), point(0, value)[1]), f"{value:g}", font=_font(11 * scale), fill=MUTED, anchor="rm"
        )
    for index in columns:
        x, y = point(index, 0)
        draw.line([(x, y), (x, y + 4 * scale)], fill=MUTED, width=scale)
        draw.text((x, y + 7 * scale), str(index + 1), font=_font(10 * scale), fill=MUTED, anchor="mt")
    legend = scale * left
    for name, values, tone in curves:
        for run in _runs(values):
            points = [point(i, float(np.clip(values[i], 0, 1))) for i in run]
            draw.line(points, fill=tone, width=2 * scale, joint="curve")
        draw.line([(legend, 12 * scale), (legend + 18 * scale, 12 * scale)], fill=tone, width=3 * scale)
        draw.text((legend + 24 * scale, 12 * scale), name, font=_font(12 * scale), fill=INK, anchor="lm")
        legend += 44 * scale + draw.textlength(name, font=_font(12 * scale))
    draw.text((scale * (width - MARGIN), 12 * scale), "source frame", font=_font(11 * scale), fill=MUTED, anchor="rm")
    return big.resize((width, height), Image.Resampling.LANCZOS)


def _runs(values: np.ndarray) -> list[np.ndarray]:
    """Return the runs of neighbouring frames that have a value."""
    known = np.flatnonzero(~np.isnan(values.astype(float)))
    return [run for run in np.split(known, np.flatnonzero(np.diff(known) > 1) + 1) if len(run)]


def _text_block(
    text: str, width: int, size: int, *, bold: bool = False, color: tuple[int, int, int] = INK
) -> Image.Image:
    """Return text in as many lines as it needs."""
    font = _font(size, bold)
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width - 2 * MARGIN:
            lines.append(line)
            longer = word
        line = longer
    lines.append(line)
    step = round(size * 1.4)
    image = Image.new("RGB", (width, step * len(lines) + 8), PAPER)
    draw = ImageDraw.Draw(image)
    for number, content in enumerate(lines):
        draw.text((MARGIN, 4 + number * step), content, font=font, fill=color)
    return image


@lru_cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which Matplotlib ships."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


@lru_cache
def _palette(name: str) -> np.ndarray:
    """Return a colour map as uint8 (256, 3) RGB."""
    import matplotlib

    return (matplotlib.colormaps[name](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
