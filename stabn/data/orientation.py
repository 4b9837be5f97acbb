"""What a container says about the shape of its pictures: how they are turned, and how wide a pixel is.

Both engines give pictures as they are stored; here they become what a player shows (ffplay's rules).
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import cv2
import numpy as np
from av.sidedata.sidedata import Type

Matrix = tuple[int, ...]
BLACK = (16, 128, 128)  # of luma and chroma, in the limited range that videos have


def display_matrix(frame: Any) -> Matrix | None:
    """Return the 3 x 3 display matrix of a decoded frame, row by row in fixed point; None: it is upright as it is."""
    data = frame.side_data.get(Type.DISPLAYMATRIX)
    return tuple(np.frombuffer(data, np.int32).tolist()) if data is not None else None


def turn(matrix: Matrix | None) -> int:
    """Return by how many degrees, 0 to 359, a picture must be turned clockwise."""
    if matrix is None:
        return 0
    widths = math.hypot(matrix[0], matrix[3]), math.hypot(matrix[1], matrix[4])
    if not all(widths):
        return 0
    return round(math.degrees(math.atan2(matrix[1] / widths[1], matrix[0] / widths[0]))) % 360


def is_turned(matrix: Matrix | None) -> bool:
    """Return whether width and height change places."""
    return abs(turn(matrix) % 180 - 90) <= 1


def upright(planes: Sequence[np.ndarray], matrix: Matrix | None) -> list[np.ndarray]:
    """Return the planes of a picture, each uint8 (H, W), turned and mirrored as the matrix says."""
    if matrix is None:
        return list(planes)
    return [np.ascontiguousarray(_upright(plane, matrix, black)) for plane, black in zip(planes, BLACK, strict=True)]


def _upright(plane: np.ndarray, matrix: Matrix, black: int) -> np.ndarray:
    degrees = turn(matrix)
    if abs(degrees - 90) <= 1:
        return plane.T if matrix[3] > 0 else np.rot90(plane, -1)
    if abs(degrees - 180) <= 1:
        plane = plane[:, ::-1] if matrix[0] < 0 else plane
        return plane[::-1] if matrix[4] < 0 else plane
    if abs(degrees - 270) <= 1:
        return np.rot90(plane.T, 2) if matrix[3] < 0 else np.rot90(plane)
    if 1 < degrees < 359:
        height, width = plane.shape
        how = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -degrees, 1.0)
        return cv2.warpAffine(plane, how, (width, height), borderValue=(black,))
    return plane[::-1] if matrix[4] < 0 else plane


def pixel_aspect(stream: Any) -> Fraction:
    """Return the width of a pixel over its height, of a stream; 1 where nothing is said."""
    aspect = stream.sample_aspect_ratio
    return Fraction(aspect) if aspect and aspect > 0 else Fraction(1)


def displayed_size(width: int, height: int, aspect: Fraction) -> tuple[int, int]:
    """Return width and height with square pixels: the height stays, as in players."""
    return max(1, math.floor(width * aspect + Fraction(1, 2))), height
