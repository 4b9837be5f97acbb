"""Decode and probe video files; two engines that give the same frames."""

import io
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

import av
import cv2
import ffmpeg
import numpy as np

from stabn.data.ffmpeg_process import run_ffmpeg
from stabn.data.orientation import Matrix, display_matrix, displayed_size, is_turned, pixel_aspect, upright
from stabn.data.video_structure import (
    CONTAINERS,
    Source,
    VideoError,
    check_structure,
    open_container,
    open_file,
    reason,
    video_stream,
)

DECODERS = ("pyav", "ffmpeg")
BT601, FULL_RANGE = (2, 5, 6), 2  # values of AVFrame's colorspace (2: not said) and color_range

_LEVELS = np.arange(256.0)
FULL_LUMA = np.clip(np.rint((_LEVELS - 16) * 255 / 219), 0, 255).astype(np.uint8)  # from a video's range to JPEG's
FULL_CHROMA = np.clip(np.rint((_LEVELS - 128) * 255 / 224 + 128), 0, 255).astype(np.uint8)

# Frame n at time n: what the file says of times must not decide which frames there are.
COUNTED = "setpts='N/if(isnan(FRAME_RATE),25,FRAME_RATE)/TB'"

MAX_PIXELS = 1 << 26  # of one frame, width x height: larger ones are refused unless asked for


class VideoInfo(NamedTuple):
    """Size in pixels as stored, and frames per second as the frames' times say (0: unknown)."""

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
    """A video whose structure has been checked and whose frames have not been decoded yet."""

    def __init__(self, name: str, file: IO[bytes], stream: Any, packets: list[Any], info: VideoInfo) -> None:
        self.info = info
        self._name, self._file, self._stream, self._packets = name, file, stream, packets

    def planes(self, decoder: str = "pyav", short_side: int | None = None) -> Iterator[Planes]:
        """Yield the frames once, as JPEG has them; see `decode` for the arguments."""
        if decoder not in DECODERS:
            raise VideoError(f"decoder {decoder!r}: choose one of {', '.join(DECODERS)}")
        frames = _decode_pyav(self._packets, self._name) if decoder == "pyav" else self._by_ffmpeg()
        aspect, count = pixel_aspect(self._stream), 0
        for stored, matrix in frames:
            luma, *chroma = upright(stored, matrix)
            height, width = luma.shape
            size = scaled_size(*displayed_size(width, height, 1 / aspect if is_turned(matrix) else aspect), short_side)
            if size != (width, height):
                how = cv2.INTER_AREA if size[0] <= width and size[1] <= height else cv2.INTER_LINEAR
                luma = cv2.resize(luma, size, interpolation=how)
                half = ((size[0] + 1) // 2, (size[1] + 1) // 2)
                chroma = [cv2.resize(plane, half, interpolation=how) for plane in chroma]
            yield Planes(cv2.LUT(luma, FULL_LUMA), *(cv2.LUT(plane, FULL_CHROMA) for plane in chroma))
            count += 1
        if not count:
            raise VideoError(f"{self._name}: no frame can be decoded; get the file again or leave it out")

    def _by_ffmpeg(self) -> Iterator[tuple[list[np.ndarray], Matrix | None]]:
        first = next(_frames(self._packets, self._name), None)
        matrix = display_matrix(first) if first else None
        return ((planes, matrix) for planes in _decode_ffmpeg(self._file, self._name, self._stream.index))


@contextmanager
def open_video(source: Source, max_pixels: int = MAX_PIXELS) -> Iterator[OpenVideo]:
    """Open a video and check its structure.

    Args:
        source: path or binary file. A path is only ever opened as a file, never as an ffmpeg protocol.
        max_pixels: a larger width x height is refused before anything is decoded.

    Raises:
        VideoError: no such file, an empty, truncated or damaged one, one without video, or one too large.
    """
    with open_file(source) as (file, name), open_container(file, name) as container:
        stream = video_stream(container)
        context = stream.codec_context
        if context.width * context.height > max_pixels:
            raise VideoError(
                f"{name}: {context.width} x {context.height} pixels, more than {max_pixels:,}; leave it out",
                "too large",
            )
        context.options = {"max_pixels": str(max_pixels)}  # frames may be larger than the header says
        packets = check_structure(file, name, container)
        yield OpenVideo(name, file, stream, packets, VideoInfo(context.width, context.height, _rate(stream, packets)))


def decode(source: Source, decoder: str = "pyav", short_side: int | None = None) -> Iterator[np.ndarray]:
    """Yield a video's frames in order, uint8 (H, W, 3) RGB, all of one size, upright.

    The file's structure is checked before the first frame. Both engines give the same frames, up to rounding.

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


def _rate(stream: Any, packets: list[Any]) -> float:
    times = sorted(float(p.pts * p.time_base) for p in packets if p.size and p.pts is not None)
    if len(times) > 1 and times[-1] > times[0]:
        return (len(times) - 1) / (times[-1] - times[0])
    return float(stream.average_rate or 0)


def scaled_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Return width and height after the shorter side is scaled down to `short_side`, rounding halves up."""
    short = min(width, height)
    if short_side is None or short <= short_side:
        return width, height
    return (2 * width * short_side + short) // (2 * short), (2 * height * short_side + short) // (2 * short)


def _decode_pyav(packets: list[Any], name: str) -> Iterator[tuple[list[np.ndarray], Matrix | None]]:
    """Yield luma and the two chroma planes of each frame as stored, in limited range, and its display matrix."""
    size: tuple[int, int] | None = None
    for frame in _frames(packets, name):
        size = size or (frame.width, frame.height)  # a stream may change its size; its first one stays
        yield [_plane(plane) for plane in _to_yuv420(frame, size).planes], display_matrix(frame)


def _frames(packets: list[Any], name: str) -> Iterator[Any]:
    number = 0
    try:
        for packet in packets:
            for frame in packet.decode():
                yield frame
                number += 1
    except (av.FFmpegError, OSError) as error:
        raise VideoError(
            f"{name}: damaged after frame {number} ({reason(error)}); get the file again or leave it out"
        ) from None


def _to_yuv420(frame: Any, size: tuple[int, int]) -> Any:
    """Return the frame as 8 bit 4:2:0 in the limited range of BT.601; most are so already."""
    plain = frame.format.name == "yuv420p" and frame.color_range != FULL_RANGE and frame.colorspace in BT601
    if plain and (frame.width, frame.height) == size:
        return frame
    return frame.reformat(
        *size, format="yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG", interpolation="BILINEAR"
    )


def _plane(plane: Any) -> np.ndarray:
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]


