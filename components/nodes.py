"""Where a stage runs: in the step itself, in one or several processes, or on the nodes of a TrainJob.

The pods of a job do not have the step's artifacts. So the step puts what the stage reads into the object storage,
under names made from the content, the pods run the command line that anybody could run, and the step reads the result
from where the stage keeps it anyway. Networks are in the storage from the beginning and are passed on by their URIs.
"""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

from components.attempts import tried_once, tried_once_here
from components.placement import HERE, Placement
from stabn import presets
from stabn.config import RunConfig, fingerprint
from stabn.evaluation.predict import Evaluation, summarize
from stabn.evaluation.predict import evaluate as evaluate_here
from stabn.evaluation.prediction_table import Predictions
from stabn.stages import STAGES, check_shared_storage
from stabn.storage import fetch, open_storage
from stabn.training import stage as training
from stabn.training.stage import TrainResult, finetune_output, read_result, train_output

LAUNCHED = ("processes", "restarts")  # settings of the launcher, which torchrun replaces
SECTIONS_WITH_PROCESSES = ("train", "finetune")


def train(
    manifest: str,
    config: RunConfig,
    storage_uri: str,
    placement: Placement = HERE,
    truth_uri: str = "",
    name: str = "train",
) -> TrainResult:
    """Train in a folder of the storage that the same settings and data find again.

    A run that was interrupted goes on; one that is complete is not repeated.
    """
    here, output = placement.is_here, train_output(manifest, config, storage_uri, name=name)
    if here:
        own = _with_processes(config, placement)
        with tried_once_here(storage_uri, name, output, own):
            training.train(manifest, own, output, name=name, truth_uri=truth_uri)
    else:
        arguments = {"manifest": _stage(manifest, storage_uri, "manifest.parquet"), "output": output}
        arguments |= _truth(truth_uri) | ({"name": name} if name != "train" else {})
        _run("train", arguments, config, placement, storage_uri)
    return read_result(output)


def finetune(
    checkpoint: str,
    manifest: str,
    edits: str,
    config: RunConfig,
    storage_uri: str,
    name: str,
    placement: Placement,
    route: str = "finetune",
    truth_uri: str = "",
) -> TrainResult:
    """Fine-tune in a folder of the storage that the same settings and inputs find again, like `train`.

    Args:
        route: finetune; or retrain: train a network anew with the edits.
        truth_uri: see `stabn.training.stage.train`.
    """
    if route == "retrain":
        name = name.replace("finetune", route)
        return _retrain(manifest, edits, config, storage_uri, name, placement, truth_uri)
    here, output = placement.is_here, finetune_output(checkpoint, edits, config, storage_uri, name)
    if here:
        own = _with_processes(config, placement)
        with tried_once_here(storage_uri, "finetune", output, own):
            training.finetune(checkpoint, manifest, edits, own, output, name, truth_uri=truth_uri)
    else:
        arguments = {
            "checkpoint": _stage(checkpoint, storage_uri, "checkpoint.pt"),
            "manifest": _stage(manifest, storage_uri, "manifest.parquet"),
            "edits": _stage(edits, storage_uri, "edits.parquet"),
            "output": output,
            "name": name,
            **_truth(truth_uri),
        }
        _run("finetune", arguments, config, placement, storage_uri)
    return read_result(output)


def _retrain(
    manifest: str,
    edits: str,
    config: RunConfig,
    storage_uri: str,
    name: str,
    placement: Placement,
    truth_uri: str,
) -> TrainResult:
    """Train anew with the edits, from the same random weights as before.

    With gamma 0, the control, the edits have no say: that is the training without them, which is there already where
    the network before was trained with these settings in this storage.
    """
    if config.finetune.gamma == 0:
        return train(manifest, config, storage_uri, placement, truth_uri)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, gamma=config.finetune.gamma))
    here, output = placement.is_here, train_output(manifest, config, storage_uri, edits, name)
    if here:
        own = _with_processes(config, placement)
        with tried_once_here(storage_uri, "train", output, own):
            training.train(manifest, own, output, edits_path=edits, name=name, truth_uri=truth_uri)
    else:
        arguments = {
            "manifest": _stage(manifest, storage_uri, "manifest.parquet"),
            "edits": _stage(edits, storage_uri, "edits.parquet"),
            "output": output,
            "name": name,
            **_truth(truth_uri),
        }
        _run("train", arguments, config, placement, storage_uri)
    return read_result(output)


