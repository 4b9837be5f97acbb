"""The backbones there are; a new one is a file beside this one, one in stabn/config/backbones, and their two lines."""

from stabn.config import ModelConfig
from stabn.models.backbone import Backbone
from stabn.models.c3d import C3D
from stabn.models.resnet3d import ResNet3D
from stabn.models.vit import VideoTransformer

BACKBONES: dict[str, type[Backbone]] = {"resnet3d": ResNet3D, "c3d": C3D, "vit": VideoTransformer}


def backbone_of(config: ModelConfig) -> Backbone:
    """Return the backbone that a config names."""
    return BACKBONES[config.backbone](config)
