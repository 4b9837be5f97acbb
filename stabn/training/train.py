"""Stages train and finetune: what is trained on what, with which loss."""

import contextlib
import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from stabn.attention.edits import EditTable, load_edit_table
from stabn.config import FitConfig, RunConfig, fingerprint, to_dict, with_loading
from stabn.data.dataset import ClipDataset
from stabn.data.manifest import Manifest
from stabn.models import STABN, build_model
from stabn.models.weights import load_initial_weights
from stabn.storage import fetch, open_storage
from stabn.tracking import StageRun, stage_run
from stabn.training.batchnorm import synchronize_batch_norm
from stabn.training.checkpoint import CheckpointError, check_classes, describe, load_model, read_checkpoint
from stabn.training.device import choose_device, prepare
from stabn.training.distributed import World, is_main, join_world
from stabn.training.features import FeatureCache
from stabn.training.launch import launch, must_launch
from stabn.training.loop import BEST, Fit, TrainingError, run_identity
from stabn.training.losses import finetuning_loss, training_loss
from stabn.training.states import StateStore


@dataclass(frozen=True)
class TrainResult:
    """What a training stage leaves in its output.

    Attributes:
        best_uri: checkpoint of the epoch with the best validation top-1, the one to use.
        last_uri: checkpoint of the last epoch.
        history: one dict of metrics per epoch.
        metrics: those of the best epoch.
    """

    best_uri: str
    last_uri: str
    history: list[dict[str, float]]
    metrics: dict[str, float]


def train(manifest_uri: str, config: RunConfig, output_uri: str, profile_path: str = "") -> TrainResult:
    """Train ST-ABN or the 3D ResNet baseline on the training split (paper, section 4.1; eq. 4).

    Under torchrun this is one of the run's processes; with `train.processes` it starts them. An output that holds an
    unfinished run of the same settings and data is gone on with.

    Args:
        manifest_uri: manifest of extract-frames.
        config: all settings; the number of classes is the manifest's.
        output_uri: folder or prefix for checkpoints and the history.
        profile_path: file for a trace of a few steps; empty: none.
    """
    settings = config.train
    if must_launch(settings):
        launch(
            train, settings, manifest_uri=manifest_uri, config=config, output_uri=output_uri, profile_path=profile_path
        )
        return read_result(output_uri)
    with join_world(settings.device, settings.timeout_seconds) as world:
        manifest = Manifest.load(manifest_uri)
        model_config = dataclasses.replace(config.model, num_classes=len(manifest.classes))
        torch.manual_seed(settings.seed)
        model = build_model(model_config)
        if settings.init_weights:
            world.say(str(load_initial_weights(model, settings.init_weights)))
        rows = manifest.indices("train")
        fit = Fit(
            model=_prepare(model, settings, world),
            model_config=model_config,
            data_config=config.data,
            settings=settings,
            train_data=ClipDataset(manifest, rows, config.data, train=True, seed=settings.seed),
            validation_data=ClipDataset(manifest, manifest.indices("validation"), config.data, train=False),
            storage=open_storage(output_uri),
            stage="train",
            loss=lambda output, batch: training_loss(output, batch["target"]),
            epoch_rows=lambda epoch: rows,
            identity=run_identity(settings, config.data, model_config, manifest=manifest.fingerprint),
            world=world,
            profile_path=profile_path,
        )
        return _run(fit, key="train", inputs={"dataset": manifest.fingerprint})


