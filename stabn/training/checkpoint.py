"""Checkpoints that rebuild their network by themselves, written whole or not at all."""

import dataclasses
import hashlib
import io
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stabn.config import ConfigError, DataConfig, ModelConfig, from_dict, to_dict
from stabn.data.label_table import TABLE_FILE
from stabn.data.ssv2 import load_labels
from stabn.errors import StabnError
from stabn.models import build_model
from stabn.models.network import without_memory
from stabn.models.released import convert_released
from stabn.models.weights import load_tensors, read_weights_file
from stabn.storage import open_storage, read_uri, write_uri
from stabn.tracking import find_checkpoint

FORMAT = 1
DESCRIPTION: dict[str, type] = {
    "model_config": dict, "data_config": dict, "classes": list, "manifest_fingerprint": str, "fingerprint": str,
    "stage": str, "epoch": int,
}  # fmt: skip


class CheckpointError(StabnError):
    """A file is no checkpoint of this product, or does not belong to what it is used with."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says of its network.

    Attributes:
        classes: class names, in the order of the network's logits.
        manifest_fingerprint: the dataset it was trained on.
        fingerprint: names the weights themselves.
        stage: the run that made it, such as `train`, `finetune`, `retrain-control` or `import-checkpoint`.
        epoch: epochs done when it was written.
        history: metrics of every epoch of the run, the later ones too.
    """

    model_config: ModelConfig
    data_config: DataConfig
    classes: tuple[str, ...]
    manifest_fingerprint: str
    fingerprint: str
    stage: str
    epoch: int
    history: tuple[dict[str, float], ...] = ()


def weights_fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Return 16 hexadecimal digits that name the content of a state dict."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def dump_checkpoint(
    weights: nn.Module | Mapping[str, Tensor],
    model_config: ModelConfig,
    data_config: DataConfig,
    classes: Sequence[str],
    *,
    manifest_fingerprint: str,
    stage: str,
    epoch: int,
    **state: Any,
) -> bytes:
    """Serialise a network, or its weights, with everything that rebuilds it; `state`, as the history, beside them."""
    tensors = weights.state_dict() if isinstance(weights, nn.Module) else weights
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return serialize(
        {
            "format": FORMAT,
            "model": tensors,
            "model_config": to_dict(model_config),
            "data_config": to_dict(data_config),
            "classes": list(classes),
            "manifest_fingerprint": manifest_fingerprint,
            "fingerprint": weights_fingerprint(tensors),
            "stage": stage,
            "epoch": epoch,
            **state,
        }
    )


def serialize(content: Mapping[str, Any]) -> bytes:
    """Return a checkpoint's content as the bytes of its file."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    return buffer.getvalue()


def read_checkpoint(uri: str) -> dict[str, Any]:
    """Read a checkpoint's whole content from a path, a URI or a registered model, without running any code in it.

    Args:
        uri: such as checkpoints/best.pt, s3://bucket/best.pt, models:/st-abn@champion, models:/st-abn/3.

    Raises:
        CheckpointError: truncated, or not a checkpoint of this product.
        TrackingError: there is no such model.
    """
    place = find_checkpoint(uri)
    return parse_checkpoint(read_uri(place), place)


def parse_checkpoint(data: bytes, uri: str) -> dict[str, Any]:
    """Return the content of a checkpoint's bytes, like `read_checkpoint`; `uri` names them in messages."""
    try:
        content = load_tensors(data)
    except Exception as error:  # torch raises many types for files that are truncated, not its own, or hold code
        if isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(io.BytesIO(data)):
            raise CheckpointError(f"{uri}: refused, it holds more than weights; use a file written by stabn") from None
        raise CheckpointError(
            f"{uri}: cannot be read as a checkpoint ({type(error).__name__}); it is truncated or not a checkpoint"
        ) from None
    if not isinstance(content, dict) or "model_config" not in content:
        raise CheckpointError(
            f"{uri}: not a checkpoint of stabn; convert released weights with `stabn import-checkpoint`"
        )
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{uri}: checkpoint format {content.get('format')}, this version reads {FORMAT}")
    try:
        check_description(content)
        _check_weights(content.get("model"))
    except ValueError as error:
        raise CheckpointError(f"{uri}: {error}; the file is damaged, use another one") from None
    if weights_fingerprint(content["model"]) != content["fingerprint"]:
        raise CheckpointError(
            f"{uri}: the weights do not match their fingerprint, the file is damaged; use another one"
        )
    return content


