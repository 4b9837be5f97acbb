"""Everything that a GPU decides, in at most 9 minutes: right numbers, a step's time, memory and MFU, loading, saving.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json && python benchmarks/tables.py
    python benchmarks/gpu.py --out x.json --parts guard step --seconds 240
    python benchmarks/gpu.py --out x.json --small          # all of it at tiny sizes, on a processor too

The parts run in the order of PARTS, each as long as the time that is left is more than it needs at least. After each
one FILE is written anew, so what is done stays if the command is killed; a part that was left out, or failed, is in it
with the reason. Two of the measurements need more than this repository: PySlowFast's slow pathway comes from
pytorchvideo if that is installed, and NCCL needs two GPUs.
"""

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import record
import saving
import simplejpeg
import torch
import train_step

from stabn import presets
from stabn.config import RunConfig
from stabn.data.manifest import build_manifest
from stabn.errors import StabnError
from stabn.training.arithmetic import bf16_errors, cudnn_version, fitting_shapes
from stabn.training.device import autocast, choose_device, choose_precision
from stabn.training.launch import launch
from stabn.training.stage import train

SECONDS = 540.0
TINY = "model.width=4 model.num_blocks=1,1,1,1 model.block=basic"


class Sizes(NamedTuple):
    """How large everything is.

    Attributes:
        overrides: settings of the networks.
        clip: frames, height and width, videos of a step.
        rounds: steps of each method.
        videos: of the training loop's dataset, with frames of `frame` pixels.
        epochs: of the training loop.
    """

    overrides: str
    clip: tuple[int, int, int]
    rounds: int
    videos: int
    frame: tuple[int, int]
    epochs: int

    def shape(self, preset: str) -> train_step.Shape:
        """Return the clips of a step for a network."""
        return train_step.Shape(preset, self.overrides, *self.clip)


FULL = Sizes("", (32, 224, 8), 10, 512, (240, 427), 2)
SMALL = Sizes(TINY, (4, 32, 2), 1, 6, (40, 48), 1)


class Missing(Exception):
    """A part cannot be measured here; says why."""


def guard(sizes: Sizes) -> Iterator[record.Table]:
    """Compare convolutions in bf16 with fp32."""
    device = choose_device("auto")
    errors = bf16_errors(device, fitting_shapes(device))
    rows = [(name, 100 * error) for name, error in errors.items()]
    title = f"conv3d in bf16 against fp32, {cudnn_version() or 'no cuDNN'}: difference as a share of the norm"
    yield record.Table(title, ("convolution", "%"), ("", ".2f"), rows)


def determinism(sizes: Sizes) -> Iterator[record.Table]:
    """Train twice with and without `train.deterministic` and compare the weights to the bit."""
    rows: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_dataset(Path(folder), sizes._replace(videos=6))
        for deterministic in (True, False):
            found = []
            for number in range(2):
                config = training(sizes, f"train.deterministic={str(deterministic).lower()}")
                found.append(train(manifest, config, f"{folder}/{deterministic}-{number}").fingerprint)
            rows.append((f"deterministic = {deterministic}", "equal" if found[0] == found[1] else "different"))
    yield record.Table("The weights of two runs of the same settings", ("train.deterministic", "bits"), ("", ""), rows)


def step(sizes: Sizes) -> Iterator[record.Table]:
    """Time every way of taking a step, of R50, then of R101."""
    on_gpu = choose_device("auto").type == "cuda"
    for preset in ("ssv2_r50_32", "ssv2_r101_32"):
        yield train_step.measure(sizes.shape(preset), sizes.rounds, compiled=on_gpu)


def pyslowfast(sizes: Sizes) -> Iterator[record.Table]:
    """Time a training step of PySlowFast's slow pathway, as pytorchvideo has it."""
    try:
        from pytorchvideo.models.hub import slow_r50
    except ImportError:
        raise Missing("pytorchvideo is not installed") from None
    device, clock = train_step.own_device()
    frames, size, batch = sizes.clip
    model = slow_r50(pretrained=False).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    video = torch.randn(batch, 3, frames, max(size, 224), max(size, 224), device=device)
    target = torch.zeros(batch, dtype=torch.long, device=device)
    rows = []
    for dtype in (torch.float32, choose_precision("auto", device)):
        times = []
        for _ in range(sizes.rounds + 2):
            train_step.wait(device)
            started = clock()
            optimizer.zero_grad()
            with autocast(device, dtype):
                loss = torch.nn.functional.cross_entropy(model(video).float(), target)
            loss.backward()
            optimizer.step()
            train_step.wait(device)
            times.append(clock() - started)
        each = statistics.median(times[2:])
        rows.append((str(dtype).removeprefix("torch."), 1e3 * each, batch / each))
    yield record.Table("Training step of PySlowFast's slow R50", ("in", "ms", "clips/s"), ("", ".1f", ".3g"), rows)


