"""Every backbone behind the same interface; today's weights and outputs; a second one through the whole job."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_run import CLASSES, EDITED, settings, write_edits
from torch.nn import functional as F

from stabn.attention.automatic import collect_edits
from stabn.attention.edits import import_edits
from stabn.attention.explain import explain
from stabn.attention.export import export_round
from stabn.config import ConfigError, DataConfig, ModelConfig, RunConfig, spec_of
from stabn.config.backbones import SPECS
from stabn.data.manifest import Manifest
from stabn.editor.cache import Cache
from stabn.editor.frames import FrameStore
from stabn.editor.whatif import WhatIf
from stabn.evaluation.agreement import measure_agreement
from stabn.evaluation.faithfulness import measure_faithfulness
from stabn.evaluation.predict import evaluate
from stabn.evaluation.report import ReportInputs, make_report
from stabn.models import STABN, build_model
from stabn.models.backbone import Backbone
from stabn.models.output import ShapeError
from stabn.models.registry import BACKBONES
from stabn.models.weights import load_initial_weights
from stabn.training.checkpoint import load_model, read_checkpoint
from stabn.training.resuming import run_identity
from stabn.training.stage import finetune, train

GOLDEN = Path(__file__).parent / "golden_models"
VIT = {
    "width": 24,
    "depth": 3,
    "num_heads": 2,
    "patch": 8,
    "extractor_blocks": 2,
    "trunk_blocks": 1,
    "positions": "rope",
}
# Small networks of every backbone, their clips and the size of the input.
SMALL: dict[str, tuple[dict[str, Any], int, int]] = {
    "resnet3d": ({"block": "basic", "num_blocks": (1, 1, 1, 1), "width": 4}, 4, 32),
    "c3d": ({"width": 4}, 8, 32),
    "vit": (VIT, 4, 32),
}


def small(backbone: str, **changes: Any) -> ModelConfig:
    own, frames, _ = SMALL[backbone]
    values = {"num_classes": 5, "num_frames": frames, "dropout": 0.0, **own, **changes}
    return ModelConfig(backbone=backbone, **values)


def clips_of(backbone: str, batch: int = 2) -> torch.Tensor:
    _, frames, size = SMALL[backbone]
    return torch.randn(batch, 3, frames, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["st_abn", "resnet3d"])
def test_checkpoints_from_before_there_were_several_backbones(name: str) -> None:
    """Written by the version before, with the outputs that it computed in float64."""
    path = str(GOLDEN / f"{name}.pt")
    model, checkpoint = load_model(path)
    assert checkpoint.model_config.backbone == "resnet3d"
    assert checkpoint.model_config.name == ("baseline" if name == "resnet3d" else name)
    video = torch.sin(torch.arange(2 * 3 * 4 * 32 * 32, dtype=torch.float64) * 0.37).reshape(2, 3, 4, 32, 32)
    output = model.double()(video)
    recorded = read_checkpoint(path)["outputs"]
    assert recorded.keys() == {n for n, value in zip(output._fields, output, strict=True) if value is not None}
    for part, value in recorded.items():
        torch.testing.assert_close(getattr(output, part), value, rtol=1e-10, atol=1e-12)


def test_runs_from_before_are_gone_on_with() -> None:
    """What decides a run's result has the names that it had."""
    for name, former in (("st_abn", "st_abn"), ("baseline", "resnet3d")):
        identity = run_identity(settings().train, DataConfig(num_frames=4), ModelConfig(name=name))
        assert identity["model.name"] == former and "model.backbone" not in identity
    assert ModelConfig(name="resnet3d") == ModelConfig(name="baseline")


def test_both_registries_have_every_backbone() -> None:
    choices = next(f for f in ModelConfig.__dataclass_fields__.values() if f.name == "backbone").metadata["choices"]
    assert set(choices) == set(SPECS) == set(BACKBONES) == set(SMALL)


