"""What the editor's what-if costs: recognising a video anew, what is kept of it once, and each edit after that.

    python benchmarks/whatif.py

Runs the networks of presets with random weights on one clip. An edit gives new attention to some neighbouring frames,
to others each time. What the server does with it is measured whole: with float32, and with bfloat16 where the processor
has matrix units for it. By the clock; and beside it what each thread was busy for, which an idle machine would take.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import record
import torch

from stabn.data.transforms import to_input
from stabn.editor.whatif import CachedClips
from stabn.models import STABN
from stabn.presets import load
from stabn.training.device import choose_precision, prepare

WARM_UP = 2


class Taken(NamedTuple):
    """Seconds that a call takes: by the clock, and of the processor for each thread."""

    clock: float
    busy: float


def timed(function: Callable[[], object]) -> Taken:
    """Time a call."""
    clock, busy = time.perf_counter(), time.process_time()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Taken(time.perf_counter() - clock, (time.process_time() - busy) / torch.get_num_threads())


def quantiles(times: list[Taken]) -> tuple[float, float, float]:
    """Return median and 95th percentile by the clock, and the median of the processor, in ms."""
    clock = np.quantile([one.clock for one in times], [0.5, 0.95]) * 1e3
    return float(clock[0]), float(clock[1]), float(np.median([one.busy for one in times]) * 1e3)


def edits(slots: int, changed: int, count: int) -> list[np.ndarray]:
    """Return attention float32 (1, S), one after the other, of which some neighbouring values are new each time."""
    random = np.random.default_rng(changed)
    made = [random.random((1, slots), np.float32)]
    for _ in range(count):
        start = random.integers(0, slots - changed + 1)
        new = made[-1].copy()
        new[:, start : start + changed] = random.random((1, changed), np.float32)
        made.append(new)
    return made[1:]


def main() -> None:
    """Measure and print the tables."""
    parser = record.parser(__doc__)
    parser.add_argument("--presets", nargs="+", default=["ssv2_r50_32", "ssv2_r101_32"], help="networks to measure")
    parser.add_argument("--rounds", type=int, default=40, help="edits of each kind (default: 40)")
    parser.add_argument("--changed", type=int, nargs="+", default=[32, 16, 10, 4, 1], help="frames an edit changes")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the processor")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    once, each = [], []
    for name in args.presets:
        config = load(name)
        torch.manual_seed(0)
        device = torch.device(args.device)
        model = prepare(STABN(config.model), device).eval()
        size, length = config.data.crop_size, config.data.num_frames
        frames = np.random.default_rng(0).integers(0, 255, (length + 8, size, size, 3), np.uint8)
        clip = to_input(torch.from_numpy(frames[None, :length]), config.data, device)
        quick = choose_precision("auto", device) if args.device == "cpu" else torch.float32
        perceivers = [model.perceiver(dtype) for dtype in dict.fromkeys((torch.float32, quick))]
        keep = partial(CachedClips, model, num_frames=len(frames), read=frames.__getitem__, data=config.data)
        kinds = [keep(perceivers=perceivers[: number + 1]) for number in range(len(perceivers))]
        with torch.inference_mode():
            times = [[timed(call) for _ in range(3)] for call in (partial(model, clip), partial(keep, perceivers))]
        medians = np.median(times, axis=1).flatten().tolist()
        what = f"{name}, {length} x {size}"
        once.append((what, *medians, kinds[-1].num_bytes / 2**20))
        for clips in kinds:
            for changed in args.changed:
                attentions = edits(model.num_slots, changed, args.rounds + WARM_UP)
                times = [timed(partial(clips.probabilities, attention)) for attention in attentions][WARM_UP:]
                each.append((what, str(clips.dtype).removeprefix("torch."), changed, *quantiles(times)))
    threads = f"{args.threads} thread" + "s" * (args.threads > 1)
    beside = f"load average {os.getloadavg()[0]:.1f}, this process included"
    tables = [
        record.Table(
            f"Once per video, {threads}, {args.device}, median of 3, {beside}",
            ("network, frames x crop", "whole, s", "busy, s", "what is kept, s", "busy, s", "MB per video"),
            ("", ".2f", ".2f", ".2f", ".2f", ".0f"),
            once,
        ),
        record.Table(
            f"Each edit, {threads}, {args.device}, {args.rounds} of each kind, {beside}",
            ("network, frames x crop", "arithmetic", "frames changed", "p50, ms", "p95, ms", "busy, ms"),
            ("", "", "d", ".0f", ".0f", ".0f"),
            each,
        ),
    ]
    record.report(tables, args.output)


if __name__ == "__main__":
    main()