def finetune(
    checkpoint_uri: str,
    manifest_uri: str,
    edits_path: str,
    config: RunConfig,
    output_uri: str,
    name: str = "finetune",
    profile_path: str = "",
) -> TrainResult:
    """Fine-tune both branches with edited temporal attention (paper, eq. 5 and 6); the feature extractor is frozen.

    Every epoch sees all edited videos and a fresh draw of `finetune.unedited_share` of the other training videos.
    With `finetune.gamma = 0` this is the control run: the same training without the edits' influence.

    Args:
        checkpoint_uri: the trained network.
        manifest_uri: the manifest it was trained on.
        edits_path: edit table of import-edits.
        config: settings; the network's and the clips' own are taken from the checkpoint.
        output_uri: folder or prefix for checkpoints and the history.
        name: what the run is called in logs and in MLflow, such as `finetune` or `finetune-control`.
        profile_path: file for a trace of a few steps; empty: none.

    Raises:
        TrainingError: the edits do not fit the manifest.
    """
    settings = config.finetune
    inputs = {"checkpoint_uri": checkpoint_uri, "manifest_uri": manifest_uri, "edits_path": edits_path}
    if must_launch(settings):
        launch(finetune, settings, config=config, output_uri=output_uri, name=name, profile_path=profile_path, **inputs)
        return read_result(output_uri)
    with join_world(settings.device, settings.timeout_seconds) as world:
        return _run_finetuning(world, config, output_uri, name, profile_path, **inputs)


def _run_finetuning(
    world: World,
    config: RunConfig,
    output_uri: str,
    name: str,
    profile_path: str,
    checkpoint_uri: str,
    manifest_uri: str,
    edits_path: str,
) -> TrainResult:
    settings = config.finetune
    manifest = Manifest.load(manifest_uri)
    model, checkpoint = load_model(checkpoint_uri)
    check_classes(checkpoint, manifest.classes, manifest_uri)
    if checkpoint.model_config.name != "st_abn":
        raise CheckpointError(f"{checkpoint_uri}: a {checkpoint.model_config.name} has no attention to fine-tune")
    edits = load_edit_table(edits_path)
    edited = _edited_rows(edits, manifest)
    others = np.setdiff1d(manifest.indices("train"), edited)
    data = with_loading(checkpoint.data_config, config.data)

    def epoch_rows(epoch: int) -> np.ndarray:
        rng = np.random.default_rng([settings.seed, epoch, 1])
        drawn = rng.choice(others, round(len(others) * settings.unedited_share), replace=False)
        return np.concatenate([edited, drawn])

    assert isinstance(model, STABN)
    model.freeze_feature_extractor()
    gamma = settings.gamma
    fit = Fit(
        model=_prepare(model, settings, world),
        model_config=checkpoint.model_config,
        data_config=data,
        settings=settings,
        train_data=ClipDataset(
            manifest,
            np.concatenate([edited, others]),
            data,
            train=settings.augment,
            seed=settings.seed,
            edits=edits,
        ),
        validation_data=ClipDataset(manifest, manifest.indices("validation"), data, train=False),
        storage=open_storage(output_uri),
        stage=name,
        loss=lambda output, batch: finetuning_loss(
            output, batch["target"], batch["temporal_target"].flatten(0, 1), gamma=gamma
        ),
        epoch_rows=epoch_rows,
        identity=run_identity(
            settings,
            data,
            checkpoint.model_config,
            manifest=manifest.fingerprint,
            parent=checkpoint.fingerprint,
            edits=edits.fingerprint,
        ),
        world=world,
        frozen=True,
        cache=FeatureCache(settings.feature_cache_mb) if settings.feature_cache_mb else None,
        profile_path=profile_path,
    )
    inputs = {"dataset": manifest.fingerprint, "edits": edits.fingerprint}
    return _run(fit, key=name, inputs=inputs, parent_model=checkpoint.fingerprint)


def train_into(manifest_uri: str, config: RunConfig, storage_uri: str, checkpoint_path: str) -> TrainResult:
    """Train in a folder of the storage that the same settings and data find again, and copy the best checkpoint.

    A run that was interrupted goes on; one that is complete is not repeated.
    """
    result = train(manifest_uri, config, train_output(manifest_uri, config, storage_uri))
    if is_main():
        fetch(result.best_uri, checkpoint_path)
    return result


def train_output(manifest_uri: str, config: RunConfig, storage_uri: str) -> str:
    """Return the folder of the storage that a training with these settings and data keeps its checkpoints in."""
    name = f"train-{_run_name(config.train, config, Manifest.load(manifest_uri).fingerprint)}"
    return open_storage(storage_uri).child(f"checkpoints/{name}").uri


