"""Optimiser, learning rate, and when training ends."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from stabn.config import FitConfig

MULTIPLE = "multiple"  # of the learning rate, in a group of an optimiser's parameters
IMPROVEMENT = 1e-4  # share by which a loss must be lower to count as lower


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """How the global mini-batch is spread.

    A step's videos form `world_size * accumulation` groups, group g having every so-manieth from the g-th on. A group
    goes through the network at once, and BatchNorm sees it alone; process r computes the groups r, r + world_size, ….
    So the groups are the same on 1 process with 8 accumulations, on 8 processes, and on 2 with 4.

    Attributes:
        batch_size: videos per step, over all processes.
        world_size: processes.
        accumulation: groups per process and step.
        learning_rate: the setting's, scaled to the batch size.
    """

    batch_size: int
    world_size: int
    accumulation: int
    learning_rate: float

    def __str__(self) -> str:
        share = -(-self.batch_size // self.world_size)
        group = -(-share // self.accumulation)
        return (
            f"{self.batch_size} videos per step = {self.world_size} process{'es' * (self.world_size > 1)} x {share}, "
            f"{group} at once, {self.accumulation} gradient{'s' * (self.accumulation > 1)} added up; "
            f"learning rate {self.learning_rate:g}"
        )


def plan_batches(settings: FitConfig, world_size: int) -> BatchPlan:
    """Spread the global mini-batch over processes and over time.

    Raises:
        ConfigError: there are more processes than videos in a step.
    """
    settings.check_processes(world_size)
    share = -(-settings.batch_size // world_size)
    accumulation = -(-share // settings.micro_batch_size) if settings.micro_batch_size else 1
    reference = settings.reference_batch_size or settings.batch_size
    return BatchPlan(
        settings.batch_size, world_size, accumulation, settings.learning_rate * (settings.batch_size / reference)
    )


def rate_multiples(settings: FitConfig, model: nn.Module) -> dict[nn.Parameter, float]:
    """Return which of a network's parameters learn at another rate than `learning_rate`, and at which multiple."""
    parts = {"feature_extractor": settings.extractor_rate, "attention_branch": settings.attention_rate}
    found = {name: multiple for name, multiple in parts.items() if multiple != 1.0 and hasattr(model, name)}
    return {parameter: found[name] for name in found for parameter in getattr(model, name).parameters()}


