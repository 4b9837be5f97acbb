"""What a container itself says of its pictures' edges: Matroska's PixelCrop, MP4's and QuickTime's clean aperture.

FFmpeg's demuxers know it, but PyAV does not hand it on.
"""

import struct
from collections.abc import Iterator
from fractions import Fraction

from stabn.data.video_display import Crop
from stabn.data.video_structure import Reader

MAX_HEADER = 64 << 20  # bytes of a header that is looked at; larger ones are none
ENTRY_BYTES = 86  # of a video sample entry, before the boxes in it
_EBML, _SEGMENT, _CLUSTER, _TRACKS, _TRACK, _TYPE, _VIDEO = (
    0x1A45DFA3, 0x18538067, 0x1F43B675, 0x1654AE6B, 0xAE, 0x83, 0xE0,
)  # fmt: skip
_EDGES = {0x54BB: "top", 0x54AA: "bottom", 0x54CC: "left", 0x54DD: "right"}


def container_crop(reader: Reader, number: int) -> Crop:
    """Return what the container cuts off the pictures of its `number`-th video track, counted from 0."""
    reader.seek(0)
    head = reader.read(8)
    reader.seek(0)
    if head[:4] == _EBML.to_bytes(4):
        crops = _matroska(reader)
    elif head[4:8].isalnum() and int.from_bytes(head[:4]) != 0:
        crops = _mp4(reader)
    else:
        return Crop()
    for place, crop in enumerate(crops):
        if place == number:
            return crop
    return Crop()


def _mp4(reader: Reader) -> Iterator[Crop]:
    while len(head := reader.read(8)) == 8:
        size, kind = struct.unpack(">I4s", head)
        content = size - 8
        if size == 1:
            content = int.from_bytes(reader.read(8)) - 16
        if content < 0:  # also size 0: up to the end of the file
            return
        if kind == b"moov" and content <= MAX_HEADER:
            for track in _boxes(reader.read(content), b"trak"):
                media = _inside(track, b"mdia")
                if _inside(media, b"hdlr")[8:12] == b"vide":
                    yield _clean_aperture(_inside(media, b"minf", b"stbl", b"stsd")[8:])
            return
        reader.seek(reader.tell() + content)


def _boxes(data: bytes, wanted: bytes) -> Iterator[bytes]:
    position = 0
    while position + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        if size < 8:
            return
        if kind == wanted:
            yield data[position + 8 : position + size]
        position += size


def _inside(data: bytes, *path: bytes) -> bytes:
    """Return the content of the first box of each kind within the one before; empty: there is none."""
    for kind in path:
        data = next(_boxes(data, kind), b"")
    return data


def _clean_aperture(entry: bytes) -> Crop:
    """Read the box `clap` of a track's first sample entry: size and centre of the part that is shown."""
    aperture = _inside(entry[ENTRY_BYTES:], b"clap")
    if len(aperture) < 32:
        return Crop()
    width, height = struct.unpack_from(">HH", entry, 32)
    numbers = struct.unpack(">8i", aperture[:32])
    if 0 in numbers[1::2]:
        return Crop()
    shown_width, shown_height, right, down = (Fraction(*numbers[i : i + 2]) for i in range(0, 8, 2))
    left, top = int((width - shown_width) / 2 + right), int((height - shown_height) / 2 + down)
    edges = top, int(height - shown_height) - top, left, int(width - shown_width) - left
    return Crop(*edges) if min(edges) >= 0 else Crop()


def _matroska(reader: Reader) -> Iterator[Crop]:
    while (element := _element(reader.read(12))) is not None:
        kind, start, size = element
        reader.seek(reader.tell() - 12 + start)
        if kind == _SEGMENT:
            continue
        if kind == _CLUSTER or size is None:
            return
        if kind == _TRACKS and size <= MAX_HEADER:
            for track in _elements(reader.read(size), _TRACK):
                if _number(track, _TYPE) == 1:
                    video = next(_elements(track, _VIDEO), b"")
                    yield Crop(**{name: _number(video, kind) for kind, name in _EDGES.items()})
            return
        reader.seek(reader.tell() + size)


def _element(data: bytes) -> tuple[int, int, int | None] | None:
    """Return the kind of the EBML element at the beginning of some bytes, where its content begins, and its size."""
    if not data or not data[0]:
        return None
    start = 9 - data[0].bit_length()
    if len(data) <= start or not data[start]:
        return None
    width = 9 - data[start].bit_length()
    unknown = (1 << 7 * width) - 1
    size = int.from_bytes(data[start : start + width]) & unknown
    return int.from_bytes(data[:start]), start + width, None if size == unknown else size


def _elements(data: bytes, wanted: int) -> Iterator[bytes]:
    while (element := _element(data)) is not None:
        kind, start, size = element
        if size is None:
            return
        if kind == wanted:
            yield data[start : start + size]
        data = data[start + size :]


def _number(data: bytes, kind: int) -> int:
    return int.from_bytes(next(_elements(data, kind), b""))
