"""The 3D ResNet of the SlowFast slow pathway: time is never strided (paper, section 4.1; baseline of table 1).

Cut before layer 4; the trunk of the attention branch is layer 4 without stride.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn

from stabn.config import ModelConfig
from stabn.models.backbone import EXTRACTOR, PERCEPTION, TRUNK, Backbone, Placed
from stabn.models.checkpointing import Layer
from stabn.models.load_report import LoadReport, WeightsError
from stabn.models.resnet3d_frames import FramePerceiver

# Our names of the extractor's parts, by the names of torchvision's and the released modules.
IMAGENET_PARTS = {"conv1": "stem.conv1", "bn1": "stem.bn1", "layer1": "layer1", "layer2": "layer2", "layer3": "layer3"}


class Block(nn.Module, ABC):
    """Residual block; `expansion` times `width` channels come out."""

    expansion: int
    relu: nn.ReLU
    downsample: nn.Module | None

    @abstractmethod
    def convolutions(self) -> Sequence[tuple[nn.Conv3d, nn.BatchNorm3d]]:
        """Return the convolutions in a row, the first over frames, each with the BatchNorm behind it."""

    @abstractmethod
    def residual(self, x: Tensor) -> Tensor:
        """Return what is added to the shortcut, in its shape."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.residual(x) + shortcut)


