"""Stages train and finetune: they read their inputs, let the loop run a recipe, and leave the result in an output."""

import contextlib
import dataclasses
from dataclasses import dataclass

from stabn.config import FitConfig, RunConfig, fingerprint, to_dict
from stabn.data.edit_table import load_edit_table
from stabn.data.manifest import Manifest
from stabn.data.presence import check_frames
from stabn.models import STABN
from stabn.storage import Claim, check_promises, open_storage
from stabn.tracking import StageRun, stage_run
from stabn.training.agreement import Known, known_frames
from stabn.training.checkpoint import check_classes, describe, load_model, read_checkpoint, require_attention
from stabn.training.distributed import World, join_world
from stabn.training.job_progress import JobProgress
from stabn.training.launch import launch, must_launch
from stabn.training.loop import Loop
from stabn.training.recipes import Recipe, TrainingError, baseline, finetuning, st_abn
from stabn.training.resuming import run_identity
from stabn.training.saving import BEST
from stabn.training.states import StateStore


@dataclass(frozen=True)
class TrainResult:
    """What a training stage leaves in its output.

    Attributes:
        best_uri: checkpoint of the epoch with the best validation top-1, the one to use.
        last_uri: checkpoint of the last epoch.
        history: one dict of metrics per epoch.
        metrics: those of the best epoch.
        fingerprint: of the best checkpoint's network.
    """

    best_uri: str
    last_uri: str
    history: list[dict[str, float]]
    metrics: dict[str, float]
    fingerprint: str


def train(
    manifest_uri: str,
    config: RunConfig,
    output_uri: str,
    profile_path: str = "",
    edits_path: str = "",
    name: str = "train",
    truth_uri: str = "",
) -> TrainResult:
    """Train ST-ABN or the 3D ResNet baseline on the training split.

    Under torchrun this is one of the run's processes; with `train.processes` it starts them. An output that holds an
    unfinished run of the same settings and data is gone on with.

    Args:
        manifest_uri: manifest of extract-frames.
        config: all settings; the number of classes is the manifest's.
        output_uri: folder or prefix for checkpoints and the history.
        profile_path: file for a trace of a few steps; empty: none.
        edits_path: edit table of import-edits to learn from besides the labels, for ST-ABN; empty: none.
        name: what the run is called in logs and in MLflow, such as `train` or `retrain`.
        truth_uri: known segments or held-out corrections of validation videos, with which each validation compares the
            attention; nothing is learnt from them; empty: none.

    Raises:
        TrainingError: the edits do not fit the manifest, or the network has no attention.
    """
    settings = config.train
    if must_launch(settings):
        launch(
            train,
            settings,
            manifest_uri=manifest_uri,
            config=config,
            output_uri=output_uri,
            profile_path=profile_path,
            edits_path=edits_path,
            name=name,
            truth_uri=truth_uri,
        )
        return read_result(output_uri)
    with join_world(settings.device, settings.timeout_seconds) as world:
        manifest = Manifest.load(manifest_uri)
        inputs = {"dataset": manifest.fingerprint}
        if config.model.has_attention:
            edits = load_edit_table(edits_path) if edits_path else None
            recipe = st_abn(manifest, config, world.say, edits, _known(manifest, truth_uri, world, name))
            inputs |= {"edits": edits.fingerprint} if edits else {}
        elif edits_path:
            raise TrainingError(f"edits {edits_path} for a {config.model.name}, which has no attention to correct")
        else:
            recipe = baseline(manifest, config, world.say)
        recipe = dataclasses.replace(recipe, name=name)
        return _run(recipe, output_uri, world, profile_path, inputs)


def finetune(
    checkpoint_uri: str,
    manifest_uri: str,
    edits_path: str,
    config: RunConfig,
    output_uri: str,
    name: str = "finetune",
    profile_path: str = "",
    truth_uri: str = "",
) -> TrainResult:
    """Fine-tune both branches of ST-ABN with edited temporal attention, in one or several processes like `train`.

    Args:
        checkpoint_uri: the trained network.
        manifest_uri: the manifest it was trained on.
        edits_path: edit table of import-edits.
        config: settings; the network's and the clips' own are taken from the checkpoint.
        output_uri: folder or prefix for checkpoints and the history.
        name: what the run is called in logs and in MLflow, such as `finetune` or `finetune-control`.
        profile_path: file for a trace of a few steps; empty: none.
        truth_uri: as in `train`.

    Raises:
        CheckpointError: the network has no attention, or other classes.
        TrainingError: the edits do not fit the manifest.
    """
    settings = config.finetune
    if must_launch(settings):
        launch(
            finetune,
            settings,
            checkpoint_uri=checkpoint_uri,
            manifest_uri=manifest_uri,
            edits_path=edits_path,
            config=config,
            output_uri=output_uri,
            name=name,
            profile_path=profile_path,
            truth_uri=truth_uri,
        )
        return read_result(output_uri)
    with join_world(settings.device, settings.timeout_seconds) as world:
        manifest = Manifest.load(manifest_uri)
        model, checkpoint = load_model(checkpoint_uri)
        check_classes(checkpoint, manifest.classes, manifest_uri)
        require_attention(checkpoint, checkpoint_uri, " to fine-tune")
        assert isinstance(model, STABN)
        edits = load_edit_table(edits_path)
        known = _known(manifest, truth_uri, world, name)
        recipe = finetuning(model, checkpoint, manifest, edits, config, name, known)
        inputs = {"dataset": manifest.fingerprint, "edits": edits.fingerprint}
        return _run(recipe, output_uri, world, profile_path, inputs, parent_model=checkpoint.fingerprint)


