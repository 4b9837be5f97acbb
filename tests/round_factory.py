"""A small real round for the editor's tests: frames in storage, manifest, network, exported attention."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import simplejpeg
import torch

from stabn.attention.export import export_round
from stabn.attention.rounds import Round, load_round
from stabn.config import DataConfig, ModelConfig
from stabn.data.manifest import build_manifest
from stabn.models import STABN
from stabn.presets import mini
from stabn.storage import open_storage
from stabn.training.checkpoint import dump_checkpoint

CLASSES = (
    "Moving something up",
    "Moving something down",
    "Something falling like a rock",
    "Pushing something from left to right",
    "Spinning something so it continues spinning",
    "Turning the camera right while filming something",
    "Showing that <b>something</b> is empty",
)
LENGTHS = {"10": 12, "11": 24, "12": 33, "13": 8, "14": 40, "15": 20, "16": 16, "17": 28}
ACTION = (0.3, 0.7)  # share of the video in which the square moves
DATA = DataConfig(num_frames=8, crop_size=32)


def network() -> STABN:
    """Return a random network whose answer depends on its temporal attention."""
    torch.manual_seed(3)
    model = STABN(ModelConfig(num_blocks=(1, 1, 1, 1), width=8, num_classes=len(CLASSES), num_frames=8))
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 8, 32, 32))
        model.perception_branch.fc.weight.mul_(40)
    return model.eval()


def moving_square(length: int, seed: int, scale: int = 1) -> Iterator[np.ndarray]:
    """Yield uint8 (60, 80, 3) times the scale: a square that moves in the middle of the video only."""
    rng, tile = np.random.default_rng(seed), 10 * scale
    background = np.repeat(np.repeat(rng.integers(40, 200, (6, 8, 3)), tile, 0), tile, 1).astype(np.uint8)
    start, end = (share * length for share in ACTION)
    for index in range(length):
        left = int(np.clip((index - start) / (end - start), 0, 1) * 6 * tile)
        frame = background.copy()
        frame[2 * tile : 4 * tile, left : left + 2 * tile] = (250, 140, 20)
        yield frame


def make_round(folder: Path, storage_uri: str, lengths: dict[str, int] = LENGTHS, scale: int = 1) -> Round:
    """Export a round of videos of these lengths under a storage."""
    storage = open_storage(storage_uri)
    rows = []
    for position, (video_id, length) in enumerate(lengths.items()):
        jpegs = [simplejpeg.encode_jpeg(frame) for frame in moving_square(length, position, scale)]
        storage.write(f"frames/{video_id}.mjpeg", b"".join(jpegs))
        rows.append(
            {"video_id": video_id, "split": "train", "class_index": position % 3, "label": ""}
            | {"object_key": f"frames/{video_id}.mjpeg", "frame_sizes": [len(jpeg) for jpeg in jpegs]}
            | {"num_frames": length, "width": 80 * scale, "height": 60 * scale, "source_sha256": "0"}
        )
    manifest = build_manifest(rows, CLASSES, storage_uri, {})
    manifest.save(folder / "manifest.parquet")
    model = network()
    content = dump_checkpoint(
        model, model.config, DATA, CLASSES, manifest_fingerprint=manifest.fingerprint, stage="train", epoch=1
    )
    (folder / "checkpoint.pt").write_bytes(content)
    chosen = {"train_accuracy": 0.1, "validation_accuracy": 0.1, "train_support": 3, "validation_support": 3}
    selection = {
        "format": 1,
        "classes": [{"class_index": i, "name": CLASSES[i], **chosen} for i in range(3)],
        "video_ids": list(lengths),
        "validation_video_ids": [],
        "num_misclassified": len(lengths),
        "reason": "",
        "settings": {},
        "inputs": {},
    }
    (folder / "selection.json").write_text(json.dumps(selection))
    paths = (str(folder / name) for name in ("checkpoint.pt", "manifest.parquet", "selection.json"))
    return export_round(*paths, storage_uri, mini())


def copy_round(item: Round, uri: str) -> Round:
    """Copy a round without anybody's work; its frames stay where they are."""
    target = open_storage(uri)
    for key in item.storage.list():
        if key.startswith("videos/") or "/" not in key:
            target.write(key, item.storage.read(key))
    return load_round(uri)
