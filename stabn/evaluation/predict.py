"""Stage evaluate: what a network says about every video of a split."""

import contextlib
import io
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stabn.config import ConfigError, DataConfig, RunConfig, spec_of, with_loading
from stabn.data.dataset import MIDDLE, ClipDataset, all_views
from stabn.data.manifest import Manifest
from stabn.data.presence import check_frames
from stabn.data.sampler import shard
from stabn.data.sampling import evaluation_sample
from stabn.data.slots import to_frames
from stabn.evaluation.attention_modes import AttentionMode, known_curves
from stabn.evaluation.metrics import confusion_matrix, topk_accuracy
from stabn.evaluation.prediction_table import TOP, UNDER, Predictions
from stabn.models import STABN, Output
from stabn.presets import describe_frames
from stabn.progress import Progress
from stabn.stages import FRAME_MODES
from stabn.storage import fetch
from stabn.tracking import StageRun, stage_run
from stabn.training.checkpoint import check_classes, load_model, require_attention
from stabn.training.device import (
    Batch,
    autocast,
    average_clips,
    batch_input,
    choose_device,
    choose_precision,
    forward_clips,
    prepare,
)
from stabn.training.distributed import Control, World, join_world
from stabn.training.estimate import loading_processes
from stabn.training.launch import launch, must_launch
from stabn.training.loading import ClipLoader, in_batches
from stabn.training.validation import evaluation_batch

DISPLAYED_CLASSES = 30
PROBABILITY = "probability_"


@dataclass(frozen=True)
class Evaluation:
    """Predictions on a split, and the metrics logged for them under the same names before and after fine-tuning."""

    predictions: Predictions
    metrics: dict[str, float]


def evaluate(
    checkpoint_uri: str,
    manifest_uri: str,
    split: str,
    attention: str,
    output_path: str | Path,
    config: RunConfig,
    name: str = "baseline",
    segments_uri: str = "",
) -> Evaluation:
    """Recognise every video of a split once, and write the prediction table.

    Args:
        checkpoint_uri: the network; clips are sampled as it was trained.
        manifest_uri: the videos; their classes must be the network's.
        split: one of SPLITS, or auto: see Manifest.reported_split.
        attention: how the attention is changed, one of ATTENTION_MODES; see attention_modes.py.
        output_path: Parquet file to write, a path or URI.
        config: batch size, loading processes, device and precision, and how many views of a video are averaged.
        name: which network this is, such as `before`; part of the run's name in MLflow.
        segments_uri: for temporal_segments, JSON of video id to [first, last) frame of the action.

    Raises:
        CheckpointError: the classes differ, or the network has no attention to invert.
        ConfigError: no such attention mode.
    """
    AttentionMode(attention)
    if (attention == "temporal_segments") != bool(segments_uri):
        raise ConfigError(f"attention = {attention} with segments {segments_uri!r}: temporal_segments needs their file")
    if must_launch(config.train):
        launch(
            evaluate,
            config.train,
            checkpoint_uri=checkpoint_uri,
            manifest_uri=manifest_uri,
            split=split,
            attention=attention,
            output_path=output_path,
            config=config,
            name=name,
            segments_uri=segments_uri,
        )
        predictions = Predictions.load(output_path)
        return Evaluation(predictions, summarize(predictions))
    manifest = Manifest.load(manifest_uri)
    model, checkpoint = load_model(checkpoint_uri)
    check_classes(checkpoint, manifest.classes, manifest_uri)
    if attention != "as_is":
        require_attention(checkpoint, checkpoint_uri, "; use as_is")
    split = manifest.reported_split if split == "auto" else split
    inputs = {"dataset": manifest.fingerprint, "checkpoint": checkpoint.fingerprint}
    settings = {"split": split, "attention": attention, "name": name}
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(join_world(config.train.device, config.train.timeout_seconds))
        run = None
        if world.is_main:
            run = stack.enter_context(
                stage_run(
                    f"evaluate/{name}/{split}/{attention}", settings=settings, inputs=inputs, dataset=manifest.dataset
                )
            )
        rows = manifest.indices(split)
        world.on_main(lambda: check_frames(manifest, rows))
        columns = predict(model, manifest, rows, checkpoint.data_config, config, attention, world, segments_uri)
        metadata: dict[str, Any] = {
            "classes": list(manifest.classes),
            "checkpoint_fingerprint": checkpoint.fingerprint,
            "made_by": checkpoint.stage,
            "manifest_fingerprint": manifest.fingerprint,
            "model": checkpoint.model_config.name,
            "backbone": spec_of(checkpoint.model_config).describe(),
            "frames": describe_frames(checkpoint.data_config) + _describe_views(config.data),
            **settings,
        }
        predictions = Predictions(**columns, metadata=metadata)
        metrics = summarize(predictions)
        if run is not None:
            metadata.update(metrics)
            predictions.save(output_path)
            run.log_metrics(metrics)
            _log_file(run, output_path)
            shown = ", ".join(f"{key} {value:.1%}" for key, value in metrics.items() if "top" in key)
            print(f"evaluate {name}, {split}, attention {attention}: {len(predictions)} videos, {shown}", flush=True)
    return Evaluation(predictions, metrics)


