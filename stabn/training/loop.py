"""The loop that training and fine-tuning share: epochs, validation, saved states, going on where it was."""

import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from stabn.config import LOADING, RUNNING, DataConfig, FitConfig, ModelConfig, to_dict
from stabn.data.dataset import ClipDataset
from stabn.data.sampler import EpochSampler
from stabn.errors import Preempted, StabnError
from stabn.models import Output
from stabn.progress import Progress
from stabn.signals import deferred_sigterm
from stabn.storage import Storage
from stabn.training.checkpoint import CheckpointError, dump_checkpoint, parse_checkpoint, read_checkpoint, serialize
from stabn.training.device import Batch, choose_precision, make_loader, on_device
from stabn.training.distributed import Control, World
from stabn.training.features import FeatureCache
from stabn.training.flops import matmul_rate, training_flops
from stabn.training.losses import Losses
from stabn.training.meter import Meter, line, profiler
from stabn.training.schedule import Schedule, make_optimizer, plan_batches, score, set_rate
from stabn.training.states import BackgroundWriter, State, StateStore, copy_to_memory, dump_part, load_part
from stabn.training.step import COLUMNS, Measured, Stepper
from stabn.training.validation import validate

BEST = "best.pt"
CHECK_STEPS = 20  # on a GPU, steps whose gradients are looked at together: looking waits for the device


class TrainingError(StabnError):
    """Training cannot go on."""


