"""The arithmetic of a network, counted, and what the machine can do of it, measured."""

import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from stabn.config import DataConfig, ModelConfig
from stabn.models import build_model
from stabn.models.network import without_memory

BACKWARD = 2  # times the arithmetic of the forward pass: gradients of the inputs and of the weights


def forward_flops(model: ModelConfig, data: DataConfig) -> dict[str, float]:
    """Count the forward pass of one clip, 2 per multiplication and addition, without computing anything.

    Returns:
        By part of the network (`feature_extractor`, `attention_branch`, …), and `total`.
    """
    with without_memory():
        network = build_model(model).eval().requires_grad_(False)  # the counter follows gradients where it sees any
        video = torch.empty(1, 3, data.num_frames, data.crop_size, data.crop_size)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(video)
    parts = {
        name.rpartition(".")[2]: float(sum(counts.values()))
        for name, counts in counter.get_flop_counts().items()
        if name.count(".") == 1
    }
    return {**parts, "total": float(counter.get_total_flops())}


def training_flops(model: ModelConfig, data: DataConfig, frozen: bool = False) -> float:
    """Return the arithmetic that training takes per video, without what activation checkpointing repeats.

    Args:
        model: the network.
        data: size and number of the clips.
        frozen: whether the feature extractor only runs forward.
    """
    counts = forward_flops(model, data)
    trained = counts["total"] - (counts["feature_extractor"] if frozen else 0)
    return data.num_clips * (counts["total"] + BACKWARD * trained)


def matmul_rate(
    device: torch.device, dtype: torch.dtype, seconds: float = 0.1, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Measure the floating-point operations per second of large matrix products on this device, 2 per term.

    Args:
        device: where.
        dtype: type of the operands.
        seconds: how long to measure.
        clock: what counts; `time.process_time` for one thread on a processor that others use too.
    """
    size = 8192 if device.type == "cuda" else 1024
    left = torch.randn(size, size, device=device, dtype=torch.float32).to(dtype)
    right = torch.randn(size, size, device=device, dtype=torch.float32).to(dtype)
    torch.mm(left, right)
    best, count, started = float("inf"), 1, clock()
    while clock() - started < seconds:
        _wait(device)
        begun = clock()
        for _ in range(count):
            torch.mm(left, right)
        _wait(device)
        taken = clock() - begun
        best = min(best, taken / count)
        count = 10 if device.type == "cuda" else 1
    return 2 * size**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
