"""The loop that training and fine-tuning share: epochs, validation, schedule, checkpoints, resuming."""

import contextlib
import io
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from stabn.config import LOADING, DataConfig, ModelConfig, TrainConfig, to_dict
from stabn.data.dataset import ClipDataset
from stabn.data.sampler import EpochSampler, shard
from stabn.data.transforms import to_input
from stabn.errors import RetryableError, StabnError
from stabn.models import Output
from stabn.progress import Progress
from stabn.signals import note_sigterm
from stabn.storage import Storage
from stabn.training.checkpoint import CheckpointError, dump_checkpoint, read_checkpoint, serialize
from stabn.training.distributed import World
from stabn.training.losses import Losses, training_loss

LAST, BEST = "last.pt", "best.pt"
SEED_STRIDE = 1_000_003  # between the random states of the processes
STEPS_BETWEEN_AGREEMENTS = 10  # on GPUs, where asking all processes waits for the step


class TrainingError(StabnError):
    """Training cannot go on."""


class Preempted(RetryableError):
    """Training was asked to stop; what it has reached is saved."""


def _no_sums() -> dict[str, float]:
    return dict.fromkeys((*Losses._fields, "videos", "correct"), 0.0)


@dataclass
class Position:
    """How far an epoch is.

    Attributes:
        videos: seen in this epoch by all processes.
        sums: of what this process has seen: losses times videos, videos, videos recognised rightly.
    """

    videos: int = 0
    sums: dict[str, float] = field(default_factory=_no_sums)


def choose_device(name: str) -> torch.device:
    """Return the device of a setting; `auto` is CUDA where there is one, under torchrun the process' own GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the arithmetic type of a setting; `auto` is bf16 where the hardware has matrix units for it."""
    if name == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_amx_tile_supported()
        name = "bf16" if fast else "fp32"
    return torch.bfloat16 if name == "bf16" else torch.float32