def train_output(
    manifest_uri: str, config: RunConfig, storage_uri: str, edits_path: str = "", name: str = "train"
) -> str:
    """Return the folder of the storage that a training with these settings and data keeps its checkpoints in."""
    inputs = [Manifest.load(manifest_uri).fingerprint]
    if edits_path:
        inputs.append(load_edit_table(edits_path).fingerprint)
    folder = f"{name}-{_run_name(config.train, config, *inputs)}"
    return open_storage(storage_uri).child(f"checkpoints/{folder}").uri


def finetune_output(checkpoint_uri: str, edits_path: str, config: RunConfig, storage_uri: str, name: str) -> str:
    """Return the folder of the storage that a fine-tuning with these settings and inputs keeps its checkpoints in."""
    inputs = (describe(read_checkpoint(checkpoint_uri)).fingerprint, load_edit_table(edits_path).fingerprint)
    folder = f"{name}-{_run_name(config.finetune, config, *inputs)}"
    return open_storage(storage_uri).child(f"checkpoints/{folder}").uri


def _known(manifest: Manifest, truth_uri: str, world: World, name: str) -> Known:
    """Return what is known of the validation videos; nothing without a file."""
    if not truth_uri:
        return {}
    rows = manifest.indices("validation")
    known = known_frames(manifest, rows, truth_uri)
    world.say(f"{name}: attention is compared with {truth_uri} on {len(known)} of {len(rows)} validation videos")
    return known


def _run_name(settings: FitConfig, config: RunConfig, *inputs: str) -> str:
    return fingerprint(run_identity(settings, config.data, config.model), *inputs)


def _run(
    recipe: Recipe, output_uri: str, world: World, profile_path: str, inputs: dict[str, str], parent_model: str = ""
) -> TrainResult:
    """Let the loop run a recipe into an output, and track it in MLflow."""
    loop = Loop(recipe, open_storage(output_uri), world, profile_path)
    sections = {"model": recipe.model.config, "data": recipe.videos.config, "train": recipe.settings}
    settings = {section: to_dict(values) for section, values in sections.items()}
    with contextlib.ExitStack() as stack:
        run = StageRun()
        if world.is_main:
            dataset = recipe.videos.manifest.dataset
            tracked = stage_run(
                recipe.name, settings=settings, inputs=inputs, parent_model=parent_model, dataset=dataset
            )
            run = stack.enter_context(tracked)
        loop.on_epoch = lambda row: run.log_metrics(_metrics(row), step=int(row["epoch"]))
        loop.on_log = lambda numbers, step: run.log_metrics({f"step/{k}": v for k, v in numbers.items()}, step=step)
        progress = JobProgress(lambda numbers, percent: run.log_metrics(numbers, step=percent))
        if world.is_main:
            loop.on_progress = progress.tell
        world.on_main(lambda: _own(loop, recipe.name, stack))
        loop.run()
        result = world.on_main(lambda: read_result(output_uri))
        run.log_metrics({f"best_{name}": v for name, v in result.metrics.items() if name.startswith("validation")})
        if world.is_main:
            progress.finish(result.metrics)
            best = describe(read_checkpoint(result.best_uri))
            run.set_tags({"checkpoint": best.fingerprint, "checkpoint_uri": result.best_uri})
    return result


def _own(loop: Loop, name: str, stack: contextlib.ExitStack) -> None:
    """Look for the frames, try the output's store, and own the output until the stack is left."""
    saving, videos = loop.saving, loop.recipe.videos
    check_frames(videos.manifest, videos.indices)
    conditional = check_promises(saving.storage)
    claim = stack.enter_context(Claim(saving.storage, name, saving.identity, conditional, loop.world.say))
    saving.confirm = claim.confirm


def read_result(output_uri: str) -> TrainResult:
    """Return what a training or fine-tuning that is complete left in its output, whoever ran it."""
    storage = open_storage(output_uri)
    best_uri = storage.locate(BEST)
    best = describe(read_checkpoint(best_uri))
    last_uri = storage.locate(StateStore(storage, 1).newest_key("average", "network"))
    return TrainResult(best_uri, last_uri, list(best.history), _metrics(best.history[best.epoch - 1]), best.fingerprint)


def _metrics(row: dict[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if name != "epoch"}
