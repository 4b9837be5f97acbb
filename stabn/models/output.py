"""What a network takes and returns."""

from typing import NamedTuple

from torch import Tensor

from stabn.config import ModelConfig
from stabn.errors import StabnError


class ShapeError(StabnError):
    """A tensor does not fit the network."""


class Output(NamedTuple):
    """What a network returns.

    Attributes:
        logits: (B, K) of the perception branch, or of the baseline's classifier.
        attention_logits: (B, K) of the attention branch; None for the baseline.
        spatial_attention: (B, 1, T, h, w) in [0, 1], the network's own Ms; None for the baseline.
        temporal_attention: (B, 1, T, 1, 1) in [0, 1], the network's own Mt; None for the baseline.
    """

    logits: Tensor
    attention_logits: Tensor | None = None
    spatial_attention: Tensor | None = None
    temporal_attention: Tensor | None = None


def check_video(video: Tensor, config: ModelConfig) -> None:
    """Raise ShapeError unless the tensor is (B, 3, T, H, W) with the config's T."""
    if video.ndim != 5 or video.shape[1] != 3 or video.shape[2] != config.num_frames:
        raise ShapeError(
            f"video of shape {tuple(video.shape)}: the network wants (B, 3, T, H, W) with "
            f"T = config.num_frames = {config.num_frames}; sample clips with data.num_frames of the network"
        )
