"""Stage export-attention: temporal and spatial attention of every source frame, and the round made of it."""

import contextlib
import io
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import nn

from stabn.attention.fonts import class_name
from stabn.attention.render import Panel, attention_figure, preview_frames
from stabn.attention.rounds import (
    CHECKPOINT_FILE,
    MANIFEST_FILE,
    ROUND_FILE,
    SELECTION_FILE,
    Round,
    RoundError,
    RoundVideo,
    check_round,
    load_round,
    make_round_id,
    save_round,
    tell_link,
)
from stabn.attention.selection import Selection, load_selection
from stabn.config import DataConfig, RunConfig
from stabn.data.dataset import FrameReader
from stabn.data.manifest import Manifest
from stabn.data.packed_frames import Frames
from stabn.data.presence import check_frames
from stabn.data.sampling import covering_samples, evaluation_sample
from stabn.data.slots import to_frames
from stabn.data.transforms import Crop, crop_clip, evaluation_crop, to_input
from stabn.data.video_encoding import encode
from stabn.progress import Progress
from stabn.storage import Storage, check_id, check_promises, open_storage, read_uri
from stabn.text import parse_json
from stabn.tracking import stage_run
from stabn.training.checkpoint import check_classes, load_model, require_attention
from stabn.training.device import choose_device, choose_precision, prepare

TOP = 5
PREVIEW_FPS = 12
PASSES_AT_ONCE = 8


@dataclass(frozen=True)
class VideoAttention:
    """What a network sees in one video.

    Attributes:
        temporal: float32 (num_source,) in [0, 1], mean over the passes that saw the frame.
        spatial: uint8 (num_source, h, w), 255 times the mean Ms, over `crop`.
        probabilities: float32 (K,), of the evaluation clips.
        crop: part of the frames that the network sees.
    """

    temporal: np.ndarray
    spatial: np.ndarray
    probabilities: np.ndarray
    crop: Crop

    def top(self, classes: tuple[str, ...], number: int = TOP) -> list[tuple[int, str, float]]:
        """Return class index, name and probability of the best classes."""
        best = np.argsort(-self.probabilities, kind="stable")[:number]
        return [(int(i), classes[i], float(self.probabilities[i])) for i in best]


