"""How a video's pictures are meant to be shown: cropped, turned, mirrored, with square pixels, all of one size.

ffplay's rules, and ffmpeg's for the container's own cropping, which ffplay leaves out. ffmpeg as a process applies the
first half of them itself; here they are made for frames that were decoded in this process, with the same filters.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import av
import av.filter
import numpy as np
from av.sidedata.sidedata import Type

BT601, FULL_RANGE = (2, 5, 6), 2  # values of AVFrame's colorspace (2: not said) and color_range

Filter = tuple[str, str]


class Crop(NamedTuple):
    """Rows and columns that are cut off a decoded picture."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0


class Size(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int


def display_matrix(frame: Any) -> tuple[int, ...] | None:
    """Return the nine numbers that say how a decoded frame is turned and mirrored; None: not at all."""
    for data in frame.side_data:
        if data.type == Type.DISPLAYMATRIX:
            return tuple(np.frombuffer(data, np.int32).tolist())
    return None


def display_size(frame: Any, pixel_aspect: Fraction | None, crop: Crop) -> Size:
    """Return the size at which ffplay shows a frame: its height, and the width that makes its pixels square."""
    width, height = _cropped(frame, crop)
    aspect = pixel_aspect or Fraction(1)
    if any(name == "transpose" for name, _ in upright(display_matrix(frame))):
        width, height, aspect = height, width, 1 / aspect
    return Size(max(1, math.floor(width * aspect + Fraction(1, 2))), height)


def upright(matrix: Sequence[int] | None) -> list[Filter]:
    """Return the filters that turn a picture as its display matrix says, as ffplay does."""
    if matrix is None:
        return []
    scales = math.hypot(matrix[0], matrix[3]), math.hypot(matrix[1], matrix[4])
    angle = 0.0
    if all(scales):
        angle = round(math.degrees(math.atan2(matrix[1] / scales[1], matrix[0] / scales[0]))) % 360
    if angle == 90:
        return [("transpose", "cclock_flip" if matrix[3] > 0 else "clock")]
    if angle == 270:
        return [("transpose", "clock_flip" if matrix[3] < 0 else "cclock")]
    if angle == 180:
        return [("hflip", "")] * (matrix[0] < 0) + [("vflip", "")] * (matrix[4] < 0)
    if angle:
        return [("rotate", f"{angle}*PI/180")]  # the size stays, corners are cut off, as players do
    return [("vflip", "")] * (matrix[4] < 0)


def fit(size: Size) -> list[Filter]:
    """Return the filters that bring any upright picture to one size and colour space.

    A picture of another shape, as after a change in mid-stream, keeps it and gets black bars.
    """
    width, height = size
    fits = f"lte(abs({width}-{height}*dar),1)"
    wide, high = (f"if({fits},{width},min({width},round({height}*dar)))",
                  f"if({fits},{height},min({height},round({width}/dar)))")  # fmt: skip
    bars: list[Filter] = [("pad", f"{width}:{height}:(ow-iw)/2:(oh-ih)/2:eval=frame")]
    if width % 2 or height % 2:  # bars come in pairs of rows and columns, but not where chroma is as large as luma
        copy = ("scale", "flags=neighbor")  # there and back again nothing changes
        bars = [copy, ("format", "yuv444p"), *bars, copy]
    colour = "flags=bilinear:out_color_matrix=bt601:out_range=tv"
    return [("scale", f"w='{wide}':h='{high}':{colour}"), ("format", "yuv420p"), *bars, ("format", "yuv420p")]


def chain(filters: Sequence[Filter]) -> str:
    """Return filters as ffmpeg's command line takes them."""
    return ",".join(f"{name}={arguments}" if arguments else name for name, arguments in filters)


class Projector:
    """Turns decoded frames of one video into planes of one size, as they are meant to be seen."""

    def __init__(self, size: Size, pixel_aspect: Fraction | None, crop: Crop) -> None:
        """Prepare for the frames of one video.

        Args:
            size: of all planes, see `display_size`.
            pixel_aspect: width by height of a pixel, as the container says or, where it does not, the codec; it holds
                for the whole video, as with ffmpeg. None: neither says.
            crop: what the container cuts off.
        """
        self.size = size
        self._aspect, self._crop = pixel_aspect or Fraction(1), crop
        self._graph: Any = None
        self._made_for: object = None

    def planes(self, frame: Any) -> list[np.ndarray]:
        """Return luma and the two chroma planes, 8 bit 4:2:0 in the limited range of BT.601; most are so already."""
        matrix = display_matrix(frame)
        turned = upright(matrix)
        plain = frame.format.name == "yuv420p" and frame.color_range != FULL_RANGE and frame.colorspace in BT601
        if not (plain and self._aspect == 1) or turned or any(self._crop) or (frame.width, frame.height) != self.size:
            made_for = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range, matrix)
            if made_for != self._made_for:
                self._graph, self._made_for = self._make_graph(frame, turned), made_for
            self._graph.push(frame)
            frame = self._graph.pull()
        return [_plane(plane) for plane in frame.planes]

    def _make_graph(self, frame: Any, turned: list[Filter]) -> Any:
        graph = av.filter.Graph()
        graph.threads = 1
        source = (
            f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1000:pixel_aspect=1/1"
            f":colorspace={frame.colorspace}:range={frame.color_range}"
        )
        filters: list[Filter] = [("buffer", source)]
        if any(self._crop):
            width, height = _cropped(frame, self._crop)
            filters.append(("crop", f"{width}:{height}:{self._crop.left}:{self._crop.top}"))
        filters.append(("setsar", f"{self._aspect.numerator}/{self._aspect.denominator}"))
        filters += [*turned, *fit(self.size), ("buffersink", "")]
        graph.link_nodes(*(graph.add(name, arguments or None) for name, arguments in filters)).configure()
        return graph


def _cropped(frame: Any, crop: Crop) -> Size:
    """Return the size after cropping, to whole pixels of chroma as ffmpeg's filter `crop` does."""
    width, height = frame.width - crop.left - crop.right, frame.height - crop.top - crop.bottom
    if not any(crop):
        return Size(width, height)
    across, down = 8 // (frame.format.chroma_width(8) or 8), 8 // (frame.format.chroma_height(8) or 8)
    return Size(width // across * across, height // down * down)


def _plane(plane: Any) -> np.ndarray:
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
