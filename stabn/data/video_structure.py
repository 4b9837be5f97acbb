"""Open a video file and check that all of it is there, before anything is decoded."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any

import av

from stabn.errors import StabnError

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


@contextmanager
def open_container(file: IO[bytes], name: str) -> Iterator[Any]:
    """Open a file as a container that has video."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size == 0:
        raise VideoError(f"{name}: the file is empty; get it again or leave it out", "empty")
    try:
        container = av.open(file, options={"format_whitelist": CONTAINERS})
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(
            f"{name}: not a video, or cut off within its header ({reason(error)}); get the file again or leave it out",
            "no video",
        ) from None
    with container:
        if not container.streams.video:
            kinds = ", ".join(stream.type for stream in container.streams) or "nothing"
            raise VideoError(f"{name}: no video in the file, only {kinds}; leave it out", "no video")
        yield container


def check_structure(file: IO[bytes], name: str, container: Any) -> list[Any]:
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
        raise VideoError(f"{name}: damaged ({reason(error)}); get the file again or leave it out") from None
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


def reason(error: Exception) -> str:
    """Return what the system or the decoder said."""
    return str(getattr(error, "strerror", None) or error)
