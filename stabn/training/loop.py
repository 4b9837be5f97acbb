"""The loop that every recipe runs through: epochs of steps, validation, signals, going on where a run was."""

import io
import signal
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NoReturn

import torch
from torch import nn

from stabn.data.sampler import EpochSampler
from stabn.errors import Interrupted, Preempted
from stabn.progress import Progress
from stabn.signals import Request, deferred_signals
from stabn.storage import Storage
from stabn.training.batchnorm import synchronize_batch_norm
from stabn.training.checkpoint import CheckpointError, parse_checkpoint
from stabn.training.device import choose_device, choose_precision, prepare
from stabn.training.distributed import Control, World
from stabn.training.divergence import Divergence
from stabn.training.estimate import check_memory, estimate, loading_processes
from stabn.training.flops import matmul_rate, training_flops
from stabn.training.loading import ClipLoader
from stabn.training.losses import Losses
from stabn.training.meter import Meter, line, profiler
from stabn.training.recipes import Recipe
from stabn.training.saving import Saving
from stabn.training.schedule import Schedule, best_epoch, make_optimizer, plan_batches, rate_multiples, set_rate
from stabn.training.states import load_part
from stabn.training.step import COLUMNS, Measured, Stepper
from stabn.training.validation import validate

CHECK_STEPS = 20  # on a GPU, steps whose gradients are looked at together: looking waits for the device


