"""Decode, probe and encode video files; two engines that give the same frames."""

import io
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import av
import cv2
import ffmpeg
import imageio_ffmpeg
import numpy as np

from stabn.errors import StabnError
from stabn.signals import end_with_parent

Source = str | os.PathLike[str] | IO[bytes]

DECODERS = ("pyav", "ffmpeg")
BT601, FULL_RANGE = (2, 5, 6), 2  # values of AVFrame's colorspace (2: not said) and color_range

_LEVELS = np.arange(256.0)
FULL_LUMA = np.clip(np.rint((_LEVELS - 16) * 255 / 219), 0, 255).astype(np.uint8)  # from a video's range to JPEG's
FULL_CHROMA = np.clip(np.rint((_LEVELS - 128) * 255 / 224 + 128), 0, 255).astype(np.uint8)

MAX_PIXELS = 1 << 26  # of one frame, width x height: larger ones are refused unless asked for

# Containers of single video files. Playlists and scripts (HLS, concat) are left out: they could name other files.
CONTAINERS = "matroska,webm,mov,mp4,avi,mpegts,flv,ogg"

CODECS: dict[str, dict[str, object]] = {
    "vp9": {
        "format": "webm", "vcodec": "libvpx-vp9", "pix_fmt": "yuv420p", "crf": 34, "video_bitrate": 0,
        "deadline": "realtime", "cpu-used": 8, "row-mt": 0, "lag-in-frames": 0,
    },
    "h264": {"format": "mp4", "vcodec": "libx264", "pix_fmt": "yuv420p", "crf": 23, "preset": "veryfast"},
}  # fmt: skip


class VideoError(StabnError):
    """A video cannot be read or written.

    Attributes:
        kind: a word or two for counting: missing, empty, no video, truncated, undecodable, too large.
    """

    def __init__(self, message: str, kind: str = "undecodable") -> None:
        super().__init__(message)
        self.kind = kind