def make_optimizer(
    settings: FitConfig,
    parameters: list[nn.Parameter],
    learning_rate: float | None = None,
    multiples: Mapping[nn.Parameter, float] | None = None,
) -> torch.optim.Optimizer:
    """Return the optimiser of the settings: the paper's SGD, or AdamW; one kernel for all parameters.

    SGD's momentum is there, as zeros, from the start: a first step that is skipped would leave it undefined.

    Args:
        settings: kind of optimiser, momentum, decay.
        parameters: those that learn.
        learning_rate: at the start; None: the setting.
        multiples: see `rate_multiples`; other parameters learn at the rate itself.
    """
    rate = settings.learning_rate if learning_rate is None else learning_rate
    groups: Any = parameters
    if multiples or not settings.decay_norms:
        groups = _parameter_groups(parameters, rate, multiples or {}, settings.decay_norms)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, rate, weight_decay=settings.weight_decay, fused=True)
    optimizer = torch.optim.SGD(
        groups,
        rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov and settings.momentum > 0,
        fused=True,
    )
    if settings.momentum > 0:
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _parameter_groups(
    parameters: list[nn.Parameter], rate: float, multiples: Mapping[nn.Parameter, float], decay_norms: bool
) -> list[dict[str, Any]]:
    """Return groups of parameters that share rate and decay; the first has the rate itself, and may be empty."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, True): []}
    for parameter in parameters:
        decays = decay_norms or parameter.ndim > 1  # else of BatchNorm, or a bias
        groups.setdefault((multiples.get(parameter, 1.0), decays), []).append(parameter)
    return [
        {"params": members, "lr": rate * multiple, MULTIPLE: multiple, **({} if decays else {"weight_decay": 0.0})}
        for (multiple, decays), members in groups.items()
    ]


class Schedule:
    """The learning rate at every step, from the progress and the validation losses so far.

    Epochs that learn the attention alone have a course of the rate of their own; then it begins anew. Their validations
    say nothing of a recognition that has not begun, and do not count.

    Attributes:
        rate: of the plateau schedule, before warm-up.
        best_loss: lowest validation loss.
        waited: validations since it.
    """

    def __init__(self, settings: FitConfig, learning_rate: float, attention_epochs: int = 0) -> None:
        self.settings, self.peak, self.attention_epochs = settings, learning_rate, attention_epochs
        self.rate, self.best_loss, self.waited = learning_rate, math.inf, 0

    def at(self, epoch: float) -> float:
        """Return the rate at a time in epochs, 0 to `epochs`."""
        epochs = self.attention_epochs
        if epoch >= epochs:
            epoch, epochs = epoch - epochs, self.settings.epochs - epochs
        if self.settings.schedule == "one_cycle":
            return one_cycle(self.peak, epoch / epochs)
        warmup = self.settings.warmup_epochs
        if epoch < warmup:
            return self.rate * max(0.01, epoch / warmup)
        if self.settings.schedule == "cosine":
            share = (epoch - warmup) / max(1e-9, epochs - warmup)
            return self.peak * (0.5 + 0.5 * math.cos(math.pi * min(1.0, share)))
        return self.rate

    def validated(self, loss: float) -> None:
        """Take in a validation loss; on a plateau the rate falls."""
        if loss < self.best_loss * (1 - IMPROVEMENT):
            self.best_loss, self.waited = loss, 0
        else:
            self.waited += 1
        if self.settings.schedule == "plateau" and self.waited > self.settings.plateau_patience:
            self.rate *= self.settings.plateau_factor
            self.waited = 0

    def ended(self, history: list[dict[str, float]]) -> bool:
        """Tell whether training is complete after these epochs."""
        settings = self.settings
        if len(history) >= settings.epochs:
            return True
        history = history[self.attention_epochs :]
        scores = [score(row) for row in history if "validation_top1" in row]
        if settings.early_stop and scores and len(scores) - 1 - scores.index(max(scores)) >= settings.early_stop:
            return True
        return settings.schedule == "plateau" and self.rate < settings.min_learning_rate and bool(history)

    def state_dict(self) -> dict[str, Any]:
        """Return what changes, as JSON values."""
        return {"rate": self.rate, "best_loss": self.best_loss, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`'s values."""
        self.rate, self.best_loss, self.waited = state["rate"], state["best_loss"], state["waited"]


def score(row: dict[str, float]) -> tuple[float, float]:
    """Return what makes an epoch the best one: validation top-1, then the lower loss."""
    loss = row["validation_loss"]
    return row["validation_top1"], -loss if math.isfinite(loss) else -math.inf


def best_epoch(history: list[dict[str, float]], keep: str, attention_epochs: int = 0) -> int:
    """Return the epoch, counted from 1, whose network is the one to use; 0: none was validated yet.

    With keep = best none of the epochs that learn the attention alone is chosen.
    """
    if keep == "last":
        return len(history)
    scores = {
        epoch: score(row)
        for epoch, row in enumerate(history, 1)
        if epoch > attention_epochs and "validation_top1" in row
    }
    return max((epoch for epoch in scores if scores[epoch] == max(scores.values())), default=0)


def one_cycle(peak: float, progress: float) -> float:
    """Return the rate at a share of the training: up for 20% of it, then down to zero, both as half cosines."""
    warm = 0.2
    share = progress / warm if progress < warm else 1 - (progress - warm) / (1 - warm)
    return peak * max(0.02, 0.5 - 0.5 * math.cos(math.pi * share))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate; each group of parameters has its multiple of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(MULTIPLE, 1.0)
