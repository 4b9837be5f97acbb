"""What training shows every n steps: throughput, waiting, losses, gradient, memory, share of the arithmetic's peak."""

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

T = TypeVar("T")

PROFILE_SKIPPED, PROFILE_WARMUP, PROFILE_STEPS = 2, 2, 4  # steps of a trace: left out, not kept, kept


class Meter:
    """Measure an epoch from outside the steps; nothing here waits for the device.

    Attributes:
        waited: seconds spent waiting for data in the epoch.
    """

    def __init__(self, world_size: int, flops_per_video: float = 0.0, peak: float = 0.0) -> None:
        self._world_size, self._flops_per_video, self._peak = world_size, flops_per_video, peak
        self.started = self._interval_started = time.monotonic()
        self.waited = self._interval_waited = 0.0
        self.videos = self._interval_videos = self._interval_steps = 0

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches, timing how long each is waited for."""
        iterator = iter(batches)
        while True:
            begun = time.monotonic()
            batch = next(iterator, None)
            self.waited += time.monotonic() - begun
            if batch is None:
                return
            yield batch

    def step(self, videos: int) -> None:
        """Count a step of so many videos, over all processes."""
        self.videos += videos
        self._interval_videos += videos
        self._interval_steps += 1

    def interval(self, device: torch.device) -> dict[str, float]:
        """Return what was measured since the last call; call it when the device has done all steps."""
        now = time.monotonic()
        seconds, steps = now - self._interval_started, max(1, self._interval_steps)
        rate = self._interval_videos / seconds
        numbers = {
            "videos_per_second": rate,
            "step_seconds": seconds / steps,
            "waiting_share": (self.waited - self._interval_waited) / seconds,
            "memory_gb": memory_bytes(device) / 1e9,
        }
        if self._peak:
            numbers["flops_share"] = rate * self._flops_per_video / (self._peak * self._world_size)
        self._interval_started, self._interval_waited = now, self.waited
        self._interval_videos = self._interval_steps = 0
        return numbers

    def epoch(self) -> dict[str, float]:
        """Return what was measured since the beginning."""
        seconds = time.monotonic() - self.started
        return {"seconds": seconds, "videos_per_second": self.videos / seconds, "waiting_share": self.waited / seconds}


def memory_bytes(device: torch.device) -> int:
    """Return the most memory that tensors took on a GPU so far; on a processor what the process takes now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


def line(what: str, numbers: Mapping[str, float]) -> str:
    """Return one line of the log from the numbers of an interval."""
    text = (
        f"{what}: {numbers['videos_per_second']:.3g} videos/s, step {numbers['step_seconds']:.3g} s, waiting for data "
        f"{numbers['waiting_share']:.0%}, loss {numbers['loss']:.4g} (perception {numbers['perception_loss']:.4g}, "
        f"attention {numbers['attention_loss']:.4g}, temporal {numbers['temporal_loss']:.4g}), rate "
        f"{numbers['learning_rate']:.3g}, gradient {numbers['gradient_norm']:.3g}, memory {numbers['memory_gb']:.3g} GB"
    )
    if "flops_share" in numbers:
        text += f", {numbers['flops_share']:.1%} of the matrix-product rate"
    return text


def profiler(path: str) -> Any:
    """Return a context that writes a trace of a few steps, for Perfetto (ui.perfetto.dev); `step()` after each.

    Args:
        path: file to write, `trace.json` or `trace.json.gz`; empty: no trace, and None.
    """
    if not path:
        return None
    from torch.profiler import ProfilerActivity, profile, schedule

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    return profile(
        activities=activities,
        schedule=schedule(wait=PROFILE_SKIPPED, warmup=PROFILE_WARMUP, active=PROFILE_STEPS, repeat=1),
        on_trace_ready=lambda trace: trace.export_chrome_trace(path),
        record_shapes=True,
        profile_memory=True,
    )
