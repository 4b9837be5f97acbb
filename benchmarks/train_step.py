"""One step of training, evaluation and fine-tuning, against the same network run plainly, the baseline, and the floor.

    python benchmarks/train_step.py                # GPU: 32 x 224 x 224, batch 8; CPU: 16 x 112 x 112, 2
    python benchmarks/train_step.py --frames 16 --size 224 --batch 1 --rounds 3
    python benchmarks/train_step.py --compile                # GPU: torch.compile too
    python benchmarks/train_step.py --preset c3d_16 vjepa2_l_16 vjepa2_l_16_frozen --frames 16
    python benchmarks/train_step.py --preset videomae_b_16 --size 32 --rounds 1 \
      --overrides "model.width=48 model.depth=2 model.num_heads=2 model.extractor_blocks=1 model.trunk_blocks=1"

Each method lives in a process of its own and takes one step whenever it is its turn, so that all meet the same
disturbances. Prints a Markdown table: medians, with the memory of each method beside its time.
On a processor one thread computes and its own time is counted: what else runs does not matter much.

The floor is the counted arithmetic (forward, and twice that backward) over the rate of a large matrix product, measured
in the same run in the type that the method computes in. MFU, the model FLOPs utilisation, is the floor's share of the
time; what activation checkpointing computes again does not count.
"""

import dataclasses
import math
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import record
import torch
from torch import nn

from stabn import presets
from stabn.config import DataConfig, FinetuneConfig, ModelConfig, TrainConfig
from stabn.models import build_model
from stabn.training.device import autocast, batch_input, choose_device, choose_precision, prepare
from stabn.training.distributed import World
from stabn.training.features import FeatureCache
from stabn.training.flops import forward_flops, matmul_rate
from stabn.training.losses import finetuning_loss, training_loss
from stabn.training.schedule import make_optimizer, plan_batches
from stabn.training.step import Stepper

