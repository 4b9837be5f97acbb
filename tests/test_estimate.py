"""What training needs of memory is known before the first step, and told with the setting to change."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import settings

from stabn import presets
from stabn.config import ConfigError
from stabn.models import STABN, build_model
from stabn.training import estimate as estimating
from stabn.training.estimate import Estimate, check_memory, estimate, loading_processes
from stabn.training.stage import train

CPU = torch.device("cpu")


VIT = {"backbone": "vit", "width": 24, "depth": 3, "num_heads": 2, "patch": 4, "extractor_blocks": 2, "trunk_blocks": 1}


@pytest.mark.parametrize("network", [{"width": 8}, {"backbone": "c3d", "width": 8}, VIT])
def test_activations_are_those_that_the_backward_pass_keeps(network: dict[str, Any]) -> None:
    config = settings(**{f"model__{name}": value for name, value in network.items()})
    model = build_model(config.model).train()
    video = torch.rand(2, 3, 4, 32, 32)
    storages: dict[int, torch.Tensor] = {}
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}

    def keep(value: torch.Tensor) -> torch.Tensor:
        if value.is_floating_point() and value.untyped_storage().data_ptr() not in own:
            storages[value.untyped_storage().data_ptr()] = value
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        model(video)
    real = sum(value.untyped_storage().nbytes() for value in storages.values())
    found = estimate(model, config.model, config.data, config.train, 2, torch.float32)
    assert found.activations == pytest.approx(real, rel=0.05)
    parameters = sum(p.numel() for p in model.parameters())
    assert found.weights == 4 * parameters * 3, "weights, gradients, momentum"
    half = estimate(model, config.model, config.data, config.train, 2, torch.bfloat16)
    assert half.activations == pytest.approx(found.activations / 2, rel=0.01)


def test_checkpointing_averaging_and_freezing_count() -> None:
    config = presets.load("ssv2_r50_32")
    with torch.device("meta"):
        model = build_model(config.model)
    assert isinstance(model, STABN)

    def needed(**changes: object) -> Estimate:
        changed = dataclasses.replace(config.train, **changes)
        return estimate(model, config.model, config.data, changed, 8, torch.bfloat16)

    whole = needed()
    assert whole.activations > 5e9 and needed(activation_checkpointing=True).activations < whole.activations / 2
    assert needed(ema_decay=0.99).weights > whole.weights and needed(optimizer="adamw").weights > whole.weights
    model.freeze_feature_extractor()
    assert needed().total < whole.total / 2


def test_too_little_memory_is_refused_with_the_setting_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    needed, train_settings = Estimate(10**9, 5 * 10**9), settings().train
    for limit, processes in ((4 * 10**9, 1), (8 * 10**9, 2)):
        monkeypatch.setattr(estimating, "memory_limit", lambda limit=limit: limit)
        with pytest.raises(ConfigError, match=r"at least 6 GB \(1 for weights .*, 5 for .* has 4 GB; halve micro"):
            check_memory(needed, CPU, processes, train_settings)
    monkeypatch.setattr(estimating, "memory_limit", lambda: 7 * 10**9)
    assert "if it does not suffice, halve micro_batch_size" in check_memory(needed, CPU, 1, train_settings)
    monkeypatch.setattr(estimating, "memory_limit", lambda: 70 * 10**9)
    assert check_memory(needed, CPU, 1, train_settings) == ""


def test_too_small_a_shared_memory_is_refused_before_the_first_step(
    manifest_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = dataclasses.replace(presets.load("ssv2_r50_32").data, workers=8)
    monkeypatch.setattr(estimating, "free_shared_memory", lambda: 2 * 2**30)
    with pytest.raises(ConfigError, match=r"up to 4.9 GB of /dev/shm \(8 .* x 4.8 MB\), 2.1 GB .* data.workers = 3"):
        loading_processes(clips, 64, 1, CPU)
    with pytest.raises(ConfigError, match=r"up to 4.9 GB .* x 8 training processes"):
        loading_processes(clips, 8, 8, CPU)
    assert loading_processes(dataclasses.replace(clips, workers=3), 64, 1, CPU) == 3
    monkeypatch.setattr(estimating, "free_shared_memory", lambda: 1000)
    with pytest.raises(ConfigError, match=r"data\.workers = 2: .* set data\.workers = 0"):
        train(manifest_path, settings(data__workers=2), str(tmp_path / "out"))
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()], "nothing was done"
