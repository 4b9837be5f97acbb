"""What the report's sections on actions, confusion and training show."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from stabn.errors import StabnError
from stabn.evaluation import charts
from stabn.evaluation.charts import ClassChange, Series
from stabn.evaluation.metrics import confusion_matrix, per_class_accuracy
from stabn.evaluation.tables import Comparison
from stabn.storage import read_uri
from stabn.text import parse_json
from stabn.training.checkpoint import describe, read_checkpoint

JSON_LINES = (".jsonl", ".json")
History = Sequence[Mapping[str, float]]

ANNOTATED_CLASSES = 20  # up to this many classes a confusion matrix is annotated whole
CONFUSED_CLASSES = 16  # rows shown of a larger one
CHANGED_CLASSES = 24  # classes in the chart of a larger data set, besides the modified ones


class ReportError(StabnError):
    """The inputs of a report are incomplete or contradict each other."""


def class_changes(comparison: Comparison) -> dict[str, Any]:
    """Return the chart of per-class accuracy, and all classes for the table below it."""
    frames = {name: per_class_accuracy(table) for name, table in comparison.networks.items()}
    before, after, control = frames["before"], frames["after"], frames.get("control")
    changes = {
        int(index): ClassChange(
            name=before["name"][index],
            before=before["top1"][index],
            after=after["top1"][index],
            control=None if control is None else control["top1"][index],
            support=int(before["support"][index]),
            selected=index in comparison.selected,
        )
        for index in np.flatnonzero(before["support"] > 0)
    }
    chosen = [changes[index] for index in comparison.selected if index in changes]
    rest = [change for index, change in changes.items() if index not in comparison.selected]
    rest.sort(key=lambda change: (change.before - change.after, change.name))
    shown = rest
    if len(changes) > CHANGED_CLASSES + len(chosen):
        half = CHANGED_CLASSES // 2
        shown = [*(c for c in rest[:half] if c.after > c.before), *(c for c in rest[-half:] if c.after < c.before)]
    return {
        "selected_chart": charts.dumbbells(chosen),
        "others_chart": charts.dumbbells(shown),
        "num_others_shown": len(shown),
        "num_others": len(rest),
        "all_classes": sorted(changes.values(), key=lambda change: change.before - change.after),
    }


def confusion(comparison: Comparison) -> dict[str, Any]:
    """Return confusion matrices before and after, and the confusions that are most frequent before."""
    names, selected = comparison.before.classes, comparison.selected
    before, after = confusion_matrix(comparison.before), confusion_matrix(comparison.after)
    large = len(names) > ANNOTATED_CLASSES
    shown = most_confused(before + after, selected, CONFUSED_CLASSES) if large else list(range(len(names)))
    wrong = before.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:12]
    pairs = [(int(cell) // len(names), int(cell) % len(names)) for cell in order if wrong.flat[cell] > 0]
    images = []
    if large:
        images = [
            charts.confusion_image(matrix, f"All {len(names)} actions, {name}")
            for name, matrix in (("before", before), ("after", after))
        ]
    return {
        "confusion": [
            (name, charts.confusion_table(matrix, names, shown, selected))
            for name, matrix in (("before", before), ("after", after))
        ],
        "confusion_shown": len(shown),
        "confusion_images": images,
        "confusion_names": list(names),
        "confused": [(names[t], names[p], int(before[t, p]), int(after[t, p]), int(before[t].sum())) for t, p in pairs],
    }


def most_confused(matrix: npt.NDArray[np.int64], selected: Sequence[int], limit: int) -> list[int]:
    """Return at most `limit` classes: the selected ones, then those most often confused with a class already there."""
    wrong = matrix + matrix.T
    np.fill_diagonal(wrong, 0)
    shown = list(selected[:limit]) or [int(wrong.sum(axis=1).argmax())]
    while len(shown) < min(limit, len(matrix)):
        links = wrong[shown].sum(axis=0)
        links[shown] = -1
        shown.append(int(links.argmax()))
    return shown


def curves(histories: Mapping[str, History]) -> dict[str, list[Markup]]:
    """Return the charts of training, and of fine-tuning with the control run beside it.

    Args:
        histories: one dict per epoch, of the runs that made the networks `before`, `after` and `control`.
    """
    training, finetuning, control = (histories.get(run, ()) for run in ("before", "after", "control"))
    first = [
        _chart(
            "Loss",
            [(training, "train_loss", "training", "before"), (training, "validation_loss", "validation", "after")],
        ),
        _chart(
            "Validation accuracy",
            [(training, "validation_top1", "top-1", "after"), (training, "validation_top5", "top-5", "before")],
            percent=True,
        ),
        _chart("Learning rate", [(training, "learning_rate", "rate", "after")]),
    ]
    runs = [(finetuning, "with edits", "after"), (control, "control", "control")]
    second = [
        _chart(title, [(rows, key, label, tone) for rows, label, tone in runs], percent=share)
        for title, key, share in (
            ("Temporal attention loss", "train_temporal_loss", False),
            ("Validation loss", "validation_loss", False),
            ("Validation top-1", "validation_top1", True),
            ("Agreement with the known frames: AP", "validation_agreement_ap", False),
            ("Pointing game: highest frame inside", "validation_agreement_pointing", True),
        )
    ]
    return {"training_curves": [c for c in first if c], "finetuning_curves": [c for c in second if c]}


def _chart(title: str, lines: Iterable[tuple[History, str, str, str]], *, percent: bool = False) -> Markup:
    """Draw one key of some histories; epochs without the key are left out, and so is a line without any."""
    series = []
    for rows, key, label, tone in lines:
        # temporal_loss: the name used by histories that do not prefix what is measured in training.
        found = [(row["epoch"], row.get(key, row.get(key.removeprefix("train_")))) for row in rows]
        values = [(float(x), float(y)) for x, y in found if y is not None]
        if values:
            series.append(Series(label, [x for x, _ in values], [y for _, y in values], tone))
    return charts.line_chart(title, series, percent=percent) if series else Markup("")


def read_history(path: str | os.PathLike[str]) -> History:
    """Read the metrics of a run, one dict per epoch, from JSON lines or from a checkpoint that carries them.

    Raises:
        ReportError: a line is no epoch's metrics.
    """
    if os.fspath(path).endswith(JSON_LINES):
        rows = []
        for number, line in enumerate(read_uri(path).decode().splitlines(), start=1):
            try:
                row = parse_json(line)
                rows.append({**row, "epoch": int(row["epoch"])})
            except (ValueError, KeyError, TypeError):
                raise ReportError(f"{path}, line {number}: not the metrics of an epoch; train again") from None
        return rows
    return describe(read_checkpoint(os.fspath(path))).history
