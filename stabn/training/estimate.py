"""What training will need of memory and of /dev/shm, computed before the first step and held against what there is.

The numbers are lower bounds: weights, gradients, the optimiser's values and what the backward pass keeps of the
activations (counted on shapes alone, nothing is computed). Kernels' workspaces and fragments come on top.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from stabn.config import ConfigError, DataConfig, FitConfig, ModelConfig
from stabn.failures import SHARED_MEMORY_REMEDY
from stabn.machine import num_cores
from stabn.memory import free_shared_memory, memory_limit
from stabn.models import build_model
from stabn.models.network import without_memory

PREFETCH = 2  # batches that each loading process has ready: PyTorch's own number
MOST_LOADING = 16  # processes for each training process, if the number is not set
LOADING_SHARE = 0.25  # of the memory, at most, for the batches that they have ready, if the number is not set
NARROW = 0.8  # share of the memory from which on a line warns
GB = 1e9


@dataclass(frozen=True)
class Estimate:
    """Bytes that one process needs at least.

    Attributes:
        weights: of the network, their gradients, the optimiser's values, averaged weights.
        activations: what a group of videos leaves for the backward pass.
    """

    weights: int
    activations: int

    @property
    def total(self) -> int:
        """Return the sum."""
        return self.weights + self.activations


def estimate(
    model: nn.Module, config: ModelConfig, data: DataConfig, settings: FitConfig, group: int, dtype: torch.dtype
) -> Estimate:
    """Estimate what a process needs for a step.

    Args:
        model: the network, of which the trained parameters count.
        config: the same network's settings.
        data: size and number of the clips.
        settings: optimiser, averaging and activation checkpointing.
        group: videos that go through the network at once.
        dtype: type of the arithmetic.
    """
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in model.parameters()]
    everything, trained = sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)
    states = {"sgd": 1, "adamw": 2}[settings.optimizer]
    weights = everything * (2 if settings.ema_decay else 1) + trained * (1 + states)
    frozen = {name.partition(".")[0] for name, p in model.named_parameters() if not p.requires_grad}
    kept = _kept_activations(config, data, settings.activation_checkpointing, frozen)
    width = torch.tensor([], dtype=dtype).element_size() / 4
    return Estimate(weights, round(kept * data.num_clips * group * width))


def _kept_activations(config: ModelConfig, data: DataConfig, checkpointing: bool, frozen: set[str]) -> int:
    """Return the bytes that the backward pass of one clip keeps in float32, without the weights themselves."""
    kept: dict[int, int] = {}
    with without_memory():
        network = build_model(config).train()
        video = torch.empty(1, 3, data.num_frames, data.crop_size, data.crop_size)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.partition(".")[0] not in frozen)
    network.set_activation_checkpointing(checkpointing)
    own = {value.untyped_storage()._cdata for value in (*network.parameters(), *network.buffers())}

    def keep(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if value.is_floating_point() and storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        alive.append(value)  # else another one would get its address
        return value

    alive: list[torch.Tensor] = []
    with FusedAttention(), torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        network(video)
    return sum(kept.values())


class FusedAttention(TorchFunctionMode):
    """Self-attention as real devices have it: without real numbers PyTorch spells it out and keeps N x N weights."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args, **(kwargs or {}))[0]
        return func(*args, **(kwargs or {}))


def check_memory(needed: Estimate, device: torch.device, local_processes: int, settings: FitConfig) -> str:
    """Hold an estimate against the memory that there is.

    Args:
        needed: by one process.
        device: where it computes.
        local_processes: processes of this machine, which share its memory unless each has a GPU.
        settings: told in messages; with `compile` fewer activations are kept than was counted.

    Returns:
        A line that warns; empty: there is enough.

    Raises:
        ConfigError: there is not.
    """
    if device.type == "cuda":
        total, where = torch.cuda.get_device_properties(device).total_memory, "the GPU"
    else:
        total, where = memory_limit() // local_processes, "the memory"
        where += f" for each of {local_processes} processes" if local_processes > 1 else ""
    said = (
        f"a step needs at least {needed.total / GB:.2g} GB ({needed.weights / GB:.2g} for weights and optimiser, "
        f"{needed.activations / GB:.2g} for activations), {where} has {total / GB:.2g} GB"
    )
    remedy = (
        "halve micro_batch_size"
        if settings.activation_checkpointing
        else ("halve micro_batch_size, or set activation_checkpointing = true")
    )
    if needed.total > total and not settings.compile:
        raise ConfigError(f"micro_batch_size = {settings.micro_batch_size}: {said}; {remedy}")
    return f"{said}: if it does not suffice, {remedy}" if needed.total > NARROW * total else ""


def loading_processes(data: DataConfig, batch: int, local_processes: int, device: torch.device) -> int:
    """Return how many processes load for each training process.

    The automatic number is 0 on a processor, which the network itself keeps busy; beside a GPU the cores that the
    training processes leave, as far as their batches fit into /dev/shm and LOADING_SHARE of the memory.

    Args:
        data: the clips, and how many processes load them.
        batch: videos that a loading process hands over at once.
        local_processes: training processes of this machine, each with loading processes of its own.
        device: of the training.

    Raises:
        ConfigError: the number set needs more of /dev/shm than is free; the first full moment would end a loading
            process by a bus error.
    """
    free = free_shared_memory()
    clip = data.num_clips * data.num_frames * data.crop_size**2 * 3  # bytes, as uint8
    one = local_processes * PREFETCH * batch * clip
    if data.workers < 0:
        if device.type == "cpu":
            return 0
        room = memory_limit() * LOADING_SHARE if free is None else min(free, memory_limit() * LOADING_SHARE)
        return max(0, min((num_cores() - local_processes) // local_processes, int(room // one), MOST_LOADING))
    if not data.workers or free is None or data.workers * one <= free:
        return data.workers
    raise ConfigError(
        f"data.workers = {data.workers}: loading needs up to {data.workers * one / GB:.2g} GB of /dev/shm "
        f"({data.workers} processes x {PREFETCH} batches x {batch} videos x {clip / 1e6:.2g} MB"
        f"{f' x {local_processes} training processes' if local_processes > 1 else ''}), {free / GB:.2g} GB are free: "
        f"set data.workers = {int(free // one)}, or {SHARED_MEMORY_REMEDY}"
    )
