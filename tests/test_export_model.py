"""A network for others and back: identical outputs, a card that says what it is, refusals that name the file."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_backbones import SMALL, clips_of, small
from tiny_run import CLASSES, EDITED, settings, write_edits

from stabn.cli import main
from stabn.config import ConfigError, DataConfig, spec_of
from stabn.data.manifest import Manifest
from stabn.evaluation.export_model import export_model, export_program
from stabn.evaluation.predict import evaluate
from stabn.models import build_model
from stabn.storage import open_storage, write_uri
from stabn.training.checkpoint import CheckpointError, describe, dump_checkpoint, load_model, read_checkpoint
from stabn.training.exported import import_exported, is_exported


def written(backbone: str, folder: Path, name: str = "st_abn") -> str:
    """Write a checkpoint of a small random network whose BatchNorm has seen something."""
    config, (_, frames, size) = small(backbone, name=name), SMALL[backbone]
    torch.manual_seed(0)
    model = build_model(config).train()
    with torch.no_grad():
        model(clips_of(backbone, 4))
    data = DataConfig(num_frames=frames, crop_size=size)
    classes = [f"Doing something {i} – “é”" for i in range(5)]
    content = dump_checkpoint(model, config, data, classes, manifest_fingerprint="f" * 16, stage="finetune", epoch=3)
    write_uri(folder / "network.pt", content)
    return str(folder / "network.pt")


@pytest.mark.parametrize(("backbone", "name"), [*((b, "st_abn") for b in SMALL), ("vit", "baseline")])
def test_what_is_read_back_is_the_same_network(backbone: str, name: str, tmp_path: Path) -> None:
    checkpoint = written(backbone, tmp_path, name)
    folder = str(tmp_path / "exported")
    export_model(checkpoint, folder, program=False)
    assert is_exported(folder) and not is_exported(checkpoint) and not is_exported(str(tmp_path))
    import_exported(folder, str(tmp_path / "back.pt"))
    assert describe(read_checkpoint(str(tmp_path / "back.pt"))) == describe(read_checkpoint(checkpoint))
    (model, _), (back, _) = load_model(checkpoint), load_model(str(tmp_path / "back.pt"))
    for one, other in zip(model(clips_of(backbone)), back(clips_of(backbone)), strict=True):
        assert (one is None) == (other is None) and (one is None or torch.equal(one, other))
    names = json.loads((tmp_path / "exported" / "config.json").read_text())["classes"]
    assert names[4] == "Doing something 4 – “é”"
    assert load_file(tmp_path / "exported" / "model.safetensors").keys() == model.state_dict().keys()


@pytest.mark.parametrize("backbone", SMALL)
def test_the_program_gives_the_networks_outputs_for_any_batch(backbone: str, tmp_path: Path) -> None:
    model, checkpoint = load_model(written(backbone, tmp_path))
    program = torch.export.load(io.BytesIO(export_program(model, checkpoint))).module()
    for batch in (1, 3):
        video = clips_of(backbone, batch)
        for one, other in zip(program(video), model(video), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_card_says_data_metrics_with_intervals_corrections_and_limits(
    trained: str, manifest_path: str, storage_uri: str, tmp_path: Path
) -> None:
    """By the commands, into a folder and into S3."""
    table = str(tmp_path / "predictions.parquet")
    evaluate(trained, manifest_path, "validation", "as_is", table, settings())
    edits = write_edits(tmp_path / "edits.parquet", EDITED)
    given = ["--manifest", manifest_path, "--predictions", table, "--edits", edits, "--program", "no"]
    assert main(["export-model", "--checkpoint", trained, "--output", storage_uri, *given]) in (0, None)
    card = open_storage(storage_uri).read("README.md").decode()
    fingerprint = describe(read_checkpoint(trained)).fingerprint
    for said in (
        "pipeline_tag: video-classification",
        f"ST-ABN, {spec_of(settings().model).describe()}, 3 actions\n\n",
        f" parameters; weights {fingerprint}, epoch ",
        "| train | 9 |",
        "| validation | 6 |",
        f"Dataset {Manifest.load(manifest_path).fingerprint}",
        "| validation | as_is | 6 |",
        "95% interval over the videos",
        "of 3 training videos (round round, table ffffffffffffffff)",
        "It knows the 3 actions",
        "float32 (B, 3, 4, 32, 32)",
    ):
        assert said in card, said
    assert card.splitlines()[0] == "---" and "\n\n\n" not in card
    output = str(tmp_path / "back.pt")
    assert main(["import-checkpoint", storage_uri, "--output", output]) in (0, None)
    assert describe(read_checkpoint(output)).classes == CLASSES


def test_a_card_is_of_this_network_and_its_dataset(trained: str, manifest_path: str, tmp_path: Path) -> None:
    other = written("resnet3d", tmp_path)
    table = str(tmp_path / "predictions.parquet")
    evaluate(trained, manifest_path, "validation", "as_is", table, settings())
    with pytest.raises(ConfigError, match=r"predictions\.parquet: predictions of network [0-9a-f]{16}, not of"):
        export_model(other, str(tmp_path / "out"), predictions=[table])
    with pytest.raises(CheckpointError, match="classes are not the checkpoint's"):
        export_model(other, str(tmp_path / "out"), manifest_uri=manifest_path)
    assert not (tmp_path / "out").exists()


def test_files_that_were_changed_are_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    export_model(written("resnet3d", tmp_path), str(folder), program=False)
    content = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")

    def refused(said: str, **changes: Any) -> None:
        (folder / "config.json").write_text(json.dumps({**content, **changes}))
        with pytest.raises((CheckpointError, ConfigError), match=said):
            import_exported(str(folder), str(tmp_path / "no.pt"))
        assert not (tmp_path / "no.pt").exists()

    refused("no document of format 1", format=7)
    refused("no usable classes", classes="a")
    refused("class names that are no text", classes=[1, 2])
    refused(r"4 class names for 5 classes", classes=["a"] * 4)
    refused(
        r"model\.safetensors: .* is not as .*config\.json says", model_config={**content["model_config"], "width": 8}
    )
    refused("unknown settings colour", model_config={**content["model_config"], "colour": 8})
    refused("not the weights that config.json is of", fingerprint="0" * 16)
    save_file({**weights, "perception_branch.fc.bias": torch.ones(5)}, folder / "model.safetensors")
    refused("not the weights that config.json is of")
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not what `stabn export-model` writes"):
        import_exported(str(folder), str(tmp_path / "no.pt"))
