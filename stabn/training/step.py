"""One optimiser step: groups of clips through the network, their gradients added up, over all processes."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stabn.config import DataConfig, FitConfig
from stabn.data.slots import to_slots
from stabn.models import Output
from stabn.training.batchnorm import RunningStatistics, share_weight
from stabn.training.device import Batch, autocast, average_clips, batch_input
from stabn.training.distributed import World
from stabn.training.features import FeatureCache
from stabn.training.losses import Losses
from stabn.training.schedule import BatchPlan

COMPILER = "inductor"
COLUMNS = ("videos", "correct", *Losses._fields)  # of the sums


class Measured(NamedTuple):
    """What a step leaves on the device, to be looked at later.

    Attributes:
        losses: float64 (4,), of this process' share, weighted like the mini-batch; see Losses.
        norm: float32 (), of the gradient before clipping; the same in every process.
    """

    losses: Tensor
    norm: Tensor


class Stepper:
    """Take optimiser steps; nothing here waits for the device.

    A step's loss is the mean over the videos of the global mini-batch, however they are spread: each group's mean is
    weighted by its share of them. A step whose gradient is not finite changes nothing.

    Attributes:
        model: the network itself; `network` is what trains it, the same or wrapped.
        average: copy of the network with averaged weights, or None.
        sums: float64 (6,) on the device, of this process since the last reset: see COLUMNS.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: FitConfig,
        data_config: DataConfig,
        world: World,
        plan: BatchPlan,
        optimizer: torch.optim.Optimizer,
        loss: Callable[[Output, Batch], Losses],
        dtype: torch.dtype,
        cache: FeatureCache | None = None,
    ) -> None:
        self.model, self.settings, self.data_config, self.world, self.plan = model, settings, data_config, world, plan
        self.optimizer, self.loss, self.dtype, self.cache = optimizer, loss, dtype, cache
        self.device = next(model.parameters()).device
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.sums = torch.zeros(len(COLUMNS), dtype=torch.float64, device=self.device)
        model.train()
        self.statistics = RunningStatistics(model)
        self.average = deepcopy(model).requires_grad_(False).eval() if settings.ema_decay else None
        self.network: Any = model
        if world.size > 1:
            # Of a 1x1x1 kernel the strides mean nothing; DDP warns of them all the same.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            self.network = DistributedDataParallel(
                model,
                device_ids=[self.device.index] if self.device.type == "cuda" else None,
                forward_sync_buffers=False,  # the statistics are averaged instead
                gradient_as_bucket_view=True,
            )
        if settings.compile:
            from torch import _dynamo

            # DDP's own splitting of the graph does not know activation checkpointing.
            _dynamo.config.optimize_ddp = not settings.activation_checkpointing
            self.network_compiled = torch.compile(self.network, backend=COMPILER, dynamic=False)
        self._full_group: int | None = None

    @property
    def validated(self) -> nn.Module:
        """Return the network that is validated and kept: the averaged one, if there is one."""
        return self.model if self.average is None else self.average

    def step(self, batch: Batch, *, num_real: int, num_global: int, seed: Sequence[int]) -> Measured:
        """Learn from this process' share of a mini-batch.

        Args:
            batch: `ClipDataset` items, on the device.
            num_real: videos of the share that count; 0: the share is padding.
            num_global: videos of the mini-batch, over all processes.
            seed: of the step, for dropout; each group has its own.
        """
        self.optimizer.zero_grad(set_to_none=True)
        before = self.statistics.read()
        statistics = torch.zeros_like(before)
        sums = torch.zeros_like(self.sums)
        groups = list(self._groups(batch, num_real, num_global))
        for number, (group, real, some_is_padding) in enumerate(groups):
            if number:
                self.statistics.write(before)
            torch.manual_seed(_seed(*seed, self.world.rank + self.world.size * number))
            last = number == len(groups) - 1
            shares = share_weight(self.model.modules(), real > 0, some_is_padding)
            with self._no_sync() if not last else nullcontext(), shares:
                output = self._forward(group)
                losses = self.loss(output, group)
                (losses.total * (real / num_global * self.world.size)).backward()
            statistics += self.statistics.read() * (real / num_global)
            sums += self._count(output, losses, group["target"], real)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        lost = ~torch.isfinite(norm)
        if self.settings.clip_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.settings.clip_norm, norm)
        self._optimize(lost)
        if before.numel():
            self.statistics.write(torch.where(lost, before, self.world.sum_(statistics)))
        self.sums += torch.where(lost, 0, sums)
        if self.average is not None:
            self._update_average()
        return Measured(sums[2:] / max(1, num_real), norm)

    def totals(self) -> dict[str, float]:
        """Return the sums over all processes, which from then on belong to process 0."""
        total = self.world.sum_(self.sums.clone())
        self.sums = total if self.world.is_main else torch.zeros_like(total)
        return dict(zip(COLUMNS, total.tolist(), strict=True))

    def load_totals(self, totals: dict[str, float]) -> None:
        """Go on from the sums that `totals` returned."""
        values = [totals[name] if self.world.is_main else 0.0 for name in COLUMNS]
        self.sums = torch.tensor(values, dtype=torch.float64, device=self.device)

    def _groups(self, batch: Batch, num_real: int, num_global: int) -> Iterator[tuple[Batch, int, bool]]:
        """Yield the groups of the share, how many videos of each count, and whether in some process none does.

        There are as many groups in every process, and all hear the same of the last.
        """
        smallest_share, largest_share = num_global // self.world.size, -(-num_global // self.world.size)
        count = min(self.plan.accumulation, largest_share)
        for number in range(count):
            group = {name: value[number::count] for name, value in batch.items()}
            real = len(range(number, num_real, count))
            if not len(group["target"]):
                group = {name: value[:1] for name, value in batch.items()}
            yield group, real, number >= smallest_share

    def _forward(self, group: Batch) -> Output:
        num_videos, num_clips = group["temporal_target"].shape[:2]
        options: dict[str, Any] = {}
        if self.cache is not None:
            with autocast(self.device, self.dtype):
                features = self.cache.features(self.model, group, self.data_config)
            options = {"features": features}
        else:
            options = {"video": batch_input(group, self.data_config, self.device).flatten(0, 1)}
        if self.settings.teacher_forcing:
            edited = group["temporal_target"].flatten(0, 1)
            edited = torch.where(
                torch.rand(len(edited), 1, device=edited.device) < self.settings.teacher_forcing, edited, torch.nan
            )
            options["temporal_transform"] = partial(_replace_where_edited, edited)
        network, stance = self._compiled(num_videos)
        with stance, autocast(self.device, self.dtype):
            output = network(**options)
        return average_clips(output, num_videos, num_clips)

    def _compiled(self, num_videos: int) -> tuple[Any, AbstractContextManager]:
        """Return the network to call: groups of another size than usual run as they are instead of being compiled."""
        if not self.settings.compile:
            return self.network, nullcontext()
        if self._full_group is None:
            share = -(-self.plan.batch_size // self.world.size)
            self._full_group = -(-share // self.plan.accumulation)
        if num_videos == self._full_group:
            return self.network_compiled, nullcontext()
        return self.network_compiled, torch.compiler.set_stance("force_eager")

    def _count(self, output: Output, losses: Losses, target: Tensor, real: int) -> Tensor:
        correct = (output.logits.detach().argmax(1) == target).sum()
        values = torch.stack([part.detach().double() for part in losses]) * real
        return torch.cat([torch.stack([torch.full_like(values[0], real), correct * (real > 0)]), values])

    def _optimize(self, lost: Tensor) -> None:
        """Change the weights unless the gradient was lost; the fused kernels decide that on the device."""
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.found_inf = lost.float()  # type: ignore[attr-defined]
        self.optimizer.step()

    @torch.no_grad()
    def _update_average(self) -> None:
        assert self.average is not None
        ours, theirs = self.average.state_dict(), self.model.state_dict()
        names = [name for name, value in ours.items() if value.is_floating_point()]
        torch._foreach_lerp_([ours[n] for n in names], [theirs[n] for n in names], 1 - self.settings.ema_decay)

    def _no_sync(self) -> AbstractContextManager:
        return self.network.no_sync() if self.world.size > 1 else nullcontext()


def _replace_where_edited(edited: Tensor, own: Tensor) -> Tensor:
    """Return Mt (B, S) with the edits (B, T) in its place, where there are any."""
    slots = to_slots(edited, own.shape[1])
    return torch.where(torch.isnan(slots), own, slots.to(own))


def _seed(*parts: int) -> int:
    """Return a seed that differs wherever any part differs."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])