class VideoInfo(NamedTuple):
    """Size in pixels as the header says, and frames per second as the frames' times say (0: unknown)."""

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

    def __init__(self, name: str, file: IO[bytes], packets: list[Any], info: VideoInfo) -> None:
        self.info = info
        self._name, self._file, self._packets = name, file, packets

    def planes(self, decoder: str = "pyav", short_side: int | None = None) -> Iterator[Planes]:
        """Yield the frames once, as JPEG has them; see `decode` for the arguments."""
        if decoder not in DECODERS:
            raise VideoError(f"decoder {decoder!r}: choose one of {', '.join(DECODERS)}")
        frames = (
            _decode_pyav(self._packets, self._name) if decoder == "pyav" else _decode_ffmpeg(self._file, self._name)
        )
        count = 0
        for luma, *chroma in frames:
            height, width = luma.shape
            size = scaled_size(width, height, short_side)
            if size != (width, height):
                luma = cv2.resize(luma, size, interpolation=cv2.INTER_AREA)
                half = ((size[0] + 1) // 2, (size[1] + 1) // 2)
                chroma = [cv2.resize(plane, half, interpolation=cv2.INTER_AREA) for plane in chroma]
            yield Planes(cv2.LUT(luma, FULL_LUMA), *(cv2.LUT(plane, FULL_CHROMA) for plane in chroma))
            count += 1
        if not count:
            raise VideoError(f"{self._name}: no frame can be decoded; get the file again or leave it out")


@contextmanager
def open_video(source: Source, max_pixels: int = MAX_PIXELS) -> Iterator[OpenVideo]:
    """Open a video and check its structure.

    Args:
        source: path or binary file. A path is only ever opened as a file, never as an ffmpeg protocol.
        max_pixels: a larger width x height is refused before anything is decoded.

    Raises:
        VideoError: no such file, an empty, truncated or damaged one, one without video, or one too large.
    """
    with _open(source) as (file, name), _container(file, name) as container:
        context = container.streams.video[0].codec_context
        if context.width * context.height > max_pixels:
            raise VideoError(
                f"{name}: {context.width} x {context.height} pixels, more than {max_pixels:,}; leave it out",
                "too large",
            )
        context.options = {"max_pixels": str(max_pixels)}  # frames may be larger than the header says
        packets = _check_structure(file, name, container)
        yield OpenVideo(name, file, packets, VideoInfo(context.width, context.height, _frame_rate(container, packets)))


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


def _frame_rate(container: Any, packets: list[Any]) -> float:
    times = sorted(float(p.pts * p.time_base) for p in packets if p.size and p.pts is not None)
    if len(times) > 1 and times[-1] > times[0]:
        return (len(times) - 1) / (times[-1] - times[0])
    return float(container.streams.video[0].average_rate or 0)


def scaled_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Return width and height after the shorter side is scaled down to `short_side`, rounding halves up."""
    short = min(width, height)
    if short_side is None or short <= short_side:
        return width, height
    return (2 * width * short_side + short) // (2 * short), (2 * height * short_side + short) // (2 * short)


@contextmanager
def _open(source: Source) -> Iterator[tuple[IO[bytes], str]]:
    """Open a source for reading and name it for messages."""
    if not isinstance(source, str | os.PathLike):
        yield source, str(getattr(source, "name", "video"))
        return
    name = os.fspath(source)
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(name, "rb"))
        except FileNotFoundError:
            raise VideoError(f"{name}: no such file; check the path", "missing") from None
        except OSError as error:
            raise VideoError(f"{name}: cannot be read ({error.strerror}); check the path and its permissions") from None
        yield file, name


@contextmanager
def _container(file: IO[bytes], name: str) -> Iterator[Any]:
    """Open a file as a container that has video."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size == 0:
        raise VideoError(f"{name}: the file is empty; get it again or leave it out", "empty")
    try:
        container = av.open(file, options={"format_whitelist": CONTAINERS})
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(
            f"{name}: not a video, or cut off within its header ({_reason(error)}); get the file again or leave it out",
            "no video",
        ) from None
    with container:
        if not container.streams.video:
            kinds = ", ".join(stream.type for stream in container.streams) or "nothing"
            raise VideoError(f"{name}: no video in the file, only {kinds}; leave it out", "no video")
        yield container


def _check_structure(file: IO[bytes], name: str, container: Any) -> list[Any]:
    """Return the compressed frames of a file that is all there.

    A WebM says how long it is in bytes, so one byte too few is noticed; other containers and damage inside a file are
    noticed when more than a tenth of the declared time is missing.
    """
    size, position = file.seek(0, os.SEEK_END), file.tell()
    file.seek(0)
    expected = _webm_length(file.read(4096))
    file.seek(position)
    if expected is not None and size < expected:
        raise VideoError(
            f"{name}: truncated, {size:,} of {expected:,} bytes are there; get the file again or leave it out",
            "truncated",
        )
    stream = container.streams.video[0]
    stream.thread_type = "NONE"
    file.seek(0)
    container.seek(0)
    try:
        packets = list(container.demux(stream))
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{name}: damaged ({_reason(error)}); get the file again or leave it out") from None
    ends = [(p.pts + (p.duration or 0)) * p.time_base for p in packets if p.size and p.pts is not None]
    start = float((stream.start_time or 0) * stream.time_base)
    if stream.duration:
        declared = float(stream.duration * stream.time_base)
    elif container.duration and len(container.streams) == 1:
        declared = container.duration / av.time_base
    else:
        return packets
    found = float(max(ends, default=0)) - start
    if found < 0.9 * declared - 0.1:
        raise VideoError(
            f"{name}: damaged, {found:.1f} of {declared:.1f} seconds can be read; get the file again or leave it out"
        )
    return packets


def _webm_length(head: bytes) -> int | None:
    """Return how many bytes a WebM file must have at least by its own header; None: not WebM, or it does not say."""
    position = 0
    for wanted in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):  # EBML header, segment
        if head[position : position + 4] != wanted or len(head) < position + 12:
            return None
        first = head[position + 4]
        width = 9 - first.bit_length()
        value = int.from_bytes(head[position + 4 : position + 4 + width]) & ((1 << 7 * width) - 1)
        if first == 0 or value == (1 << 7 * width) - 1:  # all ones: unknown, as in a live recording
            return None
        position += 4 + width + value
    return position


