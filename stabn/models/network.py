"""What ST-ABN and the baseline have in common: a feature extractor that can be frozen."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stabn.config import ModelConfig
from stabn.models.backbone import EXTRACTOR
from stabn.models.checkpointing import set_checkpointing
from stabn.models.output import check_video
from stabn.models.registry import backbone_of


class Network(nn.Module):
    """A network around a backbone.

    Attributes:
        parts: prefix of our names by the backbone's part, see `backbone.Placed`; a part that is absent is not here.
        backbone: what the network is made of.
        frozen: whether the feature extractor stays as it is.
    """

    parts: ClassVar[Mapping[str, str]] = {EXTRACTOR: "feature_extractor"}
    feature_extractor: nn.Module

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone_of(config)
        self.frozen = False

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """Recompute the blocks' activations in the backward pass instead of keeping them."""
        set_checkpointing(self, enabled)

    def feature_extractor_parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters that fine-tuning leaves as they are."""
        return self.feature_extractor.parameters()

    def freeze_feature_extractor(self) -> None:
        """Keep the feature extractor as it is: no gradient, no graph, BatchNorm statistics fixed (section 3.2)."""
        self.frozen = True
        self.feature_extractor.requires_grad_(False)
        self.feature_extractor.eval()

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; a frozen feature extractor stays in evaluation."""
        super().train(mode)
        if self.frozen:
            self.feature_extractor.eval()
        return self

    def extract_features(self, video: Tensor) -> Tensor:
        """Return f (B, C, S, h, w) of normalised float (B, 3, T, H, W); H and W as the backbone wants them.

        Raises:
            ShapeError: not a video of `config.num_frames` frames, or of a size that the backbone cannot divide.
        """
        check_video(video, self.config)
        with torch.no_grad() if self.frozen else nullcontext():
            return self.feature_extractor(video)


class _Unfilled(TorchFunctionMode):
    """Leaves out random numbers, for which PyTorch imports its compiler where tensors have no memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in ("normal_", "uniform_", "erfinv_"):  # tensors' own, and those of nn.init
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def without_memory() -> Iterator[None]:
    """Let networks that are built meanwhile have shapes alone, whatever their size."""
    with torch.device("meta"), _Unfilled():
        yield


def initialize(modules: Iterable[nn.Module]) -> None:
    """Initialise convolutions as He et al. do for ReLU networks; BatchNorm starts as the identity."""
    for module in modules:
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
