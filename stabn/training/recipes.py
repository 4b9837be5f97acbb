"""What is trained, from what, with which losses and rates: the baseline, ST-ABN, and its fine-tuning."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stabn.config import FitConfig, RunConfig, with_loading
from stabn.data.dataset import ClipDataset
from stabn.data.edit_table import EditTable
from stabn.data.manifest import Manifest
from stabn.errors import StabnError
from stabn.models import STABN, Network, Output, build_model
from stabn.models.sources import fetch_initial_weights
from stabn.models.weights import load_initial_weights
from stabn.training.agreement import Known
from stabn.training.checkpoint import Checkpoint
from stabn.training.device import Batch
from stabn.training.features import FeatureCache
from stabn.training.losses import Losses, finetuning_loss, training_loss

Loss = Callable[[Output, Batch], Losses]


class TrainingError(StabnError):
    """Training cannot begin, or cannot go on."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the loop trains.

    Attributes:
        name: of the run, in logs and in MLflow.
        model: the network; what is frozen in it stays as it is.
        settings: optimiser, rate, schedule and batch, and how the run is computed, saved and shown.
        videos: all videos that may be learnt from.
        validation: the videos that it is measured on after each epoch.
        epoch_rows: rows of the manifest to learn from in an epoch, in any order; the loop shuffles them.
        loss: of (output, batch on the device); its `total` is minimised.
        inputs: fingerprints of what the result depends on besides the settings.
        attention_loss: minimised in the first `attention_epochs` in place of `loss`; None: there is nothing
            to learn the attention from, and `loss` is minimised from the first epoch on.
        cache: keeps what the frozen feature extractor returns; None: it runs in every step.
    """

    name: str
    model: Network
    settings: FitConfig
    videos: ClipDataset
    validation: ClipDataset
    epoch_rows: Callable[[int], np.ndarray]
    loss: Loss
    inputs: dict[str, str]
    attention_loss: Loss | None = None
    cache: FeatureCache | None = None

    @property
    def attention_epochs(self) -> int:
        """Return how many epochs learn the attention alone."""
        if self.attention_loss is None:
            return 0
        return min(self.settings.attention_epochs, self.settings.epochs // 2)


def baseline(manifest: Manifest, config: RunConfig, say: Callable[[str], None] = print) -> Recipe:
    """Train the paper's baseline: the backbone alone, with the cross-entropy of its classifier (paper, section 4.1)."""
    return _train(manifest, config, say)


def st_abn(
    manifest: Manifest,
    config: RunConfig,
    say: Callable[[str], None] = print,
    edits: EditTable | None = None,
    known: Known | None = None,
) -> Recipe:
    """Train ST-ABN, with the cross-entropies of both branches (paper, section 4.1; eq. 4).

    With edits the network is trained anew with people's knowledge from the first step on (eq. 5 and 6); the paper does
    not try this. Nothing is learnt from `known`, the frames that matter in some validation videos: the validation
    compares the attention with it.

    Raises:
        TrainingError: the edits do not fit the manifest.
    """
    recipe = _train(manifest, config, say)
    recipe.validation.edits = known or {}
    if edits is None:
        return recipe
    _edited_rows(edits, manifest)
    recipe.videos.edits = edits
    inputs = {**recipe.inputs, "edits": edits.fingerprint}
    loss, attention_loss = _edited_losses(config.train, manifest)
    return dataclasses.replace(recipe, loss=loss, attention_loss=attention_loss, inputs=inputs)


def finetuning(
    model: STABN,
    checkpoint: Checkpoint,
    manifest: Manifest,
    edits: EditTable,
    config: RunConfig,
    name: str = "finetune",
    known: Known | None = None,
) -> Recipe:
    """Fine-tune both branches so that Mt approaches the edits (paper, section 3.2; eq. 5 and 6).

    The feature extractor is frozen. Every epoch sees all edited videos and a fresh draw of `unedited_share` of the
    other training videos. With gamma = 0 this is the control run: the same training without the edits' influence.
    Nothing is learnt from `known`, see `st_abn`.

    Raises:
        TrainingError: the edits do not fit the manifest.
    """
    settings = config.finetune
    edited = _edited_rows(edits, manifest)
    others = np.setdiff1d(manifest.indices("train"), edited)
    clips = with_loading(checkpoint.data_config, config.data)
    model.freeze_feature_extractor()
    if settings.reinitialize == "recognition":
        torch.manual_seed(settings.seed)
        model.reinitialize_recognition()

    def epoch_rows(epoch: int) -> np.ndarray:
        rng = np.random.default_rng([settings.seed, epoch, 1])
        drawn = rng.choice(others, round(len(others) * settings.unedited_share), replace=False)
        return np.concatenate([edited, drawn])

    loss, attention_loss = _edited_losses(settings, manifest)
    return Recipe(
        name=name,
        model=model,
        settings=settings,
        videos=ClipDataset(
            manifest, np.concatenate([edited, others]), clips, train=settings.augment, seed=settings.seed, edits=edits
        ),
        validation=ClipDataset(manifest, manifest.indices("validation"), clips, train=False, edits=known),
        epoch_rows=epoch_rows,
        loss=loss,
        attention_loss=attention_loss,
        inputs={"manifest": manifest.fingerprint, "parent": checkpoint.fingerprint, "edits": edits.fingerprint},
        cache=FeatureCache(settings.feature_cache_mb) if settings.feature_cache_mb else None,
    )


