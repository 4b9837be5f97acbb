"""Named settings: the paper's runs, other backbones, and a small one for two cores."""

import dataclasses
from typing import Any

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


def c3d() -> RunConfig:
    """Return C3D with its published input, 16 frames of 112 x 112, trained as the paper trains the 3D ResNet."""
    frames = 16
    return RunConfig(
        preset="",
        extract=ExtractConfig(held_out=0.1),
        data=DataConfig(num_frames=frames, crop_size=112),
        model=ModelConfig(backbone="c3d", num_frames=frames),
        train=TrainConfig(init_weights="random"),
    )


# Width, blocks, heads and MLP ratio of the transformers by their size.
TRANSFORMERS = {"b": (768, 12, 12, 4.0), "l": (1024, 24, 16, 4.0), "g": (1408, 40, 22, 48 / 11)}


def transformer(size: str, crop_size: int, train: dict[str, Any], **model: Any) -> RunConfig:
    """Return a video transformer over 16 frames, tokens of 2 x 16 x 16, with AdamW and a cosine.

    Args:
        size: one of TRANSFORMERS.
        crop_size: side of the input, in pixels.
        train: what else training has; fine-tuning has its optimiser.
        model: what else the network has.
    """
    frames = 16
    width, depth, num_heads, mlp_ratio = TRANSFORMERS[size]
    sizes: dict[str, Any] = {"width": width, "depth": depth, "num_heads": num_heads, "mlp_ratio": mlp_ratio}
    common: dict[str, Any] = {
        "optimizer": "adamw",
        "schedule": "cosine",
        "batch_size": 256,
        "reference_batch_size": 256,
        "clip_norm": 0.0,
        "decay_norms": False,
    }
    return RunConfig(
        preset="",
        extract=ExtractConfig(held_out=0.1, short_side=max(256, crop_size)),
        data=DataConfig(num_frames=frames, crop_size=crop_size, evaluation_scale=min(1.0, crop_size / 256)),
        model=ModelConfig(backbone="vit", num_frames=frames, dropout=0.0, **sizes, **model),
        train=TrainConfig(**common, **train),
        finetune=FinetuneConfig(**common, weight_decay=train["weight_decay"], learning_rate=1e-5),
    )


def videomae() -> RunConfig:
    """Return VideoMAE's fine-tuning of ViT-B on Something-Something v2, as far as this product has its parts.

    Of the published recipe are missing: rates that fall from block to block, RandAugment, mixup, two samples of a video
    in a step, and three crops in evaluation.
    """
    recipe = {"epochs": 30, "learning_rate": 5e-4, "warmup_epochs": 5.0, "weight_decay": 0.05, "label_smoothing": 0.1}
    return transformer(
        "b", 224, {**recipe, "init_weights": "hf:MCG-NJU/videomae-base-ssv2"}, drop_path=0.1, positions="sincos"
    )


def vjepa2(size: str, crop_size: int, weights: str, *, frozen: bool) -> RunConfig:
    """Return a network on V-JEPA 2's encoder: the whole trained, or frozen under a light head as it is probed.

    Frozen, all blocks are the feature extractor's, a copy of the last one is the trunk, and a query that attends to the
    tokens recognises. Of the published probe's heads are missing three blocks, of its evaluation three views; of the
    rates that it tries this is one.
    """
    depth = TRANSFORMERS[size][1]
    recipe = {"epochs": 20, "learning_rate": 3e-4, "weight_decay": 0.01, "init_weights": weights}
    if frozen:
        return transformer(
            size,
            crop_size,
            {**recipe, "freeze": "feature_extractor"},
            positions="rope",
            pooling="attentive",
            extractor_blocks=depth,
            trunk_blocks=1,
        )
    recipe |= {"learning_rate": 1e-4, "warmup_epochs": 2.0, "weight_decay": 0.05, "label_smoothing": 0.1}
    return transformer(
        size, crop_size, recipe, positions="rope", pooling="attentive", extractor_blocks=depth - 4, trunk_blocks=4
    )


def _small(num_frames: int, crop_size: int, batch_size: int, learning_rate: float) -> RunConfig:
    """Return a network and settings with which a training takes minutes on two cores.

    AdamW with one cycle instead of SGD, because a network this small learns nothing with SGD in so few epochs. It is
    trained to its plateau and then knows its training videos by heart, so actions are chosen on validation, and all
    their videos may be edited.
    """
    common: dict[str, Any] = {
        "batch_size": batch_size,
        "reference_batch_size": batch_size,
        "micro_batch_size": 0,
        "log_steps": 0,
        "optimizer": "adamw",
        "weight_decay": 0.02,
        "schedule": "one_cycle",
        "clip_norm": 5.0,
        "keep": "last",
    }
    return RunConfig(
        preset="",
        extract=ExtractConfig(short_side=80, jpeg_quality=90),
        data=DataConfig(
            num_frames=num_frames, crop_size=crop_size, scales=(1.0, 0.9, 0.8), color_jitter=0.1, cache_mb=256
        ),
        model=ModelConfig(
            block="basic", num_blocks=(1, 1, 1, 1), width=16, num_frames=num_frames, dropout=0.0, bn_momentum=0.2
        ),
        train=TrainConfig(learning_rate=learning_rate, init_weights="random", **common),
        finetune=FinetuneConfig(learning_rate=2e-3, unedited_share=0.5, **common),
        select=SelectConfig(splits="validation", videos="all", max_classes=4),
    )


def mini() -> RunConfig:
    """Return settings with which the whole job fits into minutes on two cores, for the variant `demo`."""
    small = _small(num_frames=9, crop_size=48, batch_size=8, learning_rate=4e-3)
    return dataclasses.replace(
        small,
        data=dataclasses.replace(small.data, evaluation_scale=1.0, flip=False),
        train=dataclasses.replace(small.train, epochs=30, attention_epochs=12, validate_every=10),
        finetune=dataclasses.replace(small.finetune, epochs=6),
        select=dataclasses.replace(small.select, max_videos=80),
    )


def knowledge() -> RunConfig:
    """Return settings for the variant `knowledge` of the mini dataset, with which `docs/experiments.md` measures."""
    small = _small(num_frames=10, crop_size=64, batch_size=16, learning_rate=6e-3)
    return dataclasses.replace(
        small,
        train=dataclasses.replace(small.train, epochs=40, validate_every=40),
        finetune=dataclasses.replace(small.finetune, epochs=12, validate_every=12),
        select=dataclasses.replace(small.select, threshold=0.8),
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
    "c3d_16": c3d(),
    "videomae_b_16": videomae(),
    "vjepa2_l_16": vjepa2("l", 256, "hf:facebook/vjepa2-vitl-fpc64-256", frozen=False),
    "vjepa2_l_16_frozen": vjepa2("l", 256, "hf:facebook/vjepa2-vitl-fpc64-256", frozen=True),
    "vjepa2_g_16_frozen": vjepa2("g", 384, "hf:facebook/vjepa2-vitg-fpc64-384", frozen=True),
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
