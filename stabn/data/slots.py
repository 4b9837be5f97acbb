"""From the frames of a clip to the slots of its temporal attention, and back: the one place that knows how.

A backbone that strides time has one attention value for several consecutive frames of a clip. People, segments, tables
and pictures speak of frames, the network of slots. With a temporal stride of 1 both are the same, and nothing is
computed.
"""

import torch
from torch import Tensor

from stabn.errors import StabnError


class SlotError(StabnError):
    """A number of frames is no multiple of the number of slots."""


def to_slots(frames: Tensor, num_slots: int) -> Tensor:
    """Return each slot's mean over those of its frames that have a value.

    Args:
        frames: float (..., T), one value per frame of a clip; NaN where there is none.
        num_slots: S, of which T is a multiple.

    Returns:
        (..., S); NaN where none of the slot's frames has a value.

    Raises:
        SlotError: T is no multiple of S.
    """
    stride = _stride(frames.shape[-1], num_slots)
    return frames if stride == 1 else frames.unflatten(-1, (num_slots, stride)).nanmean(-1)


def to_frames(slots: Tensor, num_frames: int, dim: int = -1) -> Tensor:
    """Return for each frame what its slot has; `to_slots` of it is `slots` again.

    Args:
        slots: S values along `dim`.
        num_frames: T, a multiple of S.
        dim: of the slots.

    Returns:
        T values along `dim`.

    Raises:
        SlotError: T is no multiple of S.
    """
    stride = _stride(num_frames, slots.shape[dim])
    return slots if stride == 1 else torch.repeat_interleave(slots, stride, dim)


def _stride(num_frames: int, num_slots: int) -> int:
    if num_slots < 1 or num_frames % num_slots:
        raise SlotError(
            f"{num_frames} frames for {num_slots} attention values: the frames of a clip must be a multiple of them; "
            "sample clips with data.num_frames of the network"
        )
    return num_frames // num_slots
