"""Open a video file and check that all of it is there, before anything is decoded."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any

import av
from av.stream import Disposition

from stabn.errors import StabnError

HEADER_BYTES, PACKET_BYTES = 1024, 32  # that a container may take for itself, at most, and for each packet

Source = str | os.PathLike[str] | IO[bytes]

# Containers of single video files. Playlists and scripts (HLS, concat) are left out: they could name other files.
CONTAINERS = "matroska,webm,mov,mp4,avi,mpegts,flv,ogg"


class VideoError(StabnError):
    """A video cannot be read or written.

    Attributes:
        kind: a word or two for counting: missing, empty, no video, truncated, undecodable, too large.
    """

    def __init__(self, message: str, kind: str = "undecodable") -> None:
        super().__init__(message)
        self.kind = kind


@contextmanager
def open_file(source: Source) -> Iterator[tuple[IO[bytes], str]]:
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


class _View:
    """A file read from a position of its own: FFmpeg keeps count of where it is, and nobody may move it elsewhere."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file, self._position, self.name = file, 0, name

    def read(self, size: int) -> bytes:
        self._file.seek(self._position)
        data = self._file.read(size)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}.get(whence)
        self._position = self._file.seek(offset, whence) if start is None else start + offset
        return self._position

    def tell(self) -> int:
        return self._position


@contextmanager
def open_container(file: IO[bytes], name: str) -> Iterator[Any]:
    """Open a file as a container that has video."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size == 0:
        raise VideoError(f"{name}: the file is empty; get it again or leave it out", "empty")
    try:
        container = av.open(_View(file, name), options={"format_whitelist": CONTAINERS})
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(
            f"{name}: not a video, or cut off within its header ({reason(error)}); get the file again or leave it out",
            "no video",
        ) from None
    with container:
        if not video_stream(container):
            kinds = ", ".join(stream.type for stream in container.streams) or "nothing"
            raise VideoError(f"{name}: no video in the file, only {kinds}; leave it out", "no video")
        yield container


def video_stream(container: Any) -> Any:
    """Return the stream that a player shows: the best one that is no cover picture; None: there is none."""
    moving = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    best = container.streams.best("video")
    return next((stream for stream in moving if best is not None and stream.index == best.index), None) or next(
        iter(moving), None
    )


def check_structure(file: IO[bytes], name: str, container: Any) -> list[Any]:
    """Return the compressed frames of a file that is all there.

    A WebM says how long it is in bytes, so one byte too few is noticed. Other containers and damage inside a file are
    noticed when more than a tenth is missing, of the declared time and of the bytes: the last picture of a recording
    may stand for long.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    expected = _webm_length(file.read(4096))
    if expected is not None and size < expected:
        raise VideoError(
            f"{name}: truncated, {size:,} of {expected:,} bytes are there; get the file again or leave it out",
            "truncated",
        )
    stream = video_stream(container)
    stream.thread_type = "NONE"
    packets, payload, is_cut = [], 0, False
    is_broadcast = container.format.name == "mpegts"  # may begin and end anywhere, and be shown all the same
    try:
        for packet in container.demux():
            payload += packet.size + PACKET_BYTES
            if packet.stream.index == stream.index:  # its own number is wrong in the last, empty one
                packets.append(packet)
                is_cut |= bool(packet.is_corrupt) and not is_broadcast
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{name}: damaged ({reason(error)}); get the file again or leave it out") from None
    if is_cut:
        raise VideoError(
            f"{name}: truncated, a frame is there in part; get the file again or leave it out", "truncated"
        )
    ends = [(p.pts + (p.duration or 0)) * p.time_base for p in packets if p.size and p.pts is not None]
    start = float((stream.start_time or 0) * stream.time_base)
    if stream.duration:
        declared = float(stream.duration * stream.time_base)
    elif container.duration and len(container.streams) == 1:
        declared = container.duration / av.time_base
    else:
        return packets
    found = float(max(ends, default=0)) - start
    if found < 0.9 * declared - 0.1 and payload < 0.9 * (size - HEADER_BYTES):
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


def reason(error: Exception) -> str:
    """Return what the system or the decoder said."""
    return str(getattr(error, "strerror", None) or error)
