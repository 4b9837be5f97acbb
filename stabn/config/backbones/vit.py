"""The video transformer: a ViT over tubelets, as VideoMAE and V-JEPA 2 have it."""

from stabn.config.backbones.spec import BackboneSpec
from stabn.config.model import ModelConfig
from stabn.config.settings import ConfigError

SIZES = {(384, 12): "S", (768, 12): "B", (1024, 24): "L", (1280, 32): "H", (1408, 40): "g"}
MIN_HEAD = 6  # channels of a head with rope: a pair for each of time, height and width


class VideoTransformerSpec(BackboneSpec):
    """See stabn/models/vit.py."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.temporal_stride, self.spatial_stride = config.tubelet, config.patch

    def describe(self) -> str:
        config = self.config
        size = SIZES.get((config.width, config.depth))
        what = f"ViT-{size}" if size else f"ViT of {config.depth} blocks, width {config.width},"
        return f"video {what} {config.tubelet}x{config.patch}x{config.patch}"

    def check(self, crop_size: int) -> None:
        super().check(crop_size)
        config = self.config
        if crop_size % config.patch:
            raise ConfigError(
                f"data.crop_size = {crop_size} with model.patch = {config.patch}: give a multiple of the patch"
            )
        if config.width % config.num_heads:
            raise ConfigError(
                f"model.width = {config.width} with model.num_heads = {config.num_heads}: give a multiple of the heads"
            )
        if config.positions == "rope" and config.width // config.num_heads < MIN_HEAD:
            raise ConfigError(
                f"model.width = {config.width} with model.num_heads = {config.num_heads}: rope needs {MIN_HEAD} "
                "channels per head; give fewer heads"
            )
        for name in ("extractor_blocks", "trunk_blocks"):
            if getattr(config, name) > config.depth:
                raise ConfigError(
                    f"model.{name} = {getattr(config, name)} with model.depth = {config.depth}: there are no more"
                )
