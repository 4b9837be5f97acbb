"""Stage export-model: a network for others, with a card that says what it is and what it is not."""

import io
from collections.abc import Sequence
from typing import Any

import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from stabn.config import ConfigError, spec_of
from stabn.data.edit_table import load_edit_table
from stabn.data.manifest import Manifest
from stabn.evaluation.crossed import crossed_bootstrap
from stabn.evaluation.metrics import topk_hits
from stabn.evaluation.pages import load_template
from stabn.evaluation.prediction_table import Predictions
from stabn.storage import open_storage, owned
from stabn.training.checkpoint import Checkpoint, check_classes, load_model
from stabn.training.exported import CONFIG_FILE, WEIGHTS_FILE, write_exported

CARD_FILE, PROGRAM_FILE = "README.md", "model.pt2"


def export_model(
    checkpoint_uri: str,
    output_uri: str,
    *,
    manifest_uri: str = "",
    predictions: Sequence[str] = (),
    edits_path: str = "",
    program: bool = True,
) -> str:
    """Write a network as safetensors, JSON, a model card, and a program of torch.export.

    Args:
        checkpoint_uri: the network.
        output_uri: folder or s3:// prefix.
        manifest_uri: the dataset, for the card; empty: its fingerprint alone is told.
        predictions: prediction tables of this network, for the card.
        edits_path: edit table that it learnt from, for the card; empty: none is told.
        program: whether to write the program too.

    Returns:
        Where the files are.

    Raises:
        CheckpointError, ConfigError: the dataset's classes, or the network of a prediction table, are others.
    """
    model, checkpoint = load_model(checkpoint_uri)
    card = model_card(checkpoint, model, manifest_uri, predictions, edits_path, program)
    storage = open_storage(output_uri)
    with owned(storage, "export-model", {"checkpoint": checkpoint.fingerprint}):
        storage.delete(CONFIG_FILE)  # of an earlier export: it comes last, and until then nothing here is whole
        storage.write(CARD_FILE, card.encode())
        if program:
            storage.write(PROGRAM_FILE, export_program(model, checkpoint))
        else:
            storage.delete(PROGRAM_FILE)  # of an earlier export, which may be of another network
        write_exported(storage, checkpoint, model.state_dict())
    files = [WEIGHTS_FILE, *([PROGRAM_FILE] if program else []), CARD_FILE, CONFIG_FILE]
    print(f"export-model: {', '.join(files)} in {storage.uri}", flush=True)
    return storage.uri


def model_card(
    checkpoint: Checkpoint,
    model: nn.Module,
    manifest_uri: str = "",
    predictions: Sequence[str] = (),
    edits_path: str = "",
    program: bool = True,
) -> str:
    """Return the card's Markdown, see `export_model`."""
    splits: list[tuple[str, int]] = []
    if manifest_uri:
        manifest = Manifest.load(manifest_uri)
        check_classes(checkpoint, manifest.classes, manifest_uri)
        if manifest.fingerprint != checkpoint.manifest_fingerprint:
            raise ConfigError(
                f"{manifest_uri}: dataset {manifest.fingerprint}, the network was trained on "
                f"{checkpoint.manifest_fingerprint or 'one that is not known'}; give that one, or none"
            )
        counts = pc.value_counts(manifest.table["split"].combine_chunks()).to_pylist()
        splits = sorted((str(row["values"]), int(row["counts"])) for row in counts)
    edits = load_edit_table(edits_path) if edits_path else None
    return load_template("model_card.md.jinja", escape=False).render(
        checkpoint=checkpoint,
        config=checkpoint.model_config,
        data=checkpoint.data_config,
        backbone=spec_of(checkpoint.model_config).describe(),
        num_slots=spec_of(checkpoint.model_config).num_slots,
        num_parameters=sum(p.numel() for p in model.parameters()),
        splits=splits,
        metrics=[_measured(uri, checkpoint) for uri in predictions],
        edits=edits,
        program=PROGRAM_FILE if program else "",
    )


def _measured(uri: str, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return top-1 and top-5 of a prediction table with their intervals over the videos."""
    table = Predictions.load(uri)
    found = table.metadata.get("checkpoint_fingerprint")
    if found != checkpoint.fingerprint:
        raise ConfigError(f"{uri}: predictions of network {found}, not of {checkpoint.fingerprint}; evaluate this one")
    if table.class_index.min() < 0:
        raise ConfigError(f"{uri}: split {table.split} has no labels to compare with; choose another split")
    intervals = {f"top{k}": crossed_bootstrap(topk_hits(table, k)[None]) for k in (1, 5)}
    return {"split": table.split, "attention": table.metadata["attention"], "videos": len(table), **intervals}


class _Program(nn.Module):
    """A network whose outputs are a plain tuple."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, video: Tensor) -> tuple[Tensor, ...]:
        return tuple(part for part in self.model(video) if part is not None)


def export_program(model: nn.Module, checkpoint: Checkpoint) -> bytes:
    """Return a program of torch.export: float32 (B, 3, T, H, W), normalised, to the network's outputs in their order.

    B is free; T, H and W are the network's.
    """
    data = checkpoint.data_config
    video = torch.zeros(2, 3, data.num_frames, data.crop_size, data.crop_size)
    batch = torch.export.Dim("batch", min=1, max=4096)
    with torch.no_grad():
        program = torch.export.export(_Program(model.eval()), (video,), dynamic_shapes=({0: batch},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()