class Loop:
    """One run of a recipe, that can stop after any step and go on in other processes.

    Attributes:
        history: one dict of metrics per epoch done, the same in every process.
        on_epoch: told each epoch's metrics, in process 0.
        on_log: told what was measured in every `log_steps` steps, with the step's number, in process 0.
        on_progress: told after every step which share of the training is done, and the newest numbers.
    """

    def __init__(self, recipe: Recipe, storage: Storage, world: World | None = None, profile_path: str = "") -> None:
        """Put the recipe's network on this process' device, ready to `run`.

        Args:
            recipe: what is trained.
            storage: gets `best.pt` and the states.
            world: the processes that train together; None: this one alone.
            profile_path: file for a trace of a few steps; empty: none.
        """
        self.recipe, self.settings, self.world = recipe, recipe.settings, world or World()
        self.history: list[dict[str, float]] = []
        self.on_epoch: Callable[[dict[str, float]], None] = lambda row: None
        self.on_log: Callable[[dict[str, float], int], None] = lambda numbers, step: None
        self.on_progress: Callable[[float, dict[str, float]], None] = lambda share, numbers: None
        self.device = choose_device(self.settings.device, self.world.local_rank, self.world.size)
        self.dtype = choose_precision(self.settings.precision, self.device)
        self.model = _place(recipe, self.device, self.world)
        self.plan = plan_batches(self.settings, self.world.size)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        multiples = rate_multiples(self.settings, self.model)
        self.optimizer = make_optimizer(self.settings, trained, self.plan.learning_rate, multiples)
        self.schedule = Schedule(self.settings, self.plan.learning_rate, recipe.attention_epochs)
        self.stepper = Stepper(
            self.model,
            self.settings,
            recipe.videos.config,
            self.world,
            self.plan,
            self.optimizer,
            recipe.loss,
            self.dtype,
            recipe.cache,
        )
        self.saving = Saving(recipe, storage, self.world.say)
        self._seen = 0  # videos of the present epoch
        self._changes: list[str] = []  # of settings, since the run began
        self._divergence = Divergence(recipe, self.world)
        self._control, self._asked = Control(self.world), Request()
        self._profiler = profiler(profile_path if self.world.is_main else "")
        self._flops = self._peak = 0.0  # per video; per second

    def run(self) -> list[dict[str, float]]:
        """Train until the last epoch or the end of the schedule.

        Returns:
            `history`; process 0 leaves `best.pt`, which has it too, and the newest states in the storage.

        Raises:
            ConfigError: there is less memory, or room in /dev/shm, than a step needs.
            TrainingError: a gradient, the weights or the validation loss are not finite.
            CheckpointError: the storage holds a run with other settings or data.
            Preempted: SIGTERM came, or Interrupted: Ctrl+C; the state was saved.
        """
        self.world.say(f"{self.recipe.name}: {self.plan}")
        self._resume()
        workers = 0
        if not self.schedule.ended(self.history):
            workers, warning = self.world.agree(self._check_memory)
            if warning:
                self.world.say(f"{self.recipe.name}: {warning}")
        if self.settings.log_steps and self.world.is_main:
            frozen = not all(p.requires_grad for p in self.model.parameters())
            self._flops = training_flops(self.recipe.model.config, self.recipe.videos.config, frozen)
            self._peak = matmul_rate(self.device, self.dtype)
        loader = ClipLoader((self.recipe.videos, self.recipe.validation), self.device, workers)
        with deferred_signals() as self._asked, self.saving, self._profiler or nullcontext(), loader as self._loader:
            while not self.schedule.ended(self.history):
                self._run_epoch(len(self.history))
            self._control.finish()
            self.saving.finish()
        self.world.on_main(lambda: self.saving.add_history_to_best(self.history))
        return self.history

    def _check_memory(self) -> tuple[int, str]:
        """Hold what a step needs against what this machine has; return loading processes and a warning.

        See estimate.py.
        """
        clips, share = self.recipe.videos.config, -(-self.plan.batch_size // self.world.size)
        workers = loading_processes(clips, share, self.world.local_size, self.device)
        group = -(-share // self.plan.accumulation)
        needed = estimate(self.recipe.model, self.recipe.model.config, clips, self.settings, group, self.dtype)
        return workers, check_memory(needed, self.device, self.world.local_size, self.settings)

    def _run_epoch(self, epoch: int) -> None:
        measured = self._train(epoch)
        totals = self.stepper.totals()
        done = max(1.0, totals["videos"])
        row = {
            "epoch": epoch + 1,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            **_losses("train_", totals, done),
            "train_top1": totals["correct"] / done,
            **measured,
        }
        if (epoch + 1) % self.settings.validate_every == 0 or epoch + 1 == self.settings.epochs:
            self._divergence.check_weights(self.model, self.stepper.average)
            row |= self._validate(epoch)
            if not self._attention_alone(epoch):
                self.schedule.validated(row["validation_loss"])
        self.history.append(row)
        self._seen = 0
        self.stepper.load_totals(dict.fromkeys(COLUMNS, 0.0))
        self._save(best=self._is_the_one(row))
        if self.world.is_main:
            self.on_epoch(row)

    def _attention_alone(self, epoch: int) -> bool:
        return epoch < self.recipe.attention_epochs

    def _is_the_one(self, row: dict[str, float]) -> bool:
        """Tell whether the network of this epoch, the newest, is so far the one to use."""
        return best_epoch(self.history, self.settings.keep, self.recipe.attention_epochs) == row["epoch"]

    def _train(self, epoch: int) -> dict[str, float]:
        """Take the epoch's steps that are still to take; return what they took."""
        settings, world, videos = self.settings, self.world, self.recipe.videos
        videos.epoch = epoch
        position = {int(row): i for i, row in enumerate(videos.indices)}
        positions = [position[int(row)] for row in self.recipe.epoch_rows(epoch)]
        sampler = EpochSampler(
            positions,
            settings.batch_size,
            seed=settings.seed,
            epoch=epoch,
            rank=world.rank,
            world_size=world.size,
            start=self._seen,
        )
        num_steps, first = -(-len(positions) // settings.batch_size), self._seen // settings.batch_size
        cache = self.recipe.cache
        batches = self._loader.batches(videos, sampler, *([] if cache is None else [cache.__contains__]))
        self.model.train()
        meter = Meter(world.size, self._flops, self._peak)
        logged = self.stepper.totals() if settings.log_steps else {}
        check_every = 1 if self.device.type == "cpu" else settings.log_steps or CHECK_STEPS
        what = f"{self.recipe.name} epoch {epoch + 1}/{settings.epochs}"
        self.stepper.loss = self.recipe.loss
        if self._attention_alone(epoch):
            assert self.recipe.attention_loss is not None
            what += ", attention alone"
            self.stepper.loss = self.recipe.attention_loss
        progress = Progress(len(sampler.order), what, stream=None if world.is_main else io.StringIO())
        for number, batch in enumerate(meter.waiting(batches)):
            step, size = first + number, sampler.num_global(number)
            set_rate(self.optimizer, self.schedule.at(epoch + step / num_steps))
            measured = self.stepper.step(
                batch, num_real=sampler.num_real(number), num_global=size, seed=(settings.seed, epoch, step)
            )
            begin = number * settings.batch_size
            self._divergence.add(sampler.order[begin : begin + size].tolist(), measured)
            self._seen += size
            meter.step(size)
            if len(self._divergence) >= check_every or number + 1 == len(sampler):
                self._divergence.check(epoch)
                sums = dict(zip(COLUMNS, self.stepper.sums.tolist(), strict=True))
                progress.update(0, loss=sums["total"] / max(1.0, sums["videos"]))
            progress.update(size)
            self.on_progress((epoch + self._seen / max(1, len(positions))) / settings.epochs, progress.numbers)
            if settings.log_steps and (step + 1) % settings.log_steps == 0:
                shown = f"{what} step {step + 1}/{num_steps}"
                logged = self._log(shown, epoch * num_steps + step + 1, meter, logged, measured)
            if self._profiler is not None:
                self._profiler.step()
            stop, save = self._control.exchange(self._asked.received is not None, self.saving.is_due)
            if stop or save:
                self._divergence.check(epoch)
                self._save()
            if stop:
                self._leave()
        progress.close()
        return meter.epoch()

    def _log(
        self, what: str, step: int, meter: Meter, before: dict[str, float], measured: Measured
    ) -> dict[str, float]:
        """Show and record what was measured since the last time; return the sums so far."""
        totals = self.stepper.totals()
        done = {name: totals[name] - before[name] for name in COLUMNS}
        numbers = meter.interval(self.device) | _losses("", done, max(1.0, done["videos"]))
        numbers |= {"gradient_norm": float(measured.norm), "learning_rate": self.optimizer.param_groups[0]["lr"]}
        if self.world.is_main:
            print(line(what, numbers), flush=True)
            self.on_log(numbers, step)
        return totals

    def _validate(self, epoch: int) -> dict[str, float]:
        def interrupted() -> bool:
            return self._control.exchange(self._asked.received is not None, False)[0]

        network, videos = self.stepper.validated, self.recipe.validation
        metrics = validate(network, videos, self._loader, self.settings, self.world, self.dtype, interrupted)
        if metrics is None:
            self._save()
            self._leave()
        self._divergence.check_validation(metrics["validation_loss"])
        loss, top1, top5 = (metrics[f"validation_{name}"] for name in ("loss", "top1", "top5"))
        agreed = metrics.get("validation_agreement_ap")
        self.world.say(
            f"{self.recipe.name} epoch {epoch + 1}: validation loss {loss:.3f}, top-1 {top1:.1%}, top-5 {top5:.1%}"
            + ("" if agreed is None else f", AP of the attention {agreed:.3f}")
        )
        return metrics

    def _save(self, best: bool = False) -> None:
        self._divergence.check_weights(self.model, self.stepper.average)
        self._divergence.saved = True
        position = {
            "stage": self.recipe.name,
            "epoch": len(self.history),
            "seen": self._seen,
            "totals": self.stepper.totals(),
            "skipped": self._divergence.skipped,
            "schedule": self.schedule.state_dict(),
            "history": list(self.history),
            "changes": self._changes,
            "world_size": self.world.size,
        }
        if self.world.is_main:
            average = None if self.stepper.average is None else self.stepper.average.state_dict()
            self.saving.save(position, self.model.state_dict(), average, self.optimizer.state_dict(), best)

    def _leave(self) -> NoReturn:
        self._control.finish()
        self.world.on_main(self.saving.finish)
        number = self._asked.received or signal.SIGTERM  # or another process was asked
        where = f"{self.saving.storage.uri} after {self._seen} videos of epoch {len(self.history) + 1}"
        raise (Interrupted if number == signal.SIGINT else Preempted)(
            f"{self.recipe.name}: asked to end ({number.name}); saved in {where}: run it again to go on"
        )

    def _resume(self) -> None:
        state = self.world.on_main(self.saving.newest)
        if state is None:
            return
        content = state.content
        self.model.load_state_dict(parse_checkpoint(state.parts["network"], state.uri)["model"])
        if self.stepper.average is not None:
            self.stepper.average.load_state_dict(parse_checkpoint(state.parts["average"], state.uri)["model"])
        self.optimizer.load_state_dict(load_part(state.parts["optimizer"]))
        self.schedule.load_state_dict(content["schedule"])
        changes = self.saving.changes(state)
        if "learning_rate" in changes.changed:
            former, now = changes.changed["learning_rate"]
            self.schedule.rate *= now / former if former else 1.0
        if changes.changed and self.schedule.ended(content["history"]):
            raise CheckpointError(
                f"{state.uri}: this training is complete, so {changes} would change nothing; raise epochs to go on "
                f"with it (schedule = plateau, above min_learning_rate), or give another output to begin anew"
            )
        self.stepper.load_totals(content["totals"])
        self.history, self._seen, self._divergence.skipped = content["history"], content["seen"], content["skipped"]
        where = f"in epoch {len(self.history) + 1} after {self._seen} videos" if self._seen else "after"
        self._divergence.saved = True
        self._changes = content.get("changes", [])
        said = ""
        if changes.changed:
            self._changes = [*self._changes, f"epoch {len(self.history) + 1}: {changes}"]
            said = f", with {changes}"
        self.world.say(f"{self.recipe.name}: goes on {where} epoch {len(self.history)} of {state.uri}{said}")


def _place(recipe: Recipe, device: torch.device, world: World) -> nn.Module:
    """Return the recipe's network on its device, as the settings want it trained."""
    model: Any = recipe.model
    model.set_activation_checkpointing(recipe.settings.activation_checkpointing)
    if recipe.settings.sync_batch_norm and world.size > 1:
        model = synchronize_batch_norm(model)
    model = prepare(model, device)
    if recipe.settings.deterministic:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    return model


def _losses(prefix: str, sums: dict[str, float], videos: float) -> dict[str, float]:
    """Return the mean losses of sums over videos: `loss` and one per branch."""
    names = {name: "loss" if name == "total" else f"{name}_loss" for name in Losses._fields}
    return {f"{prefix}{shown}": sums[name] / videos for name, shown in names.items()}
