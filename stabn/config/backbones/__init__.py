"""The backbones there are, as settings see them; a new one is a file here, one in stabn/models, and their two lines."""

from stabn.config.backbones.c3d import C3DSpec
from stabn.config.backbones.resnet3d import ResNet3DSpec
from stabn.config.backbones.spec import BackboneSpec
from stabn.config.backbones.vit import VideoTransformerSpec
from stabn.config.model import ModelConfig

SPECS: dict[str, type[BackboneSpec]] = {"resnet3d": ResNet3DSpec, "c3d": C3DSpec, "vit": VideoTransformerSpec}


def spec_of(config: ModelConfig) -> BackboneSpec:
    """Return what a network's settings say of its backbone."""
    return SPECS[config.backbone](config)
