"""Activation checkpointing: what lies between blocks is kept, what lies inside is computed again."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_blocks(layer: nn.Sequential, x: Tensor, checkpointing: bool) -> Tensor:
    """Run a layer's blocks, keeping only what goes in between when activations are checkpointed."""
    for block in layer:
        if checkpointing and torch.is_grad_enabled():
            options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
            if not torch.compiler.is_compiling():  # what is compiled updates the statistics once, and takes no contexts
                options["context_fn"] = _contexts(block)
            x = checkpoint(block, x, **options)
        else:
            x = block(x)
    return x


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
