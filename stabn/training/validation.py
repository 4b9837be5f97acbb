"""How good a network is on the validation split, and where it looks, over all processes, every video once."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from stabn.config import FitConfig
from stabn.data.dataset import ClipDataset
from stabn.data.sampler import shard
from stabn.data.slots import to_frames
from stabn.training.agreement import Agreement, agreement
from stabn.training.device import autocast, batch_input, forward_clips
from stabn.training.distributed import World
from stabn.training.loading import ClipLoader, in_batches
from stabn.training.losses import training_loss


def evaluation_batch(settings: FitConfig, world_size: int) -> int:
    """Return how many videos a process recognises at once: as many as go through the network at once in training."""
    share = -(-settings.batch_size // world_size)
    return min(share, settings.micro_batch_size or share)


@torch.inference_mode()
def validate(
    model: nn.Module,
    dataset: ClipDataset,
    loader: ClipLoader,
    settings: FitConfig,
    world: World,
    dtype: torch.dtype,
    interrupted: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Return loss, top-1 and top-5 over all processes, and where it is known which frames count, the agreement.

    Args:
        model: the network on its device; left in evaluation mode.
        dataset: the validation videos; each process takes its share. Its `edits` are what `known_frames` returns: the
            means of Agreement are over these videos alone, and only for a network that has temporal attention.
        loader: of the dataset.
        settings: batch size.
        world: the processes.
        dtype: of the arithmetic.
        interrupted: asked after every batch, as often in every process; true ends the validation without a result.
    """
    model.eval()
    device = next(model.parameters()).device
    mine = shard(np.arange(len(dataset)), world.rank, world.size)
    size = evaluation_batch(settings, world.size)
    largest_share = -(-len(dataset) // world.size)
    batches = loader.batches(dataset, in_batches(mine, size))
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    matched = torch.zeros(1 + len(Agreement._fields), dtype=torch.float64)
    for _ in range(-(-largest_share // size)):
        batch = next(batches, None)
        if batch is not None:
            clips = batch_input(batch, dataset.config, device)
            with autocast(device, dtype):
                output = forward_clips(model, clips)
            target, logits = batch["target"], output.logits.float()
            loss = training_loss(output, target).total.double() * len(target)
            top = logits.topk(min(5, logits.shape[1]), dim=1).indices == target[:, None]
            sums += torch.stack([loss, top[:, 0].sum(), top.any(1).sum(), torch.full_like(loss, len(target))])
            if dataset.edits and output.temporal_attention is not None:
                matched += _matched(output.temporal_attention, batch["temporal_target"])
        if interrupted():
            return None
    loss_sum, top1, top5, count, videos, *numbers = world.sum_(torch.cat([sums, matched.to(device)])).tolist()
    assert count == len(dataset), f"{count} videos counted of {len(dataset)}"
    metrics = {"validation_loss": loss_sum / count, "validation_top1": top1 / count, "validation_top5": top5 / count}
    if videos:
        metrics["validation_agreement_videos"] = videos
        metrics |= {f"validation_agreement_{name}": v / videos for name, v in zip(Agreement._fields, numbers)}
    return metrics


def _matched(attention: Tensor, known: Tensor) -> Tensor:
    """Return how many videos of a batch were compared, and the sums of Agreement's numbers over them.

    Args:
        attention: Mt, (B * num_clips, 1, S, 1, 1).
        known: (B, num_clips, T), see `agreement`; NaN where nothing is known.
    """
    sums = torch.zeros(1 + len(Agreement._fields), dtype=torch.float64)
    frames = to_frames(attention.float().flatten(1), known.shape[2])
    curves = frames.reshape(known.shape).flatten(1).cpu().numpy()
    for curve, inside in zip(curves, known.flatten(1).cpu().numpy(), strict=True):
        if found := agreement(curve, inside):
            sums += torch.tensor([1.0, *found], dtype=torch.float64)
    return sums
