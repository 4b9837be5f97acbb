"""Stage select-classes: the actions that the network does worst, and their videos to edit (paper, section 4.2).

Where the paper is silent: actions are ordered by validation accuracy, then training accuracy, then class index. The
videos to edit come from the training split, because they are fine-tuned on; those of the validation split are listed
apart, for the figures of the report only.
"""

import hashlib
import itertools
import os

import numpy as np

from stabn.attention.selection import SelectedClass, Selection, SelectionError, save_selection
from stabn.config import SelectConfig, to_dict
from stabn.evaluation.metrics import per_class_accuracy
from stabn.evaluation.prediction_table import Predictions
from stabn.tracking import stage_run


def select_classes(
    train_predictions_path: str | os.PathLike[str],
    validation_predictions_path: str | os.PathLike[str],
    settings: SelectConfig,
    output_path: str | os.PathLike[str],
) -> Selection:
    """Choose the actions below the threshold on both splits, or on validation, and write them as JSON.

    Returns:
        The selection; nothing selected is a result (`outcome == "nothing"`), not an error.

    Raises:
        SelectionError: the tables are of other splits, of inverted attention, or of different networks.
    """
    train = Predictions.load(train_predictions_path)
    validation = Predictions.load(validation_predictions_path)
    _check_inputs(train, validation)
    inputs = {"train_predictions": train.fingerprint, "validation_predictions": validation.fingerprint}
    inputs["dataset"] = train.metadata.get("manifest_fingerprint", "")
    with stage_run("select-classes", settings=to_dict(settings), inputs=inputs) as run:
        selection = choose(train, validation, settings)
        save_selection(selection, output_path)
        run.log_metrics({"selected_classes": len(selection.classes), "selected_videos": len(selection.video_ids)})
        run.log_artifact(output_path)
    return selection


def choose(train: Predictions, validation: Predictions, settings: SelectConfig) -> Selection:
    """Apply the rules of section 4.2 to two prediction tables of one network."""
    on_train, on_validation = per_class_accuracy(train), per_class_accuracy(validation)
    supported = (on_train["support"] >= settings.min_support) & (on_validation["support"] >= settings.min_support)
    low_train = supported & (on_train["top1"] < settings.threshold)
    low_validation = supported & (on_validation["top1"] < settings.threshold)
    low_both = low_train & low_validation
    low = low_both if settings.splits == "both" else low_validation
    candidates = [int(index) for index in np.flatnonzero(low)]
    candidates.sort(key=lambda i: (on_validation["top1"][i], on_train["top1"][i], i))
    classes = [
        SelectedClass(
            class_index=i,
            name=train.classes[i],
            train_accuracy=float(on_train["top1"][i]),
            validation_accuracy=float(on_validation["top1"][i]),
            train_support=int(on_train["support"][i]),
            validation_support=int(on_validation["support"][i]),
        )
        for i in candidates[: settings.max_classes]
    ]
    in_turn = _videos(train, classes, settings.videos)
    found = (
        f"of {len(train.classes)} actions, {int(low_train.sum())} are below {100 * settings.threshold:.1f}% on the "
        f"training split, {int(low_validation.sum())} on the validation split, {int(low_both.sum())} on both"
    )
    if int((~supported).sum()):
        found += f" ({int((~supported).sum())} with fewer than {settings.min_support} videos in a split are left out)"
    which = {"misclassified": "misclassified", "random": "randomly drawn", "all": "(all)"}[settings.videos]
    chosen = f"; {len(classes)} chosen with {len(in_turn)} {which} training videos" if classes else ""
    return Selection(
        classes=classes,
        video_ids=in_turn[: settings.max_videos],
        validation_video_ids=_videos(validation, classes, "misclassified"),
        num_misclassified=len(_videos(train, classes, "misclassified")),
        reason=f"{found[0].upper()}{found[1:]}{chosen}.",
        settings=settings,
        inputs={
            "train_predictions": train.fingerprint,
            "validation_predictions": validation.fingerprint,
            "checkpoint": train.metadata.get("checkpoint_fingerprint"),
            "manifest": train.metadata.get("manifest_fingerprint"),
        },
    )


def _videos(predictions: Predictions, classes: list[SelectedClass], which: str) -> list[str]:
    """Return the misclassified videos of these classes, all, or as many at random; one of each class in turn.

    Within a class the order is that of a hash of the id: fixed, and a limit does not favour the oldest videos.
    """
    queues = []
    for item in classes:
        own = predictions.class_index == item.class_index
        wrong = own & ~predictions.correct
        rows = np.flatnonzero(wrong if which == "misclassified" else own)
        ids = sorted((predictions.video_ids[row] for row in rows), key=_order)
        queues.append(ids[: int(wrong.sum())] if which == "random" else ids)
    return [video_id for turn in itertools.zip_longest(*queues) for video_id in turn if video_id is not None]


def _order(video_id: str) -> tuple[bytes, str]:
    return hashlib.sha256(video_id.encode()).digest(), video_id


def _check_inputs(train: Predictions, validation: Predictions) -> None:
    for table, split in ((train, "train"), (validation, "validation")):
        if table.split != split:
            raise SelectionError(f"predictions of split {table.split!r} given where {split!r} is needed")
        if table.attention != "as_is":
            raise SelectionError(f"{split} predictions have attention {table.attention!r}: classes are selected as is")
    if train.classes != validation.classes:
        raise SelectionError(
            "the class lists of the two prediction tables differ: evaluate one checkpoint on both splits"
        )
    for key in ("checkpoint_fingerprint", "manifest_fingerprint"):
        first, second = train.metadata.get(key), validation.metadata.get(key)
        if first != second:
            raise SelectionError(
                f"{key}: {first} for train, {second} for validation; evaluate one checkpoint on both splits"
            )
