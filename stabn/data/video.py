"""Decode and probe video files; two engines that give the same frames."""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

import cv2
import numpy as np

from stabn.data.video_cropping import container_crop
from stabn.data.video_display import Projector, display_size
from stabn.data.video_engines import decode_ffmpeg, decode_pyav, decoded
from stabn.data.video_structure import (
    Reader,
    Source,
    Structure,
    VideoError,
    check_structure,
    open_container,
    open_file,
)

DECODERS = ("pyav", "ffmpeg")

_LEVELS = np.arange(256.0)
FULL_LUMA = np.clip(np.rint((_LEVELS - 16) * 255 / 219), 0, 255).astype(np.uint8)  # from a video's range to JPEG's
FULL_CHROMA = np.clip(np.rint((_LEVELS - 128) * 255 / 224 + 128), 0, 255).astype(np.uint8)

MAX_PIXELS = 1 << 26  # of one frame, width x height: larger ones are refused unless asked for


class VideoInfo(NamedTuple):
    """Size in pixels as players show the video, and frames per second as the frames' times say (0: unknown)."""

    width: int
    height: int
    fps: float


class Planes(NamedTuple):
    """One frame in the colours of JPEG: BT.601, 0 to 255, chroma at half the resolution.

    Attributes:
        luma: uint8 (H, W).
        blue, red: uint8 ((H + 1) // 2, (W + 1) // 2), 128 where there is no colour.
    """

    luma: np.ndarray
    blue: np.ndarray
    red: np.ndarray


class OpenVideo:
    """A video whose structure has been checked and whose first frame has been decoded, to see how it is shown."""

    def __init__(self, source: Source, file: IO[bytes], name: str, container: Any, stream: Any, found: Structure,
                 max_pixels: int) -> None:  # fmt: skip
        self._file, self._name, self._max_pixels = file, name, max_pixels
        self._error_rate = found.lead / max(1, found.num_packets)
        self._path = os.fspath(source) if isinstance(source, str | os.PathLike) else None
        self._index, pixel_aspect = stream.index, stream.sample_aspect_ratio or None
        crop = container_crop(Reader(file), list(container.streams.video).index(stream))
        frames = decoded(container, stream, found.lead, name)
        first = next(frames, None)
        if first is None:
            raise VideoError(f"{name}: no frame can be decoded; get the file again or leave it out")
        self._frames = itertools.chain([first], frames)
        size = display_size(first, pixel_aspect, crop)
        _check_size(name, *size, max_pixels)
        self._projector = Projector(size, pixel_aspect, crop)
        self.info = VideoInfo(*size, found.fps)

    def planes(self, decoder: str = "pyav", short_side: int | None = None) -> Iterator[Planes]:
        """Yield the frames once, as JPEG has them; see `decode` for the arguments."""
        if decoder not in DECODERS:
            raise VideoError(f"decoder {decoder!r}: choose one of {', '.join(DECODERS)}")
        size = self._projector.size
        if decoder == "pyav":
            frames = decode_pyav(self._frames, self._projector, self._name)
        else:
            frames = decode_ffmpeg(
                self._file, self._name, self._path, self._index, self._error_rate, size, self._max_pixels
            )
        small = scaled_size(*size, short_side)
        half = (small[0] + 1) // 2, (small[1] + 1) // 2
        count = 0
        for luma, *chroma in frames:
            if small != size:
                luma = cv2.resize(luma, small, interpolation=cv2.INTER_AREA)
                chroma = [cv2.resize(plane, half, interpolation=cv2.INTER_AREA) for plane in chroma]
            yield Planes(cv2.LUT(luma, FULL_LUMA), *(cv2.LUT(plane, FULL_CHROMA) for plane in chroma))
            count += 1
        if not count:
            raise VideoError(f"{self._name}: no frame can be decoded; get the file again or leave it out")


@contextmanager
def open_video(source: Source, max_pixels: int = MAX_PIXELS) -> Iterator[OpenVideo]:
    """Open a video, check its structure and see how it is shown.

    The file is read twice, once for its structure and once for its frames, so that it is never held in memory.

    Args:
        source: path or binary file. A path is only ever opened as a file, never as an ffmpeg protocol.
        max_pixels: a larger width x height is refused before anything is decoded.

    Raises:
        VideoError: no such file, an empty, truncated or damaged one, one without video, or one too large.
    """
    with open_file(source) as (file, name), open_container(file, name) as (container, stream):
        context = stream.codec_context
        _check_size(name, context.width, context.height, max_pixels)
        context.options = {"max_pixels": str(max_pixels)}  # frames may be larger than the header says
        found = check_structure(file, name)
        yield OpenVideo(source, file, name, container, stream, found, max_pixels)


def _check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    if min(width, height) < 1:
        raise VideoError(f"{name}: its header cuts off the whole picture; leave it out")
    if width * height > max_pixels:
        raise VideoError(f"{name}: {width} x {height} pixels, more than {max_pixels:,}; leave it out", "too large")


def decode(source: Source, decoder: str = "pyav", short_side: int | None = None) -> Iterator[np.ndarray]:
    """Yield a video's frames in order, uint8 (H, W, 3) RGB, all of one size, upright.

    The file's structure is checked before the first frame. Both engines give the same frames, up to rounding: those
    that ffplay shows, each once whatever its time, turned, mirrored, cropped and with square pixels as the file says.

    Args:
        source: path or binary file. A path is only ever opened as a file, never as an ffmpeg protocol.
        decoder: pyav (in this process, one thread) or ffmpeg (a process of its own).
        short_side: scale frames down so that their shorter side has so many pixels; never up. None: as they are.

    Raises:
        VideoError: see `open_video`.
    """
    with open_video(source) as video:
        for luma, *chroma in video.planes(decoder, short_side):
            size = luma.shape[::-1]
            blue, red = (cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR) for plane in chroma)
            yield cv2.cvtColor(cv2.merge([luma, red, blue]), cv2.COLOR_YCrCb2RGB)


def probe(source: Source) -> VideoInfo:
    """Return the size and rate of a video.

    Raises:
        VideoError: see `open_video`.
    """
    with open_video(source) as video:
        return video.info


def scaled_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Return width and height after the shorter side is scaled down to `short_side`, rounding halves up."""
    short = min(width, height)
    if short_side is None or short <= short_side:
        return width, height
    return (2 * width * short_side + short) // (2 * short), (2 * height * short_side + short) // (2 * short)
