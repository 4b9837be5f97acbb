"""A tiny dataset, a tiny network's settings, and what its runs leave behind, for the tests of training."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
import torch

from stabn.config import DataConfig, ExtractConfig, FinetuneConfig, ModelConfig, RunConfig, TrainConfig
from stabn.data.edit_table import EDIT_SCHEMA
from stabn.data.manifest import build_manifest
from stabn.storage import open_storage
from stabn.training.checkpoint import parse_checkpoint, read_checkpoint
from stabn.training.states import State, StateStore, load_part

CLASSES = ("Pushing something from left to right", "Pushing something from right to left", "Holding something")
SPLITS = ("train",) * 9 + ("validation",) * 6
COMMON: dict[str, Any] = {
    "batch_size": 4,
    "reference_batch_size": 0,
    "micro_batch_size": 0,
    "log_steps": 0,
    "precision": "fp32",
    "device": "cpu",
}
EDITED = {"1": [1.0, 1, 1, 0, 0, 0], "2": [1.0, 1, 1, np.nan, 0, 0, 0], "3": [1.0, 1, 1, 1, 0, 0, 0, 0]}


def frames_of(class_index: int, num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Return uint8 (num_frames, 40, 48, 3): a bright square that is pushed to one side, or held."""
    frames = rng.integers(0, 60, (num_frames, 40, 48, 3), dtype=np.uint8)
    top = int(rng.integers(4, 20))
    for index in range(num_frames):
        way = index / (num_frames - 1)
        left = round(34 * (way, 1 - way, 0.5)[class_index])
        frames[index, top : top + 14, left : left + 14] = 230
    return frames


def write_dataset(folder: Path) -> str:
    """Write 15 videos of 6 to 10 frames, and return their manifest."""
    (folder / "frames").mkdir()
    rng, rows = np.random.default_rng(5), []
    for number, split in enumerate(SPLITS):
        class_index, num_frames = number % 3, 6 + number % 5
        jpegs = [simplejpeg.encode_jpeg(frame, 90, "RGB") for frame in frames_of(class_index, num_frames, rng)]
        key = f"{number + 1}.mjpeg"
        (folder / "frames" / key).write_bytes(b"".join(jpegs))
        rows.append(
            {
                "video_id": str(number + 1),
                "split": split,
                "class_index": class_index,
                "label": CLASSES[class_index].replace("something", "a box"),
                "object_key": key,
                "frame_sizes": [len(jpeg) for jpeg in jpegs],
                "num_frames": num_frames,
                "width": 48,
                "height": 40,
                "source_sha256": f"{number:064}",
            }
        )
    build_manifest(rows, CLASSES, str(folder / "frames"), {}).save(folder / "manifest.parquet")
    return str(folder / "manifest.parquet")


def settings(**changes: Any) -> RunConfig:
    """Return settings of a tiny network; `train__epochs=3` sets train.epochs."""
    sections: dict[str, Any] = {
        "extract": ExtractConfig(short_side=40),
        "data": DataConfig(num_frames=4, crop_size=32, scales=(1.0, 0.9), color_jitter=0.1, workers=0),
        "model": ModelConfig(block="basic", num_blocks=(1, 1, 1, 1), width=4, num_frames=4, dropout=0.5),
        "train": TrainConfig(**COMMON, epochs=3, learning_rate=0.01, init_weights="random"),
        "finetune": FinetuneConfig(**COMMON, epochs=6, learning_rate=0.01),
    }
    for name, value in changes.items():
        section, _, field = name.partition("__")
        sections[section] = dataclasses.replace(sections[section], **{field: value})
    return RunConfig(preset="mini", **sections)


def write_edits(path: Path, curves: dict[str, list[float]], fingerprint: str = "f" * 16) -> str:
    """Write a table like that of import-edits."""
    rows = [
        {"video_id": name, "edited_attention": curve, "editor": "test", "revision": 1, "status": "edited"}
        for name, curve in curves.items()
    ]
    header = json.dumps({"round_id": "round", "fingerprint": fingerprint}).encode()
    pq.write_table(pa.Table.from_pylist(rows, schema=EDIT_SCHEMA.with_metadata({b"stabn": header})), path)
    return str(path)


TIMES = ("seconds", "videos_per_second", "waiting_share")


def without_times(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in history]


def newest_state(folder: Path) -> State | None:
    """Return the state that a run would go on from."""
    return StateStore(open_storage(str(folder)), 1).newest(lambda content, uri: None, print)


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the network after the last epoch, without BatchNorm's counters of batches, which nothing reads."""
    state = newest_state(folder)
    assert state is not None
    weights = parse_checkpoint(state.parts["network"], state.uri)["model"]
    return {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}


def same(one: Any, other: Any, where: str = "") -> None:
    """Compare checkpoints' contents to the last bit, naming the first place where they differ."""
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for number, pair in enumerate(zip(one, other)):
            same(*pair, f"{where}[{number}]")
    else:
        assert one == other, where


def checkpoints(folder: Path) -> dict[str, Any]:
    """Return all that a run has left, without what it took."""
    state = newest_state(folder)
    assert state is not None
    contents = {
        "best": read_checkpoint(str(folder / "best.pt")),
        "network": parse_checkpoint(state.parts["network"], state.uri),
        "optimizer": load_part(state.parts["optimizer"]),
        "state": state.content,
    }
    for content in contents.values():
        if "history" in content:
            content["history"] = without_times(content["history"])
    return contents
