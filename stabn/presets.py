"""Named settings: the paper's runs, and a small one for two cores."""

import dataclasses

from stabn.config import (
    ConfigError,
    DataConfig,
    ExtractConfig,
    FinetuneConfig,
    ModelConfig,
    RunConfig,
    SelectConfig,
    TrainConfig,
    override,
    parse_overrides,
)
from stabn.config.backbones.resnet3d import DEPTHS


def backbone(depth: int, **settings: object) -> ModelConfig:
    """Return the model settings of ResNet-18, 34, 50 or 101, with any others replaced."""
    block, num_blocks = DEPTHS[depth]
    return ModelConfig(block=block, num_blocks=num_blocks, **settings)  # type: ignore[arg-type]


def describe_frames(config: DataConfig) -> str:
    """Return how many frames a network sees of a video as the paper writes it, `32` or, in two clips, `32x2`."""
    return f"{config.num_frames}" + (f"x{config.num_clips}" if config.num_clips > 1 else "")


def ssv2(name: str, depth: int, num_clips: int) -> RunConfig:
    """Return the paper's settings for Something-Something v2 (section 4.1, tables 1 to 3).

    But for the videos held out: the paper chooses on the split that it reports on, as with `extract.held_out=0`.
    """
    return RunConfig(
        preset="",
        extract=ExtractConfig(held_out=0.1),
        data=DataConfig(num_frames=32, num_clips=num_clips),
        model=backbone(depth, name=name, num_frames=32),
    )


def mini() -> RunConfig:
    """Return settings with which the whole job fits into minutes on two cores.

    AdamW with one cycle instead of SGD, because a network this small learns nothing with SGD in so few epochs.
    """
    frames = 8
    common = {
        "batch_size": 16,
        "reference_batch_size": 16,
        "micro_batch_size": 0,
        "log_steps": 0,
        "optimizer": "adamw",
        "weight_decay": 0.02,
        "schedule": "one_cycle",
        "clip_norm": 5.0,
    }
    return RunConfig(
        preset="mini",
        extract=ExtractConfig(short_side=80, jpeg_quality=90),
        data=DataConfig(num_frames=frames, crop_size=64, scales=(1.0, 0.9, 0.8), color_jitter=0.1, cache_mb=256),
        model=ModelConfig(
            block="basic", num_blocks=(1, 1, 1, 1), width=16, num_frames=frames, dropout=0.0, bn_momentum=0.2
        ),
        train=TrainConfig(epochs=18, learning_rate=6e-3, init_weights="random", **common),  # type: ignore[arg-type]
        finetune=FinetuneConfig(epochs=6, learning_rate=2e-3, unedited_share=0.5, **common),  # type: ignore[arg-type]
        select=SelectConfig(max_classes=4),
    )


def knowledge() -> RunConfig:
    """Return settings for the variant `knowledge` of the mini dataset: trained to the plateau, the last epoch taken.

    It then knows its training videos by heart, so actions are chosen on validation, and all their videos are edited.
    """
    small = mini()
    frames = 10
    return dataclasses.replace(
        small,
        preset="knowledge",
        data=dataclasses.replace(small.data, num_frames=frames),
        model=dataclasses.replace(small.model, num_frames=frames),
        train=dataclasses.replace(small.train, epochs=40, keep="last", validate_every=40),
        finetune=dataclasses.replace(small.finetune, epochs=12, validate_every=12),
        select=SelectConfig(threshold=0.8, splits="validation", videos="all", max_classes=4),
    )


PRESETS = {
    "mini": mini(),
    "knowledge": knowledge(),
    "ssv2_r50_32": ssv2("st_abn", 50, num_clips=1),
    "baseline_r50_32": ssv2("baseline", 50, num_clips=1),
    "ssv2_r50_32x2": ssv2("st_abn", 50, num_clips=2),
    "baseline_r50_32x2": ssv2("baseline", 50, num_clips=2),
    "ssv2_r101_32": ssv2("st_abn", 101, num_clips=1),
    "baseline_r101_32": ssv2("baseline", 101, num_clips=1),
    "ssv2_r101_32x2": ssv2("st_abn", 101, num_clips=2),
    "baseline_r101_32x2": ssv2("baseline", 101, num_clips=2),
}


def load(name: str) -> RunConfig:
    """Return the preset of that name.

    Raises:
        ConfigError: no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r}: choose one of {', '.join(PRESETS)}")
    return dataclasses.replace(PRESETS[name], preset=name)


def resolve(preset: str, overrides: str = "", **changes: object) -> RunConfig:
    """Return a preset with settings replaced, as the forms and command lines give them.

    Args:
        preset: name of the preset.
        overrides: `train.epochs=20 data.num_frames=16`.
        changes: settings with a field of their own in the form, `select__threshold=0.5` for `select.threshold`.
    """
    given = {key.replace("__", "."): str(value) for key, value in changes.items()}
    return override(load(preset), {**given, **parse_overrides(overrides)})
