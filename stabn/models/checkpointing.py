"""Activation checkpointing: what lies between blocks is kept, what lies inside is computed again."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Layer(nn.Sequential):
    """Blocks in a row, of which only what goes in between is kept when activations are checkpointed.

    Attributes:
        checkpointing: whether they are.
        random: whether a block draws random numbers, which running it again has to repeat.
    """

    checkpointing = False
    random = False

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        """Run the blocks; what is given besides x goes to each of them."""
        for block in self:
            if self.checkpointing and torch.is_grad_enabled():
                options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": self.random}
                if not torch.compiler.is_compiling():  # what is compiled updates the statistics once, takes no contexts
                    options["context_fn"] = _contexts(block)
                x = checkpoint(block, x, *more, **options)
            else:
                x = block(x, *more)
        return x


def set_checkpointing(model: nn.Module, enabled: bool) -> None:
    """Recompute the activations inside the blocks of a network's layers in the backward pass, or keep them."""
    for module in model.modules():
        if isinstance(module, Layer):
            module.checkpointing = enabled


def _contexts(block: nn.Module) -> Callable[[], tuple[AbstractContextManager, AbstractContextManager]]:
    return lambda: (nullcontext(), _discarded_statistics(block))


@contextmanager
def _discarded_statistics(block: nn.Module) -> Iterator[None]:
    """Let BatchNorm update copies of its statistics: a batch that is run twice counts once."""
    kept = [(part, name, buffer) for part in block.modules() for name, buffer in part.named_buffers(recurse=False)]
    for part, name, buffer in kept:
        setattr(part, name, buffer.clone())
    try:
        yield
    finally:
        for part, name, buffer in kept:
            setattr(part, name, buffer)