@torch.inference_mode()
def attend(model: nn.Module, frames: Frames, data: DataConfig, precision: str = "auto") -> VideoAttention:
    """Return the attention of every source frame of a video.

    The network sees T sampled frames; the sampling is shifted until every source frame was seen, and each frame's
    values are averaged over the passes that saw it. Only the frames of a few passes are held at once.

    Args:
        model: ST-ABN on its device, in evaluation mode.
        frames: uint8 (num_source, H, W, 3) RGB.
        data: how the network's clips are sampled and cropped.
        precision: see TrainConfig.
    """
    device = next(model.parameters()).device
    dtype = choose_precision(precision, device)
    num_source, height, width = frames.shape[:3]
    crop = evaluation_crop(width, height, data)
    covering = covering_samples(num_source, data.num_frames)
    usual = evaluation_sample(num_source, data.num_frames, data.num_clips)
    samples = np.concatenate([usual, covering])
    logits, temporal, spatial = [], [], []
    for part in np.array_split(samples, -(-len(samples) // PASSES_AT_ONCE)):
        wanted, places = np.unique(part, return_inverse=True)
        clip = torch.from_numpy(crop_clip(frames[wanted], crop, data.crop_size))
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            output = model(to_input(clip[torch.from_numpy(places.reshape(part.shape))], data, device))
        logits.append(output.logits.float().cpu())
        temporal.append(to_frames(output.temporal_attention.float().flatten(1), data.num_frames).cpu())
        spatial.append(to_frames(output.spatial_attention.float().squeeze(1), data.num_frames, dim=1).cpu())
    probabilities = torch.cat(logits)[: len(usual)].mean(0).softmax(0).numpy()
    seen = covering.ravel()
    counts = np.bincount(seen, minlength=num_source)
    sums = np.bincount(seen, weights=torch.cat(temporal)[len(usual) :].numpy().ravel(), minlength=num_source)
    maps = torch.cat(spatial)[len(usual) :].flatten(0, 1).numpy()
    total = np.zeros((num_source, *maps.shape[1:]), np.float32)
    np.add.at(total, seen, maps)
    mean = total / counts[:, None, None]
    return VideoAttention(
        (sums / counts).astype(np.float32), (mean * 255).round().astype(np.uint8), probabilities, crop
    )


def export_round(
    checkpoint_uri: str, manifest_uri: str, selection_path: str, storage_uri: str, config: RunConfig
) -> Round:
    """Export the selected videos as a round under `<storage>/rounds/<round id>`.

    The same network, dataset and videos give the same round: an interrupted export goes on, a finished one is
    returned as it is, and edits are never touched.

    Args:
        checkpoint_uri: the trained ST-ABN.
        manifest_uri: the dataset.
        selection_path: selection of select-classes.
        storage_uri: folder or prefix that gets the round.
        config: device and precision.

    Raises:
        CheckpointError: the network has no attention, or other classes.
    """
    manifest = Manifest.load(manifest_uri)
    model, checkpoint = load_model(checkpoint_uri)
    check_classes(checkpoint, manifest.classes, manifest_uri)
    require_attention(checkpoint, checkpoint_uri, " to export")
    selection = load_selection(selection_path)
    round_id = make_round_id(manifest.fingerprint, checkpoint.fingerprint, selection.video_ids)
    storage = open_storage(storage_uri).child(f"rounds/{round_id}")
    inputs = {"dataset": manifest.fingerprint, "checkpoint": checkpoint.fingerprint}
    with stage_run("export-attention", settings={"round": storage.uri}, inputs=inputs) as run:
        tell_link(round_id, run, "export-attention")
        if storage.exists(ROUND_FILE):
            item = load_round(storage.uri)
            try:
                check_round(item)
                print(f"export-attention: round {round_id} is complete", flush=True)
                return item
            except RoundError as error:
                print(f"export-attention: {error}; writing again what is missing", flush=True)
        check_frames(manifest, [manifest.index_of(video_id) for video_id in selection.video_ids])
        check_promises(storage)
        storage.write(MANIFEST_FILE, read_uri(manifest_uri))
        storage.write(CHECKPOINT_FILE, read_uri(checkpoint_uri))
        storage.write(SELECTION_FILE, read_uri(selection_path))
        model = prepare(model, choose_device(config.train.device))
        videos = list(
            _export_videos(model, manifest, selection, checkpoint.data_config, storage, config.train.precision)
        )
        result = Round(
            uri=storage.uri,
            round_id=round_id,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            manifest_fingerprint=manifest.fingerprint,
            checkpoint_fingerprint=checkpoint.fingerprint,
            classes=manifest.classes,
            selected_classes=tuple(selection.class_indices),
            videos=tuple(videos),
        )
        save_round(result)
        run.log_metrics({"videos": len(videos)})
        for video in videos[:4]:
            with _as_file(storage.read(f"videos/{video.video_id}/figure.png"), f"{video.video_id}.png") as path:
                run.log_artifact(path, "attention")
    print(f"export-attention: {len(videos)} videos in {storage.uri}", flush=True)
    return result


def _export_videos(
    model: nn.Module, manifest: Manifest, selection: Selection, data: DataConfig, storage: Storage, precision: str
) -> Iterator[RoundVideo]:
    reader = FrameReader(manifest)
    progress = Progress(len(selection.video_ids), "export-attention")
    for video_id in selection.video_ids:
        index = manifest.index_of(check_id(video_id, "video id"))
        video = manifest.video(index)
        folder = storage.child(f"videos/{video_id}")
        if not folder.exists("attention.json"):
            frames = reader.packed(index)
            attention = attend(model, frames, data, precision)
            _write_video(folder, video_id, video.class_index, manifest.classes, frames, attention)
        seen = parse_json(folder.read("attention.json"))
        best = seen["top5"][0]
        yield RoundVideo(
            video_id=video_id,
            class_index=video.class_index,
            label=manifest.classes[video.class_index],
            predicted=best["class_index"],
            score=best["score"],
            num_frames=video.num_frames,
            width=video.width,
            height=video.height,
            true_score=seen.get("true_score"),
        )
        progress.update(1)
    progress.close()


def _write_video(
    folder: Storage,
    video_id: str,
    class_index: int,
    classes: tuple[str, ...],
    frames: Frames,
    attention: VideoAttention,
) -> None:
    """Write a video's documents; `attention.json` last, so that the video is whole when it is there."""
    top = attention.top(classes)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, spatial_attention=attention.spatial)
    folder.write("spatial.npz", buffer.getvalue())
    heading = f"Video {video_id}: {class_name(classes, class_index)}"
    folder.write(
        "figure.png", attention_figure(frames, [panel("prediction", attention, classes, class_index)], heading=heading)
    )
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "preview.webm"
        encode(path, preview_frames(frames, attention.temporal), PREVIEW_FPS)
        folder.upload(path, "preview.webm")
    content = {
        "video_id": video_id,
        "class_index": class_index,
        "num_frames": len(frames),
        "temporal_attention": [round(float(value), 5) for value in attention.temporal],
        "top5": [{"class_index": i, "name": name, "score": score} for i, name, score in top],
        "true_score": float(attention.probabilities[class_index]),
        "crop": asdict(attention.crop),
    }
    folder.write("attention.json", json.dumps(content).encode())


def panel(name: str, attention: VideoAttention, classes: tuple[str, ...], class_index: int) -> Panel:
    """Return a figure's panel: the network's prediction and attention; class_index -1: the true class is not known."""
    predicted, _, score = attention.top(classes, 1)[0]
    correct = None if class_index < 0 else predicted == class_index
    return Panel(
        f"{name}: {class_name(classes, predicted)}, {score:.0%}",
        correct,
        attention.temporal,
        attention.spatial,
        attention.crop,
    )


@contextlib.contextmanager
def _as_file(data: bytes, name: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        yield str(path)
