"""Throughput on 1 and 2 processes, on one machine and, as root, on two: network namespaces joined by a cable (veth).

    python benchmarks/scaling.py
    python benchmarks/scaling.py --preset ssv2_r50_32 --frames 8 --size 112 --mbit 1000

Every process computes with one thread, so that two share nothing but memory and caches. The share of communication
is 1 - (time of a step without exchange) / (time of a step), both measured in turn in the same processes.

From the measured times follows a model of a step on n processes,

    t(n) = t_compute + (1 - overlap) * t_exchange(n),   t_exchange(n) = 2 (n - 1) / n * gradient bytes / bandwidth

(ring all-reduce), whose overlap is what two processes show. It predicts 8 and 64 GPUs from the throughput of one GPU
and the bandwidths, which are options; --gpu-step-ms is to be measured with benchmarks/train_step.py on such a GPU.
"""

import argparse
import dataclasses
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import record
import torch
import torch.distributed as dist

from stabn import presets
from stabn.config import TrainConfig
from stabn.models import build_model
from stabn.training.device import choose_device, choose_precision, prepare
from stabn.training.distributed import join_world
from stabn.training.losses import training_loss
from stabn.training.schedule import make_optimizer, plan_batches
from stabn.training.step import Stepper

NETWORK = "10.231.77"


def work(args: argparse.Namespace) -> None:
    """Be one process: measure steps with and without exchange, and the exchange alone; process 0 prints JSON."""
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    config = presets.load(args.preset)
    model_config = dataclasses.replace(config.model, num_frames=args.frames)
    data_config = dataclasses.replace(config.data, num_frames=args.frames, crop_size=args.size)
    with join_world("auto", 120) as world:
        device = choose_device("auto", world.local_rank, world.size)
        torch.manual_seed(0)
        model = prepare(build_model(model_config), device)
        settings = TrainConfig(batch_size=args.batch * world.size, micro_batch_size=0, reference_batch_size=0)
        plan = plan_batches(settings, world.size)
        optimizer = make_optimizer(settings, list(model.parameters()), 1e-4)
        stepper = Stepper(
            model,
            settings,
            data_config,
            world,
            plan,
            optimizer,
            lambda output, batch: training_loss(output, batch["target"]),
            choose_precision("auto", device),
        )
        rng = np.random.default_rng(world.rank)
        clips = rng.integers(0, 255, (args.batch, 1, args.frames, args.size, args.size, 3), dtype=np.uint8)
        batch = {
            "clips": torch.from_numpy(clips).to(device),
            "color": torch.eye(3, 4).expand(args.batch, 3, 4).contiguous().to(device),
            "target": torch.zeros(args.batch, dtype=torch.long, device=device),
            "index": torch.arange(args.batch),
        }
        gradient = torch.zeros(sum(p.numel() for p in model.parameters()), device=device)
        times: dict[str, list[float]] = {"step": [], "alone": [], "exchange": []}
        for number in range(args.rounds + 1):
            for what in times:
                if world.size > 1:
                    dist.barrier()
                started = time.perf_counter()
                if what == "exchange":
                    world.sum_(gradient)
                else:
                    stepper_step(stepper, batch, args.batch, world.size, exchange=what == "step")
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if number:
                    times[what].append(time.perf_counter() - started)
        every = world.gather(times)
        if world.is_main:
            slowest = {
                what: statistics.median(max(one) for one in zip(*(t[what] for t in every), strict=True))
                for what in times
            }
            print(json.dumps({**slowest, "bytes": 4 * gradient.numel()}))


def stepper_step(stepper: Stepper, batch: Any, size: int, world_size: int, exchange: bool) -> None:
    """Take a step, with or without exchanging gradients."""
    with ExitStack() as stack:
        if not exchange and world_size > 1:
            stack.enter_context(stepper.network.no_sync())
        stepper.step(batch, num_real=size, num_global=size * world_size, seed=(0,))


