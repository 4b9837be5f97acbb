"""Clips under one temporal attention after the other: what does not depend on it is computed once.

Behind the attention mechanism, which is linear in Mt, f' = a + Mt b (`STABN.attend_parts`).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Kept:
    """What is kept of some clips.

    Attributes:
        constant: a, (B, C, S, h, w).
        slope: b, likewise.
        num_bytes: memory that all of it takes.
    """

    constant: Tensor
    slope: Tensor
    num_bytes: int


class Perceiver:
    """The perception branch of a network in evaluation mode, run whole for each Mt; any backbone's.

    Made once of a network; `keep` once of each video; of what was kept, one thread at a time makes `logits`.
    """

    def __init__(
        self, branch: nn.Module, activation: nn.Module, dtype: torch.dtype, storage: torch.dtype = torch.float16
    ) -> None:
        """Prepare.

        Args:
            branch: from f' to logits (B, K).
            activation: between the attention mechanism and the branch.
            dtype: to compute in: bfloat16, float32, or float64 if the network is.
            storage: of what is kept. It is behind BatchNorm, so that half precision holds it, in half the memory.
        """
        self.branch, self.activation, self.dtype, self.storage = branch, activation, dtype, storage
        self.exact = torch.promote_types(dtype, torch.float32)

    def keep(self, constant: Tensor, slope: Tensor) -> Any:
        """Return what is kept of clips with f' = constant + Mt slope, both (B, C, S, h, w)."""
        constant, slope = constant.to(self.storage), slope.to(self.storage)
        return Kept(constant, slope, size_of(constant, slope))

    @torch.inference_mode()
    def logits(self, kept: Any, temporal: Tensor) -> Tensor:
        """Return logits (B, K), float32 or float64.

        Args:
            kept: what `keep` returned.
            temporal: Mt, (B, S).
        """
        device = kept.slope.device
        attention = temporal.to(device, self.exact)[:, None, :, None, None]
        with torch.autocast(device.type, self.dtype, enabled=self.dtype != self.exact):
            attended = torch.addcmul(kept.constant.to(self.exact), attention, kept.slope.to(self.exact))
            return self.branch(self.activation(attended)).to(self.exact)


def size_of(*tensors: Tensor) -> int:
    """Return the bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
