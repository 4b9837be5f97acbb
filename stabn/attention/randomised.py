"""Networks whose layers get random weights one after the other, from the top (Adebayo et al., NeurIPS 2018).

A map that stays the same shows the video, not what the network has learnt.
"""

import copy
import re
from collections.abc import Iterator

import numpy as np
import torch

from stabn.models import STABN

# From the answer down to the features; below them come the parts of the backbone's extractor, from its end to its
# beginning. Ms and Mt come from the attention branch, so the first two cannot change them.
CASCADE: dict[str, tuple[str, ...]] = {
    "perception branch": ("perception_branch",),
    "attention mechanism": ("attention_mechanism",),
    "attention heads": tuple(
        f"attention_branch.{name}" for name in ("spatial", "temporal", "temporal_map", "temporal_mix", "logits", "fc")
    ),
    "class maps": ("attention_branch.class_maps",),
    "attention trunk": ("attention_branch.trunk",),
}


def cascade(model: STABN) -> dict[str, tuple[str, ...]]:
    """Return a network's parts from the answer down to the pixels, and the beginnings of their weights' names."""
    children = [name for name, part in model.feature_extractor.named_children() if any(True for _ in part.parameters())]
    below = {_words(name): (f"feature_extractor.{name}",) for name in reversed(children)}
    return {**CASCADE, **below}


def _words(name: str) -> str:
    """Return `layer 3` of `layer3`, `patch embed` of `patch_embed`."""
    return re.sub(r"(?<=[a-z])(?=\d)", " ", name.replace("_", " "))


def randomised_networks(model: STABN, seed: int) -> Iterator[tuple[str, STABN]]:
    """Yield the network with ever more of its cascade at new initial weights: the last part that was, and the network.

    It is the same object each time: use it before the next is asked for.

    Args:
        model: stays as it is.
        seed: of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = STABN(model.config).state_dict()
    changed = copy.deepcopy(model).eval()
    state = changed.state_dict()
    for name, parts in cascade(model).items():
        for key, value in state.items():
            if key.startswith(tuple(f"{part}." for part in parts)):
                value.copy_(fresh[key])
        yield name, changed


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return Spearman's rank correlation of two maps of the same shape, -1 to 1; 0 if one is the same everywhere."""
    from scipy.stats import spearmanr

    first, second = np.ravel(one), np.ravel(other)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(spearmanr(first, second).statistic)