def _edited_losses(settings: FitConfig, manifest: Manifest) -> tuple[Loss, Loss | None]:
    """Return `loss` and `attention_loss` of a recipe with edits.

    The first is that of eq. 5: that of eq. 4, and the distance of Mt from the edits of those videos that have one. The
    second is the distance alone. Its other gradients are zeros: several processes wait for each of them.
    """
    options = _loss_options(settings, manifest)

    def loss(output: Output, batch: Batch) -> Losses:
        edited = batch["temporal_target"].flatten(0, 1)
        return finetuning_loss(output, batch["target"], edited, settings.gamma, **options(batch))

    def attention_loss(output: Output, batch: Batch) -> Losses:
        losses = loss(output, batch)
        return losses._replace(total=settings.gamma * losses.temporal + 0 * (losses.perception + losses.attention))

    return loss, attention_loss if settings.gamma else None


def _plain_loss(settings: FitConfig, manifest: Manifest) -> Loss:
    """Return the loss of eq. 4."""
    options = _loss_options(settings, manifest)
    return lambda output, batch: training_loss(output, batch["target"], **options(batch))


def _loss_options(settings: FitConfig, manifest: Manifest) -> Callable[[Batch], dict[str, Any]]:
    """Return what gives the further arguments of the losses, for a batch: none by default."""
    options: dict[str, Any] = {"smoothing": settings.label_smoothing} if settings.label_smoothing else {}
    if settings.class_balance:
        options["class_weights"] = class_weights(manifest, settings.class_balance)

    def on_device(batch: Batch) -> dict[str, Any]:
        if "class_weights" in options:
            options["class_weights"] = options["class_weights"].to(batch["target"].device)
        return options

    return on_device


def class_weights(manifest: Manifest, balance: float) -> Tensor:
    """Return float32 (K,): how much a video of each class counts, 1 on average over the training videos.

    Args:
        manifest: its training videos are counted.
        balance: see the setting class_balance; a class without videos counts as one with one.
    """
    targets = manifest.table["class_index"].to_numpy()[manifest.indices("train")]
    counts = np.bincount(targets, minlength=len(manifest.classes))
    weights = np.maximum(counts, 1.0) ** -balance
    return torch.from_numpy(weights * counts.sum() / (weights * counts).sum()).float()


def _train(manifest: Manifest, config: RunConfig, say: Callable[[str], None]) -> Recipe:
    """Train a whole network from its initial weights on all training videos, with the losses of its branches."""
    settings, clips, rows = config.train, config.data, manifest.indices("train")
    torch.manual_seed(settings.seed)
    model = build_model(dataclasses.replace(config.model, num_classes=len(manifest.classes)))
    if found := fetch_initial_weights(settings.init_weights, config.model):
        weights, source = found
        say(str(load_initial_weights(model, source, weights)))
    else:
        say(f"{type(model).__name__} starts with random weights")
    if settings.freeze == "feature_extractor":
        model.freeze_feature_extractor()
    return Recipe(
        name="train",
        model=model,
        settings=settings,
        videos=ClipDataset(manifest, rows, clips, train=True, seed=settings.seed),
        validation=ClipDataset(manifest, manifest.indices("validation"), clips, train=False),
        epoch_rows=lambda epoch: rows,
        loss=_plain_loss(settings, manifest),
        inputs={"manifest": manifest.fingerprint},
    )


def _edited_rows(edits: EditTable, manifest: Manifest) -> np.ndarray:
    """Return the rows of the edited videos, having checked that each fits the manifest."""
    rows = []
    for video_id, curve in edits.items():
        video = manifest.video(row := manifest.index_of(video_id))
        if video.split != "train":
            raise TrainingError(
                f"edit of video {video_id}: it is in the {video.split} split; only train is learnt from"
            )
        if len(curve) != video.num_frames:
            raise TrainingError(
                f"edit of video {video_id}: {len(curve)} values for a video of {video.num_frames} frames; "
                "the frames were extracted again since, export the round again"
            )
        rows.append(row)
    if not rows:
        raise TrainingError("no edits to learn from: let people correct the round first, then import it")
    return np.array(sorted(rows))
