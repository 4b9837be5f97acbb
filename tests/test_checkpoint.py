"""Checkpoints: rebuilt from the file alone, named by their weights, refused when they are something else."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stabn.config import DataConfig, ModelConfig, from_dict, to_dict
from stabn.models import build_model
from stabn.storage import write_uri
from stabn.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    check_classes,
    describe,
    dump_checkpoint,
    load_model,
    read_checkpoint,
    serialize,
    weights_fingerprint,
)

CLASSES = ("Holding something", "Moving something up", "Turning something")
DATA = DataConfig(num_frames=4, crop_size=32, scales=(1.0, 0.8))


def network(name: str = "st_abn", **settings: Any) -> tuple[nn.Module, ModelConfig]:
    values = {"num_blocks": (1, 1, 1, 1), "width": 4, "num_classes": 3, "num_frames": 4, "block": "basic"}
    config = ModelConfig(name=name, **{**values, **settings})
    torch.manual_seed(0)
    model = build_model(config).train()
    with torch.no_grad():
        model(torch.randn(4, 3, 4, 32, 32))  # BatchNorm statistics of its own
    return model.eval(), config


def dump(model: nn.Module, config: ModelConfig, **state: Any) -> bytes:
    return dump_checkpoint(model, config, DATA, CLASSES, manifest_fingerprint="0123", stage="train", epoch=2, **state)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a good checkpoint."""
    (tmp_path / "best.pt").write_bytes(dump(*network()))
    return tmp_path / "best.pt"


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("st_abn", {"attention_head": "linear", "temporal_kernel": "3x3x3"}),
        ("st_abn", {"block": "bottleneck", "num_blocks": (1, 2, 1, 1)}),
        ("baseline", {}),
    ],
)
def test_a_checkpoint_alone_rebuilds_its_network(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model, config = network(name, **settings)
    history = [{"epoch": 1, "validation_top1": 0.25}, {"epoch": 2, "validation_top1": 0.5}]
    uri = str(tmp_path / "best.pt")
    Path(uri).write_bytes(dump(model, config, history=history))
    torch.manual_seed(99)
    rebuilt, checkpoint = load_model(uri)
    assert not rebuilt.training
    video = torch.randn(2, 3, 4, 32, 48)
    for a, b in zip(model(video), rebuilt(video), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    assert checkpoint == Checkpoint(
        config, DATA, CLASSES, "0123", weights_fingerprint(model.state_dict()), "train", 2, tuple(history)
    )


def test_round_trip_through_object_storage(s3_uri: str) -> None:
    model, config = network()
    write_uri(f"{s3_uri}/best.pt", dump(model, config))
    rebuilt, checkpoint = load_model(f"{s3_uri}/best.pt")
    assert weights_fingerprint(rebuilt.state_dict()) == checkpoint.fingerprint


def test_channels_last_weights_are_the_same_checkpoint() -> None:
    """Training keeps its weights in another memory format; neither name nor values may depend on it."""
    model, config = network()
    before = describe(_content(dump(model, config)))
    changed = nn.utils.convert_conv3d_weight_memory_format(model, torch.channels_last_3d)
    assert describe(_content(dump(changed, config))) == before


def test_fingerprint_names_the_weights() -> None:
    model, config = network()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    first = weights_fingerprint(weights)
    assert len(first) == 16 and int(first, 16) >= 0
    assert weights_fingerprint(dict(reversed(weights.items()))) == first
    assert describe(_content(dump(model, config))).fingerprint == first
    seen = {first}
    changes: list[tuple[str, int]] = [
        ("perception_branch.fc.bias", -1),
        ("attention_branch.temporal.0.weight", 5),
        ("feature_extractor.stem.bn1.running_mean", 0),
        ("feature_extractor.stem.bn1.num_batches_tracked", 0),
    ]
    for name, position in changes:
        changed = {key: value.clone() for key, value in weights.items()}
        value = changed[name].view(-1)
        if value.is_floating_point():
            value[position] = torch.nextafter(value[position], torch.tensor(torch.inf))
        else:
            value[position] += 1
        seen.add(weights_fingerprint(changed))
    renamed = {("x" if key == "perception_branch.fc.bias" else key): value for key, value in weights.items()}
    reshaped = {**weights, "perception_branch.fc.bias": weights["perception_branch.fc.bias"].view(3, 1)}
    seen |= {weights_fingerprint(renamed), weights_fingerprint(reshaped)}
    assert len(seen) == 1 + len(changes) + 2


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_named(path: Path, share: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match=r"best\.pt: cannot be read as a checkpoint \(.+\)"):
        load_model(str(path))


FOREIGN: dict[str, bytes] = {
    "labels.json": json.dumps({name: str(i) for i, name in enumerate(CLASSES)}).encode(),
    "notes.txt": b"best checkpoint so far, top-1 0.61\n",
    "table.csv": b"video_id,frame,value\n1,0,0.5\n",
    "video.webm": bytes.fromhex("1a45dfa39f4286810142f7810142f2810442f381084282847765626d") + bytes(100),
    "frame.jpg": bytes.fromhex("ffd8ffe000104a46494600010100000100010000ffdb0043"),
    "frame.png": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
    "page.html": b"<!doctype html><title>404</title>",
    "zeros.pt": bytes(1000),
    "archive.zip": bytes.fromhex("504b0506") + bytes(18),
    "error.xml": b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>',
}


# BUG reported: notes.txt ends in a bare IndexError of torch's unpickler, which read_checkpoint lets through.
@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_another_kind_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FOREIGN[name])
    with pytest.raises(CheckpointError, match=rf"{name}: .+"):
        load_model(str(tmp_path / name))


# BUG reported: the message quotes torch's advice to load with weights_only=False, for a text or an image, too.
def test_no_message_advises_to_run_the_code_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_bytes(FOREIGN["labels.json"])
    torch.save({"model_config": Path("x")}, tmp_path / "object.pt")
    for name in ("labels.json", "object.pt"):
        with pytest.raises(CheckpointError, match=name) as error:
            read_checkpoint(str(tmp_path / name))
        assert "weights_only" not in str(error.value), str(error.value)


def test_other_files_of_torch_are_refused(tmp_path: Path) -> None:
    model, config = network()
    uri = str(tmp_path / "other.pt")
    for content in (model.state_dict(), {"state_dict": model.state_dict()}, [1, 2], torch.zeros(3)):
        torch.save(content, uri)
        with pytest.raises(CheckpointError, match=r"other\.pt: not a checkpoint of stabn; .*import-checkpoint"):
            read_checkpoint(uri)
    torch.save(model, uri)
    with pytest.raises(CheckpointError, match=r"other\.pt: refused, it holds more than weights"):
        read_checkpoint(uri)
    (tmp_path / "newer.pt").write_bytes(serialize({**_content(dump(model, config)), "format": 2}))
    with pytest.raises(CheckpointError, match=r"newer\.pt: checkpoint format 2, this version reads 1"):
        load_model(str(tmp_path / "newer.pt"))


def test_code_in_a_checkpoint_is_not_run(path: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    path.write_bytes(serialize({**read_checkpoint(str(path)), "extra": Payload()}))
    with pytest.raises(CheckpointError, match=r"best\.pt: refused, it holds more than weights"):
        load_model(str(path))
    assert not (tmp_path / "ran").exists()


def test_other_classes_are_refused_by_the_first_difference(path: Path) -> None:
    checkpoint = load_model(str(path))[1]
    check_classes(checkpoint, list(CLASSES), "m.json")
    swapped = (CLASSES[0], CLASSES[2], CLASSES[1])
    cases = [
        (swapped, r"m\.json: its 3 classes .* 3; .*index 1: \['Turning something'\] against \['Moving something up'\]"),
        (CLASSES[:2], r"its 2 classes are not the checkpoint's 3; .*index 2: \[\] against \['Turning something'\]"),
        ((*CLASSES, "Waving"), r"its 4 classes .*index 3: \['Waving'\] against \[\]"),
    ]
    for classes, message in cases:
        with pytest.raises(CheckpointError, match=message):
            check_classes(checkpoint, classes, "m.json")


def test_settings_survive_as_plain_values() -> None:
    config = network("st_abn", attention_head="linear")[1]
    assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(config)))) == config


def _content(data: bytes) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True)
    return content


@pytest.mark.parametrize("preset", ["mini", "c3d_16", "videomae_b_16"])
def test_checking_a_network_s_size_imports_no_compiler(preset: str) -> None:
    """It takes a second, and makes a folder where nothing else of ours writes."""
    code = (
        "import sys\nfrom stabn.models import build_model\nfrom stabn.presets import resolve\n"
        "from stabn.models.network import without_memory\n"
        f"with without_memory(): build_model(resolve({preset!r}, 'model.num_classes=5').model)\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
