"""The networks and their initial weights."""

from stabn.config import ModelConfig
from stabn.models.output import Output
from stabn.models.resnet3d import ResNet3D
from stabn.models.st_abn import STABN

__all__ = ["STABN", "Output", "ResNet3D", "build_model"]


def build_model(config: ModelConfig) -> STABN | ResNet3D:
    """Return the network that a config describes, with random weights."""
    return STABN(config) if config.has_attention else ResNet3D(config)
