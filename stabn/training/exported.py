"""A network as others can read it, weights as safetensors, settings and class names as JSON; and a checkpoint of it."""

import json
from collections.abc import Mapping
from typing import Any

import safetensors.torch
from torch import Tensor

from stabn.config import to_dict
from stabn.models import build_model
from stabn.models.network import without_memory
from stabn.models.weights import read_weights
from stabn.storage import Storage, open_storage, read_uri, uri_exists, write_uri
from stabn.text import parse_json
from stabn.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    check_description,
    describe,
    dump_checkpoint,
    weights_fingerprint,
)

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
FORMAT = 1


def write_exported(storage: Storage, checkpoint: Checkpoint, weights: Mapping[str, Tensor]) -> None:
    """Write weights and settings; the settings last, so that the network is whole where they are."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    storage.write(
        WEIGHTS_FILE, safetensors.torch.save(tensors, {"format": "pt", "fingerprint": checkpoint.fingerprint})
    )
    content = {
        "format": FORMAT,
        "library_name": "stabn",
        "num_classes": len(checkpoint.classes),
        "classes": list(checkpoint.classes),
        "model_config": to_dict(checkpoint.model_config),
        "data_config": to_dict(checkpoint.data_config),
        "manifest_fingerprint": checkpoint.manifest_fingerprint,
        "fingerprint": checkpoint.fingerprint,
        "stage": checkpoint.stage,
        "epoch": checkpoint.epoch,
    }
    storage.write(CONFIG_FILE, json.dumps(content, indent=1, ensure_ascii=False).encode())


def is_exported(uri: str) -> bool:
    """Tell a folder or prefix of `write_exported` from a file."""
    return uri_exists(open_storage(uri).locate(CONFIG_FILE))


def import_exported(folder: str, output_uri: str) -> str:
    """Make a checkpoint of an exported network; all outputs stay the same.

    Args:
        folder: folder or s3:// prefix of `stabn export-model`.
        output_uri: checkpoint to write.

    Returns:
        A line that says what was imported.

    Raises:
        CheckpointError: a file that is not what was exported, or weights that are not those of its settings.
    """
    storage = open_storage(folder)
    where = storage.locate(CONFIG_FILE)
    content = _parse(read_uri(where), where)
    weights_uri = storage.locate(WEIGHTS_FILE)
    weights = read_weights(weights_uri)
    if weights_fingerprint(weights) != content["fingerprint"]:
        raise CheckpointError(f"{weights_uri}: not the weights that {CONFIG_FILE} is of, or damaged; export again")
    checkpoint = describe(content)
    with without_memory():  # whatever size the settings ask for
        own = build_model(checkpoint.model_config).state_dict()
    shapes = [{name: tuple(value.shape) for name, value in tensors.items()} for tensors in (own, weights)]
    for name in sorted({*own, *weights}):
        if shapes[0].get(name) != shapes[1].get(name):
            raise CheckpointError(f"{weights_uri}: {name} is not as {where} says; export again")
    if len(checkpoint.classes) != checkpoint.model_config.num_classes:
        raise CheckpointError(
            f"{where}: {len(checkpoint.classes)} class names for {checkpoint.model_config.num_classes} classes"
        )
    model = build_model(checkpoint.model_config)
    model.load_state_dict(weights)
    data = dump_checkpoint(
        model,
        checkpoint.model_config,
        checkpoint.data_config,
        checkpoint.classes,
        manifest_fingerprint=checkpoint.manifest_fingerprint,
        stage=checkpoint.stage,
        epoch=checkpoint.epoch,
    )
    write_uri(output_uri, data)
    return f"{folder}: {len(weights)} tensors, {len(checkpoint.classes)} classes: {output_uri}"


def _parse(data: bytes, where: str) -> dict[str, Any]:
    """Return the settings' document, checked as far as `describe` needs it."""
    try:
        content = parse_json(data)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"no document of format {FORMAT}")
        check_description(content)
    except ValueError as error:
        raise CheckpointError(f"{where}: not what `stabn export-model` writes ({error})") from None
    return content