def finetune_into(
    checkpoint_uri: str,
    manifest_uri: str,
    edits_path: str,
    config: RunConfig,
    storage_uri: str,
    finetuned_path: str,
    name: str = "finetune",
) -> TrainResult:
    """Fine-tune in a folder of the storage that the same settings and inputs find again, like `train_into`."""
    output = finetune_output(checkpoint_uri, edits_path, config, storage_uri, name)
    result = finetune(checkpoint_uri, manifest_uri, edits_path, config, output, name)
    if is_main():
        fetch(result.best_uri, finetuned_path)
    return result


def finetune_output(checkpoint_uri: str, edits_path: str, config: RunConfig, storage_uri: str, name: str) -> str:
    """Return the folder of the storage that a fine-tuning with these settings and inputs keeps its checkpoints in."""
    inputs = (describe(read_checkpoint(checkpoint_uri)).fingerprint, load_edit_table(edits_path).fingerprint)
    folder = f"{name}-{_run_name(config.finetune, config, *inputs)}"
    return open_storage(storage_uri).child(f"checkpoints/{folder}").uri


def _run_name(settings: FitConfig, config: RunConfig, *inputs: str) -> str:
    return fingerprint(run_identity(settings, config.data, config.model), *inputs)


def _prepare(model: torch.nn.Module, settings: FitConfig, world: World) -> torch.nn.Module:
    """Put a network on its device as the settings want it trained."""
    device = choose_device(settings.device, world.local_rank, world.size)
    model.set_activation_checkpointing(settings.activation_checkpointing)  # type: ignore[operator]
    if settings.sync_batch_norm and world.size > 1:
        model = synchronize_batch_norm(model, device)
    return prepare(model, device)


def _run(fit: Fit, *, key: str, inputs: dict[str, str], parent_model: str = "") -> TrainResult:
    settings = {"model": to_dict(fit.model_config), "data": to_dict(fit.data_config), "train": to_dict(fit.settings)}
    with contextlib.ExitStack() as stack:
        run = StageRun()
        if fit.world.is_main:
            run = stack.enter_context(stage_run(key, settings=settings, inputs=inputs, parent_model=parent_model))
        fit.on_epoch = lambda row: run.log_metrics(_metrics(row), step=int(row["epoch"]))
        fit.on_log = lambda numbers, step: run.log_metrics({f"step/{k}": v for k, v in numbers.items()}, step=step)
        fit.run()
        result = fit.world.on_main(lambda: read_result(fit.storage.uri))
        run.log_metrics({f"best_{name}": v for name, v in result.metrics.items() if name.startswith("validation")})
        if fit.world.is_main:
            best = describe(read_checkpoint(result.best_uri))
            run.set_tags({"checkpoint": best.fingerprint, "checkpoint_uri": result.best_uri})
    return result


def read_result(output_uri: str) -> TrainResult:
    """Return what a training or fine-tuning that is complete left in its output, whoever ran it."""
    storage = open_storage(output_uri)
    best_uri = storage.locate(BEST)
    best = describe(read_checkpoint(best_uri))
    last_uri = storage.locate(StateStore(storage, 1).newest_key("average", "network"))
    return TrainResult(best_uri, last_uri, list(best.history), _metrics(best.history[best.epoch - 1]))


def _metrics(row: dict[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if name != "epoch"}


def _edited_rows(edits: EditTable, manifest: Manifest) -> np.ndarray:
    """Return the rows of the edited videos, having checked that each fits the manifest."""
    rows = []
    for video_id, curve in edits.items():
        video = manifest.video(row := manifest.index_of(video_id))
        if video.split != "train":
            raise TrainingError(
                f"edit of video {video_id}: it is in the {video.split} split; only train is learnt from"
            )
        if len(curve) != video.num_frames:
            raise TrainingError(
                f"edit of video {video_id}: {len(curve)} values for a video of {video.num_frames} frames; "
                "the frames were extracted again since, export the round again"
            )
        rows.append(row)
    if not rows:
        raise TrainingError("no edits to learn from: let people correct the round first, then import it")
    return np.array(sorted(rows))
