"""BatchNorm over all processes: a share that is padding counts nowhere, whatever it holds."""

from pathlib import Path

import pytest
import torch
from torch import nn

from stabn.config import TrainConfig
from stabn.training import batchnorm
from stabn.training.batchnorm import SyncBatchNorm, share_weight, synchronize_batch_norm
from stabn.training.distributed import World, join_world
from stabn.training.launch import launch
from stabn.training.schedule import plan_batches
from stabn.training.step import Stepper

TWO = TrainConfig(processes=2, restarts=0, device="cpu", batch_size=2)


def clips(rank: int) -> torch.Tensor:
    return torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(rank)) * (1 + 9 * rank) + rank


def norm() -> nn.BatchNorm3d:
    layer = nn.BatchNorm3d(3)
    nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(9))
    return layer


def normalise(layer: nn.Module, x: torch.Tensor, weight: float) -> dict[str, torch.Tensor]:
    """Return the output, the running statistics, and the gradients of a loss that weighs each process."""
    x.requires_grad_()
    output = layer(x)
    (output.pow(3).sum() * weight).backward()
    names = {name: value.clone() for name, value in layer.named_buffers() if "running" in name}
    gradients = {f"d{name}": p.grad for name, p in layer.named_parameters()}
    return {"output": output.detach(), "dx": x.grad, **names, **gradients}  # type: ignore[dict-item]


def in_two_processes(folder: str, padding: bool) -> None:
    with join_world("cpu", 60) as world:
        layer = synchronize_batch_norm(nn.Sequential(norm()))[0]  # type: ignore[index]
        with share_weight([layer], counts=not (padding and world.rank), some_is_padding=padding):
            found = normalise(layer, clips(world.rank), weight=float(not (padding and world.rank)))
        torch.save(found, Path(folder, f"{world.rank}.pt"))


@pytest.mark.parametrize("padding", [True, False])
def test_the_statistics_are_those_of_the_clips_that_count(tmp_path: Path, padding: bool) -> None:
    launch(in_two_processes, TWO, folder=str(tmp_path), padding=padding)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    real = clips(0) if padding else torch.cat([clips(0), clips(1)])
    expected = normalise(norm(), real, 1.0)
    for name in ("running_mean", "running_var"):
        for one in found:
            torch.testing.assert_close(one[name], expected[name], msg=name)
    for name in ("output", "dx"):
        own = found[0][name] if padding else torch.cat([one[name] for one in found])
        torch.testing.assert_close(own, expected[name], rtol=1e-4, atol=1e-4, msg=name)
    for name in ("dweight", "dbias"):
        torch.testing.assert_close(found[0][name] + found[1][name], expected[name], rtol=1e-4, atol=1e-3, msg=name)
    if padding:
        assert not found[1]["dx"].any(), "nothing is learnt from padding"


def test_pytorchs_kernels_serve_only_where_nothing_is_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[bool] = []

    def forward(self: nn.SyncBatchNorm, x: torch.Tensor) -> torch.Tensor:
        called.append(True)
        return x

    monkeypatch.setattr(nn.SyncBatchNorm, "forward", forward)
    monkeypatch.setattr(batchnorm.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(batchnorm.dist, "all_reduce", lambda values: None)
    monkeypatch.setattr(batchnorm, "_has_kernels", lambda x: True)
    model = synchronize_batch_norm(nn.Sequential(norm()))
    assert isinstance(model[0], SyncBatchNorm)  # type: ignore[index]
    with share_weight(model.modules(), counts=True, some_is_padding=True):
        expected = norm()(clips(0))
        torch.testing.assert_close(model(clips(0)), expected)
    assert called == []
    with share_weight(model.modules(), counts=True, some_is_padding=False):
        model(clips(0))
    model.eval()(clips(0))
    assert called == [True]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("micro", [0, 1, 2])
def test_every_process_knows_whether_one_has_padding(size: int, micro: int) -> None:
    """Else some would wait for others in an exchange of statistics that the others do not take part in."""
    plan = plan_batches(TrainConfig(batch_size=8, micro_batch_size=micro), size)
    for num_global in range(1, 9):
        by_rank = []
        for rank in range(size):
            stepper = Stepper.__new__(Stepper)
            vars(stepper).update(world=World(rank, size), plan=plan)
            num_real = len(range(rank, num_global, size))
            batch = {"target": torch.zeros(max(1, num_real))}
            by_rank.append([(real > 0, told) for _, real, told in stepper._groups(batch, num_real, num_global)])
        for group in zip(*by_rank, strict=True):
            assert any(counts for counts, _ in group)
            assert {told for _, told in group} == {not all(counts for counts, _ in group)}
