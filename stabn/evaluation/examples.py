"""Which videos the report lists and draws, chosen by rules and not by looks."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from stabn.evaluation import charts
from stabn.evaluation.charts import Series
from stabn.evaluation.metrics import in_classes
from stabn.evaluation.tables import Comparison

LISTED_VIDEOS = 25


@dataclass(frozen=True)
class VideoFigure:
    """What is drawn of one video.

    Attributes:
        pictures: (caption, PNG) pairs, such as the attention before and after.
        curves: temporal attention per source frame, 0 to 1, by network: `before`, `after`, and `edit` if there is one.
    """

    pictures: Sequence[tuple[str, bytes]] = ()
    curves: Mapping[str, npt.ArrayLike] = field(default_factory=dict)


FigureMaker = Callable[[str], VideoFigure]


def changed_videos(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the videos won and lost: those of the modified actions first, then the most confident."""
    before, after = comparison.before, comparison.after
    groups = []
    for name, mask in (("won", ~before.correct & after.correct), ("lost", before.correct & ~after.correct)):
        rows = np.flatnonzero(mask)
        modified = in_classes(before, comparison.selected)
        order = sorted(rows, key=lambda row: (not modified[row], -after.scores[row, 0], before.video_ids[row]))
        videos = [
            describe_video(comparison, int(row)) | {"modified": bool(modified[row])} for row in order[:LISTED_VIDEOS]
        ]
        groups.append({"name": name, "count": len(rows), "modified": int(modified[rows].sum()), "videos": videos})
    return groups


def describe_video(comparison: Comparison, row: int) -> dict[str, Any]:
    """Return a video's id, true class and predictions with scores in percent."""
    before, after = comparison.before, comparison.after
    return {
        "video_id": before.video_ids[row],
        "true": before.classes[before.class_index[row]],
        "before": before.classes[before.predicted[row]],
        "before_score": 100 * before.scores[row, 0],
        "after": after.classes[after.predicted[row]],
        "after_score": 100 * after.scores[row, 0],
    }


def choose_examples(comparison: Comparison, limits: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return videos of the modified actions to draw, by a hash of their id, so that nobody picks the prettiest.

    Args:
        comparison: the predictions.
        limits: how many videos of each kind: won, lost, still wrong, still right.
    """
    before, after = comparison.before, comparison.after
    modified = in_classes(before, comparison.selected)
    kinds = {
        "won": ~before.correct & after.correct,
        "lost": before.correct & ~after.correct,
        "still wrong": ~before.correct & ~after.correct,
        "still right": before.correct & after.correct,
    }
    examples = []
    for kind, limit in limits.items():
        rows = sorted(np.flatnonzero(kinds[kind] & modified), key=lambda row: by_hash(before.video_ids[row]))
        examples += [describe_video(comparison, int(row)) | {"kind": kind} for row in rows[:limit]]
    return examples


def by_hash(video_id: str) -> bytes:
    """Return a sort key that has nothing to do with what a video shows."""
    return hashlib.sha256(video_id.encode()).digest()


def shown(figure: VideoFigure, item: dict[str, Any]) -> dict[str, Any]:
    """Return a figure's parts for the page."""
    tones = {"before": "before", "edit": "edit", "after": "after"}
    lines = [
        Series(name, range(1, len(values) + 1), list(values), tone, dashed=name == "edit")
        for name, tone in tones.items()
        if name in figure.curves
        for values in [np.asarray(figure.curves[name], dtype=float)]
    ]
    pictures = [(caption, charts.data_uri(picture)) for caption, picture in figure.pictures]
    curve = (
        charts.line_chart("Temporal attention per frame", lines, x_label="source frame", unit=True)
        if lines
        else Markup("")
    )
    return item | {"pictures": pictures, "curve": curve}
