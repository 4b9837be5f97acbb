"""The numbers computed from one prediction table: accuracies, and the confusion of classes."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from stabn.evaluation.prediction_table import TOP, MetricsError, Predictions


def topk_hits(predictions: Predictions, k: int, branch: str = "perception") -> npt.NDArray[np.bool_]:
    """Return (N,) bool, whether the true class is among the k best.

    Raises:
        MetricsError: no videos, videos without labels, or a branch that the network does not have.
    """
    if branch not in ("perception", "attention"):
        raise MetricsError(f"branch = {branch!r}: choose perception or attention")
    top5 = predictions.top5 if branch == "perception" else predictions.attention_top5
    if top5 is None:
        raise MetricsError("the network of these predictions has no attention branch")
    if not len(predictions):
        raise MetricsError(f"no predictions for split {predictions.split}: an accuracy needs at least one video")
    if predictions.class_index.min() < 0:
        unlabelled = predictions.video_ids[int(predictions.class_index.argmin())]
        raise MetricsError(
            f"video {unlabelled} of split {predictions.split} has no label: evaluate train or validation"
        )
    if not 1 <= k <= TOP:
        raise MetricsError(f"k = {k}: the prediction table holds the {TOP} best classes")
    return (top5[:, :k] == predictions.class_index[:, None]).any(axis=1)


def topk_accuracy(predictions: Predictions, k: int, branch: str = "perception") -> float:
    """Return the share of videos whose true class is among the k best of a branch, 0 to 1."""
    return float(topk_hits(predictions, k, branch).mean())


def per_class_accuracy(predictions: Predictions) -> pd.DataFrame:
    """Return one row per class, by index: name, support (videos), top1 and top5 (0 to 1, NaN without videos)."""
    num_classes = len(predictions.classes)
    hits = {name: topk_hits(predictions, k) for name, k in (("top1", 1), ("top5", TOP))}
    support = np.bincount(predictions.class_index, minlength=num_classes)
    shares = {}
    for name, hit in hits.items():
        counts = np.bincount(predictions.class_index, weights=hit, minlength=num_classes)
        shares[name] = np.divide(counts, support, out=np.full(num_classes, np.nan), where=support > 0)
    index = pd.RangeIndex(num_classes, name="class_index")
    return pd.DataFrame({"name": predictions.classes, "support": support.astype(np.int64), **shares}, index=index)


def confusion_matrix(predictions: Predictions) -> npt.NDArray[np.int64]:
    """Return (K, K) int64: row the true class, column the predicted one, value the number of videos."""
    topk_hits(predictions, 1)
    num_classes = len(predictions.classes)
    cells = predictions.class_index.astype(np.int64) * num_classes + predictions.predicted
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes).astype(np.int64)


class GroupAccuracy(NamedTuple):
    """Top-1 of Table 2's columns, 0 to 1; NaN where a group has no videos."""

    selected: float
    others: float
    all: float
    num_selected_classes: int
    num_other_classes: int
    num_selected_videos: int
    num_other_videos: int


def in_classes(predictions: Predictions, classes: Collection[int]) -> npt.NDArray[np.bool_]:
    """Return (N,) bool, whether a video's true class is one of these.

    Raises:
        MetricsError: a class index that does not exist.
    """
    unknown = sorted(set(classes) - set(range(len(predictions.classes))))
    if unknown:
        raise MetricsError(f"class {unknown[0]} was selected, but there are {len(predictions.classes)} classes")
    return np.isin(predictions.class_index, list(classes))


def group_accuracy(predictions: Predictions, selected: Collection[int]) -> GroupAccuracy:
    """Return top-1 over the videos of the selected classes, of all other classes, and of all (Table 2)."""
    hits, chosen = topk_hits(predictions, 1), in_classes(predictions, selected)
    return GroupAccuracy(
        selected=float(hits[chosen].mean()) if chosen.any() else float("nan"),
        others=float(hits[~chosen].mean()) if (~chosen).any() else float("nan"),
        all=float(hits.mean()),
        num_selected_classes=len(set(selected)),
        num_other_classes=len(predictions.classes) - len(set(selected)),
        num_selected_videos=int(chosen.sum()),
        num_other_videos=int((~chosen).sum()),
    )