@dataclass
class Fit:
    """One training or fine-tuning run, that can stop after any step and go on in other processes.

    Attributes:
        model: the network, on its device.
        loss: of (output, batch on the device); training_loss or finetuning_loss.
        epoch_rows: rows of the manifest to train on in an epoch, in any order; the loop shuffles them.
        identity: what must be equal for a state to be gone on from, as JSON values.
        frozen: whether the feature extractor only runs forward.
        on_epoch: told each epoch's metrics; on_log: those of every `log_steps` steps, with the step's number.
        profile_path: file for a trace of a few steps; empty: none.
    """

    model: nn.Module
    model_config: ModelConfig
    data_config: DataConfig
    settings: FitConfig
    train_data: ClipDataset
    validation_data: ClipDataset
    storage: Storage
    stage: str
    loss: Callable[[Output, Batch], Losses]
    epoch_rows: Callable[[int], np.ndarray]
    identity: dict[str, Any]
    world: World = field(default_factory=World)
    frozen: bool = False
    cache: FeatureCache | None = None
    on_epoch: Callable[[dict[str, float]], None] = lambda row: None
    on_log: Callable[[dict[str, float], int], None] = lambda numbers, step: None
    profile_path: str = ""
    history: list[dict[str, float]] = field(default_factory=list)

    def run(self) -> list[dict[str, float]]:
        """Train until the last epoch or the end of the schedule.

        Returns:
            One dict per epoch, the same in every process; process 0 leaves `best.pt`, with the history, and the newest
            states in the storage.

        Raises:
            TrainingError: a gradient is not finite; names the videos of the batch.
            CheckpointError: the storage holds a run with other settings or data.
            Preempted: SIGTERM came; the state was saved.
        """
        settings, world = self.settings, self.world
        self.device = next(self.model.parameters()).device
        self.dtype = choose_precision(settings.precision, self.device)
        plan = plan_batches(settings, world.size)
        self.optimizer = make_optimizer(
            settings, [p for p in self.model.parameters() if p.requires_grad], plan.learning_rate
        )
        self.schedule = Schedule(settings, plan.learning_rate)
        self.stepper = Stepper(
            self.model,
            settings,
            self.data_config,
            world,
            plan,
            self.optimizer,
            self.loss,
            self.dtype,
            self.cache,
        )
        self.control, self.store = Control(world), StateStore(self.storage, settings.keep_states)
        self._unwritten_best = b""
        self.seen = self.skipped = 0  # videos of the present epoch; steps of the run
        world.say(f"{self.stage}: {plan}")
        self._resume()
        self.saved_at = time.monotonic()
        self._flops = self._peak = 0.0
        if settings.log_steps and world.is_main:
            self._flops = training_flops(self.model_config, self.data_config, self.frozen)
            self._peak = matmul_rate(self.device, self.dtype)
        with (
            deferred_sigterm() as self.asked,
            BackgroundWriter(lambda text: world.say(f"{self.stage}: {text}")) as self.writer,
            profiler(self.profile_path if world.is_main else "") as self.profile,
        ):
            while not self.schedule.ended(self.history):
                self._run_epoch(len(self.history))
            self.control.finish()
            self.writer.finish()
        world.on_main(self._add_history_to_best)
        return self.history

    def _run_epoch(self, epoch: int) -> None:
        self._train(epoch)
        totals = self.stepper.totals()
        done = max(1.0, totals["videos"])
        row = {
            "epoch": epoch + 1,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            **_losses("train_", totals, done),
            "train_top1": totals["correct"] / done,
            **self.meter.epoch(),
        }
        if (epoch + 1) % self.settings.validate_every == 0 or epoch + 1 == self.settings.epochs:
            row |= self._validate(epoch)
            self.schedule.validated(row["validation_loss"])
        self.history.append(row)
        self.seen = 0
        self.stepper.load_totals(dict.fromkeys(COLUMNS, 0.0))
        validated = [score(one) for one in self.history if "validation_top1" in one]
        self._save(best="validation_top1" in row and score(row) == max(validated))
        if self.world.is_main:
            self.on_epoch(row)

    def _train(self, epoch: int) -> None:
        """Take the epoch's steps that are still to take."""
        settings, world = self.settings, self.world
        self.train_data.epoch = epoch
        position = {int(row): i for i, row in enumerate(self.train_data.indices)}
        positions = [position[int(row)] for row in self.epoch_rows(epoch)]
        sampler = EpochSampler(
            positions,
            settings.batch_size,
            seed=settings.seed,
            epoch=epoch,
            rank=world.rank,
            world_size=world.size,
            start=self.seen,
        )
        num_steps, first = -(-len(positions) // settings.batch_size), self.seen // settings.batch_size
        loader = on_device(make_loader(self.train_data, sampler, self.data_config.workers), self.device)
        self.model.train()
        self.meter = Meter(world.size, self._flops, self._peak)
        logged = self.stepper.totals() if settings.log_steps else {}
        check_every = 1 if self.device.type == "cpu" else settings.log_steps or CHECK_STEPS
        recent: list[tuple[Sequence[int], Measured]] = []
        what = f"{self.stage} epoch {epoch + 1}/{settings.epochs}"
        progress = Progress(len(sampler.order), what, stream=None if world.is_main else io.StringIO())
        for number, batch in enumerate(self.meter.waiting(loader)):
            step, size = first + number, sampler.num_global(number)
            set_rate(self.optimizer, self.schedule.at(epoch + step / num_steps))
            measured = self.stepper.step(
                batch,
                num_real=sampler.num_real(number),
                num_global=size,
                seed=(settings.seed, epoch, step),
            )
            begin = number * settings.batch_size
            recent.append((sampler.order[begin : begin + size].tolist(), measured))
            self.seen += size
            self.meter.step(size)
            if len(recent) >= check_every or number + 1 == len(sampler):
                self._check(recent, epoch)
                sums = dict(zip(COLUMNS, self.stepper.sums.tolist(), strict=True))
                progress.update(0, loss=sums["total"] / max(1.0, sums["videos"]))
            progress.update(size)
            if settings.log_steps and (step + 1) % settings.log_steps == 0:
                logged = self._log(
                    f"{what} step {step + 1}/{num_steps}", epoch * num_steps + step + 1, logged, measured
                )
            if self.profile is not None:
                self.profile.step()
            stop, save = self.control.exchange(self.asked.received, self._save_is_due())
            if stop or save:
                self._check(recent, epoch)
                self._save()
            if stop:
                self._leave()
        progress.close()

    def _check(self, recent: list[tuple[Sequence[int], Measured]], epoch: int) -> None:
        """Look at the steps since the last check, which waits for the device.

        Raises:
            TrainingError: more gradients were not finite than may be.
        """
        if not recent:
            return
        values = torch.stack([torch.stack([m.losses[0], m.norm.double()]) for _, m in recent]).tolist()
        for (positions, _), (loss, norm) in zip(recent, values, strict=True):
            if math.isfinite(norm):
                continue
            losses = [one for one in self.world.gather(loss) if not math.isfinite(one)]
            what = f"the loss is {losses[0]}" if losses else f"the gradient is {norm}"
            manifest = self.train_data.manifest
            ids = ", ".join(manifest.video_id(int(self.train_data.indices[p])) for p in positions)
            self.skipped += 1
            if self.skipped > self.settings.max_skipped_steps:
                newest = "the newest state is from before" if self.history else "no state was saved yet"
                raise TrainingError(
                    f"{self.stage}: {what} in epoch {epoch + 1}, videos {ids}; lower the learning rate, or look at "
                    f"these videos ({self.skipped - 1} such steps were skipped before; {newest})"
                )
            self.world.say(
                f"{self.stage}: {what} in epoch {epoch + 1}, videos {ids}: step skipped, "
                f"{self.skipped} of at most {self.settings.max_skipped_steps}"
            )
        recent.clear()

    def _log(self, what: str, step: int, before: dict[str, float], measured: Measured) -> dict[str, float]:
        """Show and record what was measured since the last time; return the sums so far."""
        totals = self.stepper.totals()
        done = {name: totals[name] - before[name] for name in COLUMNS}
        numbers = self.meter.interval(self.device) | _losses("", done, max(1.0, done["videos"]))
        numbers |= {"gradient_norm": float(measured.norm), "learning_rate": self.optimizer.param_groups[0]["lr"]}
        if self.world.is_main:
            print(line(what, numbers), flush=True)
            self.on_log(numbers, step)
        return totals

    def _validate(self, epoch: int) -> dict[str, float]:
        def interrupted() -> bool:
            return self.control.exchange(self.asked.received, False)[0]

        metrics = validate(
            self.stepper.validated, self.validation_data, self.settings, self.world, self.dtype, interrupted
        )
        if metrics is None:
            self._save()
            self._leave()
            raise AssertionError("unreachable")
        loss, top1, top5 = (metrics[f"validation_{name}"] for name in ("loss", "top1", "top5"))
        self.world.say(
            f"{self.stage} epoch {epoch + 1}: validation loss {loss:.3f}, top-1 {top1:.1%}, top-5 {top5:.1%}"
        )
        return metrics

    def _save_is_due(self) -> bool:
        minutes = self.settings.checkpoint_minutes
        return minutes > 0 and time.monotonic() - self.saved_at >= minutes * 60 and not self.writer.busy

    def _save(self, best: bool = False) -> None:
        """Take a copy of everything and write it beside the training, the best network before the state."""
        content: dict[str, Any] = {
            "stage": self.stage,
            "epoch": len(self.history),
            "seen": self.seen,
            "totals": self.stepper.totals(),
            "skipped": self.skipped,
            "schedule": self.schedule.state_dict(),
            "history": list(self.history),
            "world_size": self.world.size,
            "identity": self.identity,
        }
        self.saved_at = time.monotonic()
        if not self.world.is_main:
            return
        weights = copy_to_memory(self.model.state_dict())
        average = None if self.stepper.average is None else copy_to_memory(self.stepper.average.state_dict())
        optimizer = copy_to_memory(self.optimizer.state_dict())

        def write() -> None:
            parts = {"network": self._dump(weights, content["history"]), "optimizer": dump_part(optimizer)}
            if average is not None:
                parts["average"] = self._dump(average, content["history"])
            if best:
                self._unwritten_best = parts.get("average", parts["network"])
            if self._unwritten_best:  # that of an epoch before, too, if it could not be written then
                self.storage.write(BEST, self._unwritten_best)
                self._unwritten_best = b""
            self.store.write(f"{content['epoch']:05}-{content['seen']:09}", content, parts)

        self.writer.submit(write)

    def _dump(self, weights: dict[str, Any], history: list[dict[str, float]]) -> bytes:
        return dump_checkpoint(
            weights,
            self.model_config,
            self.data_config,
            self.train_data.manifest.classes,
            manifest_fingerprint=self.train_data.manifest.fingerprint,
            stage=self.stage,
            epoch=len(history),
            history=history,
        )

    def _leave(self) -> None:
        self.control.finish()
        self.world.on_main(self.writer.finish)
        raise Preempted(
            f"{self.stage}: asked to end (SIGTERM); saved in {self.storage.uri} after {self.seen} videos of epoch "
            f"{len(self.history) + 1}: run it again to go on"
        )

    def _add_history_to_best(self) -> None:
        content = read_checkpoint(self.storage.locate(BEST))
        if content["history"] != self.history:
            self.storage.write(BEST, serialize({**content, "history": self.history}))

    def _resume(self) -> None:
        def find() -> State | None:
            return self.store.newest(self._check_identity, lambda text: self.world.say(f"{self.stage}: {text}"))

        state = self.world.on_main(find)
        if state is None:
            return
        content = state.content
        self.model.load_state_dict(parse_checkpoint(state.parts["network"], state.uri)["model"])
        if self.stepper.average is not None:
            self.stepper.average.load_state_dict(parse_checkpoint(state.parts["average"], state.uri)["model"])
        self.optimizer.load_state_dict(load_part(state.parts["optimizer"]))
        self.schedule.load_state_dict(content["schedule"])
        self.stepper.load_totals(content["totals"])
        self.history, self.seen, self.skipped = content["history"], content["seen"], content["skipped"]
        where = f"in epoch {len(self.history) + 1} after {self.seen} videos" if self.seen else "after"
        self.world.say(f"{self.stage}: goes on {where} epoch {len(self.history)} of {state.uri}")

    def _check_identity(self, content: dict[str, Any], uri: str) -> None:
        there, here = content["identity"], self.identity
        differences = [
            f"{key}: {there.get(key)!r} there, {here.get(key)!r} here"
            for key in sorted({*there, *here})
            if there.get(key) != here.get(key)
        ]
        if differences:
            raise CheckpointError(f"{uri}: belongs to another run ({'; '.join(differences)}); give another output")


def _losses(prefix: str, sums: dict[str, float], videos: float) -> dict[str, float]:
    """Return the mean losses of sums over videos: `loss` and one per branch."""
    names = {name: "loss" if name == "total" else f"{name}_loss" for name in Losses._fields}
    return {f"{prefix}{shown}": sums[name] / videos for name, shown in names.items()}


def run_identity(settings: FitConfig, data: DataConfig, model: ModelConfig, **inputs: str) -> dict[str, Any]:
    """Return what decides a run's result, by setting; where it runs and how fast it loads do not count."""
    neutral = {*LOADING, *RUNNING}
    sections = {"": settings, "data.": data, "model.": model}
    values = {
        prefix + name: v for prefix, s in sections.items() for name, v in to_dict(s).items() if name not in neutral
    }
    return {**values, **inputs}
