"""Deletion and insertion: how a network's answer changes as frames, or cells of them, are taken away or given.

Taken away in the order of what an attention says (Petsiuk et al., RISE, BMVC 2018): where the attention is right about
what the network uses, the answer falls fast under deletion and rises fast under insertion. To delete the lowest first
is to insert the highest read backwards, so insertion minus deletion is 0 for an order that knows nothing, and negative
for one that is right upside down.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Score = Callable[[Tensor], Tensor]  # float (B, 3, T, H, W) to the probability (B,) of the class that is asked about
Fill = Callable[[Tensor, Tensor], Tensor]  # clip (3, T, H, W), kept bool (S, T, h, w) to clips (S, 3, T, H, W)

BLUR = 1 / 8  # standard deviation of the blur, as a share of the frame's height
KINDS = ("temporal", "spatial")


class Curves(NamedTuple):
    """Probabilities of a class, float64 (num_steps + 1,) each.

    Attributes:
        deletion: after the highest have been taken away, from nothing to all.
        insertion: after the highest have been given, from nothing to all.
    """

    deletion: np.ndarray
    insertion: np.ndarray


def area(values: np.ndarray, counts: np.ndarray) -> float:
    """Return the area under probabilities over shares from 0 to 1, 0 to 1."""
    return float(np.trapezoid(values, counts / counts[-1]))


def step_counts(num_units: int, max_steps: int) -> np.ndarray:
    """Return how many of the frames or cells are changed at each step, int64, from 0 to all in nearly equal steps."""
    return np.unique(np.linspace(0, num_units, min(max_steps, num_units) + 1).round().astype(np.int64))


def ranks(values: Tensor, generator: torch.Generator) -> Tensor:
    """Return the rank of each value along the last axis, int64, 0 the highest; equal values in random order."""
    values = values.detach().cpu()
    shuffled = torch.rand(values.shape, generator=generator, dtype=torch.float64).argsort(-1)
    order = torch.argsort(values.gather(-1, shuffled), dim=-1, descending=True, stable=True)
    return shuffled.gather(-1, order).argsort(-1)


def perturb(
    score: Score,
    clip: Tensor,
    maps: Mapping[str, Tensor],
    fill: Fill,
    *,
    max_steps: int,
    batch_size: int,
    generator: torch.Generator,
) -> tuple[np.ndarray, dict[str, Curves]]:
    """Return deletion and insertion in the order of each of some maps.

    Args:
        score: the network's probability of the class that is asked about.
        clip: float (3, T, H, W), normalised.
        maps: by name float (T,), frames are deleted; or float (T, h, w), of each frame as many cells at once.
        fill: what is seen in place of what is deleted.
        max_steps: at most so many steps from nothing to all.
        batch_size: clips that go through the network at once.
        generator: decides between equal values.

    Returns:
        How many frames, or cells of each frame, are changed at each step, int64 (num_steps + 1,), and the curves.
    """
    rows, counts = [], np.zeros(0, np.int64)
    for priority in maps.values():
        rank = ranks(priority if priority.ndim == 1 else priority.flatten(1), generator)
        counts = step_counts(rank.shape[-1], max_steps)
        shape = (clip.shape[1], 1, 1) if priority.ndim == 1 else tuple(priority.shape)
        given = rank < torch.from_numpy(counts).reshape(-1, *[1] * rank.ndim)
        rows.append(torch.stack([~given, given]).reshape(2, len(counts), *shape))
    kept = torch.stack(rows)
    # What several orders have in common, such as all and nothing, goes through the network once.
    states, places = torch.unique(kept.flatten(0, 2), dim=0, return_inverse=True)
    scores = [score(fill(clip, part.to(clip.device))).double().cpu() for part in states.split(batch_size)]
    values = torch.cat(scores)[places].reshape(kept.shape[:3]).numpy()
    return counts, {name: Curves(*pair) for name, pair in zip(maps, values, strict=True)}


def fill_mean(clip: Tensor, kept: Tensor) -> Tensor:
    """Show the mean colour of the training videos, 0 after normalisation, in place of what is not kept."""
    return clip * _pixels(kept, clip)


def fill_blurred(clip: Tensor, kept: Tensor) -> Tensor:
    """Show the frame blurred until objects are gone in place of what is not kept of it."""
    return torch.where(_pixels(kept, clip) > 0, clip, blurred(clip))


def fill_still(clip: Tensor, kept: Tensor) -> Tensor:
    """Let the last frame kept before it stand still in place of one that is not kept, or the first one kept after it.

    Where no frame is kept the clip's first one is seen all the time: a still.
    """
    frames = kept.flatten(1).bool()
    number = torch.arange(frames.shape[1], device=frames.device)
    before = torch.where(frames, number, -1).cummax(1).values
    first = frames.int().argmax(1, keepdim=True)
    return clip[:, torch.where(before < 0, first, before)].transpose(0, 1)


FILLS: dict[str, dict[str, Fill]] = {
    "temporal": {"mean colour": fill_mean, "frame before": fill_still},
    "spatial": {"mean colour": fill_mean, "blur": fill_blurred},
}


def blurred(clip: Tensor) -> Tensor:
    """Return float (3, T, H, W) blurred by a Gaussian of BLUR times the height; at the border the frame goes on."""
    sigma = max(BLUR * clip.shape[-2], 0.5)
    radius = round(3 * sigma)
    distance = torch.arange(-radius, radius + 1, device=clip.device, dtype=clip.dtype)
    weight = torch.exp(-(distance**2) / (2 * sigma**2))
    weight = weight / weight.sum()
    frames = clip.flatten(0, 1)[:, None]
    rows = F.pad(frames, (0, 0, radius, radius), mode="replicate")
    frames = F.conv2d(rows, weight[None, None, :, None])
    columns = F.pad(frames, (radius, radius, 0, 0), mode="replicate")
    return F.conv2d(columns, weight[None, None, None, :]).reshape(clip.shape)


def control_maps(clip: Tensor, size: tuple[int, int], generator: torch.Generator) -> dict[str, dict[str, Tensor]]:
    """Return maps that know nothing of the network, for both kinds.

    Args:
        clip: float (3, T, H, W).
        size: cells of a frame, (h, w).
        generator: of the random map.

    Returns:
        By kind and name: temporal float (T,), spatial float (T, h, w). `motion`: absolute difference to the frames
        beside it; `centre`: a Gaussian in the middle of the clip, or of each frame; `uniform`: the same everywhere, so
        the order is random; `random`: drawn for each video. The last two differ by chance alone: by how much is what
        the measure's own noise is.
    """
    num_frames, (height, width) = clip.shape[1], size
    motion = motion_energy(clip)
    rows, columns = _bump(height)[:, None], _bump(width)[None]
    return {
        "temporal": {
            "motion": motion.mean((1, 2)),
            "centre": _bump(num_frames),
            "uniform": torch.zeros(num_frames),
            "random": torch.rand(num_frames, generator=generator),
        },
        "spatial": {
            "motion": F.adaptive_avg_pool2d(motion, size),
            "centre": (rows * columns).expand(num_frames, height, width),
            "uniform": torch.zeros(num_frames, height, width),
            "random": torch.rand((num_frames, height, width), generator=generator),
        },
    }


def motion_energy(clip: Tensor) -> Tensor:
    """Return float (T, H, W): how much a pixel of (3, T, H, W) differs from the frames beside it, mean over both."""
    change = (clip[:, 1:] - clip[:, :-1]).abs().mean(0)
    if not len(change):
        return torch.zeros_like(clip[0])
    sides = torch.cat([change[:1], change]) + torch.cat([change, change[-1:]])
    return sides / 2


def _bump(length: int) -> Tensor:
    """Return float (length,), a Gaussian with its top in the middle; only the order that it makes counts."""
    place = (torch.arange(length) + 0.5) / length - 0.5
    return torch.exp(-(place**2) / (2 * 0.25**2))


def _pixels(kept: Tensor, clip: Tensor) -> Tensor:
    """Return kept (S, T, h, w) as 0 and 1 for each pixel, (S, 1, T, H, W)."""
    return F.interpolate(kept.to(clip.dtype), size=tuple(clip.shape[-2:]), mode="nearest")[:, None]
