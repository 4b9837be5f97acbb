"""Crop, flip and colour of clips: one set of parameters for all frames of a clip."""

import dataclasses
import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from stabn.config import DataConfig

LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Crop:
    """A square of the stored frame, in pixels."""

    left: int
    top: int
    side: int

    def scaled(self, height: int, width: int, of_height: int) -> "Crop":
        """Return the same square of a frame of another size, which it does not leave whatever the rounding.

        Args:
            height, width: of the frame to be cropped.
            of_height: height of the frame that this crop is for.
        """
        if height == of_height:
            return self
        factor = height / of_height
        side = min(max(1, math.floor(self.side * factor)), height, width)
        return Crop(min(round(self.left * factor), width - side), min(round(self.top * factor), height - side), side)


def evaluation_crop(width: int, height: int, config: DataConfig) -> Crop:
    """Return the square in the middle of a frame that the network sees in evaluation."""
    side = max(1, round(min(width, height) * config.evaluation_scale))
    return Crop((width - side) // 2, (height - side) // 2, side)


def evaluation_crops(width: int, height: int, config: DataConfig, count: int) -> list[Crop]:
    """Return squares of the size of `evaluation_crop`, evenly along the longer side; with an odd count it is one."""
    middle = evaluation_crop(width, height, config)
    if count == 1:
        return [middle]
    room_x, room_y = width - middle.side, height - middle.side
    if width >= height:
        return [dataclasses.replace(middle, left=room_x * i // (count - 1)) for i in range(count)]
    return [dataclasses.replace(middle, top=room_y * i // (count - 1)) for i in range(count)]


def random_crop(width: int, height: int, config: DataConfig, rng: np.random.Generator) -> Crop:
    """Draw a crop of one of `config.scales` times the short side (multi-scale crop of the released settings)."""
    side = round(min(width, height) * float(rng.choice(config.scales)))
    return Crop(int(rng.integers(0, width - side + 1)), int(rng.integers(0, height - side + 1)), side)


def crop_and_resize(frame: np.ndarray, crop: Crop, out: np.ndarray) -> None:
    """Write the crop of a uint8 (H, W, 3) frame, resized, into uint8 (size, size, 3) `out`."""
    part = frame[crop.top : crop.top + crop.side, crop.left : crop.left + crop.side]
    size = out.shape[0]
    if crop.side == size:
        out[...] = part
    else:
        cv2.resize(part, (size, size), dst=out, interpolation=cv2.INTER_AREA if crop.side > size else cv2.INTER_LINEAR)


def crop_clip(frames: np.ndarray, crop: Crop, size: int) -> np.ndarray:
    """Cut the same square out of every frame: uint8 (T, H, W, 3) to uint8 (T, size, size, 3)."""
    clip = np.empty((len(frames), size, size, 3), np.uint8)
    for frame, out in zip(frames, clip, strict=True):
        crop_and_resize(frame, crop, out)
    return clip


def color_matrix(config: DataConfig, rng: np.random.Generator | None = None) -> np.ndarray:
    """Compose colour jitter and normalisation into one affine map of RGB.

    Args:
        config: sizes of the jitter, mean and standard deviation.
        rng: draws brightness, contrast and saturation; None for evaluation: normalisation only.

    Returns:
        float32 (3, 4): normalised = matrix[:, :3] @ (rgb / 255) + matrix[:, 3].
    """
    linear, offset = np.eye(3), np.zeros(3)
    if rng is not None and config.color_jitter > 0:
        brightness, contrast, saturation = 1 + rng.uniform(-config.color_jitter, config.color_jitter, 3)
        gray = np.tile(np.array(LUMA), (3, 1))
        linear = (saturation * np.eye(3) + (1 - saturation) * gray) * brightness * contrast
        offset = np.full(3, 0.5 * (1 - contrast))
    scale = 1 / np.array(config.std)
    matrix = np.concatenate([linear * scale[:, None], ((offset - np.array(config.mean)) * scale)[:, None]], axis=1)
    return matrix.astype(np.float32)


def to_input(frames: Tensor, config: DataConfig, device: torch.device | str, color: Tensor | None = None) -> Tensor:
    """Turn uint8 clips into the network's input, on the device.

    Args:
        frames: uint8 (B, T, H, W, 3).
        config: mean and standard deviation.
        device: where the network is.
        color: float32 (B, 3, 4) of training clips from `color_matrix`; None: normalisation only.

    Returns:
        float32 (B, 3, T, H, W), in channels_last_3d memory format (a permutation; nothing is copied for it).
    """
    if color is None:
        color = torch.from_numpy(color_matrix(config)).expand(len(frames), 3, 4)
    frames = frames.to(device, non_blocking=True)
    color = color.to(device, non_blocking=True)
    weight = (color[:, :, :3] / 255).transpose(1, 2)
    shape = frames.shape
    pixels = frames.reshape(shape[0], -1, 3).float()
    return torch.baddbmm(color[:, None, :, 3], pixels, weight).reshape(shape).permute(0, 4, 1, 2, 3)
