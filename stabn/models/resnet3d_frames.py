"""The 3D ResNet's perception branch, frame by frame, for a temporal attention that changes a little at a time.

The only convolution across frames is the first of each block, over 3 of them. So Mt of a frame reaches one frame more
to either side with each block; all others keep what they had. Where f' is linear in Mt, so is the first block up to its
first ReLU, and convolution and shortcut are computed once per video (W with BatchNorm folded into it, k = -1, 0, 1):

    conv1(a + Mt b)[t] = conv1(a)[t] + sum over k of Mt[t + k] (W_k b[t + k])

Frames lie as images of one batch, in channels-last order; an image of zeros is before and behind each clip.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stabn.models.perceiver import Perceiver, size_of


class FrameConv:
    """A convolution with the BatchNorm behind it, as 2D convolutions: one for each frame of its kernel.

    Attributes:
        reach: frames to either side that it sees.
    """

    def __init__(self, conv: nn.Conv3d, norm: nn.BatchNorm3d, dtype: torch.dtype) -> None:
        assert norm.running_mean is not None and norm.running_var is not None
        scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
        weight = conv.weight.detach() * scale[:, None, None, None, None]
        self.taps = [tap.to(dtype, memory_format=torch.channels_last) for tap in weight.unbind(2)]
        self.bias = (norm.bias - norm.running_mean * scale).detach().to(dtype)
        self.reach, *self.padding = map(int, conv.padding)
        self.stride = conv.stride[1:]
        self.is_matrix = conv.kernel_size[1:] == (1, 1) and self.stride == (1, 1)

    def tap(self, number: int, frames: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return what one frame of the kernel gives, (N, C', h', w'), of frames (N, C, h, w)."""
        weight = self.taps[number]
        if self.is_matrix:  # quicker than a convolution of one pixel, in bf16 by a third
            return F.linear(frames.permute(0, 2, 3, 1), weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)
        return F.conv2d(frames, weight, bias, self.stride, self.padding)

    def __call__(self, frames: Tensor) -> Tensor:
        """Convolve frames (N + 2 reach, C, h, w) to (N, C', h', w')."""
        count = len(frames) - 2 * self.reach
        out = self.tap(0, frames[:count], self.bias)
        for number in range(1, len(self.taps)):
            out += self.tap(number, frames[number : number + count])
        return out


class FrameBlock:
    """A residual block: the convolution that sees several frames, those that see one, and the shortcut.

    Attributes:
        reach: frames to either side that it sees.
    """

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        """Take a block of `resnet3d`."""
        self.first, *self.rest = (FrameConv(conv, norm, dtype) for conv, norm in block.convolutions())
        shortcut = block.downsample
        self.downsample = None if shortcut is None else FrameConv(shortcut[0], shortcut[1], dtype)
        self.reach = self.first.reach

    def shortcut(self, frames: Tensor, *, bias: bool = True) -> Tensor:
        """Return what is added to the residual of frames (N, C, h, w)."""
        if self.downsample is None:
            return frames
        return self.downsample.tap(0, frames, self.downsample.bias if bias else None)

    def finish(self, hidden: Tensor, shortcut: Tensor) -> Tensor:
        """Return the block's output (N, C, h, w) of what its first convolution and its shortcut gave."""
        for conv in self.rest:
            hidden = conv(hidden.relu_())
        return hidden.add_(shortcut).relu_()

    def __call__(self, frames: Tensor, temporal: Tensor, start: int, stop: int) -> Tensor:
        """Return the block's output for images start <= n < stop of frames (N, C, h, w); Mt is in them already."""
        seen = frames[start - self.reach : stop + self.reach]
        return self.finish(self.first(seen), self.shortcut(frames[start:stop]))


class FirstBlock:
    """The first block, of parts that are linear in Mt."""

    def __init__(self, block: FrameBlock) -> None:
        self.block, self.reach = block, block.reach

    def parts(self, constant: Tensor, slope: Tensor) -> list[Tensor]:
        """Return shortcut and first convolution of a, shortcut of b, each tap of b; of all images but the outermost."""
        block, ends = self.block, self.reach
        count = len(constant) - 2 * ends
        taps = [block.first.tap(k, slope[k : k + count]) for k in range(len(block.first.taps))]
        inner = slice(ends, ends + count)
        of_constant = [block.shortcut(constant[inner]), block.first(constant)]
        return [*of_constant, block.shortcut(slope[inner], bias=False), *taps]

    def __call__(self, parts: list[Tensor], temporal: Tensor, start: int, stop: int) -> Tensor:
        """Return the block's output under temporal (N, 1, 1, 1) for images start <= n < stop."""
        rows = slice(start - self.reach, stop - self.reach)
        shortcut, hidden, shortcut_slope, *taps = (part[rows].to(temporal.dtype) for part in parts)
        shortcut = torch.addcmul(shortcut, shortcut_slope, temporal[start:stop])
        for number, tap in enumerate(taps, start - self.reach):
            hidden = torch.addcmul(hidden, tap, temporal[number : number + stop - start])
        dtype = self.block.first.bias.dtype
        return self.block.finish(hidden.to(dtype), shortcut.to(dtype))


