"""C3D (Tran et al., 2015, Learning Spatiotemporal Features with 3D Convolutional Networks), cut before pool4.

    conv1 pool1 conv2 pool2 conv3a conv3b pool3 conv4a conv4b │ pool4 conv5a conv5b pool5 fc6 fc7 fc8
                    feature extractor: T/4, H/8, W/8          │           perception branch

The trunk of the attention branch is conv5a and conv5b without the poolings, as layer 4 of the ResNet is without stride.
The first pooling leaves time alone, the others halve it. No BatchNorm, as published.
"""

import re
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from stabn.config import ModelConfig
from stabn.models.backbone import EXTRACTOR, PERCEPTION, TRUNK, Backbone, Placed
from stabn.models.checkpointing import Layer
from stabn.models.load_report import LoadReport

FC_WIDTH = 64  # outputs of fc6 and fc7 over the width of conv1: 4096 of the published network
FC_GRID = (1, 4, 4)  # what pool5 leaves of 16 x 112 x 112; other inputs are averaged or repeated to it
# Published names: of the first code's ports (`conv1.weight`), of mmaction (`backbone.conv1a.conv.weight`).
NAMES = re.compile(r"(?:backbone\.)?(conv[1-5][ab]?|fc[6-8])(?:\.conv)?\.(weight|bias)")


class Conv(nn.Module):
    """A 3x3x3 convolution and ReLU."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu_()


def pool(frames: int, padding: int = 0) -> nn.MaxPool3d:
    """Return a pooling that halves H and W, and T if `frames` is 2; a single frame at the end is pooled alone."""
    return nn.MaxPool3d((frames, 2, 2), (frames, 2, 2), (0, padding, padding), ceil_mode=True)


class FeatureExtractor(nn.Module):
    """Conv1 to conv4b: (B, 3, T, H, W) to (B, 8 width, T/4, H/8, W/8)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = Layer(Conv(3, width))
        self.pool1 = pool(1)
        self.conv2 = Layer(Conv(width, 2 * width))
        self.pool2 = pool(2)
        self.conv3 = Layer(Conv(2 * width, 4 * width), Conv(4 * width, 4 * width))
        self.pool3 = pool(2)
        self.conv4 = Layer(Conv(4 * width, 8 * width), Conv(8 * width, 8 * width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.conv1(x))
        x = self.pool2(self.conv2(x))
        return self.conv4(self.pool3(self.conv3(x)))


class Classifier(nn.Module):
    """Pool4 to fc8: features to (B, K) logits, with dropout behind fc6 and fc7."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels, hidden = 8 * config.width, FC_WIDTH * config.width
        self.pool4 = pool(2)
        self.conv5 = conv5(config.width)
        self.pool5 = pool(2, padding=1)
        self.grid = nn.AdaptiveAvgPool3d(FC_GRID)
        self.fc6 = nn.Linear(channels * FC_GRID[0] * FC_GRID[1] * FC_GRID[2], hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.fc = nn.Linear(hidden, config.num_classes)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grid(self.pool5(self.conv5(self.pool4(x)))).flatten(1)
        x = self.dropout(self.fc6(x).relu())
        return self.fc(self.dropout(self.fc7(x).relu()))


def conv5(width: int) -> Layer:
    """Return the last two convolutions."""
    return Layer(Conv(8 * width, 8 * width), Conv(8 * width, 8 * width))


class C3D(Backbone):
    """See the head of this file."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.channels = self.trunk_channels = 8 * config.width

    def feature_extractor(self) -> nn.Module:
        return FeatureExtractor(self.config.width)

    def trunk(self) -> nn.Module:
        return conv5(self.config.width)

    def perception_branch(self) -> nn.Module:
        return Classifier(self.config)

    def place(self, weights: Mapping[str, Tensor], report: LoadReport) -> Iterator[Placed]:
        for key, value in weights.items():
            found = NAMES.fullmatch(key)
            if found is None:
                report.unexpected.append(key)
                continue
            layer, kind = found.groups()
            index = f"{'ab'.index(layer[5:] or 'a')}.conv.{kind}"
            if layer == "fc8":
                report.skipped[key] = "the classifier is of other classes"
            elif layer.startswith("fc"):
                yield Placed(key, PERCEPTION, f"{layer}.{kind}", value)
            elif layer.startswith("conv5"):
                yield Placed(key, PERCEPTION, f"conv5.{index}", value)
                yield Placed(key, TRUNK, index, value)
            else:
                yield Placed(key, EXTRACTOR, f"{layer[:5]}.{index}", value)
