"""The losses of training (eq. 4) and of fine-tuning with edited temporal attention (eq. 5 and 6)."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from stabn.data.slots import to_slots
from stabn.models.output import Output, ShapeError


class Losses(NamedTuple):
    """Scalar tensors; `total` is what is minimised, the others are its parts before weighting."""

    total: Tensor
    perception: Tensor
    attention: Tensor
    temporal: Tensor


def training_loss(
    output: Output, target: Tensor, smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Losses:
    """Return the cross-entropy of the perception branch plus that of the attention branch (eq. 4).

    Args:
        output: of the network; the baseline has no attention branch, whose part is then 0.
        target: int64 (B,), true classes.
        smoothing: share of each label that is spread evenly over all classes, 0 to 1.
        class_weights: float (K,), how much a video of each class counts; None: 1.
    """
    perception = _cross_entropy(output.logits, target, smoothing, class_weights)
    if output.attention_logits is None:
        attention = torch.zeros_like(perception)
    else:
        attention = _cross_entropy(output.attention_logits, target, smoothing, class_weights)
    return Losses(perception + attention, perception, attention, torch.zeros_like(perception))


def temporal_attention_loss(temporal_attention: Tensor, edited: Tensor) -> Tensor:
    """Return the mean squared distance of the temporal attention from the edited one (eq. 6, without gamma).

    Per video it is the mean over the frames on which the person has an opinion; where several share one value of Mt,
    over the slots, whose edit is the mean of theirs. The sum over the edited videos is divided by the size of the
    batch, as the cross-entropy is: eq. 5 holds per video, and a video weighs the same whether or not others in its
    batch are edited. Without any edit it is 0, with a gradient of 0.

    Args:
        temporal_attention: Mt, (B, 1, S, 1, 1) or (B, S), in [0, 1].
        edited: M't, (B, T) in [0, 1]; NaN on frames without an opinion and in videos without an edit.

    Raises:
        ShapeError: the two differ in B, or T is no multiple of S.
    """
    attention = _at_least_float32(temporal_attention).flatten(1)
    num_slots = attention.shape[1]
    if edited.ndim != 2 or len(edited) != len(attention) or edited.shape[1] % num_slots:
        raise ShapeError(
            f"edited attention of shape {tuple(edited.shape)}: the network's is (B, S) = {tuple(attention.shape)}; "
            "give one value per sampled frame of each clip"
        )
    edited = to_slots(edited, num_slots)
    known = ~torch.isnan(edited)
    squared = (attention - torch.where(known, edited, 0)).square() * known
    per_video = squared.sum(1) / known.sum(1).clamp(min=1)
    return per_video.sum() / len(edited)


def finetuning_loss(
    output: Output,
    target: Tensor,
    edited: Tensor,
    gamma: float,
    smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Losses:
    """Return L + gamma * L_temp (eq. 5 and 6).

    Args:
        output: of the network.
        target: int64 (B,), true classes.
        edited: float (B, T), see `temporal_attention_loss`.
        gamma: weight of the temporal part; the paper's is 10.
        smoothing, class_weights: see `training_loss`.

    Raises:
        ShapeError: the network has no temporal attention, or the edits do not have its shape.
    """
    if output.temporal_attention is None:
        raise ShapeError("the network has no temporal attention to fine-tune; use model.name = st_abn")
    base = training_loss(output, target, smoothing, class_weights)
    temporal = temporal_attention_loss(output.temporal_attention, edited)
    return base._replace(total=base.total + gamma * temporal, temporal=temporal)


def _cross_entropy(logits: Tensor, target: Tensor, smoothing: float, class_weights: Tensor | None) -> Tensor:
    """Return the mean over the videos; with weights too, so that it does not depend on which share a step."""
    if class_weights is None:
        return F.cross_entropy(_at_least_float32(logits), target, label_smoothing=smoothing)
    losses = F.cross_entropy(_at_least_float32(logits), target, label_smoothing=smoothing, reduction="none")
    return (losses * class_weights[target]).mean()


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
