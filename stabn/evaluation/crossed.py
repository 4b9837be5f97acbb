"""Intervals over seeds and videos together: what another training on other videos of the same kind could have given."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Interval(NamedTuple):
    """A share or a difference of shares: its mean, the standard deviation over seeds, and its interval."""

    mean: float
    deviation: float
    low: float
    high: float


def crossed_bootstrap(
    values: npt.ArrayLike,
    videos: npt.ArrayLike | None = None,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Estimate a mean by resampling seeds and videos, each on its own (a crossed bootstrap).

    Args:
        values: (num_seeds, num_videos): whether a seed's network was right; or the difference of two networks' being
            right, which makes the comparison paired in both.
        videos: (num_videos,) bool, those that count; None: all.
        samples: resamples.
        confidence: of the interval, 0 to 1.
        seed: of the resampling.
    """
    kept = np.asarray(values, dtype=float)
    if videos is not None:
        kept = kept[:, np.asarray(videos, dtype=bool)]
    rng = np.random.default_rng(seed)
    num_seeds, num_videos = kept.shape
    means = np.empty(samples)
    for number in range(samples):
        rows = np.bincount(rng.integers(num_seeds, size=num_seeds), minlength=num_seeds) / num_seeds
        columns = rng.multinomial(num_videos, np.full(num_videos, 1 / num_videos)) / num_videos
        means[number] = rows @ kept @ columns
    tail = 50 * (1 - confidence)
    low, high = np.percentile(means, [tail, 100 - tail])
    deviation = float(kept.mean(1).std(ddof=1)) if num_seeds > 1 else float("nan")
    return Interval(float(kept.mean()), deviation, float(low), float(high))


def bootstrap_columns(
    values: npt.ArrayLike, samples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> list[Interval]:
    """Estimate the means of many numbers of the same videos by resampling the videos, the same for all numbers.

    Args:
        values: (num_videos, num_columns).
        samples: resamples.
        confidence: of the intervals, 0 to 1.
        seed: of the resampling.

    Returns:
        One Interval per column; without seeds its deviation is NaN.
    """
    kept = np.asarray(values, dtype=float)
    rng = np.random.default_rng(seed)
    shares = np.full(len(kept), 1 / len(kept))
    means = np.concatenate([rng.multinomial(len(kept), shares, 100) / len(kept) @ kept for _ in range(samples // 100)])
    tail = 50 * (1 - confidence)
    low, high = np.percentile(means, [tail, 100 - tail], axis=0)
    rows = zip(kept.mean(0), low, high, strict=True)
    return [Interval(float(mean), float("nan"), float(one), float(other)) for mean, one, other in rows]