def evaluate(
    checkpoint: str,
    manifest: str,
    split: str,
    attention: str,
    predictions_path: str,
    config: RunConfig,
    name: str,
    storage_uri: str,
    placement: Placement,
    segments_uri: str = "",
) -> Evaluation:
    """Evaluate where the placement says, like `stabn.evaluation.predict.evaluate`."""
    if placement.is_here:
        own = _with_processes(config, placement)
        places = (checkpoint, manifest, split, attention, predictions_path)
        with tried_once_here(storage_uri, "evaluate", *places[2:4], own, name, segments_uri):
            return evaluate_here(*places, own, name=name, segments_uri=segments_uri)
    arguments = {
        "checkpoint": _stage(checkpoint, storage_uri, "checkpoint.pt"),
        "manifest": _stage(manifest, storage_uri, "manifest.parquet"),
        "split": split,
        "attention": attention,
        "name": name,
    }
    if segments_uri:
        arguments["segments"] = segments_uri
    key = hashlib.sha256(repr(sorted(arguments.items())).encode()).hexdigest()[:16]
    output = open_storage(storage_uri).locate(f"evaluations/{key}/predictions.parquet")
    _run("evaluate", {**arguments, "output": output}, config, placement, storage_uri)
    fetch(output, predictions_path)
    predictions = Predictions.load(predictions_path)
    return Evaluation(predictions, summarize(predictions))


def without_attention(config: RunConfig) -> RunConfig:
    """Return the settings of the paper's baseline: the 3D ResNet of the same depth, trained alike."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, name="baseline"))


def command(stage: str, arguments: dict[str, str], config: RunConfig) -> tuple[str, ...]:
    """Return the command that every node runs, and that runs here just so under a torchrun with flags.

    Settings that differ from the preset become flags, as far as the stage takes them.
    """
    words = ["torchrun", "-m", "stabn.cli", stage, *(f"--{name}={value}" for name, value in arguments.items())]
    words.append(f"--preset={config.preset}")
    preset = presets.load(config.preset)
    for taken in STAGES[stage].settings:
        section, _, name = taken.partition(".")
        own, original = getattr(config, section), getattr(preset, section)
        for item in dataclasses.fields(own):
            value = getattr(own, item.name)
            is_wanted = name in ("", item.name) and item.name not in LAUNCHED
            if is_wanted and value != getattr(original, item.name):
                words.append(f"--{section}.{item.name}={_text(value)}")
    return tuple(words)


def _truth(uri: str) -> dict[str, str]:
    """Return the argument that names what is known of the attention, if anything is."""
    return {"truth": uri} if uri else {}


def _run(stage: str, arguments: dict[str, str], config: RunConfig, placement: Placement, storage_uri: str) -> None:
    """Run a stage as a TrainJob."""
    from components.cluster.api import KubeApi
    from components.trainjob import ClusterConfig, JobFailed, Work, build_trainjob, passed_on, run_trainjob

    cluster = ClusterConfig.load()
    api = KubeApi(cluster.namespace, cluster.api_minutes * 60)
    step = api.own_pod() or {}
    if not cluster.image:
        cluster = dataclasses.replace(cluster, image=_image(step))
    run_id = step.get("metadata", {}).get("labels", {}).get("pipeline/runid", "")
    work = Work(
        stage=stage,
        command=command(stage, arguments, config),
        **dataclasses.asdict(placement),
        env=passed_on(),
        run_id=os.environ.get("STABN_RUN_ID") or run_id or os.environ.get("MLFLOW_RUN_ID", ""),
    )
    with tried_once(storage_uri, f"{work.name}-{fingerprint(build_trainjob(work, cluster))}", JobFailed):
        run_trainjob(work, cluster, api)


def _image(step: dict[str, Any]) -> str:
    """Return the image that the step itself runs in: Argo calls its container main."""
    containers = step.get("spec", {}).get("containers", [])
    own = [item["image"] for item in containers if item["name"] == "main"] or [item["image"] for item in containers[:1]]
    return own[0] if own else os.environ.get("STABN_IMAGE") or os.environ.get("STABN_TRAINER_IMAGE", "")


def _stage(path: str, storage_uri: str, name: str) -> str:
    """Return where the pods find a file of the step: where it is, if that is a URI, else a copy named by its content.

    Raises:
        ConfigError: the storage is a folder of this machine.
    """
    check_shared_storage(storage_uri)
    if path.startswith("s3://"):
        return path
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    storage, key = open_storage(storage_uri), f"inputs/{digest}/{name}"
    if not storage.exists(key):
        storage.upload(Path(path), key)
    return storage.locate(key)


def _with_processes(config: RunConfig, placement: Placement) -> RunConfig:
    """Return the settings with the placement's processes; with one, the settings' own number stays."""
    if placement.procs_per_node == 1:
        return config
    changed = {
        section: dataclasses.replace(getattr(config, section), processes=placement.procs_per_node)
        for section in SECTIONS_WITH_PROCESSES
    }
    return dataclasses.replace(config, **changed)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