@pytest.mark.parametrize("backbone", SMALL)
@pytest.mark.parametrize("name", ["st_abn", "baseline"])
def test_sizes_are_those_that_the_backbone_promises(backbone: str, name: str) -> None:
    config, (_, frames, size) = small(backbone, name=name), SMALL[backbone]
    torch.manual_seed(0)
    model = build_model(config).eval()
    parts: Backbone = model.backbone
    spec = spec_of(config)
    features = model.extract_features(clips_of(backbone))
    cells = size // spec.spatial_stride
    assert features.shape == (2, parts.channels, frames // spec.temporal_stride, cells, cells)
    output = model(clips_of(backbone))
    assert output.logits.shape == (2, 5)
    if not isinstance(model, STABN):
        return
    assert model.attention_branch.trunk(features).shape == (2, parts.trunk_channels, *features.shape[2:])
    assert output.spatial_attention.shape == (2, 1, *features.shape[2:])
    assert output.temporal_attention.shape == (2, 1, spec.num_slots, 1, 1)


@pytest.mark.parametrize("backbone", SMALL)
def test_the_attention_is_an_input_of_the_recognition(backbone: str) -> None:
    """Replacing it by itself changes nothing, by another it does; the parts that what-if keeps give the same."""
    torch.manual_seed(0)
    model, video = build_model(small(backbone)).train(), clips_of(backbone)
    with torch.no_grad():
        for _ in range(3):
            model(clips_of(backbone, 4))
    model.eval()
    assert isinstance(model, STABN)
    own = model(video)
    again = model(video, temporal_attention=own.temporal_attention.flatten(1), spatial_transform=lambda a: a)
    assert torch.equal(own.logits, again.logits)
    edit = torch.rand(2, model.num_slots)
    edited = model(video, temporal_attention=edit)
    assert not torch.allclose(own.logits, edited.logits)
    features = model.extract_features(video)
    constant, slope = model.attend_parts(features, own.spatial_attention)
    logits = model.classify(constant + edit[:, None, :, None, None] * slope)
    torch.testing.assert_close(logits, edited.logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(ShapeError, match=f"{model.num_slots} slots of {model.config.num_frames} frames"):
        model(video, temporal_attention=torch.rand(2, model.num_slots + 1))


@pytest.mark.parametrize("backbone", SMALL)
def test_everything_is_trained_and_what_is_frozen_stays(backbone: str) -> None:
    torch.manual_seed(0)
    model = STABN(small(backbone)).train()
    output = model(clips_of(backbone))
    (output.logits.square().sum() + output.attention_logits.square().sum() + output.temporal_attention.sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    model.zero_grad()
    model.freeze_feature_extractor()
    model.reinitialize_recognition()
    model(clips_of(backbone)).logits.sum().backward()
    assert all(p.grad is None for p in model.feature_extractor_parameters())


@pytest.mark.parametrize("backbone", SMALL)
def test_checkpointed_activations_change_nothing(backbone: str) -> None:
    torch.manual_seed(0)
    model = STABN(small(backbone)).double().train()
    kept = []
    for enabled in (False, True):
        model.zero_grad()
        model.set_activation_checkpointing(enabled)
        torch.manual_seed(1)
        output = model(clips_of(backbone).double())
        output.logits.square().sum().backward()
        kept.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for a, b in zip(*kept, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_clips_that_do_not_divide_into_slots_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.num_frames = 6: C3D, width 4 has one attention value for 4 frames"):
        run_of("c3d", frames=6)


def run_of(backbone: str, frames: int = 0) -> RunConfig:
    own, usual, size = SMALL[backbone]
    frames = frames or usual
    changes = {f"model__{name}": value for name, value in own.items()}
    base = settings(**changes, train__epochs=2, finetune__epochs=2)
    return RunConfig(
        **{
            **{name: getattr(base, name) for name in ("preset", "extract", "train", "finetune")},
            "data": DataConfig(num_frames=frames, crop_size=size, scales=(1.0, 0.9), workers=0),
            "model": ModelConfig(**{**own, "backbone": backbone, "num_frames": frames, "dropout": 0.1}),
        }
    )


@pytest.mark.parametrize("backbone", [name for name in SMALL if name != "resnet3d"])
def test_the_whole_job(backbone: str, manifest_path: str, tmp_path: Path) -> None:
    """Train, evaluate under other attention, export, what-if, correct, fine-tune, report: in frames all along."""
    config = run_of(backbone)
    frames, manifest = config.data.num_frames, Manifest.load(manifest_path)
    trained = train(manifest_path, config, str(tmp_path / "train")).best_uri
    segments = tmp_path / "segments.json"
    ids = [manifest.video_id(int(row)) for row in range(len(manifest))]
    segments.write_text(json.dumps({name: [1, 4] for name in ids}))
    table = tmp_path / "p.parquet"
    plain = evaluate(trained, manifest_path, "validation", "as_is", table, config).predictions
    assert plain.temporal is not None and plain.frames is not None
    assert plain.temporal.shape == plain.frames.shape == (6, frames)
    stride = spec_of(config.model).temporal_stride
    slots = plain.temporal.reshape(6, -1, stride)
    assert stride > 1 and (slots == slots[..., :1]).all(), "the frames of a slot have its value"
    for mode in ("spatial_inverted", "temporal_inverted", "temporal_reversed", "temporal_segments"):
        given = str(segments) if mode == "temporal_segments" else ""
        other = evaluate(trained, manifest_path, "validation", mode, table, config, segments_uri=given).predictions
        assert len(other) == 6 and not np.allclose(other.scores, plain.scores)
    assert set(measure_agreement(trained, manifest_path, "validation", str(segments), config)["videos"]) >= {6}

    selection = {
        "format": 1,
        "classes": [
            {"class_index": i, "name": CLASSES[i]}
            | dict.fromkeys(("train_accuracy", "validation_accuracy"), 0.1)
            | dict.fromkeys(("train_support", "validation_support"), 3)
            for i in range(3)
        ],
        "video_ids": ["1", "2", "3"],
        "validation_video_ids": [],
        "num_misclassified": 3,
        "reason": "",
        "settings": {},
        "inputs": {},
    }
    (tmp_path / "selection.json").write_text(json.dumps(selection))
    round_ = export_round(trained, manifest_path, str(tmp_path / "selection.json"), str(tmp_path / "store"), config)
    seen = json.loads(round_.storage.read("videos/1/attention.json"))
    own = seen["temporal_attention"]
    assert len(own) == manifest.video(0).num_frames == round_.video("1").num_frames

    whatif = WhatIf(round_, FrameStore(round_, Cache(1 << 20)), enabled=True, device="cpu", cache=Cache(64 << 20))
    whatif.load()
    same = whatif.recognise("1", own, own)
    assert same == whatif.recognise("1", [None] * len(own), own)
    changed = whatif.recognise("1", [1.0 - round(value) for value in own], own)
    assert changed["true"]["score"] != same["true"]["score"]

    collect_edits(round_.uri, "segments", str(segments), 1.0, 1.0)
    edits = tmp_path / "edits.parquet"
    assert len(import_edits(round_.uri, edits).edited) == 3
    tuned = finetune(trained, manifest_path, str(edits), config, str(tmp_path / "tuned"), truth_uri=str(segments))
    assert tuned.history[-1]["train_temporal_loss"] > 0 and tuned.history[-1]["validation_agreement_videos"] == 6
    before, after = (read_checkpoint(uri)["model"] for uri in (trained, tuned.best_uri))
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert "feature_extractor" not in moved and {"attention_branch", "perception_branch"} <= moved

    tables = {}
    for name, uri in (("before", trained), ("after", tuned.best_uri)):
        for mode, suffix in (("as_is", ""), ("spatial_inverted", "_inverted")):
            tables[name + suffix] = tmp_path / f"{name}{suffix}.parquet"
            evaluate(uri, manifest_path, "validation", mode, tables[name + suffix], config, name)
    inputs = ReportInputs(
        **tables,
        selection=tmp_path / "selection.json",
        before_checkpoint=trained,
        after_checkpoint=tuned.best_uri,
        manifest=manifest_path,
        edits=edits,
        truth=segments,
    )
    make_report(inputs, tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    assert spec_of(config.model).describe() in page
    faithful = measure_faithfulness(trained, manifest_path, "validation", str(tmp_path / "faith"), config, num_videos=1)
    assert len(faithful.video_ids) == 1 and next(iter(faithful.randomised)) == "perception branch"
    assert "patch embed" in faithful.randomised or "conv 1" in faithful.randomised
    figure = explain("1", trained, manifest_path, str(tmp_path / "explained.png"))
    assert Path(figure).stat().st_size > 1000


def conv_pool(x: torch.Tensor, weights: dict[str, torch.Tensor], *names: str) -> torch.Tensor:
    for name in names:
        x = F.relu(F.conv3d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1))
    return x


@pytest.mark.parametrize("layout", ["{}.{}", "backbone.{}.conv.{}"])
def test_c3d_is_the_published_network(layout: str) -> None:
    """Against the published layers in a row (Tran et al., figure 3), at the published 16 x 112 x 112."""
    generator, width = torch.Generator().manual_seed(0), 4
    sizes = {"conv1": (3, 1), "conv2": (1, 2), "conv3a": (2, 4), "conv3b": (4, 4), "conv4a": (4, 8), "conv4b": (8, 8)}
    sizes |= {"conv5a": (8, 8), "conv5b": (8, 8)}
    weights: dict[str, torch.Tensor] = {}
    for name, (before, after) in sizes.items():
        channels = 3 if name == "conv1" else before * width
        weights[f"{name}.weight"] = torch.randn(after * width, channels, 3, 3, 3, generator=generator) * 0.15
        weights[f"{name}.bias"] = torch.randn(after * width, generator=generator) * 0.1
    for name, inputs in {"fc6": 8 * width * 16, "fc7": 64 * width}.items():
        weights[f"{name}.weight"] = torch.randn(64 * width, inputs, generator=generator) * inputs**-0.5
        weights[f"{name}.bias"] = torch.randn(64 * width, generator=generator) * 0.1
    model = build_model(ModelConfig(name="baseline", backbone="c3d", width=width, num_classes=5, num_frames=16)).eval()
    renamed = {
        (key if key.startswith("fc") and "conv" not in layout else layout.format(*key.rsplit(".", 1))): value
        for key, value in weights.items()
    }
    renamed = {key.replace(".conv.", ".") if ".fc" in key else key: value for key, value in renamed.items()}
    report = load_initial_weights(model, "c3d.pth", {**renamed, "fc8.weight": torch.zeros(487, 64 * width)})
    assert report.missing == ["classifier.fc.weight", "classifier.fc.bias"] and not report.unexpected
    assert list(report.skipped) == ["fc8.weight"]
    video = torch.randn(2, 3, 16, 112, 112, generator=generator)
    x = F.max_pool3d(conv_pool(video, weights, "conv1"), (1, 2, 2))
    x = F.max_pool3d(conv_pool(x, weights, "conv2"), 2)
    x = F.max_pool3d(conv_pool(x, weights, "conv3a", "conv3b"), 2)
    x = conv_pool(x, weights, "conv4a", "conv4b")
    torch.testing.assert_close(model.extract_features(video), x)
    x = F.max_pool3d(conv_pool(F.max_pool3d(x, 2), weights, "conv5a", "conv5b"), 2, 2, (0, 1, 1))
    assert x.shape[2:] == (1, 4, 4)
    x = F.relu(F.linear(x.flatten(1), weights["fc6.weight"], weights["fc6.bias"]))
    x = F.relu(F.linear(x, weights["fc7.weight"], weights["fc7.bias"]))
    torch.testing.assert_close(model(video).logits, model.classifier.fc(x))


def test_the_trunk_of_c3d_starts_as_its_last_convolutions() -> None:
    model = STABN(small("c3d"))
    weights = {f"conv5{n}.{kind}": torch.randn(32, 32, 3, 3, 3) for n in "ab" for kind in ("weight",)}
    load_initial_weights(model, "c3d.pth", weights)
    for index, name in enumerate("ab"):
        for part in (model.attention_branch.trunk, model.perception_branch.conv5):
            assert torch.equal(part[index].conv.weight, weights[f"conv5{name}.weight"])


@pytest.mark.parametrize("name", ["st_abn", "baseline"])
def test_a_light_head_learns_on_a_frozen_extractor(name: str, manifest_path: str, tmp_path: Path) -> None:
    """All blocks are the extractor's, from a file in the authors' layout, and stay as they are to the last bit."""
    config = run_of("vit")
    model = dataclasses.replace(config.model, name=name, pooling="attentive", extractor_blocks=3)
    torch.manual_seed(5)
    encoder = build_model(model).feature_extractor.state_dict()
    save_file(encoder, tmp_path / "encoder.safetensors")
    frozen = {"freeze": "feature_extractor", "init_weights": str(tmp_path / "encoder.safetensors")}
    recipe = dataclasses.replace(config.train, **frozen)
    run = dataclasses.replace(config, model=model, train=recipe)
    after = read_checkpoint(train(manifest_path, run, str(tmp_path / "out")).best_uri)["model"]
    for key, value in encoder.items():
        assert torch.equal(after[f"feature_extractor.{key}"], value), key
    head = "classifier" if name == "baseline" else "perception_branch"
    torch.manual_seed(recipe.seed)
    start = build_model(dataclasses.replace(model, num_classes=3)).state_dict()
    assert not torch.equal(after[f"{head}.pooling.q.weight"], start[f"{head}.pooling.q.weight"])
    if name == "st_abn":
        assert not torch.equal(after["attention_branch.trunk.0.mlp.fc1.weight"], encoder["blocks.2.mlp.fc1.weight"])
    with pytest.raises(ConfigError, match=r"freeze = feature_extractor with init_weights = 'random'"):
        dataclasses.replace(recipe, init_weights="random")


@pytest.mark.parametrize("backbone", [name for name in SMALL if name != "resnet3d"])
def test_fine_tuning_brings_the_slots_to_the_edit(backbone: str, manifest_path: str, tmp_path: Path) -> None:
    config = run_of(backbone)
    trained = train(manifest_path, config, str(tmp_path / "train")).best_uri
    edits = write_edits(tmp_path / "edits.parquet", EDITED)
    history = finetune(trained, manifest_path, edits, config, str(tmp_path / "tuned")).history
    assert history[-1]["train_temporal_loss"] < history[0]["train_temporal_loss"]