def run(args: argparse.Namespace, processes: int, namespaces: list[str]) -> dict[str, float]:
    """Run so many processes, each in its namespace if there are any, and return what process 0 prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1"}
        environment |= {"LOCAL_RANK": str(0 if namespaces else rank), "MASTER_PORT": str(port)}
        environment["MASTER_ADDR"] = f"{NETWORK}.1" if namespaces else "127.0.0.1"
        environment["GLOO_SOCKET_IFNAME"] = f"cable{rank}" if namespaces else "lo"
        prefix = ["ip", "netns", "exec", namespaces[rank]] if namespaces else []
        command = [*prefix, sys.executable, __file__, "--worker", *sys.argv[1:]]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(f"a process failed: {[process.returncode for process in started]}")
    result: dict[str, float] = json.loads(outputs[0].strip().splitlines()[-1])
    return result


@contextmanager
def two_nodes(mbit: int) -> Iterator[list[str]]:
    """Make two network namespaces joined by a cable, as fast as it is or with a rate."""
    names = [f"stabn-node{number}" for number in range(2)]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "cable0", "netns", names[0], "type", "veth", "peer", "name", "cable1", "netns", names[1])
        for number, name in enumerate(names):
            ip("-n", name, "addr", "add", f"{NETWORK}.{number + 1}/24", "dev", f"cable{number}")
            ip("-n", name, "link", "set", f"cable{number}", "up")
            ip("-n", name, "link", "set", "lo", "up")
            if mbit:
                shape = ["tbf", "rate", f"{mbit}mbit", "burst", "1mb", "latency", "50ms"]
                subprocess.run(
                    ["ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", f"cable{number}", "root", *shape],
                    check=True,
                )
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


def predict(args: argparse.Namespace, overlap: float, gradient_bytes: float) -> record.Table:
    """Return what the model says of 8 and 64 GPUs."""
    rows = []
    for gpus, bandwidth in ((1, args.nvlink_gbyte), (8, args.nvlink_gbyte), (64, args.network_gbyte)):
        exchange = 2 * (gpus - 1) / gpus * gradient_bytes / (bandwidth * 1e9) * 1e3
        step = args.gpu_step_ms + (1 - overlap) * exchange
        rate = gpus * args.gpu_batch / step * 1e3
        rows.append((gpus, exchange, step, rate, args.gpu_step_ms / step))
    columns = ("GPUs", "exchange, ms", "step, ms", "clips/s", "efficiency")
    return record.Table("", columns, ("", ".2f", ".1f", ".0f", ".1%"), rows)


def main() -> None:
    """Run the command line."""
    parser = record.parser(__doc__)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--preset", default="ssv2_r50_32")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=112, help="pixels")
    parser.add_argument("--batch", type=int, default=1, help="clips per process")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mbit", type=int, default=1000, help="rate of the cable between the nodes; 0: not limited")
    parser.add_argument("--gpu-step-ms", type=float, default=47.0, help="step of one GPU, batch --gpu-batch")
    parser.add_argument("--gpu-batch", type=int, default=8)
    parser.add_argument("--nvlink-gbyte", type=float, default=300.0, help="GB/s of a ring inside a machine")
    parser.add_argument("--network-gbyte", type=float, default=40.0, help="GB/s per GPU between machines")
    args = parser.parse_args()
    if args.worker:
        work(args)
        return
    kinds: list[tuple[str, dict[str, float], int]] = [("1 process", run(args, 1, []), 1)]
    kinds.append(("2 processes", run(args, 2, []), 2))
    if os.geteuid() == 0:
        try:
            with two_nodes(0) as names:
                kinds.append(("2 nodes, cable as fast as memory", run(args, 2, names), 2))
            if args.mbit:
                with two_nodes(args.mbit) as names:
                    kinds.append((f"2 nodes, {args.mbit} Mbit/s", run(args, 2, names), 2))
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"(no network namespaces here: {error})")
    title = (
        f"{args.preset}, {args.batch} x {args.frames} x {args.size} x {args.size} per process, one thread each, "
        f"median of {args.rounds}; gradients {kinds[0][1]['bytes'] / 1e6:.0f} MB"
    )
    base, rows = kinds[0][1]["step"], []
    for name, times, processes in kinds:
        share = 1 - times["alone"] / times["step"] if processes > 1 else 0.0
        rate = processes * args.batch / times["step"]
        rows.append((name, times["step"], times["alone"], times["exchange"], share, rate, base / times["step"]))
    slowest = kinds[-1][1]
    overlap = min(1.0, max(0.0, 1 - (slowest["step"] - slowest["alone"]) / slowest["exchange"]))
    columns = ("", "step, s", "without exchange, s", "exchange alone, s", "communication", "clips/s", "efficiency")
    note = f"Overlap of the exchange and the backward pass: {overlap:.0%}."
    table = record.Table(title, columns, ("", ".2f", ".2f", ".2f", ".0%", ".2f", ".0%"), rows, note)
    record.report([table, predict(args, overlap, slowest["bytes"])], args.output)


if __name__ == "__main__":
    main()