def prepare(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to its device in the memory format that its convolutions are fastest in."""
    model = model.to(device)
    return torch.nn.utils.convert_conv3d_weight_memory_format(model, torch.channels_last_3d)


def forward_clips(model: nn.Module, clips: Tensor, **options: Any) -> Output:
    """Run all clips of each video and average their class scores (paper, section 4.1: "32x2").

    Args:
        model: the network.
        clips: float (B, num_clips, 3, T, H, W).
        options: further arguments of the network's forward.

    Returns:
        Output with logits (B, K); attention stays per clip, (B * num_clips, ...).
    """
    batch, num_clips = clips.shape[:2]
    output: Output = model(clips.flatten(0, 1), **options)
    if num_clips == 1:
        return output
    logits = output.logits.unflatten(0, (batch, num_clips)).mean(1)
    attention_logits = output.attention_logits
    if attention_logits is not None:
        attention_logits = attention_logits.unflatten(0, (batch, num_clips)).mean(1)
    return output._replace(logits=logits, attention_logits=attention_logits)


def batch_input(batch: dict[str, Tensor], config: DataConfig, device: torch.device) -> Tensor:
    """Return float (B, num_clips, 3, T, H, W) of a batch of `ClipDataset` items."""
    clips, num_clips = batch["clips"], batch["clips"].shape[1]
    color = batch["color"].repeat_interleave(num_clips, dim=0)
    return to_input(clips.flatten(0, 1), config, device, color).unflatten(0, (len(clips), num_clips))


def make_loader(dataset: Any, batches: int | EpochSampler, workers: int) -> DataLoader:
    """Return a loader of a sampler's batches, or of so many videos at a time in the order of the dataset."""
    how: dict[str, Any] = {"batch_size": batches} if isinstance(batches, int) else {"batch_sampler": batches}
    # The generator is not used, but without it a loader draws from the random numbers that dropout draws from, and an
    # epoch that is gone on with would differ from one that was not interrupted.
    how["generator"] = torch.Generator()
    return DataLoader(dataset, num_workers=workers, pin_memory=torch.cuda.is_available(), **how)


@dataclass
class Fit:
    """One training or fine-tuning run, that can stop after any epoch and go on in another process.

    Attributes:
        model: the network, on its device.
        loss: of (output, batch on the device); training_loss or finetuning_loss.
        epoch_rows: rows of the manifest to train on in an epoch, in any order; the loop shuffles them.
        identity: what must be equal for a checkpoint to be resumed, as JSON values.
        world: the processes that train together.
    """

    model: nn.Module
    model_config: ModelConfig
    data_config: DataConfig
    settings: TrainConfig
    train_data: ClipDataset
    validation_data: ClipDataset
    storage: Storage
    stage: str
    loss: Callable[[Output, dict[str, Tensor]], Losses]
    epoch_rows: Callable[[int], np.ndarray]
    identity: dict[str, Any]
    world: World = field(default_factory=World)
    on_epoch: Callable[[dict[str, float]], None] = lambda row: None
    history: list[dict[str, float]] = field(default_factory=list)

    def run(self) -> list[dict[str, float]]:
        """Train until the last epoch or the end of the schedule.

        Returns:
            One dict per epoch; `best.pt` (with the history) and `last.pt` (with the optimiser) lie in the storage.

        Raises:
            TrainingError: the loss is not finite; names the videos of the batch.
            CheckpointError: the storage holds a run with other settings or data.
            Preempted: SIGTERM came; `last.pt` holds the step that was reached.
        """
        settings = self.settings
        self.device = next(self.model.parameters()).device
        self.dtype = choose_precision(settings.precision, self.device)
        torch.manual_seed(settings.seed + SEED_STRIDE * self.world.rank)  # dropout differs between processes
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(settings, parameters)
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer, factor=settings.plateau_factor, patience=settings.plateau_patience
        )
        self.position = Position()
        self._resume()
        self.network = self.world.wrap(self.model)
        self.saved = time.monotonic()
        with note_sigterm() as self.is_stopping:
            while len(self.history) < settings.epochs and not self._schedule_ended():
                epoch = len(self.history)
                row = {"epoch": epoch + 1, **self._train_epoch(epoch)}
                self.world.share_buffers(self.model)
                row |= self._validate(epoch)
                self.plateau.step(row["validation_loss"])
                self.history.append(row)
                self.position = Position()
                self._save(row)
                self.on_epoch(row)
        if self.world.is_first:
            self._add_history_to_best()
        return self.history

    def _schedule_ended(self) -> bool:
        rate = self.optimizer.param_groups[0]["lr"]
        return self.settings.schedule == "plateau" and rate < self.settings.min_learning_rate and bool(self.history)

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        settings = self.settings
        rows = np.asarray(self.epoch_rows(epoch))
        self.train_data.epoch = epoch
        position = {int(row): i for i, row in enumerate(self.train_data.indices)}
        positions = [position[int(row)] for row in rows]
        at = self.position
        sampler = EpochSampler(
            positions,
            settings.batch_size,
            seed=settings.seed,
            epoch=epoch,
            rank=self.world.rank,
            world_size=self.world.size,
            start=at.videos,
        )
        loader = make_loader(self.train_data, sampler, self.data_config.workers)
        started, first = time.monotonic(), at.videos
        self.model.train()
        progress = self._progress(len(rows) - first, f"{self.stage} epoch {epoch + 1}/{settings.epochs}")
        for step, batch in enumerate(loader):
            if settings.schedule == "one_cycle":
                steps = -(-len(rows) // settings.batch_size)
                share = at.videos // settings.batch_size / steps
                set_rate(self.optimizer, one_cycle(settings, (epoch + share) / settings.epochs))
            num_videos = sampler.num_global(step)
            self._step(self._to_device(batch), sampler.num_real(step), num_videos, epoch)
            at.videos += num_videos
            progress.update(num_videos, loss=at.sums["total"] / max(1, at.sums["videos"]))
            self._check_clock(step)
        progress.close()
        seconds = time.monotonic() - started
        sums = self.world.sum(at.sums)
        done = max(1.0, sums["videos"])
        return {
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            **{f"train_{'loss' if name == 'total' else name + '_loss'}": sums[name] / done for name in Losses._fields},
            "train_top1": sums["correct"] / done,
            "seconds": seconds,
            "videos_per_second": (at.videos - first) / seconds,
        }

    def _step(self, batch: dict[str, Tensor], num_real: int, num_videos: int, epoch: int) -> None:
        """Change the weights once, by the gradient of the mean loss over the step's videos in all processes.

        Args:
            batch: this process' share of the videos, on the device.
            num_real: how many of them count; 0: they are there because every process must take part.
            num_videos: how many videos the step has over all processes.
            epoch: for messages.
        """
        settings, sums = self.settings, self.position.sums
        size = len(batch["target"])
        micro = settings.micro_batch_size or size
        self.optimizer.zero_grad(set_to_none=True)
        for begin in range(0, size, micro):
            piece = {name: value[begin : begin + micro] for name, value in batch.items()}
            count = len(piece["target"]) if num_real else 0
            is_last = begin + micro >= size
            with contextlib.nullcontext() if is_last else self.world.no_exchange(self.network):
                with self._autocast():
                    output = forward_clips(self.network, piece["clips"])
                losses = self.loss(output, piece)
                self._check_finite(losses.total, piece, epoch)
                (losses.total * (count * self.world.size / num_videos)).backward()  # DDP takes the mean over processes
            sums["videos"] += count
            if count:
                sums["correct"] += int((output.logits.argmax(1) == piece["target"]).sum())
                for name, value in losses._asdict().items():
                    sums[name] += float(value.detach()) * count
        if settings.clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        self.optimizer.step()

    def _check_finite(self, loss: Tensor, batch: dict[str, Tensor], epoch: int) -> None:
        if torch.isfinite(loss):
            return
        ids = [self.train_data.manifest.video_id(int(i)) for i in batch["index"]]
        kept = f" {LAST} holds the last good state" if self.storage.exists(LAST) else ""
        raise TrainingError(
            f"{self.stage}: the loss is {float(loss.detach())} in epoch {epoch + 1}, videos {', '.join(ids)}; "
            f"lower the learning rate, or look at these videos.{kept}"
        )

    def _check_clock(self, step: int) -> None:
        """Save the position when it is time, and stop when SIGTERM has come to any process."""
        if self.device.type == "cuda" and self.world.size > 1 and step % STEPS_BETWEEN_AGREEMENTS:
            return
        due = time.monotonic() - self.saved > self.settings.checkpoint_minutes * 60
        stop, save = self.world.any(self.is_stopping(), due and self.world.is_first)
        if stop or save:
            self._save()
        if stop:
            raise Preempted(
                f"{self.stage}: stopped by SIGTERM in epoch {len(self.history) + 1}, after {self.position.videos} "
                "of its videos; run it again to go on from there"
            )

    def _progress(self, total: int, what: str) -> Progress:
        """Return the progress of process 0; the others show nothing."""
        if self.world.is_first:
            return Progress(total, what)
        return Progress(total, what, stream=io.StringIO())

    @torch.inference_mode()
    def _validate(self, epoch: int) -> dict[str, float]:
        self.model.eval()
        sums = {"loss": 0.0, "top1": 0.0, "top5": 0.0, "videos": 0.0}
        mine = shard(np.arange(len(self.validation_data)), self.world.rank, self.world.size)
        for step, batch in enumerate(
            make_loader(Subset(self.validation_data, mine.tolist()), self.settings.batch_size, self.data_config.workers)
        ):
            batch = self._to_device(batch)
            with self._autocast():
                output = forward_clips(self.model, batch["clips"])
            target, logits = batch["target"], output.logits.float()
            top = logits.topk(min(5, logits.shape[1]), dim=1).indices == target[:, None]
            sums["loss"] += float(training_loss(output, target).total) * len(target)
            sums["top1"] += float(top[:, 0].sum())
            sums["top5"] += float(top.any(1).sum())
            sums["videos"] += len(target)
            if self.world.size == 1:
                self._check_clock(step)
        sums = self.world.sum(sums)
        loss, top1, top5 = (sums[name] / sums["videos"] for name in ("loss", "top1", "top5"))
        if self.world.is_first:
            print(
                f"{self.stage} epoch {epoch + 1}: validation loss {loss:.3f}, top-1 {top1:.1%}, top-5 {top5:.1%}",
                flush=True,
            )
        return {"validation_loss": loss, "validation_top1": top1, "validation_top5": top5}

    def _to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        clips = batch_input(batch, self.data_config, self.device)
        rest = {
            name: value.to(self.device, non_blocking=True)
            for name, value in batch.items()
            if name not in ("clips", "color")
        }
        return {"clips": clips, **rest}

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _save(self, row: dict[str, float] | None = None) -> None:
        """Write the state of the run; `row` is the epoch that has just ended, None within an epoch."""
        self.saved = time.monotonic()
        processes = self.world.gather({"random_state": torch.get_rng_state(), "sums": self.position.sums})
        if not self.world.is_first:
            return
        if row and _score(row) == max(map(_score, self.history)):
            self.storage.write(BEST, self._dump())
        state = self._dump(
            optimizer=self.optimizer.state_dict(),
            plateau=self.plateau.state_dict(),
            identity=self.identity,
            videos_seen=self.position.videos,
            processes=processes,
        )
        self.storage.write(LAST, state)

    def _dump(self, **state: Any) -> bytes:
        return dump_checkpoint(
            self.model,
            self.model_config,
            self.data_config,
            self.train_data.manifest.classes,
            manifest_fingerprint=self.train_data.manifest.fingerprint,
            stage=self.stage,
            epoch=len(self.history),
            history=self.history,
            **state,
        )

    def _add_history_to_best(self) -> None:
        content = read_checkpoint(self.storage.locate(BEST))
        if content["history"] != self.history:
            self.storage.write(BEST, serialize({**content, "history": self.history}))

    def _resume(self) -> None:
        if not self.storage.exists(LAST):
            return
        content = read_checkpoint(self.storage.locate(LAST))
        differences = [
            f"{key}: {content['identity'].get(key)!r} there, {self.identity.get(key)!r} here"
            for key in sorted({*content["identity"], *self.identity})
            if content["identity"].get(key) != self.identity.get(key)
        ]
        if differences:
            raise CheckpointError(
                f"{self.storage.locate(LAST)}: belongs to another run ({'; '.join(differences)}); give another output"
            )
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.plateau.load_state_dict(content["plateau"])
        self.history = content["history"]
        self.position = Position(content["videos_seen"])
        processes = content["processes"]
        if len(processes) == self.world.size:
            torch.set_rng_state(processes[self.world.rank]["random_state"])
            self.position.sums = dict(processes[self.world.rank]["sums"])
        elif self.world.is_first:  # another number of processes: the same videos, other dropout
            self.position.sums = {
                name: sum(process["sums"][name] for process in processes) for name in self.position.sums
            }
        if self.world.is_first:
            videos = f" and {self.position.videos} videos" if self.position.videos else ""
            where = self.storage.locate(LAST)
            print(f"{self.stage}: goes on after epoch {len(self.history)}{videos} of {where}", flush=True)


def _score(row: dict[str, float]) -> tuple[float, float]:
    """Return what makes an epoch the best one: validation top-1, then the lower loss."""
    return row["validation_top1"], -row["validation_loss"]


def make_optimizer(settings: TrainConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimiser of the settings: the paper's SGD, or AdamW."""
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, settings.learning_rate, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        parameters,
        settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
    )


def one_cycle(settings: TrainConfig, progress: float) -> float:
    """Return the rate at a share of the training: up for 20% of it, then down to zero, both as half cosines."""
    warm = 0.2
    share = progress / warm if progress < warm else 1 - (progress - warm) / (1 - warm)
    return settings.learning_rate * max(0.02, 0.5 - 0.5 * math.cos(math.pi * share))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def run_identity(settings: TrainConfig, data: DataConfig, model: ModelConfig, **inputs: str) -> dict[str, Any]:
    """Return what decides a run's result, by setting; where it runs and how fast it loads do not count."""
    neutral = {*LOADING, "device", "processes", "max_restarts", "collective_timeout", "checkpoint_minutes"}
    sections = {"": settings, "data.": data, "model.": model}
    values = {
        prefix + name: v for prefix, s in sections.items() for name, v in to_dict(s).items() if name not in neutral
    }
    return {**values, **inputs}
