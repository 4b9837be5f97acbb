"""What saving costs the training: steps with and without a state being written beside them.

    python benchmarks/saving.py                # GPU: 32 x 224 x 224, batch 8; CPU: 8 x 64 x 64, 1
    python benchmarks/saving.py --preset mini --size 32 --rounds 2 --steps 3

Blocks of steps in turn: without saving; with a state that is copied at the block's first step and written to a folder
beside the others; the same with a storage that does not answer, so that the states of the blocks wait and replace each
other. Prints a Markdown table: medians of the wall time of a step, over the blocks.
"""

import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import record
import torch
import train_step

from stabn import presets
from stabn.config import TrainConfig
from stabn.models import build_model
from stabn.storage import FolderStorage
from stabn.training.device import choose_precision, prepare
from stabn.training.distributed import World
from stabn.training.losses import training_loss
from stabn.training.saving import Saving
from stabn.training.schedule import make_optimizer, plan_batches
from stabn.training.step import Stepper


class Away(FolderStorage):
    """A storage that does not answer a write before it is `back`."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.back = threading.Event()

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        self.back.wait()
        super().write(key, data, if_absent=if_absent)


class Training:
    """A network that takes steps, and what a run of it would save."""

    def __init__(self, shape: train_step.Shape) -> None:
        self.device, _ = train_step.own_device()
        self.model_config, self.data_config = shape.configs("st_abn")
        self.model: Any = prepare(build_model(self.model_config), self.device)
        self.settings = TrainConfig(batch_size=shape.batch, micro_batch_size=0)
        plan = plan_batches(self.settings, 1)
        self.optimizer = make_optimizer(self.settings, list(self.model.parameters()), plan.learning_rate)
        self.stepper = Stepper(
            self.model,
            self.settings,
            self.data_config,
            World(),
            plan,
            self.optimizer,
            lambda output, batch: training_loss(output, batch["target"]),
            choose_precision("auto", self.device),
        )
        self.batch, self.size = shape.item(self.device), shape.batch

    def steps(self, count: int, save: Callable[[], None]) -> float:
        """Save, take steps, and return the seconds of each."""
        train_step.wait(self.device)
        started = time.perf_counter()
        save()
        for _ in range(count):
            self.stepper.step(self.batch, num_real=self.size, num_global=self.size, seed=(0, 0, 0))
        train_step.wait(self.device)
        return (time.perf_counter() - started) / count

    def saving(self, storage: FolderStorage) -> Saving:
        """Return what writes this training's states."""
        manifest = SimpleNamespace(classes=["?"] * self.model_config.num_classes, fingerprint="")
        videos = SimpleNamespace(config=self.data_config, manifest=manifest)
        recipe: Any = SimpleNamespace(name="train", settings=self.settings, videos=videos, model=self.model, inputs={})
        return Saving(recipe, storage, print)

    def save(self, saving: Saving, number: int) -> None:
        """Save as the loop does after an epoch with the best network so far."""
        position = {"epoch": number, "seen": 0, "history": []}
        saving.save(position, self.model.state_dict(), None, self.optimizer.state_dict(), best=True)


def measure(shape: train_step.Shape, rounds: int, steps: int) -> record.Table:
    """Return the table of one shape."""
    training = Training(shape)
    training.steps(2, lambda: None)
    seconds: dict[str, list[float]] = {"without saving": [], "with saving": [], "with saving, storage away": []}
    copying: dict[str, list[float]] = {name: [] for name in seconds}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        away = Away(other)
        with training.saving(FolderStorage(folder)) as here, training.saving(away) as there:
            savings = dict(zip(seconds, (None, here, there), strict=True))
            for number in range(rounds + 1):  # the first takes memory for the copies
                for name, saving in savings.items():

                    def save(saving: Saving | None = saving, name: str = name, number: int = number) -> None:
                        started = time.perf_counter()
                        if saving is not None:
                            training.save(saving, number)
                        copying[name].append(time.perf_counter() - started)

                    seconds[name].append(training.steps(steps, save))
                    here.finish()
            away.back.set()
        size = sum(tensor.nbytes for tensor in training.model.state_dict().values()) / 1e6
    rows = []
    alone = statistics.median(seconds["without saving"][1:])
    for name, values in seconds.items():
        each = statistics.median(values[1:])
        rows.append((name, 1e3 * each, 100 * (each / alone - 1), 1e3 * statistics.median(copying[name][1:])))
    clips = f"{shape.batch} x {shape.frames} x {shape.size} x {shape.size}"
    return record.Table(
        f"{shape.preset}, {clips}, weights of {size:.0f} MB, a save every {steps} steps, median of {rounds}",
        ("", "step, ms", "more, %", "of which copying, once per save, ms"),
        ("", ".1f", ".1f", ".1f"),
        rows,
    )


def main() -> None:
    """Run the command line."""
    on_gpu = torch.cuda.is_available()
    parser = record.parser(__doc__)
    parser.add_argument("--preset", default="ssv2_r50_32", choices=tuple(presets.PRESETS), metavar="NAME")
    parser.add_argument("--overrides", default="", help="settings, such as model.width=16")
    parser.add_argument("--frames", type=int, default=32 if on_gpu else 8)
    parser.add_argument("--size", type=int, default=224 if on_gpu else 64, help="pixels")
    parser.add_argument("--batch", type=int, default=8 if on_gpu else 1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=50 if on_gpu else 10, help="in a block")
    args = parser.parse_args()
    shape = train_step.Shape(args.preset, args.overrides, args.frames, args.size, args.batch)
    record.report([measure(shape, args.rounds, args.steps)], args.output)


if __name__ == "__main__":
    main()
