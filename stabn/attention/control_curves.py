"""Corrections from known segments, and the curves that learning from corrections is compared with."""

from collections.abc import Callable, Mapping

import numpy as np


def correction_curves(
    source: str, true: Mapping[str, np.ndarray], own: Callable[[str], np.ndarray], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return a curve for each video: the true one, or a control that has its shape but not its knowledge.

    Args:
        source: one of `stabn.stages.EDIT_SOURCES`.
        true: float (num_frames,) by video id, 0 to 1: high where the action is.
        own: gives the network's own temporal attention of a video, float (num_frames,).
        rng: what is drawn at random comes from it.

    Returns:
        float (num_frames,) by video id, 0 to 1.
    """
    if source == "segments_shifted":
        return {name: np.roll(curve, rng.integers(len(curve))) for name, curve in true.items()}
    if source == "segments_other":
        names = list(true)
        order = rng.permutation(len(names))
        partner = {names[one]: names[other] for one, other in zip(order, np.roll(order, 1), strict=True)}
        return {name: stretched(true[partner[name]], len(curve)) for name, curve in true.items()}
    if source == "network":
        return {name: np.asarray(own(name)) for name in true}
    return dict(true)


def stretched(curve: np.ndarray, length: int) -> np.ndarray:
    """Return float (length,): a curve on another number of frames, from its first to its last."""
    return np.interp(np.linspace(0, 1, length), np.linspace(0, 1, len(curve)), curve)
