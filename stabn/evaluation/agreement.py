"""Stage agreement: whether the temporal attention lies where people, or known segments, say that the action is.

That a network attends to the right frames does not say that it uses them: see attention_modes.py for that.
"""

import json
import os
from collections.abc import Mapping, Sequence

import pandas as pd

from stabn.attention.export import attend
from stabn.config import ConfigError, RunConfig
from stabn.data.dataset import FrameReader
from stabn.data.manifest import Manifest
from stabn.progress import Progress
from stabn.storage import write_uri
from stabn.tracking import stage_run
from stabn.training.agreement import Agreement, agreement, known_frames
from stabn.training.checkpoint import check_classes, load_model, require_attention
from stabn.training.device import choose_device, prepare


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
    known = known_frames(manifest, manifest.indices(split), truth_uri)
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
        if not found:
            raise ConfigError(f"{truth_uri}: in no video of split {split} are some frames inside and some outside")
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
