"""Where and in which arithmetic a network runs, and what it is given there."""

from typing import Any

import torch
from torch import Tensor, nn

from stabn.config import ConfigError, DataConfig, check_device
from stabn.data.transforms import to_input
from stabn.models import Output

Batch = dict[str, Tensor]


def choose_device(name: str, local_rank: int = 0, world_size: int = 1) -> torch.device:
    """Return the device of a setting; `auto` is CUDA where there is one.

    Args:
        name: auto, cpu, cuda or cuda:N.
        local_rank: number of the process on its machine; each takes a GPU of its own.
        world_size: processes of the run; with several `cuda:N` is refused.

    Raises:
        ConfigError: several processes on one GPU, or more processes than GPUs.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise ConfigError(f"device = {name!r}: there is no GPU that this PyTorch ({torch.__version__}) can use")
    if world_size > 1:
        check_device(name, world_size)
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"process {local_rank} of this machine finds {torch.cuda.device_count()} GPUs: start one per GPU"
            )
        device = torch.device("cuda", local_rank)
    if device.index is None:  # set_device refuses it
        device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the arithmetic type of a setting; `auto` is bf16 where the hardware has matrix units for it."""
    if name == "auto":
        fast = torch.cpu._is_amx_tile_supported()
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        name = "bf16" if fast else "fp32"
    return torch.bfloat16 if name == "bf16" else torch.float32


def prepare(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to its device in the memory format that its convolutions are fastest in."""
    model = model.to(device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # every step has the same shapes, so measuring once pays
    return torch.nn.utils.convert_conv3d_weight_memory_format(model, torch.channels_last_3d)


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return the context of a forward pass; weights, losses and the optimiser stay float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def forward_clips(model: nn.Module, clips: Tensor, **options: Any) -> Output:
    """Run all clips of each video and average their class scores (paper, section 4.1: "32x2").

    Args:
        model: the network.
        clips: float (B, num_clips, 3, T, H, W); or their features (B, num_clips, C, T, h, w), given as `features`.
        options: further arguments of the network's forward.

    Returns:
        Output with logits (B, K); attention stays per clip, (B * num_clips, ...).
    """
    batch, num_clips = clips.shape[:2]
    return average_clips(model(clips.flatten(0, 1), **options), batch, num_clips)


def average_clips(output: Output, batch: int, num_clips: int) -> Output:
    """Average the class scores (B * num_clips, K) of each video's clips to (B, K)."""
    if num_clips == 1:
        return output
    logits = output.logits.unflatten(0, (batch, num_clips)).mean(1)
    attention_logits = output.attention_logits
    if attention_logits is not None:
        attention_logits = attention_logits.unflatten(0, (batch, num_clips)).mean(1)
    return output._replace(logits=logits, attention_logits=attention_logits)


def batch_input(batch: Batch, config: DataConfig, device: torch.device) -> Tensor:
    """Return float (B, num_clips, 3, T, H, W) of a batch of `ClipDataset` items."""
    clips, num_clips = batch["clips"], batch["clips"].shape[1]
    color = batch["color"].repeat_interleave(num_clips, dim=0)
    return to_input(clips.flatten(0, 1), config, device, color).unflatten(0, (len(clips), num_clips))