def _decode_ffmpeg(file: IO[bytes], name: str, index: int) -> Iterator[list[np.ndarray]]:
    """Yield the planes of each frame of a stream as stored, like `_decode_pyav`."""
    with tempfile.NamedTemporaryFile(suffix=".video") as copy:
        path = name
        if not os.path.exists(name) or not isinstance(file, io.BufferedReader):
            file.seek(0)
            shutil.copyfileobj(file, copy)
            copy.flush()
            path = copy.name
        source = ffmpeg.input(
            f"file:{path}",
            threads=1,
            xerror=None,
            max_pixels=MAX_PIXELS,
            protocol_whitelist="file",
            format_whitelist=CONTAINERS,
            noautorotate=None,
        )
        stream = source[str(index)].output(
            "pipe:",
            format="yuv4mpegpipe",
            pix_fmt="yuv420p",
            fps_mode="passthrough",
            vf=f"{COUNTED},scale=flags=bilinear:out_color_matrix=bt601:out_range=tv",
        )
        with run_ffmpeg(stream, name, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            header = process.stdout.readline().split()  # YUV4MPEG2 W427 H240 F12:1 …
            numbers = {word[:1]: word[1:] for word in header[1:]}
            if not header:
                return
            width, height = int(numbers[b"W"]), int(numbers[b"H"])
            shapes = [(height, width)] + [((height + 1) // 2, (width + 1) // 2)] * 2
            ends = np.cumsum([rows * columns for rows, columns in shapes])
            while process.stdout.readline().startswith(b"FRAME"):
                data = np.frombuffer(process.stdout.read(ends[-1]), np.uint8)
                if len(data) < ends[-1]:
                    break
                yield [part.reshape(shape) for part, shape in zip(np.split(data, ends[:-1]), shapes, strict=True)]
