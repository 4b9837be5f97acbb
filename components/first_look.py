"""A look at everything that a pipeline was given, before its first hour: values, files, storage, tracking, cluster."""

import uuid
from collections.abc import Mapping
from typing import Any

from components.cluster.config import ClusterConfig
from components.placement import Placement
from stabn.attention.rounds import load_round
from stabn.config import ConfigError, RunConfig
from stabn.config.weight_names import is_named
from stabn.data.edit_table import load_edit_table
from stabn.data.segments import load_segments
from stabn.data.ssv2 import load_labels
from stabn.errors import RetryableError
from stabn.evaluation.prediction_table import Predictions
from stabn.forms import check_form
from stabn.storage import open_storage, uri_exists
from stabn.tracking import find_champion


def check_all(pipeline: str, values: Mapping[str, Any]) -> None:
    """Check a form as `check_form` does, and whether what it names is there and can be used.

    Args:
        pipeline: baseline, finetune or full.
        values: of its form, by the names there.

    Raises:
        StabnError: what the stage that needs it would say, later.
    """
    config = check_form(pipeline, values)
    if not Placement(values["num_nodes"], values["procs_per_node"], values["node_accelerator"]).is_here:
        ClusterConfig.load()
    _check_storage(values["data_storage_uri"])
    if "data_labels_uri" in values:
        labels = load_labels(values["data_labels_uri"], config.extract.held_out)
        split = values.get("report_split")
        if split == "held_out" and not any(video.split == split for video in labels.videos):
            raise ConfigError(
                f"report_split = 'held_out': the labels hold no videos out, and extract.held_out = "
                f"{config.extract.held_out:g}; set extract.held_out=0.1 in overrides, or report_split = 'auto'"
            )
    if values.get("edit_segments_uri"):
        load_segments(values["edit_segments_uri"])
    if truth := values.get("truth_uri"):
        load_segments(truth) if truth.endswith(".json") else load_edit_table(truth)
    if values.get("report_baseline_uri"):
        Predictions.load(values["report_baseline_uri"])
    if "data_round_uri" in values:
        load_round(values["data_round_uri"])
    if pipeline != "finetune" or values["route"] == "retrain":
        _check_weights(config)
    if values.get("model_name"):
        try:
            find_champion(values["model_name"])
        except RetryableError as error:  # days before it is needed
            print(f"{error}; looked at again when it is needed", flush=True)
    print(f"{pipeline}: every stage can use what the form says", flush=True)


def _check_storage(uri: str) -> None:
    """Write an object, read it back and delete it."""
    storage, key = open_storage(uri), f"checks/{uuid.uuid4().hex}"
    storage.write(key, b"check")
    try:
        if storage.read(key) != b"check":
            raise ConfigError(f"data_storage_uri = {uri!r}: what was written there is not what is read")
    finally:
        storage.delete(key)


def _check_weights(config: RunConfig) -> None:
    name = config.train.init_weights
    if not is_named(name) and not uri_exists(name):
        raise ConfigError(f"train.init_weights = {name!r}: no such file or object")