def _log_file(run: StageRun, path: str | Path) -> None:
    """Store a file with the run, one in object storage too."""
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder, os.path.basename(path)) if "://" in str(path) else Path(path)
        if local != Path(path):
            fetch(path, local)
        run.log_artifact(local)


@torch.inference_mode()
def predict(
    model: nn.Module,
    manifest: Manifest,
    rows: np.ndarray,
    data: DataConfig,
    config: RunConfig,
    attention: str = "as_is",
    world: World | None = None,
    segments_uri: str = "",
) -> dict[str, Any]:
    """Return the columns of `Predictions` for some rows of a manifest, each row once.

    With `test_clips` or `test_crops` the scores are the mean of the probabilities of all views of a video, under each
    attention. Of ST-ABN as it is the columns have its temporal attention too, that of the middle view, and the best
    class under each of FRAME_MODES, which costs only the perception branch.

    Args:
        model: the network, in evaluation mode.
        manifest: the videos.
        rows: int64 (N,) rows of the manifest.
        data: how clips are sampled: the checkpoint's.
        config: batch size, loading processes, device and precision, views.
        attention: see `evaluate`.
        world: the processes that share the rows; all get the whole result.
        segments_uri: see `evaluate`.
    """
    world = world or World()
    device = choose_device(config.train.device, world.local_rank, world.size)
    dtype = choose_precision(config.train.precision, device)
    model = prepare(model, device)
    mine = shard(rows, world.rank, world.size)
    mode = AttentionMode(attention)
    other = [AttentionMode(name) for name in FRAME_MODES] if attention == "as_is" else []
    known = known_curves(manifest, rows, segments_uri) if segments_uri else None
    views = all_views(config.data.test_clips, config.data.test_crops)
    looks = [MIDDLE, *(view for view in views if not view.is_middle)]
    clips = with_loading(data, config.data)
    datasets = [ClipDataset(manifest, mine, clips, train=False, edits=known, view=view) for view in looks]
    size = evaluation_batch(config.train, world.size)
    workers = world.agree(lambda: loading_processes(clips, size, world.local_size, device))
    control = Control(world)
    seen: dict[str, Tensor] = {}
    stream = None if world.is_main else io.StringIO()
    with ClipLoader(datasets, device, workers) as loader:
        for number, dataset in enumerate(datasets):
            what = "evaluate" + (f", view {number + 1} of {len(datasets)}" if len(datasets) > 1 else "")
            progress = Progress(len(mine), what, stream=stream)
            batches = loader.batches(dataset, in_batches(range(len(dataset)), size))
            parts: dict[str, list[Tensor]] = {}
            for _ in range(-(-len(rows) // world.size // size)):
                # After each batch: who has done its share would else wait for the slowest no longer than one message
                # may take.
                control.exchange(False, False)
                batch = next(batches, None)
                if batch is None:
                    continue
                for name, values in _recognise(model, batch, data, dtype, mode, other).items():
                    parts.setdefault(name, []).append(values.cpu())
                progress.update(len(batch["target"]))
            progress.close()
            look = {name: torch.cat(tensors) for name, tensors in parts.items()}
            seen = _added(seen, look, counts=number > 0 or len(views) % 2 == 1)
    control.finish()
    shares = world.gather({name: values.numpy() for name, values in _best(seen, len(views)).items()})
    order = np.argsort(np.concatenate([shard(np.arange(len(rows)), rank, world.size) for rank in range(world.size)]))
    names = next(share for share in shares if share)
    columns: dict[str, Any] = {
        name: np.concatenate([share[name] for share in shares if share])[order] for name in names
    }
    under = {name.removeprefix(UNDER): columns.pop(name) for name in list(columns) if name.startswith(UNDER)}
    if "temporal" in columns:
        counts = (manifest.video(int(row)).num_frames for row in rows)
        columns["frames"] = np.stack([evaluation_sample(n, data.num_frames, data.num_clips).ravel() for n in counts])
    return {"video_ids": tuple(manifest.video_id(row) for row in rows), "under": under, **columns}


def _recognise(
    model: nn.Module,
    batch: Batch,
    data: DataConfig,
    dtype: torch.dtype,
    mode: AttentionMode,
    other: Sequence[AttentionMode],
) -> dict[str, Tensor]:
    """Return probabilities float32 (B, K), by branch and other attention, with loss, true class, attention (B, T)."""
    device = next(model.parameters()).device
    clips = batch_input(batch, data, device)
    under: dict[str, Tensor] = {}
    with autocast(device, dtype):
        if other and isinstance(model, STABN):
            output, under = _with_other_attention(model, clips, other)
        else:
            output = forward_clips(model, clips, **mode.options(batch["temporal_target"].flatten(0, 1)))
    logits = {"": output.logits, "attention_": output.attention_logits}
    logits |= {f"{UNDER}{name}": values for name, values in under.items()}
    found = {f"{PROBABILITY}{name}": v.float().softmax(1) for name, v in logits.items() if v is not None}
    if mode.name == "as_is" and output.temporal_attention is not None:
        values = output.temporal_attention.float().flatten(1)
        found["temporal"] = to_frames(values, data.num_frames).reshape(len(clips), -1)
    target = batch["target"]
    loss = nn.functional.cross_entropy(output.logits.float(), target, reduction="none", ignore_index=-1)
    return {**found, "loss": torch.where(target < 0, torch.nan, loss), "class_index": target}


def _with_other_attention(
    model: STABN, clips: Tensor, modes: Sequence[AttentionMode]
) -> tuple[Output, dict[str, Tensor]]:
    """Recognise clips (B, num_clips, 3, T, H, W), and return the scores (B, K) under other Mt too, by mode."""
    features = model.extract_features(clips.flatten(0, 1))
    own = model(features=features)
    assert own.spatial_attention is not None and own.temporal_attention is not None
    under = {}
    for mode in modes:
        replaced = mode.replace(own.temporal_attention.flatten(1))[:, None, :, None, None]
        scores = model.perceive(features, own.spatial_attention, replaced)
        under[mode.name] = scores.unflatten(0, clips.shape[:2]).mean(1)
    return average_clips(own, *clips.shape[:2]), under


def _added(seen: dict[str, Tensor], look: dict[str, Tensor], counts: bool) -> dict[str, Tensor]:
    """Add the probabilities of a look at the videos to those before; all else is that of the first, the middle."""
    if not seen:
        nothing = {} if counts else {n: torch.zeros_like(look[n]) for n in look if n.startswith(PROBABILITY)}
        return look | nothing
    return seen | {name: seen[name] + values for name, values in look.items() if name.startswith(PROBABILITY)}


def _best(seen: dict[str, Tensor], num_views: int) -> dict[str, Tensor]:
    """Return the columns of what was seen: instead of probabilities, summed over the views, the best classes."""
    columns = {name: values for name, values in seen.items() if not name.startswith(PROBABILITY)}
    for name in seen.keys() - columns.keys():
        mean, branch = seen[name] / num_views, name.removeprefix(PROBABILITY)
        if branch.startswith(UNDER):
            columns[branch] = mean.argmax(1)
            continue
        columns[f"{branch}scores"], columns[f"{branch}top5"] = mean.topk(min(TOP, mean.shape[1]), dim=1)
        if num_views > 1 and not branch:
            target = columns["class_index"]
            own = mean.gather(1, target.clamp(min=0)[:, None])[:, 0]
            columns["loss"] = torch.where(target < 0, torch.nan, -own.clamp(min=1e-12).log())
    return columns


def _describe_views(data: DataConfig) -> str:
    if data.test_clips == data.test_crops == 1:
        return ""
    return f", {data.test_clips} x {data.test_crops} views"


def summarize(predictions: Predictions) -> dict[str, float]:
    """Return top-1 and top-5 of each branch and the loss; nothing for videos without labels."""
    if predictions.class_index.min() < 0:
        return {}
    metrics = {"top1": topk_accuracy(predictions, 1), "top5": topk_accuracy(predictions, 5)}
    if predictions.attention_top5 is not None:
        metrics["attention_top1"] = topk_accuracy(predictions, 1, "attention")
        metrics["attention_top5"] = topk_accuracy(predictions, 5, "attention")
    return {**metrics, "loss": float(predictions.loss.mean())}


def confusion_for_display(predictions: Predictions) -> tuple[list[str], list[list[int]]]:
    """Return names and confusion counts of at most 30 classes: those with the most videos recognised wrongly."""
    matrix = confusion_matrix(predictions)
    wrong = matrix.sum(axis=1) - matrix.diagonal()
    kept = np.sort(np.argsort(-wrong, kind="stable")[:DISPLAYED_CLASSES])
    return [predictions.classes[i] for i in kept], matrix[np.ix_(kept, kept)].tolist()