def check_description(content: Mapping[str, Any]) -> None:
    """Refuse a description that lacks something, or whose values are of other types.

    Raises:
        ValueError: names what.
    """
    if wrong := [name for name, kind in DESCRIPTION.items() if not isinstance(content.get(name), kind)]:
        raise ValueError(f"no usable {wrong[0]}")
    if not all(isinstance(name, str) for name in content["classes"]):
        raise ValueError("class names that are no text")
    history = content.get("history", [])
    if not isinstance(history, list | tuple) or not all(isinstance(row, dict) for row in history):
        raise ValueError("no usable history")


def _check_weights(weights: Any) -> None:
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    ):
        raise ValueError("no usable weights")


def describe(content: Mapping[str, Any]) -> Checkpoint:
    """Return the description inside a checkpoint's content."""
    return Checkpoint(
        model_config=from_dict(ModelConfig, content["model_config"]),
        data_config=from_dict(DataConfig, content["data_config"]),
        classes=tuple(content["classes"]),
        manifest_fingerprint=content["manifest_fingerprint"],
        fingerprint=content["fingerprint"],
        stage=content["stage"],
        epoch=content["epoch"],
        history=tuple(content.get("history", ())),
    )


def load_model(uri: str, device: torch.device | str = "cpu") -> tuple[nn.Module, Checkpoint]:
    """Rebuild a network from a checkpoint alone.

    Args:
        uri: path or URI of a checkpoint.
        device: where the network is put.

    Returns:
        The network in evaluation mode, and the checkpoint's description.

    Raises:
        CheckpointError: see `read_checkpoint`; or the settings in it are not those of its weights.
    """
    content = read_checkpoint(uri)
    try:
        checkpoint = describe(content)
        with without_memory():  # whatever size the settings ask for
            build_model(checkpoint.model_config).load_state_dict(content["model"], assign=True)
    except (ConfigError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{uri}: its settings are not those of its weights ({reason:.300})") from None
    model = build_model(checkpoint.model_config)
    model.load_state_dict(content["model"])
    return model.to(device).eval(), checkpoint


def import_released(released: str, labels_uri: str, output_uri: str, data: DataConfig) -> str:
    """Convert a checkpoint that the authors released to one of ours.

    Args:
        released: the authors' file.
        labels_uri: label files of the dataset it was trained on; they name its classes.
        output_uri: checkpoint to write.
        data: how clips are sampled and cropped; the number of frames is the checkpoint's.

    Returns:
        Lines that say what was converted, and what the file holds besides.

    Raises:
        CheckpointError: the labels have another number of classes, or none has an index.
        WeightsError: see `convert_released`.
    """
    found, beside = read_weights_file(released)
    config, weights, report = convert_released(found, released)
    if open_storage(labels_uri).exists(TABLE_FILE):
        raise CheckpointError(
            f"{labels_uri}: {TABLE_FILE} does not say which output is which class; give the label file with indices "
            "that the network was trained with"
        )
    classes = load_labels(labels_uri).classes
    if len(classes) != config.num_classes:
        raise CheckpointError(
            f"{released}: it knows {config.num_classes} classes, {labels_uri} names {len(classes)}; give the labels of "
            "the dataset it was trained on"
        )
    model = build_model(config)
    model.load_state_dict(weights)
    data = dataclasses.replace(data, num_frames=config.num_frames)
    content = dump_checkpoint(model, config, data, classes, manifest_fingerprint="", stage="import-checkpoint", epoch=0)
    write_uri(output_uri, content)
    said = (
        f"{released}: ST-ABN, blocks {config.num_blocks}, {config.num_classes} classes, {config.num_frames} frames: "
        f"{output_uri}\n{report}"
    )
    return f"{said}\n  not used: {', '.join(beside)} (beside the weights)" if beside else said


def require_attention(checkpoint: Checkpoint, uri: str, purpose: str) -> None:
    """Refuse a network without attention for what needs one, such as " to fine-tune".

    Raises:
        CheckpointError: names the network.
    """
    if not checkpoint.model_config.has_attention:
        raise CheckpointError(f"{uri}: a {checkpoint.model_config.name} has no attention{purpose}")


def check_classes(checkpoint: Checkpoint, classes: Sequence[str], what: str) -> None:
    """Refuse to use a network with a dataset of other classes.

    Raises:
        CheckpointError: names the first class that differs.
    """
    if checkpoint.classes == tuple(classes):
        return
    pairs = zip(checkpoint.classes, classes, strict=False)
    first = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(checkpoint.classes), len(classes)))
    raise CheckpointError(
        f"{what}: its {len(classes)} classes are not the checkpoint's {len(checkpoint.classes)}; first difference at "
        f"index {first}: {list(classes)[first : first + 1]} against {list(checkpoint.classes)[first : first + 1]}"
    )
