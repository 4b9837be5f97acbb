"""BatchNorm over several groups and processes: the same running statistics whatever their number."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


class RunningStatistics:
    """The running means and variances of the BatchNorm layers that are being trained, read and written together.

    Each group of a step starts from the same statistics, and their weighted mean over all groups and processes is what
    the step leaves: BatchNorm's momentum counts steps, not groups or processes.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers = [
            buffer
            for module in model.modules()
            if isinstance(module, Norm) and module.training
            for buffer in (module.running_mean, module.running_var)
            if buffer is not None
        ]
        self._sizes = [buffer.numel() for buffer in self._buffers]

    def read(self) -> Tensor:
        """Return a copy of all statistics, float32 (n,)."""
        return torch.cat(self._buffers) if self._buffers else torch.zeros(0)

    def write(self, values: Tensor) -> None:
        """Replace all statistics by those of `read`."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, list(values.split(self._sizes)))


class _Sum(torch.autograd.Function):
    """The sum over all processes; so is the gradient's, as every process' loss depends on every process' values."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


class SyncBatchNorm(nn.BatchNorm3d):
    """BatchNorm over the clips of all processes that count.

    A process whose share of a step is padding takes part with weight 0. PyTorch's kernels, on GPUs alone, count every
    clip: they serve where no process has padding. (A layer of PyTorch's own kind would be refused on processors.)
    """

    process_group = None  # all processes
    weight_of_share = 1.0
    some_is_padding = False  # of the shares of all processes, so that all take the same way

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized():
            return super().forward(x)
        if _has_kernels(x) and not self.some_is_padding:
            return nn.SyncBatchNorm.forward(self, x)  # type: ignore[arg-type]
        values = x.float()
        axes, shape = (0, 2, 3, 4), (1, -1, 1, 1, 1)
        count = torch.full((1,), values.numel() / values.shape[1] * self.weight_of_share, device=x.device)
        own_mean = values.mean(axes)
        sums: Tensor = _Sum.apply(torch.cat([own_mean * count, count]))
        total = sums[-1]
        mean = sums[:-1] / total
        squares = (values - mean.view(shape)).square().mean(axes) * count
        variance: Tensor = _Sum.apply(squares) / total
        if self.running_mean is not None and self.running_var is not None and self.momentum is not None:
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * total / (total - 1), self.momentum)
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return ((values - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)).to(x.dtype)

    def _check_non_zero_input_channels(self, x: Tensor) -> None:
        """Check nothing; PyTorch's forward asks for it."""


def _has_kernels(x: Tensor) -> bool:
    return x.is_cuda


def synchronize_batch_norm(model: nn.Module) -> nn.Module:
    """Let the network's BatchNorm see the clips of all processes."""
    for module in list(model.modules()):
        if type(module) is nn.BatchNorm3d:
            # Same parameters, buffers and names; only the forward differs.
            module.__class__ = SyncBatchNorm
    return model


@contextmanager
def share_weight(modules: Iterable[nn.Module], counts: bool, some_is_padding: bool) -> Iterator[None]:
    """Let synchronised BatchNorm leave out the shares that are padding, for as long as the block runs.

    Args:
        modules: of the network.
        counts: this process' share is not padding.
        some_is_padding: a process' share is; the same in all processes.
    """
    layers = [module for module in modules if isinstance(module, SyncBatchNorm)] if some_is_padding else []
    for layer in layers:
        layer.weight_of_share, layer.some_is_padding = float(counts), True
    try:
        yield
    finally:
        for layer in layers:
            layer.weight_of_share, layer.some_is_padding = 1.0, False
