"""Parameters of the KFP forms: defaults and descriptions come from the settings' own fields."""

import dataclasses
from collections.abc import Callable
from typing import Any

from stabn.config import SECTIONS

DESCRIPTIONS = {
    "videos_uri": "Folder or s3:// prefix with <id>.webm, or with the dataset's archive.",
    "labels_uri": "Folder or s3:// prefix with the four Something-Something v2 label files.",
    "storage_uri": "s3:// prefix that keeps frames, checkpoints and editing rounds.",
    "preset": "Named settings: ssv2_r50_32, ssv2_r50_32x2, ssv2_r101_32, ssv2_r101_32x2, baseline_..., mini.",
    "overrides": "Settings that differ from the preset, such as: train.epochs=20 data.workers=8.",
    "dataset_version": "Part of the dataset's fingerprint, which otherwise is that of its files; usually empty.",
    "extract_parts": "Pods that extract frames at the same time, each with its share of the videos.",
    "num_nodes": "Nodes that train and evaluate together; 1: the step itself, or with an accelerator one TrainJob.",
    "procs_per_node": "Processes of each node, one per accelerator.",
    "accelerator": "Resource that each process gets one of, such as nvidia.com/gpu; empty: none.",
    "round_uri": "Editing round that people have corrected; it holds its network and its manifest.",
    "edit_source": "people: wait for corrections in the editor; segments: write them from segments_uri.",
    "edit_segments_uri": "With segments: JSON file of video id to [first, last) frame of the action.",
    "edit_min_share": "With people: share of the round's videos to be edited or skipped before going on, 0 to 1.",
    "edit_timeout_hours": "With people: hours to wait at most.",
    "model_name": "Name in MLflow's model registry whose alias champion may move; empty: register nothing.",
}


# Places without which a run makes no sense. The form shows them empty, or as an installation sets them when compiling.
NEEDED = ("videos_uri", "labels_uri", "storage_uri", "round_uri")


def default(setting: str) -> Any:
    """Return the default of a setting such as `select.threshold`."""
    section, name = setting.split(".")
    return _field(section, name).default


def describe(function: Callable[..., Any]) -> Callable[..., Any]:
    """Complete a pipeline function's docstring with a line for each parameter.

    A parameter named `select_threshold` is described by the field `threshold` of the section `select`.
    """
    lines = []
    for name in function.__annotations__:
        section, _, field = name.partition("_")
        text = DESCRIPTIONS.get(name) or _sentence(_field(section, field).metadata["help"])
        lines.append(f"    {name}: {text}")
    function.__doc__ = f"{function.__doc__}\n\nArgs:\n" + "\n".join(lines) + "\n"
    return function


def _field(section: str, name: str) -> Any:
    return {item.name: item for item in dataclasses.fields(SECTIONS[section])}[name]


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
