"""The loop that training and fine-tuning share: epochs, validation, schedule, checkpoints, resuming."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from stabn.config import LOADING, DataConfig, ModelConfig, TrainConfig, to_dict
from stabn.data.dataset import ClipDataset
from stabn.data.sampler import EpochSampler
from stabn.data.transforms import to_input
from stabn.errors import StabnError
from stabn.models import Output
from stabn.progress import Progress
from stabn.storage import Storage
from stabn.training.checkpoint import CheckpointError, dump_checkpoint, read_checkpoint, serialize
from stabn.training.losses import Losses, training_loss

LAST, BEST = "last.pt", "best.pt"


class TrainingError(StabnError):
    """Training cannot go on."""


def choose_device(name: str) -> torch.device:
    """Return the device of a setting; `auto` is CUDA where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
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
    how = {"batch_size": batches} if isinstance(batches, int) else {"batch_sampler": batches}
    return DataLoader(dataset, num_workers=workers, pin_memory=torch.cuda.is_available(), **how)


@dataclass
class Fit:
    """One training or fine-tuning run, that can stop after any epoch and go on in another process.

    Attributes:
        model: the network, on its device.
        loss: of (output, batch on the device); training_loss or finetuning_loss.
        epoch_rows: rows of the manifest to train on in an epoch, in any order; the loop shuffles them.
        identity: what must be equal for a checkpoint to be resumed, as JSON values.
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
    on_epoch: Callable[[dict[str, float]], None] = lambda row: None
    history: list[dict[str, float]] = field(default_factory=list)

    def run(self) -> list[dict[str, float]]:
        """Train until the last epoch or the end of the schedule.

        Returns:
            One dict per epoch; `best.pt` (with the history) and `last.pt` (with the optimiser) lie in the storage.

        Raises:
            TrainingError: the loss is not finite; names the videos of the batch.
            CheckpointError: the storage holds a run with other settings or data.
        """
        settings = self.settings
        self.device = next(self.model.parameters()).device
        self.dtype = choose_precision(settings.precision, self.device)
        torch.manual_seed(settings.seed)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(settings, parameters)
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer, factor=settings.plateau_factor, patience=settings.plateau_patience
        )
        self._resume()
        while len(self.history) < settings.epochs and not self._schedule_ended():
            epoch = len(self.history)
            row = {"epoch": epoch + 1, **self._train_epoch(epoch), **self._validate(epoch)}
            self.plateau.step(row["validation_loss"])
            self.history.append(row)
            self._save(row)
            self.on_epoch(row)
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
        sampler = EpochSampler(positions, settings.batch_size, seed=settings.seed, epoch=epoch)
        loader = make_loader(self.train_data, sampler, self.data_config.workers)
        sums: dict[str, float] = {}
        started, done, correct = time.monotonic(), 0, 0
        self.model.train()
        progress = Progress(len(rows), f"{self.stage} epoch {epoch + 1}/{settings.epochs}")
        for step, batch in enumerate(loader):
            if settings.schedule == "one_cycle":
                set_rate(self.optimizer, one_cycle(settings, (epoch + step / len(loader)) / settings.epochs))
            batch = self._to_device(batch)
            with self._autocast():
                output = forward_clips(self.model, batch["clips"])
            losses = self.loss(output, batch)
            if not torch.isfinite(losses.total):
                ids = [self.train_data.manifest.video(int(i)).video_id for i in batch["index"]]
                raise TrainingError(
                    f"{self.stage}: the loss is {float(losses.total.detach())} in epoch {epoch + 1}, videos "
                    f"{', '.join(ids)}; lower the learning rate, or look at these videos. {LAST} holds the epoch before"
                )
            self.optimizer.zero_grad(set_to_none=True)
            losses.total.backward()
            if settings.clip_norm > 0:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
            self.optimizer.step()
            size = len(batch["target"])
            done += size
            correct += int((output.logits.argmax(1) == batch["target"]).sum())
            for name, value in losses._asdict().items():
                sums[name] = sums.get(name, 0.0) + float(value.detach()) * size
            progress.update(size, loss=sums["total"] / done)
        progress.close()
        seconds = time.monotonic() - started
        return {
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            **{f"train_{'loss' if name == 'total' else name + '_loss'}": total / done for name, total in sums.items()},
            "train_top1": correct / done,
            "seconds": seconds,
            "videos_per_second": done / seconds,
        }

    @torch.inference_mode()
    def _validate(self, epoch: int) -> dict[str, float]:
        self.model.eval()
        sums = np.zeros(3)
        for batch in make_loader(self.validation_data, self.settings.batch_size, self.data_config.workers):
            batch = self._to_device(batch)
            with self._autocast():
                output = forward_clips(self.model, batch["clips"])
            target, logits = batch["target"], output.logits.float()
            loss = float(training_loss(output, target).total) * len(target)
            top = logits.topk(min(5, logits.shape[1]), dim=1).indices == target[:, None]
            sums += [loss, float(top[:, 0].sum()), float(top.any(1).sum())]
        loss, top1, top5 = (sums / len(self.validation_data)).tolist()
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

    def _save(self, row: dict[str, float]) -> None:
        if _score(row) == max(map(_score, self.history)):
            self.storage.write(BEST, self._dump())
        state = self._dump(
            optimizer=self.optimizer.state_dict(),
            plateau=self.plateau.state_dict(),
            identity=self.identity,
            random_state=torch.get_rng_state(),
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
        torch.set_rng_state(content["random_state"])
        self.history = content["history"]
        print(f"{self.stage}: goes on after epoch {len(self.history)} of {self.storage.locate(LAST)}", flush=True)


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
    neutral = {*LOADING, "device"}
    sections = {"": settings, "data.": data, "model.": model}
    values = {
        prefix + name: v for prefix, s in sections.items() for name, v in to_dict(s).items() if name not in neutral
    }
    return {**values, **inputs}
