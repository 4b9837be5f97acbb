"""Whether this machine's bf16 convolutions are right: some versions of cuDNN returned wrong numbers without a word."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from stabn.errors import StabnError

MEMORY = 24e9  # bytes, of which the largest shape takes most
TOLERANCE = 0.02  # of the norm; rounding to bf16 alone makes 0.002


class WrongArithmetic(StabnError):
    """A convolution in bf16 is not the one in fp32."""


class Convolution(NamedTuple):
    """A 3-D convolution as the networks have them; clips of `frames` x `size` x `size`."""

    name: str
    videos: int
    channels: int
    out_channels: int
    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]
    frames: int
    size: int


STEM = Convolution("stem", 8, 3, 64, (3, 7, 7), (1, 2, 2), 32, 224)
SHAPES = (
    STEM,
    Convolution("first stage", 8, 64, 64, (3, 3, 3), (1, 1, 1), 32, 56),
    Convolution("strided", 8, 256, 256, (3, 3, 3), (1, 2, 2), 32, 28),
    Convolution("last stage", 8, 512, 512, (3, 3, 3), (1, 1, 1), 32, 7),
    Convolution("attention", 8, 512, 512, (1, 3, 3), (1, 1, 1), 32, 14),
    Convolution("more than 2^31 bytes", 24, 64, 64, (3, 3, 3), (1, 1, 1), 32, 112),
)
SMALL_SHAPES = tuple(
    shape._replace(videos=2, channels=min(4, shape.channels), out_channels=4, frames=4, size=8) for shape in SHAPES
)


def fitting_shapes(device: torch.device) -> tuple[Convolution, ...]:
    """Return the shapes that the device has memory for: all, or those below 2^31 bytes; on a processor small ones."""
    if device.type != "cuda":
        return SMALL_SHAPES
    return SHAPES if torch.cuda.mem_get_info(device)[0] > MEMORY else SHAPES[:-1]


def bf16_errors(device: torch.device, shapes: tuple[Convolution, ...]) -> dict[str, float]:
    """Compare convolutions in bf16, channels last, with the same in fp32, contiguous; return how far each is off.

    Args:
        device: where.
        shapes: what is convolved.

    Returns:
        By shape and direction (output, gradients of input and weight): the norm of the difference as a share of the
        norm, of that video (or output channel of the weight) where it is largest.
    """
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        return {f"{shape.name}, {what}": error for shape in shapes for what, error in _errors(device, shape).items()}
    finally:
        torch.backends.cudnn.allow_tf32 = tf32


def check_bf16(device: torch.device, shapes: tuple[Convolution, ...]) -> dict[str, float]:
    """Return `bf16_errors`, having found all of them small.

    Raises:
        WrongArithmetic: names the convolution and cuDNN's version.
    """
    errors = bf16_errors(device, shapes)
    wrong = {name: error for name, error in errors.items() if not error < TOLERANCE}
    if wrong:
        worst = max(wrong, key=lambda name: wrong[name] if wrong[name] == wrong[name] else float("inf"))
        raise WrongArithmetic(
            f"conv3d in bf16 is wrong with {cudnn_version() or 'this PyTorch'}: {worst}: off by {wrong[worst]:.3g} of "
            f"its norm, {len(wrong)} of {len(errors)} comparisons; take another version of PyTorch, or set "
            "train.precision = fp32"
        )
    return errors


def cudnn_version() -> str:
    """Return such as `cuDNN 9.10.2`; empty where PyTorch has none."""
    number = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    if number is None:
        return ""
    major, rest = divmod(number, 10_000 if number >= 90_000 else 1000)
    return f"cuDNN {major}.{rest // 100}.{rest % 100}"


def _errors(device: torch.device, shape: Convolution) -> dict[str, float]:
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:  # rounded to bf16, so that both begin with the same numbers
        return torch.randn(size, generator=generator, device=device, dtype=torch.float32).bfloat16()

    video = normal(shape.videos, shape.channels, shape.frames, shape.size, shape.size)
    weight = normal(shape.out_channels, shape.channels, *shape.kernel)
    gradient: Tensor | None = None
    found: list[tuple[Tensor, ...]] = []
    for dtype, layout in ((torch.bfloat16, torch.channels_last_3d), (torch.float32, torch.contiguous_format)):
        x = video.to(dtype).contiguous(memory_format=layout).requires_grad_()
        w = weight.to(dtype).contiguous(memory_format=layout).requires_grad_()
        y = F.conv3d(x, w, stride=shape.stride, padding=tuple(k // 2 for k in shape.kernel))
        if gradient is None:
            gradient = normal(*y.shape)
        y.backward(gradient.to(dtype).contiguous(memory_format=layout))
        assert x.grad is not None and w.grad is not None
        found.append((y.detach(), x.grad, w.grad))
    names = ("output", "gradient of the input", "gradient of the weight")
    return {name: _largest(ours, right) for name, ours, right in zip(names, *found, strict=True)}


def _largest(ours: Tensor, right: Tensor) -> float:
    """Return the largest relative error over the first axis; in parts, as copies of large tensors need memory."""
    shares = [(a.float() - b).norm() / b.norm() for a, b in zip(ours, right, strict=True)]
    return float(torch.stack(shares).max())
