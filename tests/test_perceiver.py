"""One temporal attention after the other: whatever was asked before, the answer is the whole network's."""

from typing import Any

import numpy as np
import pytest
import torch
from test_backbones import SMALL, clips_of, small
from torch import Tensor

from stabn.config import ModelConfig
from stabn.models import STABN
from stabn.models.resnet3d_frames import FrameBlock, FrameConv, FramePerceiver

FRAMES = 8
RESNETS: dict[str, dict[str, Any]] = {
    "bottleneck": {"block": "bottleneck"},
    "deep": {"block": "bottleneck", "num_blocks": (1, 1, 1, 3)},
    "basic": {"block": "basic", "num_blocks": (1, 1, 1, 2)},
    "relu": {"block": "bottleneck", "num_blocks": (1, 1, 1, 2), "mechanism": "relu"},
    "linear head": {"block": "basic", "attention_head": "linear", "temporal_kernel": "3x3x3"},
}
DEPTH = 3  # blocks of the network whose work is counted


def resnet(name: str) -> ModelConfig:
    values = {"num_blocks": (1, 1, 1, 1), "width": 4, "num_frames": FRAMES, "num_classes": 5, **RESNETS[name]}
    return ModelConfig(**values)


def trained(config: ModelConfig, video: Tensor) -> STABN:
    """Return a network in evaluation mode whose BatchNorm has seen something, in float64."""
    torch.manual_seed(0)
    model = STABN(config).double().train()
    with torch.no_grad():
        for _ in range(3):
            model(video + torch.randn_like(video))
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


def network_of(name: str) -> tuple[STABN, Tensor]:
    video = clips_of(name) if name in SMALL else torch.randn(2, 3, FRAMES, 32, 32)
    config = small(name) if name in SMALL else resnet(name)
    return trained(config, video.double()), video.double()


def edits(slots: int, seed: int, count: int = 25) -> list[Tensor]:
    """Return attention (2, S) one after the other: all, some or none of the values are new, in either clip or both."""
    random = np.random.default_rng(seed)
    made = [random.random((2, slots))]
    for _ in range(count):
        new, kind = made[-1].copy(), random.integers(5)
        clips = [slice(0, 1), slice(1, 2), slice(0, 2)][random.integers(3)]
        start, stop = sorted(random.integers(0, slots + 1, 2))
        if kind == 0:
            new = random.random((2, slots))
        elif kind == 1:
            new[clips, random.integers(slots)] = random.integers(2)
        elif kind == 2:
            new[clips, start:stop] = random.random()
        elif kind == 3:
            new[:, random.random(slots) < 0.3] = random.random()
        made.append(new)
    return [torch.from_numpy(edit) for edit in made]


@pytest.mark.parametrize("name", [*RESNETS, *SMALL])
def test_after_any_edits_the_answer_is_the_whole_networks(name: str) -> None:
    model, video = network_of(name)
    with torch.no_grad():
        features = model.extract_features(video)
        spatial = model(features=features).spatial_attention
        perceiver = model.perceiver(torch.float64, torch.float64)
        kept = perceiver.keep(*model.attend_parts(features, spatial))
        for edit in edits(model.num_slots, seed=1):
            expected = model(features=features, temporal_attention=edit).logits
            torch.testing.assert_close(perceiver.logits(kept, edit), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["deep", "relu", "c3d", "vit"])
def test_lesser_precision_changes_little(name: str) -> None:
    model, video = network_of(name)
    model = model.float()
    with torch.no_grad():
        features = model.extract_features(video.float())
        spatial = model(features=features).spatial_attention
        parts = model.attend_parts(features, spatial)
        for dtype, tolerance in ((torch.float32, 0.002), (torch.bfloat16, 0.02)):
            perceiver = model.perceiver(dtype)
            kept = perceiver.keep(*parts)
            for edit in edits(model.num_slots, seed=2, count=5):
                expected = model(features=features, temporal_attention=edit.float()).logits.softmax(1)
                found = perceiver.logits(kept, edit.float())
                assert found.dtype == torch.float32
                torch.testing.assert_close(found.softmax(1), expected, rtol=0, atol=tolerance)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the list that gets the number of images of each block's output."""
    images: list[int] = []
    finish = FrameBlock.finish
    monkeypatch.setattr(FrameBlock, "finish", lambda self, h, s: (images.append(len(h)), finish(self, h, s))[1])
    return images


def test_only_what_a_change_reaches_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(resnet("deep"), torch.randn(2, 3, FRAMES, 32, 32).double())
    features = torch.rand(2, model.backbone.channels, FRAMES, 2, 2).double()
    perceiver = model.perceiver(torch.float64)
    with torch.no_grad():
        kept = perceiver.keep(*model.attend_parts(features, torch.rand(2, 1, FRAMES, 2, 2).double()))
    images, edit = counted(monkeypatch), torch.rand(2, FRAMES).double()
    perceiver.logits(kept, edit)
    assert images == [FRAMES, FRAMES] * DEPTH, "all frames of both clips"
    images.clear()
    perceiver.logits(kept, edit.clone())
    assert images == [], "nothing has changed"
    edit[1, 4] = 0.123
    perceiver.logits(kept, edit)
    assert images == [3, 5, 7]
    images.clear()
    edit[0, 0] = edit[1, FRAMES - 1] = 0.123
    perceiver.logits(kept, edit)
    assert images == [2, 2, 3, 3, 4, 4], "no further than the ends, and not into the other clip"


def test_what_broke_off_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, video = network_of("deep")
    perceiver = model.perceiver(torch.float64, torch.float64)
    with torch.no_grad():
        features = model.extract_features(video)
        kept = perceiver.keep(*model.attend_parts(features, model(features=features).spatial_attention))
        first, second = torch.rand(2, 2, FRAMES).double()
        perceiver.logits(kept, first)
        with monkeypatch.context() as broken:
            calls: list[int] = []
            tap = FrameConv.tap

            def fail(self: FrameConv, *args: Any) -> Tensor:
                calls.append(1)
                if len(calls) == 12:
                    raise MemoryError
                return tap(self, *args)

            broken.setattr(FrameConv, "tap", fail)
            with pytest.raises(MemoryError):
                perceiver.logits(kept, second)
        for edit in (first, second):
            expected = model(features=features, temporal_attention=edit).logits
            torch.testing.assert_close(perceiver.logits(kept, edit), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["deep", "relu", "c3d"])
def test_all_that_is_kept_counts(name: str) -> None:
    model, video = network_of(name)
    with torch.no_grad():
        features = model.extract_features(video)
        parts = model.attend_parts(features, model(features=features).spatial_attention)
    perceiver = model.perceiver(torch.float64)
    kept = perceiver.keep(*parts)
    sizes = []
    for value in vars(kept).values():
        for tensor in value if isinstance(value, list) else [value]:
            if isinstance(tensor, Tensor):
                sizes.append(tensor.untyped_storage().nbytes())
    assert kept.num_bytes == sum(sizes) > 0
    assert isinstance(perceiver, FramePerceiver) == (name in RESNETS)
