"""Stages train and finetune: what is trained on what, with which loss."""

import contextlib
import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from stabn.attention.edits import EditTable, load_edit_table
from stabn.config import RunConfig, TrainConfig, fingerprint, to_dict, with_loading
from stabn.data.dataset import ClipDataset
from stabn.data.manifest import Manifest
from stabn.models import STABN, build_model
from stabn.models.weights import load_initial_weights
from stabn.storage import fetch, open_storage
from stabn.tracking import stage_run
from stabn.training.checkpoint import CheckpointError, check_classes, describe, load_model, read_checkpoint
from stabn.training.distributed import is_launched, join, run_on_processes
from stabn.training.loop import BEST, LAST, Fit, TrainingError, choose_device, prepare, run_identity
from stabn.training.losses import finetuning_loss, training_loss


@dataclass(frozen=True)
class TrainResult:
    """What a training stage leaves in its output.

    Attributes:
        best_uri: checkpoint of the epoch with the best validation top-1, the one to use.
        last_uri: checkpoint of the last epoch, with the optimiser, the one to go on from.
        history: one dict of metrics per epoch.
        metrics: those of the best epoch.
    """

    best_uri: str
    last_uri: str
    history: list[dict[str, float]]
    metrics: dict[str, float]


def train(manifest_uri: str, config: RunConfig, output_uri: str) -> TrainResult:
    """Train ST-ABN or the 3D ResNet baseline on the training split (paper, section 4.1; eq. 4).

    An output that holds an unfinished run of the same settings and data is gone on with.

    Args:
        manifest_uri: manifest of extract-frames.
        config: all settings; the number of classes is the manifest's.
        output_uri: folder or prefix for checkpoints and the history.
    """
    if config.train.processes > 1 and not is_launched():
        return run_on_processes(
            config.train.processes, config.train.max_restarts, train, manifest_uri, config, output_uri
        )
    manifest = Manifest.load(manifest_uri)
    model_config = dataclasses.replace(config.model, num_classes=len(manifest.classes))
    torch.manual_seed(config.train.seed)
    model = build_model(model_config)
    settings = config.train
    if settings.init_weights:
        print(load_initial_weights(model, settings.init_weights), flush=True)
    rows = manifest.indices("train")
    model.set_activation_checkpointing(settings.activation_checkpointing)
    fit = Fit(
        model=prepare(model, choose_device(settings.device)),
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
    )
    return _run(fit, key="train", inputs={"dataset": manifest.fingerprint})


def finetune(
    checkpoint_uri: str, manifest_uri: str, edits_path: str, config: RunConfig, output_uri: str, name: str = "finetune"
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

    Raises:
        TrainingError: the edits do not fit the manifest.
    """
    if config.finetune.processes > 1 and not is_launched():
        arguments = (checkpoint_uri, manifest_uri, edits_path, config, output_uri, name)
        return run_on_processes(config.finetune.processes, config.finetune.max_restarts, finetune, *arguments)
    manifest = Manifest.load(manifest_uri)
    model, checkpoint = load_model(checkpoint_uri)
    check_classes(checkpoint, manifest.classes, manifest_uri)
    if checkpoint.model_config.name != "st_abn":
        raise CheckpointError(f"{checkpoint_uri}: a {checkpoint.model_config.name} has no attention to fine-tune")
    edits = load_edit_table(edits_path)
    edited = _edited_rows(edits, manifest)
    others = np.setdiff1d(manifest.indices("train"), edited)
    settings = config.finetune
    data = with_loading(checkpoint.data_config, config.data)

    def epoch_rows(epoch: int) -> np.ndarray:
        rng = np.random.default_rng([settings.seed, epoch, 1])
        drawn = rng.choice(others, round(len(others) * settings.unedited_share), replace=False)
        return np.concatenate([edited, drawn])

    assert isinstance(model, STABN)
    model.freeze_feature_extractor()
    model.set_activation_checkpointing(settings.activation_checkpointing)
    gamma = settings.gamma
    fit = Fit(
        model=prepare(model, choose_device(settings.device)),
        model_config=checkpoint.model_config,
        data_config=data,
        settings=settings,
        train_data=ClipDataset(
            manifest, np.concatenate([edited, others]), data, train=True, seed=settings.seed, edits=edits
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
    )
    inputs = {"dataset": manifest.fingerprint, "edits": edits.fingerprint}
    return _run(fit, key=name, inputs=inputs, parent_model=checkpoint.fingerprint)


def train_into(manifest_uri: str, config: RunConfig, storage_uri: str, checkpoint_path: str) -> TrainResult:
    """Train in a folder of the storage that the same settings and data find again, and copy the best checkpoint.

    A run that was interrupted goes on; one that is complete is not repeated.
    """
    result = train(manifest_uri, config, train_output(manifest_uri, config, storage_uri))
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
    fetch(result.best_uri, finetuned_path)
    return result


def finetune_output(checkpoint_uri: str, edits_path: str, config: RunConfig, storage_uri: str, name: str) -> str:
    """Return the folder of the storage that a fine-tuning with these settings and inputs keeps its checkpoints in."""
    inputs = (describe(read_checkpoint(checkpoint_uri)).fingerprint, load_edit_table(edits_path).fingerprint)
    folder = f"{name}-{_run_name(config.finetune, config, *inputs)}"
    return open_storage(storage_uri).child(f"checkpoints/{folder}").uri


def read_result(output_uri: str) -> TrainResult:
    """Return what a training or fine-tuning that is complete left in its output, whoever ran it."""
    storage = open_storage(output_uri)
    best = describe(read_checkpoint(storage.locate(BEST)))
    history = list(best.history)
    return TrainResult(storage.locate(BEST), storage.locate(LAST), history, _metrics(history[best.epoch - 1]))


def _run_name(settings: TrainConfig, config: RunConfig, *inputs: str) -> str:
    return fingerprint(run_identity(settings, config.data, config.model), *inputs)


def _run(fit: Fit, *, key: str, inputs: dict[str, str], parent_model: str = "") -> TrainResult:
    settings = {"model": to_dict(fit.model_config), "data": to_dict(fit.data_config), "train": to_dict(fit.settings)}
    timeout = fit.settings.collective_timeout
    with contextlib.ExitStack() as stack:
        fit.world = stack.enter_context(join(next(fit.model.parameters()).device, timeout))
        if fit.settings.sync_batch_norm and fit.world.size > 1:
            fit.model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(fit.model)
        run = None
        if fit.world.is_first:
            run = stack.enter_context(stage_run(key, settings=settings, inputs=inputs, parent_model=parent_model))
            fit.on_epoch = lambda row: run.log_metrics(_metrics(row), step=int(row["epoch"]))
            batch = fit.settings.batch_size
            print(f"{key}: {batch} videos a step in {fit.world.size} process(es), {fit.model_config.name}", flush=True)
        history = fit.run()
        best_uri = fit.storage.locate(BEST)
        if run is None:
            return TrainResult(best_uri, fit.storage.locate(LAST), history, {})
        best = describe(read_checkpoint(best_uri))
        metrics = _metrics(history[best.epoch - 1])
        run.log_metrics({f"best_{name}": value for name, value in metrics.items() if name.startswith("validation")})
        run.set_tags({"checkpoint": best.fingerprint, "checkpoint_uri": best_uri})
    return TrainResult(best_uri, fit.storage.locate(LAST), history, metrics)


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
