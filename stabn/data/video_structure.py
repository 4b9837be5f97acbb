"""Open a video file and check that all of it is there, before anything is decoded."""

import itertools
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any, NamedTuple

import av
from av.codec.context import Flags
from av.stream import Disposition

from stabn.errors import StabnError

HEADER_BYTES, PACKET_BYTES = 1024, 32  # that a container may take for itself, at most, and for each packet

Source = str | os.PathLike[str] | IO[bytes]

# Containers of single video files. Playlists and scripts (HLS, concat) are left out: they could name other files.
CONTAINERS = "matroska,webm,mov,mp4,avi,mpegts,flv,ogg"
DISCONTINUITY_SECONDS = 10  # ffmpeg's own -dts_delta_threshold


class VideoError(StabnError):
    """A video cannot be read or written.

    Attributes:
        kind: a word or two for counting: missing, empty, no video, truncated, undecodable, too large.
    """

    def __init__(self, message: str, kind: str = "undecodable") -> None:
        super().__init__(message)
        self.kind = kind


class Reader:
    """A file's bytes read from a position of its own, which nobody moves who reads or moves the file elsewhere.

    FFmpeg believes that it is the only one who moves the file under it: it reads on where it thinks it is.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._position = file, 0
        self.size = file.seek(0, os.SEEK_END)

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, at most `size` of them."""
        self._file.seek(self._position)
        data = self._file.read(size)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position; the file itself stays where it is."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position


class Structure(NamedTuple):
    """What the compressed frames say without being decoded.

    Attributes:
        fps: frames per second of those that are shown, by their times; 0: unknown.
        num_packets: how many there are.
        lead: those before the first one that can be decoded by itself, as where a recording starts in mid-stream.
    """

    fps: float
    num_packets: int
    lead: int


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
def open_container(file: IO[bytes], name: str) -> Iterator[tuple[Any, Any]]:
    """Open a file from its beginning as a container that has video; gives the container and the stream to show."""
    try:
        reader = Reader(file)
    except (OSError, ValueError):
        raise VideoError(f"{name}: cannot be read at will, as a pipe cannot; give a file") from None
    if reader.size == 0:
        raise VideoError(f"{name}: the file is empty; get it again or leave it out", "empty")
    try:
        container = av.open(reader, options={"format_whitelist": CONTAINERS})
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(
            f"{name}: not a video, or cut off within its header ({reason(error)}); get the file again or leave it out",
            "no video",
        ) from None
    with container:
        stream: Any = container.streams.best("video")  # as ffplay chooses: never the picture on an album's cover
        if stream is None or stream.disposition & Disposition.attached_pic:
            kinds = ", ".join(stream.type for stream in container.streams if stream.type != "video") or "nothing"
            raise VideoError(f"{name}: no video in the file, only {kinds}; leave it out", "no video")
        if stream.codec_context is None:
            raise VideoError(f"{name}: its video is in a codec that FFmpeg does not know; convert it or leave it out")
        stream.thread_type = "NONE"
        stream.codec_context.flags |= Flags.unaligned  # or a codec's own cropping is rounded, and a strip stays
        yield container, stream


def check_structure(file: IO[bytes], name: str) -> Structure:
    """Read all of a file once and say what its frames are, if it is all there.

    WebM, MP4 and AVI say how long they are in bytes, so one byte too few is noticed. Other containers and damage inside
    a file are noticed when more than a tenth is missing, of the declared time and of the bytes: the last picture of a
    recording may stand for long.

    Raises:
        VideoError: a truncated or damaged file.
    """
    reader = Reader(file)
    expected = _least_length(reader)
    if reader.size < expected:
        raise VideoError(
            f"{name}: truncated, {reader.size:,} of {expected:,} bytes are there; get the file again or leave it out",
            "truncated",
        )
    with open_container(file, name) as (container, stream):
        times, ends, num_packets, lead, payload, is_cut = [], [], 0, None, 0, False
        is_broadcast = container.format.name == "mpegts"  # may begin and end anywhere, and be shown all the same
        try:
            for packet in container.demux():
                payload += packet.size + PACKET_BYTES
                if packet.stream.index != stream.index:
                    continue
                if packet.pts is not None:
                    ends.append(packet.pts + (packet.duration or 0))
                if not packet.size:
                    continue
                is_cut |= bool(packet.is_corrupt) and not is_broadcast
                if lead is None and packet.is_keyframe:
                    lead = num_packets
                num_packets += 1
                if packet.dts is not None and not packet.is_discard:
                    times.append(packet.dts)
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"{name}: damaged ({reason(error)}); get the file again or leave it out") from None
        if is_cut:
            raise VideoError(
                f"{name}: truncated, a frame is there in part; get the file again or leave it out", "truncated"
            )
        if payload < 0.9 * (reader.size - HEADER_BYTES):
            _check_time(name, container, stream, max(ends, default=0))
        return Structure(_frame_rate(stream, times), num_packets, lead or 0)


def _check_time(name: str, container: Any, stream: Any, end: int) -> None:
    start = float((stream.start_time or 0) * stream.time_base)
    if stream.duration:
        declared = float(stream.duration * stream.time_base)
    elif container.duration and len(container.streams) == 1:
        declared = container.duration / av.time_base
    else:
        return
    found = float(end * stream.time_base) - start
    if found < 0.9 * declared - 0.1:
        raise VideoError(
            f"{name}: damaged, {found:.1f} of {declared:.1f} seconds can be read; get the file again or leave it out"
        )


def _frame_rate(stream: Any, times: list[int]) -> float:
    """Return the frames per second of packets that follow each other; a step back or far ahead is a new beginning."""
    limit = DISCONTINUITY_SECONDS / stream.time_base
    steps = [after - before for before, after in itertools.pairwise(times) if 0 <= after - before <= limit]
    return float(len(steps) / (sum(steps) * stream.time_base) if sum(steps) else stream.average_rate or 0)


def _least_length(reader: Reader) -> int:
    """Return how many bytes a file must have at least by its own headers; 0: it does not say."""
    head = reader.read(4096)
    if head[:4] == b"RIFF":  # AVI
        return 8 + int.from_bytes(head[4:8], "little")
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _webm_length(head)
    end = least = 0
    while True:
        reader.seek(end)
        size, kind = int.from_bytes(reader.read(4)), reader.read(4)
        if size == 1:
            size = int.from_bytes(reader.read(8))
        if size < 8 or not kind.isalnum():
            return least
        end += size
        if kind in (b"moov", b"mdat", b"moof"):  # MP4 and QuickTime; what comes after these may be anything
            least = end


def _webm_length(head: bytes) -> int:
    position = 0
    for wanted in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):  # EBML header, segment
        if head[position : position + 4] != wanted or len(head) < position + 12:
            return 0
        first = head[position + 4]
        width = 9 - first.bit_length()
        value = int.from_bytes(head[position + 4 : position + 4 + width]) & ((1 << 7 * width) - 1)
        if first == 0 or value == (1 << 7 * width) - 1:  # all ones: unknown, as in a live recording
            return 0
        position += 4 + width + value
    return position


def reason(error: Exception) -> str:
    """Return what the system or the decoder said."""
    return str(getattr(error, "strerror", None) or error)