class Mixed:
    """The attention mechanism where a ReLU follows it; each frame for itself."""

    reach = 0

    def __init__(self, activation: nn.Module, dtype: torch.dtype) -> None:
        self.activation, self.dtype = activation, dtype

    def parts(self, constant: Tensor, slope: Tensor) -> list[Tensor]:
        """Return a and b."""
        return [constant, slope]

    def __call__(self, parts: list[Tensor], temporal: Tensor, start: int, stop: int) -> Tensor:
        """Return f' under temporal (N, 1, 1, 1) for images start <= n < stop."""
        constant, slope = (part[start:stop].to(temporal.dtype) for part in parts)
        return self.activation(torch.addcmul(constant, slope, temporal[start:stop])).to(self.dtype)


@dataclass
class KeptFrames:
    """What is kept of clips, as N images, those of zeros included.

    Attributes:
        inside: bool (N,), which of them are frames.
        parts: of what the first step makes its output, see there.
        temporal: (N,), of which `states` and `pooled` are; None: of none.
        states: output of each step but the last, (N, C, h, w).
        pooled: mean over a frame of the last step's, (N, C).
        num_bytes: memory that all of it takes.
    """

    inside: np.ndarray
    parts: list[Tensor]
    temporal: np.ndarray | None
    states: list[Tensor]
    pooled: Tensor
    num_bytes: int


class FramePerceiver(Perceiver):
    """Computes again what a change of Mt reaches; the result does not depend on what was asked before."""

    def __init__(
        self, branch: Any, activation: nn.Module, dtype: torch.dtype, storage: torch.dtype = torch.float16
    ) -> None:
        super().__init__(branch, activation, dtype, storage)
        self.fc = branch.fc
        blocks = [FrameBlock(block, dtype) for block in branch.layer4]
        if isinstance(activation, nn.Identity):
            self.start: FirstBlock | Mixed = FirstBlock(blocks.pop(0))
        else:
            self.start = Mixed(activation, dtype)
        self.blocks = blocks

    @torch.inference_mode()
    def keep(self, constant: Tensor, slope: Tensor) -> KeptFrames:
        batch, _, slots, *_ = constant.shape
        inside = np.pad(np.ones((batch, slots), bool), ((0, 0), (1, 1))).reshape(-1)
        parts = self.start.parts(*(_images(part.to(self.dtype)) for part in (constant, slope)))
        parts = [part.to(self.storage) for part in parts]
        states, nothing = [], torch.zeros(len(inside), dtype=self.exact, device=constant.device)[:, None, None, None]
        out = self.start(parts, nothing, 1, 2)
        for block in self.blocks:
            room = (len(inside), *out.shape[1:])
            states.append(torch.zeros(room, dtype=self.dtype, device=out.device).to(memory_format=torch.channels_last))
            out = block(states[-1], nothing, 1, 2)
        pooled = nothing.new_zeros(len(inside), out.shape[1])
        return KeptFrames(inside, parts, None, states, pooled, size_of(*parts, *states, pooled))

    @torch.inference_mode()
    def logits(self, kept: KeptFrames, temporal: Tensor) -> Tensor:
        batch, slots = temporal.shape
        values = F.pad(temporal.to(self.exact), (1, 1)).flatten()
        asked = values.cpu().numpy()
        changed = kept.inside if kept.temporal is None else asked != kept.temporal
        kept.temporal = None  # until all is done
        values = values.to(kept.pooled.device)[:, None, None, None]
        source: Any = kept.parts
        steps: tuple[Any, ...] = (self.start, *self.blocks)
        for number, step in enumerate(steps):
            changed = _spread(changed, step.reach) & kept.inside
            for start, stop in _runs(changed):
                out = step(source, values, start, stop)
                if number < len(kept.states):
                    kept.states[number][start:stop] = out
                else:
                    kept.pooled[start:stop] = out.mean((2, 3), dtype=self.exact)
            source = kept.states[number] if number < len(kept.states) else kept.pooled
        kept.temporal = asked
        return self.fc(kept.pooled.view(batch, slots + 2, -1)[:, 1:-1].mean(1))


def _images(clips: Tensor) -> Tensor:
    """Return clips (B, C, S, h, w) as images (B (S + 2), C, h, w)."""
    padded = F.pad(clips, (0, 0, 0, 0, 1, 1))
    return padded.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def _spread(changed: np.ndarray, reach: int) -> np.ndarray:
    """Return what lies within `reach` of what changed."""
    spread = changed.copy()
    for far in range(1, reach + 1):
        spread[far:] |= changed[:-far]
        spread[:-far] |= changed[far:]
    return spread


def _runs(mask: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield start and stop of each stretch of True."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