def whole_loop(sizes: Sizes) -> Iterator[record.Table]:
    """Train from packed frames as the product does; the last epoch, which has nothing to start."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_dataset(Path(folder), sizes)
        last = train(manifest, training(sizes), f"{folder}/run").history[-1]
    row = (sizes.videos, last["videos_per_second"], 100 * last["waiting_share"], os.cpu_count() or 0)
    columns = ("videos", "videos/s", "waiting for data, %", "cores")
    yield record.Table("The training loop on packed frames", columns, ("", ".3g", ".1f", ""), [row])


def save(sizes: Sizes) -> Iterator[record.Table]:
    """Time steps with and without saving beside them."""
    yield saving.measure(sizes.shape("ssv2_r50_32"), max(1, sizes.rounds // 2), 20 if sizes is FULL else 1)


def several(sizes: Sizes) -> Iterator[record.Table]:
    """Train in as many processes as there are GPUs, over NCCL, and once more to go on from the end."""
    count = torch.cuda.device_count()
    if count < 2:
        raise Missing(f"{count} GPU{'s' * (count != 1)} here: NCCL gives each process its own, so it needs two")
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_dataset(Path(folder), sizes)
        config = training(sizes, f"train.batch_size={sizes.clip[2] * count}")
        several = dataclasses.replace(config.train, processes=count, restarts=0)
        launch(train, several, manifest_uri=manifest, config=config, output_uri=f"{folder}/run")
        last = train(manifest, config, f"{folder}/run").history[-1]
    row = (count, last["videos_per_second"], 100 * last["waiting_share"])
    yield record.Table("Several GPUs", ("GPUs", "videos/s", "waiting for data, %"), ("", ".3g", ".1f"), [row])


class Part(NamedTuple):
    """One of the measurements; `needs` is the seconds that must be left for it to begin, on a GPU."""

    measure: Callable[[Sizes], Iterable[record.Table]]
    needs: float


PARTS = {
    "guard": Part(guard, 20),
    "determinism": Part(determinism, 40),
    "step": Part(step, 150),
    "pyslowfast": Part(pyslowfast, 20),
    "loop": Part(whole_loop, 60),
    "saving": Part(save, 30),
    "several": Part(several, 60),
}


def training(sizes: Sizes, overrides: str = "") -> RunConfig:
    """Return the settings of a training loop."""
    frames, size, batch = sizes.clip
    return presets.resolve(
        "ssv2_r50_32",
        f"data.num_frames={frames} data.crop_size={size} extract.short_side={max(size, min(sizes.frame))} "
        f"train.epochs={sizes.epochs} train.batch_size={batch} train.micro_batch_size=0 train.init_weights=random "
        f"train.validate_every={sizes.epochs} train.log_steps=0 {sizes.overrides} {overrides}",
    )


def write_dataset(folder: Path, sizes: Sizes) -> str:
    """Write videos of noise as packed frames, as dense as JPEG gets, and return their manifest."""
    rng, height, width = np.random.default_rng(0), *sizes.frame
    count = sizes.clip[0] + 4
    coarse = rng.integers(0, 255, (count, height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    frames = np.ascontiguousarray(coarse.repeat(8, 1).repeat(8, 2)[:, :height, :width])
    jpegs = [simplejpeg.encode_jpeg(frame, 90) for frame in frames]
    (folder / "frames").mkdir()
    rows = []
    for number in range(sizes.videos + 2):
        (folder / "frames" / f"{number}.mjpeg").write_bytes(b"".join(jpegs))
        rows.append(
            {
                "video_id": str(number),
                "split": "validation" if number >= sizes.videos else "train",
                "class_index": number % 2,
                "label": "",
                "object_key": f"{number}.mjpeg",
                "frame_sizes": [len(jpeg) for jpeg in jpegs],
                "num_frames": count,
                "width": width,
                "height": height,
                "source_sha256": f"{number:064}",
            }
        )
    build_manifest(rows, ["one", "two"], str(folder / "frames"), {}).save(folder / "manifest.parquet")
    return str(folder / "manifest.parquet")


def device_facts() -> dict[str, Any]:
    """Return the card, driver, clocks and memory that nvidia-smi tells of, and what PyTorch was built with."""
    facts: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": cudnn_version()}
    fields = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu,memory.total"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return {**facts, "card": "none: no nvidia-smi here"}
    values = [value.strip() for value in out.splitlines()[0].split(",")]
    return {**facts, **dict(zip(["card", *fields.split(",")[1:]], values, strict=True))}


def run(names: Iterable[str], sizes: Sizes, seconds: float, out: Path) -> None:
    """Measure parts as long as there is time, and write the file after each table."""
    started = time.monotonic()
    tables: list[record.Table] = []
    parts: dict[str, str] = {}
    facts = {"device": device_facts(), "parts": parts}
    for name in names:
        part, begun = PARTS[name], time.monotonic()
        left = seconds - (begun - started)
        try:
            if sizes is FULL and left < part.needs:
                raise Missing(f"{left:.0f} s were left, it takes at least {part.needs:.0f} s")
            for table in part.measure(sizes):
                tables.append(table)
                record.keep(tables, out, **facts)
            parts[name] = f"done in {time.monotonic() - begun:.0f} s"
        except Missing as reason:
            parts[name] = f"not measured: {reason}"
        except (StabnError, RuntimeError, OSError) as error:  # one part's failure does not take the others'
            parts[name] = f"failed: {type(error).__name__}: {error}"
        print(f"{name}: {parts[name]}", file=sys.stderr, flush=True)
        record.keep(tables, out, **facts)
    facts["device_afterwards"] = device_facts()
    record.keep(tables, out, **facts)
    print("\n\n".join(map(str, tables)))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON file, written after each part")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for all of it (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the command")
    args = parser.parse_args()
    os.environ.setdefault("MLFLOW_TRACKING_URI", "")
    run(args.parts, SMALL if args.small else FULL, args.seconds, args.out)


if __name__ == "__main__":
    main()
