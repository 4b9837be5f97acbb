"""Whether one network is better than another on the same videos, by more than noise."""

from typing import NamedTuple

import numpy as np
import pandas as pd

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


def exact_mcnemar(won: int, lost: int) -> float:
    """Return how likely a split of the changed videos as uneven as this is if neither network is better, two-sided."""
    from scipy.stats import binomtest  # half a second, which no other stage should wait

    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def class_differences(before: Predictions, after: Predictions) -> pd.DataFrame:
    """Test each class for a difference in top-1 on the same videos.

    Returns:
        One row per class that has videos, by index: name, support, before, after, change (0 to 1), won, lost, p of the
        exact McNemar test, and q, p with the false-discovery rate over all classes controlled (Benjamini-Hochberg).
    """
    from scipy.stats import false_discovery_control

    old, new = per_class_accuracy(before), per_class_accuracy(align(before, after))
    right, now = before.correct, align(before, after).correct
    frame = old[["name", "support"]].assign(before=old["top1"], after=new["top1"], change=new["top1"] - old["top1"])
    for column, changed in (("won", ~right & now), ("lost", right & ~now)):
        frame[column] = np.bincount(before.class_index[changed], minlength=len(frame))
    frame = frame[frame["support"] > 0]
    frame["p"] = [exact_mcnemar(won, lost) for won, lost in zip(frame["won"], frame["lost"], strict=True)]
    frame["q"] = false_discovery_control(frame["p"].to_numpy())
    return frame


def wins(
    before: Predictions,
    after: Predictions,
    *,
    metric: str = "top1",
    confidence: float = 0.95,
    samples: int = 2000,
    class_fdr: float = 0.05,
    seed: int = 0,
) -> tuple[bool, str]:
    """Decide whether `after` may replace `before`, and say why in one sentence.

    It must beat `before` in the metric by more than noise (the lower bound of the interval is above 0), and no class
    may be worse in top-1 by more than noise, where of the classes called worse a share of `class_fdr` may be so by
    chance; 0: classes do not count. A fixed limit would block 40% of harmless changes at 14 classes of 10 videos.
    """
    gain = paired_bootstrap(before, after, seed, samples, {"top1": 1, "top5": 5}[metric], confidence)
    found = (
        f"{metric.replace('top', 'top-')} changed by {points(gain.mean)} points "
        f"({100 * confidence:g}% interval {points(gain.low)} to {points(gain.high)})"
    )
    if gain.low <= 0:
        return False, f"Not better by more than noise: {found}."
    classes = class_differences(before, after)
    worse = classes[(classes["change"] < 0) & (classes["q"] < class_fdr)].sort_values("change")
    if len(worse):
        worst = worse.iloc[0]
        return False, (
            f"Better overall ({found}), but {worst['name']!r} fell by {-100 * worst['change']:.1f} points on "
            f"{worst['support']} videos, more than noise (false-discovery rate {worst['q']:.2g})."
        )
    return True, f"Better by more than noise: {found}; no class is worse by more than noise."


def describe_looks(looks: int, split: str, num_videos: int, confidence: float) -> str:
    """Say the how-manieth network is measured on the same videos, and what that does to the certainty.

    A network that is no better passes with probability (1 - confidence) / 2; one of several with the rest to 1 of none.
    """
    luck = 1 - (1 - (1 - confidence) / 2) ** looks
    which = "the first network" if looks == 1 else f"network number {looks}"
    text = f"It is {which} to be measured on these {num_videos:,} {split} videos for promotion"
    if looks == 1:
        return f"{text}."
    return f"{text}: were none of them better, one would pass by luck with a probability of about {luck:.0%}."


def points(share: float) -> str:
    """Return a difference of shares in percentage points with its sign, `+1.9` or `−0.4`."""
    value = round(100 * share, 1)
    return f"{value:+.1f}".replace("-", "−") if value else "0.0"
