"""Packed frames: the JPEGs of a video laid end to end, a raw MJPEG stream that says which video file it was made of."""

import re
from collections.abc import Sequence

import numpy as np
import simplejpeg

from stabn.errors import StabnError


class FrameError(StabnError):
    """A stored frame cannot be decoded."""


_START, _COMMENT, _END = b"\xff\xd8", b"\xff\xfe", b"\xff\xd9"
_SCAN = b"\xff\xda"
_SOURCE = re.compile(rb"stabn source sha256 ([0-9a-f]{64})")


def pack(jpegs: Sequence[bytes], source_sha256: str) -> tuple[bytes, list[int]]:
    """Lay JPEGs end to end; a comment in the first names the source, so that the object can be trusted by itself.

    Args:
        jpegs: baseline JPEGs, at least one.
        source_sha256: 64 hexadecimal digits.

    Returns:
        The stream, and the size in bytes of each frame in it.
    """
    text = b"stabn source sha256 " + source_sha256.encode()
    first = _START + _COMMENT + (len(text) + 2).to_bytes(2) + text + jpegs[0][2:]
    frames = [first, *jpegs[1:]]
    return b"".join(frames), [len(frame) for frame in frames]


def unpack(data: bytes) -> tuple[str, list[int], tuple[int, int]] | None:
    """Return a packed stream's source SHA-256, frame sizes and (width, height); None if it is not whole."""
    source = _SOURCE.search(data, 0, 256)
    sizes, position = [], 0
    while position < len(data):
        end = _frame_end(data, position)
        if end is None:
            return None
        sizes.append(end - position)
        position = end
    if source is None or not sizes:
        return None
    height, width, *_ = simplejpeg.decode_jpeg_header(data[: sizes[0]])
    return source[1].decode(), sizes, (width, height)


def _frame_end(data: bytes, position: int) -> int | None:
    """Return where the JPEG that begins at a position ends: its segments by their lengths, then the end marker."""
    if data[position : position + 2] != _START:
        return None
    position += 2
    while (marker := data[position : position + 2]) != _SCAN:
        if len(marker) < 2 or marker[0] != 0xFF:
            return None
        position += 2 + int.from_bytes(data[position + 2 : position + 4])
    end = data.find(_END, position)  # within the scan a byte 0xFF is always followed by 0x00
    return None if end < 0 else end + 2


def decode_jpeg(
    data: bytes, video_id: str, frame_index: int, min_height: int = 0, buffer: np.ndarray | None = None
) -> np.ndarray:
    """Decode one stored frame to uint8 (H, W, 3) RGB.

    Args:
        data: the JPEG.
        video_id, frame_index: for messages.
        min_height: rows that suffice; a frame at least twice as large is decoded at a half, a quarter or an eighth,
            which takes a fraction of the time. 0: all.
        buffer: uint8 (n,) that the frame is decoded into if it has room; None: memory of its own.

    Raises:
        FrameError: the bytes are no JPEG: object and manifest do not belong together.
    """
    try:
        frame: np.ndarray = simplejpeg.decode_jpeg(
            data, colorspace="RGB", min_height=min_height, min_factor=2 if min_height else 1, buffer=buffer
        )
        return frame
    except ValueError as error:
        raise FrameError(
            f"video {video_id}, frame {frame_index}: not a JPEG ({error}); the object changed since the manifest "
            "was written, run extract-frames again"
        ) from None