# What is done, how, and with which network.
METHODS = (
    ("train", "this project", "st_abn"),
    ("train", "this project, compiled", "st_abn"),
    ("train", "this project, activation checkpointing", "st_abn"),
    ("train", "plain: fp32, contiguous, eager", "st_abn"),
    ("train", "plain, activation checkpointing (as released)", "st_abn"),
    ("train", "this project, baseline", "baseline"),
    ("finetune", "this project, frozen extractor", "st_abn"),
    ("finetune", "this project, cached features", "st_abn"),
    ("evaluate", "this project", "st_abn"),
    ("evaluate", "plain: fp32, contiguous, eager", "st_abn"),
    ("evaluate", "this project, baseline", "baseline"),
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """The clips of a step."""

    preset: str
    overrides: str
    frames: int
    size: int
    batch: int

    def configs(self, name: str) -> tuple[ModelConfig, DataConfig]:
        """Return the settings of a network for such clips."""
        config = presets.resolve(
            self.preset, f"data.num_frames={self.frames} data.crop_size={self.size} {self.overrides}"
        )
        return dataclasses.replace(config.model, name=name), config.data

    @property
    def frozen(self) -> bool:
        """Whether training keeps the feature extractor as it is."""
        return presets.load(self.preset).train.freeze == "feature_extractor"

    def item(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Return a mini-batch as `ClipDataset` gives it, on the device."""
        rng = np.random.default_rng(0)
        clips = rng.integers(0, 255, (self.batch, 1, self.frames, self.size, self.size, 3), dtype=np.uint8)
        batch = {
            "clips": torch.from_numpy(clips),
            "color": torch.eye(3, 4).expand(self.batch, 3, 4).contiguous(),
            "target": torch.arange(self.batch) % 174,
            "temporal_target": torch.rand(self.batch, 1, self.frames),
        }
        return {**{name: value.to(device) for name, value in batch.items()}, "index": torch.arange(self.batch)}


def wait(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def own_device() -> tuple[torch.device, Callable[[], float]]:
    """Return where to compute, and the clock that counts."""
    device = choose_device("auto")
    if device.type == "cuda":
        return device, time.perf_counter
    torch.set_num_threads(1)
    return device, time.process_time


def make_step(kind: str, how: str, name: str, shape: Shape) -> Any:
    """Return a function that takes one step."""
    device = choose_device("auto")
    model_config, data_config = shape.configs(name)
    torch.manual_seed(0)
    model: Any = build_model(model_config)
    batch = shape.item(device)
    plain = how.startswith("plain")
    dtype = torch.float32 if plain else choose_precision("auto", device)
    model = model.to(device) if plain else prepare(model, device)
    model.set_activation_checkpointing("activation checkpointing" in how)
    if kind == "finetune" or (kind == "train" and shape.frozen):
        model.freeze_feature_extractor()
    if kind == "evaluate":
        model.eval()

        @torch.inference_mode()
        def evaluate() -> None:
            clips = batch_input(batch, data_config, device).flatten(0, 1)
            with autocast(device, dtype):
                model(clips.contiguous() if plain else clips)

        return evaluate
    if plain:
        return plain_training(model, batch, data_config, device)
    config = FinetuneConfig if kind == "finetune" else TrainConfig
    settings = config(batch_size=shape.batch, micro_batch_size=0, compile="compiled" in how)
    plan = plan_batches(settings, 1)
    optimizer = make_optimizer(settings, [p for p in model.parameters() if p.requires_grad], plan.learning_rate)

    def loss(output: Any, batch: Any) -> Any:
        if kind == "finetune":
            return finetuning_loss(output, batch["target"], batch["temporal_target"].flatten(0, 1), gamma=10.0)
        return training_loss(output, batch["target"])

    cache = FeatureCache(16_000) if "cached" in how else None
    stepper = Stepper(model, settings, data_config, World(), plan, optimizer, loss, dtype, cache)
    return lambda: stepper.step(batch, num_real=shape.batch, num_global=shape.batch, seed=(0, 0, 0))


def plain_training(model: nn.Module, batch: Any, data_config: DataConfig, device: torch.device) -> Any:
    """Return the step that one would write first."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)
    model.train()

    def step() -> None:
        clips = batch_input(batch, data_config, device).flatten(0, 1).contiguous()
        optimizer.zero_grad()
        loss = training_loss(model(clips), batch["target"]).total
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 20.0)
        optimizer.step()
        loss.item()

    return step


def work(connection: Connection, kind: str, how: str, name: str, shape: Shape) -> None:
    """Take a step when told; answer with its seconds and the memory so far."""
    device, clock = own_device()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    try:
        step = make_step(kind, how, name, shape)
        while connection.recv():
            wait(device)
            started = clock()
            step()
            wait(device)
            seconds = clock() - started
            used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
            connection.send((seconds, torch.cuda.max_memory_allocated() if device.type == "cuda" else used))
    except torch.OutOfMemoryError:
        connection.send("out of memory")


def floor_seconds(kind: str, how: str, name: str, shape: Shape, rate: float) -> float:
    """Return what the arithmetic alone would take."""
    model_config, data_config = shape.configs(name)
    counts = forward_flops(model_config, data_config)
    total, extractor = counts["total"], counts["feature_extractor"]
    if kind == "evaluate":
        flops = total
    elif kind == "train":
        flops = 3 * total - (2 * extractor if shape.frozen else 0)
    else:
        flops = 3 * (total - extractor) + (0 if "cached" in how else extractor)
    return shape.batch * flops / rate


def take_turns(methods: list[Any], shape: Shape, rounds: int) -> list[list[Any]]:
    """Run methods, each in a process of its own, one step after the other; return what each answered."""
    context = multiprocessing.get_context("spawn")
    workers: list[tuple[Connection, Any]] = []
    for method in methods:
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, *method, shape), daemon=True)
        process.start()
        theirs.close()
        workers.append((ours, process))
    results: list[list[Any]] = [[] for _ in methods]
    for number in range(rounds + 2):  # the first two warm up
        for (connection, _), answers in zip(workers, results, strict=True):
            if "out of memory" in answers:
                continue
            connection.send(True)
            answer = connection.recv()
            answers.append(answer)
            if number == 1 and answer != "out of memory":
                answers.clear()
    for (connection, process), answers in zip(workers, results, strict=True):
        if "out of memory" not in answers:
            connection.send(False)
        process.join()
    return results