def _decode_pyav(packets: list[Any], name: str) -> Iterator[list[np.ndarray]]:
    """Yield luma and the two chroma planes of each frame, in the limited range that videos have."""
    size: tuple[int, int] | None = None
    number = 0
    try:
        for packet in packets:
            for frame in packet.decode():
                size = size or (frame.width, frame.height)  # a stream may change its size; its first one stays
                turns = frame.rotation // 90
                planes = [_plane(plane) for plane in _to_yuv420(frame, size).planes]
                yield [np.ascontiguousarray(np.rot90(plane, turns)) for plane in planes] if turns else planes
                number += 1
    except (av.FFmpegError, OSError) as error:
        raise VideoError(
            f"{name}: damaged after frame {number} ({_reason(error)}); get the file again or leave it out"
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


def _decode_ffmpeg(file: IO[bytes], name: str) -> Iterator[list[np.ndarray]]:
    with tempfile.NamedTemporaryFile(suffix=".video") as copy:
        path = name
        if not os.path.exists(name) or not isinstance(file, io.BufferedReader):
            file.seek(0)
            shutil.copyfileobj(file, copy)
            copy.flush()
            path = copy.name
        stream = ffmpeg.input(
            f"file:{path}",
            threads=1,
            xerror=None,
            max_pixels=MAX_PIXELS,
            protocol_whitelist="file",
            format_whitelist=CONTAINERS,
        ).output(
            "pipe:",
            format="yuv4mpegpipe",
            pix_fmt="yuv420p",
            fps_mode="passthrough",
            vf="scale=flags=bilinear:out_color_matrix=bt601:out_range=tv",
        )
        with _ffmpeg(stream, name, stdout=subprocess.PIPE) as process:
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


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def encode(
    path: str | os.PathLike[str],
    frames: Iterable[np.ndarray],
    fps: float,
    *,
    codec: str = "vp9",
    crf: int | None = None,
) -> None:
    """Write frames as a video file, whole or not at all; the same frames give the same bytes.

    Args:
        path: file to write; its folder must exist.
        frames: uint8 (H, W, 3) RGB, all of one size. h264 cuts an odd last row or column, which it cannot hold.
        fps: frames per second.
        codec: vp9 (WebM, as in Something-Something v2) or h264 (MP4).
        crf: quality, lower is better; None: the codec's default here.

    Raises:
        VideoError: no frames, a frame of another shape or type, or ffmpeg's own message.
    """
    if codec not in CODECS:
        raise VideoError(f"{path}: codec {codec!r}: choose one of {', '.join(CODECS)}")
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise VideoError(f"{path}: no frames to write; give at least one")
    height, width = first.shape[:2]
    settings = CODECS[codec] | ({} if crf is None else {"crf": crf})
    if codec == "h264":
        settings["vf"] = "crop=trunc(iw/2)*2:trunc(ih/2)*2"
    part = Path(f"{path}.{os.getpid()}.part")
    stream = ffmpeg.input("pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}", framerate=fps).output(
        f"file:{part}", threads=1, fflags="+bitexact", flags="+bitexact", map_metadata=-1, **settings
    )
    try:
        with _ffmpeg(stream, path, stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            for number, frame in enumerate(itertools.chain([first], frames)):
                if frame.shape != (height, width, 3) or frame.dtype != np.uint8:
                    raise VideoError(
                        f"{path}: frame {number} is {frame.dtype} {frame.shape}; expected uint8 {(height, width, 3)}"
                    )
                process.stdin.write(np.ascontiguousarray(frame).data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _ffmpeg(stream: object, path: object, **pipes: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run an ffmpeg-python stream; what ffmpeg says on stderr becomes the error when it fails."""
    command = ffmpeg.compile(stream, cmd=[imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-y"])
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(command, stderr=stderr, preexec_fn=end_with_parent(), **pipes)  # type: ignore[call-overload]
        finished, gave_up = False, False
        try:
            yield process
            finished = True
        except BrokenPipeError:  # ffmpeg's own message says why
            finished = gave_up = True
        finally:
            if not finished:
                process.kill()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):
                        pipe.close()
            process.wait()
        stderr.seek(0)
        message = stderr.read().decode(errors="replace").strip()
    if process.returncode or gave_up:
        raise VideoError(f"{path}: ffmpeg failed with code {process.returncode}: {message or 'no message'}")