class Basic(Block):
    """Two 3x3 convolutions, of ResNet-18 and 34; the temporal kernel is in the first, as in the bottleneck.

    The released code has 3x3x3 in both, in every layer; the paper gives no results for these, so they follow the slow
    pathway instead: conv1 (kt, 3, 3) with the spatial stride, conv2 (1, 3, 3).
    """

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, temporal: int, momentum: float) -> None:
        super().__init__()
        self.conv1 = conv(channels, width, (temporal, 3, 3), stride)
        self.bn1 = nn.BatchNorm3d(width, momentum=momentum)
        self.conv2 = conv(width, width, (1, 3, 3))
        self.bn2 = nn.BatchNorm3d(width, momentum=momentum)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(channels, width, stride, momentum)

    def convolutions(self) -> Sequence[tuple[nn.Conv3d, nn.BatchNorm3d]]:
        return (self.conv1, self.bn1), (self.conv2, self.bn2)

    def residual(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x))


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions; the temporal kernel is in the first, the spatial stride in the second."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, temporal: int, momentum: float) -> None:
        super().__init__()
        self.conv1 = conv(channels, width, (temporal, 1, 1))
        self.bn1 = nn.BatchNorm3d(width, momentum=momentum)
        self.conv2 = conv(width, width, (1, 3, 3), stride)
        self.bn2 = nn.BatchNorm3d(width, momentum=momentum)
        self.conv3 = conv(width, width * 4, (1, 1, 1))
        self.bn3 = nn.BatchNorm3d(width * 4, momentum=momentum)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(channels, width * 4, stride, momentum)

    def convolutions(self) -> Sequence[tuple[nn.Conv3d, nn.BatchNorm3d]]:
        return (self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)

    def residual(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


BLOCKS: dict[str, type[Basic] | type[Bottleneck]] = {"basic": Basic, "bottleneck": Bottleneck}


def conv(channels: int, out_channels: int, kernel: tuple[int, int, int], stride: int = 1) -> nn.Conv3d:
    """Return a convolution without bias whose output keeps T, and H and W over the spatial stride."""
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return nn.Conv3d(channels, out_channels, kernel, (1, stride, stride), padding, bias=False)


def shortcut(channels: int, out_channels: int, stride: int, momentum: float) -> nn.Module | None:
    """Return the projection of a block whose shape changes, else None."""
    if stride == 1 and channels == out_channels:
        return None
    return nn.Sequential(
        conv(channels, out_channels, (1, 1, 1), stride), nn.BatchNorm3d(out_channels, momentum=momentum)
    )


def layer_channels(config: ModelConfig, layer: int) -> int:
    """Return the channels that come out of layer 1 to 4."""
    return config.width * 2 ** (layer - 1) * BLOCKS[config.block].expansion


def make_layer(config: ModelConfig, layer: int, stride: int) -> Layer:
    """Return layer 1 to 4; the temporal kernel is 1 in layers 1 and 2, 3 in layers 3 and 4."""
    kind, width, temporal = BLOCKS[config.block], config.width * 2 ** (layer - 1), 1 if layer < 3 else 3
    channels = config.width if layer == 1 else layer_channels(config, layer - 1)
    blocks = []
    for index in range(config.num_blocks[layer - 1]):
        blocks.append(kind(channels, width, stride if index == 0 else 1, temporal, config.bn_momentum))
        channels = layer_channels(config, layer)
    return Layer(*blocks)


class Stem(nn.Module):
    """7x7 convolution and max-pooling: H and W over 4, T as it is."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.conv1 = conv(3, config.width, (1, 7, 7), 2)
        self.bn1 = nn.BatchNorm3d(config.width, momentum=config.bn_momentum)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.relu(self.bn1(self.conv1(x))))


class FeatureExtractor(nn.Module):
    """Stem and layers 1 to 3: (B, 3, T, H, W) to (B, C, T, H/16, W/16)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.stem = Stem(config)
        self.layer1 = make_layer(config, 1, 1)
        self.layer2 = make_layer(config, 2, 2)
        self.layer3 = make_layer(config, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer3(self.layer2(self.layer1(self.stem(x))))


class Classifier(nn.Module):
    """Layer 4, global average pooling, dropout, linear: features to (B, K) logits.

    The baseline's second half, and ST-ABN's perception branch.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layer4 = make_layer(config, 4, 2)
        self.dropout = nn.Dropout(config.dropout)
        self.fc = nn.Linear(layer_channels(config, 4), config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.layer4(x).mean((2, 3, 4))))


class ResNet3D(Backbone):
    """See the head of this file."""

    perceiver = FramePerceiver

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.channels, self.trunk_channels = layer_channels(config, 3), layer_channels(config, 4)

    def feature_extractor(self) -> nn.Module:
        return FeatureExtractor(self.config)

    def trunk(self) -> nn.Module:
        return make_layer(self.config, 4, 1)

    def perception_branch(self) -> nn.Module:
        return Classifier(self.config)

    def place(self, weights: Mapping[str, Tensor], report: LoadReport) -> Iterator[Placed]:
        """Place a torchvision-format 2D ResNet (section 4.1: initialised from ImageNet, inflated in time).

        A 2D kernel is repeated kt times and divided by kt, so that a still video gives the 2D network's features (but
        in the first and last frames, where layers 3 and 4 see zeros beyond the ends); the rest is copied. The attention
        branch's trunk starts as a copy of layer 4.
        """
        depth = count_blocks(weights)
        if any(depth) and depth != self.config.num_blocks:
            raise WeightsError(
                f"{report.source}: its layers have {depth} blocks, the network's {self.config.num_blocks}; choose the "
                "preset of that depth or other weights"
            )
        for key, value in weights.items():
            part, _, rest = key.partition(".")
            if part == "fc":
                report.skipped[key] = "the classifier is of other classes"
            elif part in IMAGENET_PARTS:
                yield Placed(key, EXTRACTOR, f"{IMAGENET_PARTS[part]}.{rest}", value)
            elif part == "layer4":
                yield Placed(key, PERCEPTION, f"layer4.{rest}", value)
                yield Placed(key, TRUNK, rest, value)
            else:
                report.unexpected.append(key)


def count_blocks(weights: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Return how many blocks layer1 to layer4 of a state dict have."""
    found = {m.groups() for name in weights if (m := re.match(r"layer([1-4])\.(\d+)\.", name))}
    return tuple(sum(layer == number for layer, _ in found) for number in "1234")
