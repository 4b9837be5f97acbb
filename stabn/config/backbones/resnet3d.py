"""The 3D ResNet of the paper: time is never strided."""

from stabn.config.backbones.spec import OTHER_WEIGHTS, BackboneSpec
from stabn.config.settings import ConfigError

DEPTHS = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
}
WIDTH = 64  # of those that there are weights for
# torchvision's ImageNet weights by depth, fetched and kept by PyTorch itself (TORCH_HOME); torchvision is not needed.
TORCHVISION = {
    18: "https://download.pytorch.org/models/resnet18-f37072fd.pth",
    34: "https://download.pytorch.org/models/resnet34-b627a593.pth",
    50: "https://download.pytorch.org/models/resnet50-11ad3fa6.pth",
    101: "https://download.pytorch.org/models/resnet101-cd907fc2.pth",
}


class ResNet3DSpec(BackboneSpec):
    """See stabn/models/resnet3d.py."""

    temporal_stride = 1
    spatial_stride = 16

    @property
    def depth(self) -> int | None:
        """Return the depth of the ResNet that has these blocks and this width; None: there is none."""
        shape = (self.config.block, self.config.num_blocks)
        return next((d for d, usual in DEPTHS.items() if usual == shape and self.config.width == WIDTH), None)

    def describe(self) -> str:
        config = self.config
        if self.depth is not None:
            return f"3D ResNet-{self.depth}"
        return f"3D ResNet, {'-'.join(map(str, config.num_blocks))} {config.block} blocks, width {config.width}"

    def imagenet_url(self) -> str:
        if self.depth is not None:
            return TORCHVISION[self.depth]
        raise ConfigError(
            f"train.init_weights = 'imagenet': there is no such network of {self.config.num_blocks} "
            f"{self.config.block} blocks and width {self.config.width}; {OTHER_WEIGHTS}"
        )
