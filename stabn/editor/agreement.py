"""How far people agree: two curves of one video, and what many such pairs say of an action or a person."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np

from stabn.attention.automatic import EDITOR as AUTOMATIC
from stabn.attention.edit_document import Edit

SEGMENT_LEVEL = 0.5  # frames from this attention on belong to the action
CONFIDENCE = 0.95
SAMPLES = 1000  # of the bootstrap
LEAST_PAIRS = 5  # fewer say nothing of how sure a mean is


@dataclass(frozen=True)
class Agreement:
    """How far two curves of one video agree.

    Attributes:
        difference: mean absolute difference over the frames on which both have an opinion, 0 to 1.
        overlap: intersection over union of the frames at or above SEGMENT_LEVEL, 0 to 1; 1 if neither has any.
    """

    difference: float
    overlap: float


def agreement(first: Sequence[float | None], second: Sequence[float | None]) -> Agreement | None:
    """Compare two curves of one video; None if there is no frame on which both have an opinion."""
    a, b = (np.array([np.nan if value is None else value for value in curve]) for curve in (first, second))
    both = ~np.isnan(a) & ~np.isnan(b)
    if not both.any():
        return None
    a, b = a[both], b[both]
    in_a, in_b = a >= SEGMENT_LEVEL, b >= SEGMENT_LEVEL
    union = int((in_a | in_b).sum())
    return Agreement(float(np.abs(a - b).mean()), float((in_a & in_b).sum() / union) if union else 1.0)


def pairs(edits: dict[int, Edit]) -> list[tuple[Edit, Edit, Agreement]]:
    """Return every two people's finished curves of a video with their agreement."""
    done = [edit for edit in edits.values() if edit.status == "edited" and edit.editor != AUTOMATIC]
    result = []
    for first, second in combinations(done, 2):
        found = agreement(first.edited_attention, second.edited_attention)
        if first.editor != second.editor and found is not None:
            result.append((first, second, found))
    return result


def summary(values: Sequence[Agreement]) -> dict[str, Any]:
    """Return the means of some pairs, how many they are, and the interval of the mean overlap if they suffice."""
    if not values:
        return {"difference": None, "overlap": None, "interval": None, "pairs": 0}
    overlaps = [value.overlap for value in values]
    return {
        "difference": fmean(value.difference for value in values),
        "overlap": fmean(overlaps),
        "interval": interval(overlaps),
        "pairs": len(values),
    }


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the bootstrap interval of a mean at CONFIDENCE; None: there are fewer than LEAST_PAIRS values."""
    if len(values) < LEAST_PAIRS:
        return None
    rng = np.random.default_rng(0)
    means = rng.choice(np.array(values), (SAMPLES, len(values))).mean(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def needs_training(own: Sequence[Agreement], others: Sequence[Agreement]) -> bool:
    """Tell whether a person agrees less with others than those do among themselves, by more than chance.

    Args:
        own: the pairs that the person is in.
        others: all other pairs of the round.
    """
    mine, theirs = interval([value.overlap for value in own]), interval([value.overlap for value in others])
    return mine is not None and theirs is not None and mine[1] < theirs[0]