def measure(shape: Shape, rounds: int, compiled: bool, ours: bool = False) -> record.Table:
    """Return the table of one shape."""
    device, clock = own_device()
    dtype = choose_precision("auto", device)
    rates = {d: matmul_rate(device, d, 1.0, clock) for d in {dtype, torch.float32}}
    shown = ", ".join(f"{rate / 1e12:.3g} TFLOP/s in {d}".replace("torch.", "") for d, rate in rates.items())
    methods = [method for method in METHODS if compiled or "compiled" not in method[1]]
    methods = [method for method in methods if not (ours and method[1].startswith("plain"))]
    if device.type == "cuda":  # each has the GPU's memory for itself
        results = [answers for method in methods for answers in take_turns([method], shape, rounds)]
    else:  # each meets the same neighbours
        results = take_turns(methods, shape, rounds)
    rows: list[tuple[Any, ...]] = []
    own: dict[str, float] = {}
    for (kind, how, name), answers in zip(methods, results, strict=True):
        if "out of memory" in answers:
            own.setdefault(kind, math.nan)
            rows.append((kind, how, "out of memory", None, None, None, None, None))
            continue
        seconds = statistics.median(answer[0] for answer in answers)
        own.setdefault(kind, seconds)
        rate = rates[torch.float32 if how.startswith("plain") else dtype]
        floor = floor_seconds(kind, how, name, shape, rate)
        memory = max(answer[1] for answer in answers) / 1e9
        relative = (seconds / floor, 100 * floor / seconds, seconds / own[kind])
        rows.append((kind, how, 1e3 * seconds, shape.batch / seconds, *relative, memory))
    clips = f"{shape.batch} x {shape.frames} x {shape.size} x {shape.size}"
    return record.Table(
        f"{f'{shape.preset} {shape.overrides}'.strip()}, {clips}, median of {rounds}, matrix product {shown}",
        ("step", "method", "ms", "clips/s", "over floor", "MFU %", "over this project", "GB"),
        ("", "", ".1f", ".3g", ".2f", ".0f", ".2f", ".1f"),
        rows,
    )


def main() -> None:
    """Run the command line."""
    on_gpu = torch.cuda.is_available()
    parser = record.parser(__doc__)
    parser.add_argument(
        "--preset", nargs="+", default=["ssv2_r50_32", "ssv2_r101_32"], choices=tuple(presets.PRESETS), metavar="NAME"
    )
    parser.add_argument("--overrides", default="", help="settings of all of them, such as model.width=16")
    parser.add_argument("--ours", action="store_true", help="without the plain methods to compare with")
    parser.add_argument("--frames", type=int, default=32 if on_gpu else 16)
    parser.add_argument("--size", type=int, default=224 if on_gpu else 112, help="pixels")
    parser.add_argument("--batch", type=int, default=8 if on_gpu else 2)
    parser.add_argument("--rounds", type=int, default=20 if on_gpu else 5)
    parser.add_argument("--compile", action="store_true", help="also with torch.compile, which takes minutes")
    args = parser.parse_args()
    shapes = [Shape(name, args.overrides, args.frames, args.size, args.batch) for name in args.preset]
    record.report([measure(shape, args.rounds, args.compile, args.ours) for shape in shapes], args.output)


if __name__ == "__main__":
    main()
