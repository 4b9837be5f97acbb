"""Settings: ranges, names and types are checked, and every error names the setting."""

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest

from stabn.config import (
    SECTIONS,
    ConfigError,
    DataConfig,
    ExtractConfig,
    FinetuneConfig,
    ModelConfig,
    RunConfig,
    SelectConfig,
    Settings,
    TrainConfig,
    fingerprint,
    from_dict,
    override,
    parse_overrides,
    parse_value,
    to_dict,
)
from stabn.presets import PRESETS, load, resolve

CONFIG = load("ssv2_r50_32")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train.epochs": "0"}, r"train\.epochs = 0: must be at least 1"),
        ({"train.momentum": "1.5"}, r"train\.momentum = 1\.5: must be at most 1"),
        ({"finetune.unedited_share": "-0.1"}, r"finetune\.unedited_share = -0\.1: must be at least 0"),
        ({"data.scales": "1.0,0.01"}, r"data\.scales = \(1\.0, 0\.01\): must be at least 0\.05"),
        ({"extract.jpeg_quality": "101"}, r"extract\.jpeg_quality = 101: must be at most 100"),
        ({"model.block": "wide"}, r"model\.block = 'wide': choose one of bottleneck, basic"),
        ({"model.num_blocks": "3,4,6"}, r"num_blocks = \(3, 4, 6\): give four numbers"),
        ({"train.precision": "fp16"}, r"train\.precision = 'fp16': choose one of auto, fp32, bf16"),
        ({"train.epochs": "many"}, r"train\.epochs = 'many': expected int"),
        ({"train.epochs": "1.5"}, r"train\.epochs = '1\.5': expected int"),
        ({"data.flip": "maybe"}, r"data\.flip = 'maybe': expected true or false"),
        ({"data.scales": "1.0,big"}, r"data\.scales = '1\.0,big': expected"),
        ({"train.epoch": "3"}, r"train\.epoch: no such setting; settings of train: .*epochs"),
        ({"training.epochs": "3"}, r"training\.epochs: no such setting; sections: extract, data"),
        ({"epochs": "3"}, r"no such setting; sections: extract"),
        ({"preset": "mini"}, r"no such setting"),
        ({"model.num_frames": "8"}, r"model\.num_frames = 8 but data\.num_frames = 32: set data\.num_frames"),
        ({"extract.short_side": "200"}, r"extract\.short_side = 200 is smaller than data\.crop_size = 224"),
    ],
)
def test_errors_name_the_setting(change: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        override(CONFIG, change)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_has_a_help_and_a_default_that_survives_its_own_text(section: str) -> None:
    kind: Any = SECTIONS[section]
    for item in dataclasses.fields(kind):
        assert len(item.metadata["help"]) > 8, f"{section}.{item.name}"
        text = ",".join(map(str, item.default)) if isinstance(item.default, tuple) else str(item.default)
        value = parse_value(section, item.name, text)
        assert value == item.default and type(value) is type(item.default), f"{section}.{item.name}"


COMPANIONS = {"max_frames": {"min_frames": 1}, "momentum": {"nesterov": False}}  # what goes with a lowest value


@pytest.mark.parametrize("section", SECTIONS)
def test_every_bound_holds_at_its_edge_and_not_beyond(section: str) -> None:
    kind: Any = SECTIONS[section]
    checked = 0
    for item in dataclasses.fields(kind):
        for bound, beyond in ((item.metadata["low"], -1), (item.metadata["high"], 1)):
            if bound is None:
                continue
            many = isinstance(item.default, tuple)
            number = type(item.default[0] if many else item.default)
            inside, outside = number(bound), number(bound) + beyond
            kind(**{item.name: (inside,) * len(item.default) if many else inside}, **COMPANIONS.get(item.name, {}))
            with pytest.raises(ConfigError, match=item.name):
                kind(**{item.name: (outside,) * len(item.default) if many else outside})
            checked += 1
    assert checked >= 2


def test_override_replaces_only_what_is_named() -> None:
    changed = override(CONFIG, {"train.epochs": "7", "data.flip": "false", "data.scales": "1.0,0.5"})
    assert (changed.train.epochs, changed.data.flip, changed.data.scales) == (7, False, (1.0, 0.5))
    same = dataclasses.replace(changed, train=CONFIG.train, data=CONFIG.data)
    assert same == CONFIG and override(CONFIG, {}) == CONFIG
    assert changed.finetune.epochs == CONFIG.finetune.epochs, "fine-tuning has epochs of its own"
    assert changed.train.learning_rate == CONFIG.train.learning_rate


def test_the_network_follows_the_number_of_frames() -> None:
    changed = override(CONFIG, {"data.num_frames": "16"})
    assert changed.model.num_frames == changed.data.num_frames == 16
    assert dataclasses.replace(changed.model, num_frames=32) == CONFIG.model


def test_parse_overrides_reads_one_line() -> None:
    assert parse_overrides("train.epochs=20   finetune.gamma=5\ntrain.init_weights=s3://b/w.pth?a=b ") == {
        "train.epochs": "20",
        "finetune.gamma": "5",
        "train.init_weights": "s3://b/w.pth?a=b",
    }
    assert parse_overrides("") == {}
    with pytest.raises(ConfigError, match=r"'train\.epochs': write section\.name=value"):
        parse_overrides("data.workers=2 train.epochs 20")
    with pytest.raises(ConfigError, match=r"train\.epochs comes twice, as 2 and as 20"):
        parse_overrides("train.epochs=2 data.workers=2 train.epochs=20")


def test_resolve_takes_fields_of_the_form_and_the_line() -> None:
    config = resolve("mini", "train.epochs=2", select__threshold=0.25, finetune__gamma=0.0)
    assert (config.train.epochs, config.select.threshold, config.finetune.gamma) == (2, 0.25, 0.0)
    assert resolve("mini", "finetune.gamma=3", finetune__gamma=1.0).finetune.gamma == 3, "the line is the exception"


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_loads_and_survives_json(name: str) -> None:
    config = load(name)
    assert config.preset == name
    for section, kind in SECTIONS.items():
        values = getattr(config, section)
        assert type(values) is kind
        plain = to_dict(values)
        assert from_dict(kind, json.loads(json.dumps(plain))) == values
    assert config.model.num_frames == config.data.num_frames


def test_presets_are_the_networks_of_the_tables() -> None:
    assert set(PRESETS) == {"mini", "knowledge"} | {
        f"{kind}_r{depth}_32{clips}" for kind in ("ssv2", "baseline") for depth in (50, 101) for clips in ("", "x2")
    } | {"c3d_16", "videomae_b_16", "vjepa2_l_16", "vjepa2_l_16_frozen", "vjepa2_g_16_frozen"}
    assert load("ssv2_r101_32x2").model.num_blocks == (3, 4, 23, 3)
    assert load("ssv2_r101_32x2").data.num_clips == 2 and load("ssv2_r101_32").data.num_clips == 1
    assert load("baseline_r50_32").model == dataclasses.replace(load("ssv2_r50_32").model, name="baseline")
    with pytest.raises(ConfigError, match=r"preset 'ssv2': choose one of mini, .*ssv2_r50_32"):
        load("ssv2")


def test_the_papers_numbers() -> None:
    """Hold the preset against section 4.1 of the paper."""
    config = load("ssv2_r50_32")
    train, finetune = config.train, config.finetune
    assert (train.optimizer, train.learning_rate, train.momentum, train.weight_decay) == ("sgd", 0.01, 0.9, 5e-4)
    assert (train.batch_size, train.epochs, train.schedule, train.plateau_factor) == (64, 150, "plateau", 0.1)
    assert (config.data.num_frames, config.data.num_clips, config.data.crop_size) == (32, 1, 224)
    assert config.data.scales == (1.0, 0.875, 0.75, 0.66)
    assert (config.model.name, config.model.block, config.model.num_blocks) == ("st_abn", "bottleneck", (3, 4, 6, 3))
    assert (config.model.num_classes, config.model.dropout, config.model.temporal_kernel) == (174, 0.5, "1x3x3")
    assert (finetune.gamma, finetune.learning_rate, finetune.optimizer) == (10.0, 1e-4, "sgd")
    assert config.select.threshold == 0.5


def test_from_dict_refuses_what_it_does_not_know() -> None:
    plain = to_dict(ModelConfig()) | {"heads": 4}
    with pytest.raises(ConfigError, match=r"ModelConfig: unknown settings heads; .*newer version"):
        from_dict(ModelConfig, plain)
    with pytest.raises(ConfigError, match="dropout = 2"):
        from_dict(ModelConfig, {"dropout": 2})
    assert from_dict(DataConfig, {}) == DataConfig(), "settings added later have their defaults"


def test_settings_cannot_be_changed_in_place() -> None:
    for value in (ExtractConfig(), DataConfig(), ModelConfig(), TrainConfig(), FinetuneConfig(), SelectConfig()):
        assert isinstance(value, Settings)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, dataclasses.fields(value)[0].name, 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        RunConfig()  # type: ignore[call-arg]


def test_fingerprint_names_the_content() -> None:
    first = fingerprint(TrainConfig(), {"b": 1, "a": 2}, "text")
    assert len(first) == 16 and int(first, 16) >= 0
    assert first == fingerprint(TrainConfig(), {"a": 2, "b": 1}, "text"), "the order of names does not count"
    others = [
        fingerprint(TrainConfig(seed=1), {"b": 1, "a": 2}, "text"),
        fingerprint(TrainConfig(), {"b": 1, "a": 3}, "text"),
        fingerprint(TrainConfig(), {"b": 1, "a": 2}, "texts"),
        fingerprint(TrainConfig(), "text", {"b": 1, "a": 2}),
        fingerprint(TrainConfig(), {"b": 1, "a": 2}),
    ]
    assert len({first, *others}) == 6


def test_fingerprint_is_the_same_in_another_process() -> None:
    code = "from stabn.config import *; print(fingerprint(TrainConfig(), DataConfig(num_frames=8), 'x'))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == fingerprint(TrainConfig(), DataConfig(num_frames=8), "x")
