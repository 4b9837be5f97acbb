"""Whether one network is better than another on the same videos, by more than noise."""

from typing import NamedTuple

import numpy as np

from stabn.evaluation.metrics import per_class_accuracy, topk_hits
from stabn.evaluation.prediction_table import Predictions, align


class Difference(NamedTuple):
    """Top-k after minus top-k before, as shares: observed, its interval, and how often a resample is not better."""

    mean: float
    low: float
    high: float
    p_not_better: float


def paired_bootstrap(
    before: Predictions, after: Predictions, seed: int = 0, samples: int = 2000, k: int = 1, confidence: float = 0.95
) -> Difference:
    """Estimate how certain a difference in top-k is by resampling the videos that both networks saw.

    A resample of N videos is only three counts (became right, became wrong, unchanged), which are multinomial; drawing
    those is the same bootstrap without touching N videos per sample.

    Raises:
        MetricsError: the tables are not of the same videos and classes.
    """
    change = topk_hits(align(before, after), k).astype(np.int64) - topk_hits(before, k)
    num_videos, won, lost = len(change), int((change > 0).sum()), int((change < 0).sum())
    shares = np.array([won, lost, num_videos - won - lost]) / num_videos
    counts = np.random.default_rng(seed).multinomial(num_videos, shares, size=samples)
    differences = (counts[:, 0] - counts[:, 1]) / num_videos
    tail = 50 * (1 - confidence)
    low, high = np.percentile(differences, [tail, 100 - tail])
    return Difference((won - lost) / num_videos, float(low), float(high), float((differences <= 0).mean()))


def wins(
    before: Predictions,
    after: Predictions,
    *,
    metric: str = "top1",
    confidence: float = 0.95,
    samples: int = 2000,
    max_class_drop: float = 0.2,
    min_support: int = 10,
    seed: int = 0,
) -> tuple[bool, str]:
    """Decide whether `after` may replace `before`, and say why in one sentence.

    It must beat `before` in the metric by more than noise (the lower bound of the interval is above 0), and no class
    with at least `min_support` videos may fall by more than `max_class_drop` (0 to 1) in top-1.
    """
    gain = paired_bootstrap(before, after, seed, samples, {"top1": 1, "top5": 5}[metric], confidence)
    found = (
        f"{metric.replace('top', 'top-')} changed by {points(gain.mean)} points "
        f"({100 * confidence:g}% interval {points(gain.low)} to {points(gain.high)})"
    )
    if gain.low <= 0:
        return False, f"Not better by more than noise: {found}."
    old, new = per_class_accuracy(before), per_class_accuracy(after)
    change = (new["top1"] - old["top1"])[old["support"] >= min_support]
    # The tolerance keeps a fall of exactly the limit, such as 0.9 - 0.7, on the allowed side.
    if len(change) and change.min() < -max_class_drop - 1e-9:
        row = int(change.to_numpy().argmin())
        worst = change.index[row]
        return False, (
            f"Better overall ({found}), but {old['name'][worst]!r} fell by {-100 * change[worst]:.1f} points on "
            f"{old['support'][worst]} videos, more than the {100 * max_class_drop:.0f} allowed."
        )
    return True, f"Better by more than noise: {found}; no class fell by more than {100 * max_class_drop:.0f} points."


def points(share: float) -> str:
    """Return a difference of shares in percentage points with its sign, `+1.9` or `−0.4`."""
    value = round(100 * share, 1)
    return f"{value:+.1f}".replace("-", "−") if value else "0.0"
