"""Stage agreement: whether the temporal attention lies where people, or known segments, say that the action is.

That a network attends to the right frames does not say that it uses them: see attention_modes.py for that.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, roc_auc_score

from stabn.attention.automatic import load_segments
from stabn.attention.export import attend
from stabn.config import ConfigError, RunConfig
from stabn.data.dataset import FrameReader
from stabn.data.edit_table import load_edit_table
from stabn.data.manifest import Manifest
from stabn.progress import Progress
from stabn.storage import write_uri
from stabn.tracking import stage_run
from stabn.training.checkpoint import check_classes, load_model, require_attention
from stabn.training.device import choose_device, prepare

INSIDE = 0.5  # from this value on, an edited curve says that the frame belongs to the action


class Agreement(NamedTuple):
    """How well a curve tells the frames of the action from the others, each 0 to 1, 1 best.

    Attributes:
        ap: average precision; by chance the share of frames inside.
        auc: area under the ROC curve; by chance 0.5.
        iou: of the frames inside and those above the middle of the curve's range.
        pointing: 1 if the highest frame is inside (the pointing game); by chance the share of frames inside.
        chance: the share of frames inside.
    """

    ap: float
    auc: float
    iou: float
    pointing: float
    chance: float


def agreement(curve: np.ndarray, inside: np.ndarray) -> Agreement | None:
    """Compare a curve with the frames that belong to the action.

    Args:
        curve: float (num_source,), the temporal attention per source frame.
        inside: bool (num_source,).

    Returns:
        None if all frames are inside or none is: then there is nothing to tell apart.
    """
    if inside.all() or not inside.any():
        return None
    above = curve >= (curve.min() + curve.max()) / 2
    return Agreement(
        ap=float(average_precision_score(inside, curve)),
        auc=float(roc_auc_score(inside, curve)),
        iou=float((above & inside).sum() / (above | inside).sum()),
        pointing=float(inside[int(curve.argmax())]),
        chance=float(inside.mean()),
    )


def known_frames(manifest: Manifest, truth_uri: str) -> dict[str, np.ndarray]:
    """Return by video id which source frames belong to the action, bool (num_source,).

    Args:
        manifest: the videos.
        truth_uri: JSON of video id to [first, last) frame, or an edit table (Parquet).

    Raises:
        SegmentsError, EditError: the file is no such file.
    """
    if truth_uri.endswith(".json"):
        known = {}
        for name, (first, last) in load_segments(truth_uri).items():
            frames = np.arange(manifest.video(manifest.index_of(name)).num_frames)
            known[name] = (frames >= first) & (frames < last)
        return known
    return {name: np.nan_to_num(curve) >= INSIDE for name, curve in load_edit_table(truth_uri).items()}


def measure_agreement(
    checkpoint_uri: str,
    manifest_uri: str,
    split: str,
    truth_uri: str,
    config: RunConfig,
    output_path: str | os.PathLike[str] = "",
) -> pd.DataFrame:
    """Compare a network's attention with what is known of a split's videos, print it by action, and keep it.

    Args:
        checkpoint_uri: ST-ABN.
        manifest_uri: the videos.
        split: one of SPLITS, or auto.
        truth_uri: see `known_frames`; videos of the split that it does not name are left out.
        config: device and precision.
        output_path: JSON to write; empty: none.

    Returns:
        A row per action, and `all`: videos, and the mean of each number of Agreement.

    Raises:
        CheckpointError: the network has no attention, or other classes.
        ConfigError: nothing is known of any video of the split.
    """
    manifest = Manifest.load(manifest_uri)
    model, checkpoint = load_model(checkpoint_uri)
    check_classes(checkpoint, manifest.classes, manifest_uri)
    require_attention(checkpoint, checkpoint_uri, " to compare")
    split = manifest.reported_split if split == "auto" else split
    known = known_frames(manifest, truth_uri)
    rows = [row for row in manifest.indices(split) if manifest.video_id(row) in known]
    if not rows:
        raise ConfigError(f"{truth_uri}: names no video of split {split}")
    inputs = {"dataset": manifest.fingerprint, "checkpoint": checkpoint.fingerprint}
    with stage_run(f"agreement/{split}", settings={"split": split, "truth": truth_uri}, inputs=inputs) as run:
        model, reader = prepare(model, choose_device(config.train.device)), FrameReader(manifest)
        found = []
        for row in Progress(len(rows), f"agreement, {split}").track(rows):
            video = manifest.video(row)
            curve = attend(model, reader.packed(row), checkpoint.data_config, config.train.precision).temporal
            if numbers := agreement(curve, known[video.video_id]):
                found.append({"action": manifest.classes[video.class_index], **numbers._asdict()})
        table = summarize_agreement(found)
        print(table.to_string(float_format=lambda value: f"{value:.3f}"), flush=True)
        run.log_metrics({name: float(table[name]["all"]) for name in Agreement._fields})
        if output_path:
            write_uri(output_path, json.dumps({"split": split, "actions": table.to_dict("index")}, indent=1).encode())
    return table


def summarize_agreement(found: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """Return videos and means by action, and over all videos as the last row."""
    frame = pd.DataFrame(found)
    groups = frame.groupby("action", sort=True)
    table = groups.mean(numeric_only=True).assign(videos=groups.size())
    table.loc["all"] = {**frame.mean(numeric_only=True), "videos": len(frame)}
    table["videos"] = table["videos"].astype(int)
    return table[["videos", *Agreement._fields]]
