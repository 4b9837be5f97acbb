"""What a backbone gives to ST-ABN and to the baseline: three parts, their sizes, and the places of foreign weights."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from stabn.config import ModelConfig, spec_of
from stabn.models.load_report import LoadReport
from stabn.models.perceiver import Perceiver

EXTRACTOR, TRUNK, PERCEPTION = "feature_extractor", "trunk", "perception_branch"  # the parts, in Placed


class Placed(NamedTuple):
    """A foreign tensor and its place.

    Attributes:
        key: its name in the file.
        part: EXTRACTOR, TRUNK or PERCEPTION.
        name: of the parameter or buffer in that part.
        value: the tensor; a 2D kernel in place of a 3D one is repeated in time when it is copied.
    """

    key: str
    part: str
    name: str
    value: Tensor


class Backbone(ABC):
    """A video network, cut in two where ST-ABN's attention goes in.

    Fine-tuning freezes the feature extractor (paper, section 3.2), whatever the backbone puts into it. Strides are
    those of `spec`; B clips of T frames, S = T / temporal stride slots of temporal attention.

    Attributes:
        channels: C of the features f.
        trunk_channels: of what the trunk returns.
        reads_channels: the perception branch reads the channels as the feature extractor wrote them, as in a residual
            stream that goes on: the attention mechanism then starts as the identity instead of at random.
        perceiver: runs the perception branch for one Mt after the other: whole, or as little of it as a change reaches.
    """

    channels: int
    trunk_channels: int
    reads_channels = False
    perceiver: type[Perceiver] = Perceiver

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.spec = spec_of(config)

    @abstractmethod
    def feature_extractor(self) -> nn.Module:
        """Return what makes f (B, C, S, h, w) of a video (B, 3, T, H, W)."""

    @abstractmethod
    def trunk(self) -> nn.Module:
        """Return what the attention branch begins with: f to (B, trunk_channels, S, h, w)."""

    @abstractmethod
    def perception_branch(self) -> nn.Module:
        """Return what follows the attention, in the baseline the rest of the network: f to logits (B, K)."""

    def initialize(self, modules: Iterable[nn.Module]) -> None:  # noqa: B027
        """Give modules their random weights, where those of `network.initialize` are not the backbone's."""

    @abstractmethod
    def place(self, weights: Mapping[str, Tensor], report: LoadReport) -> Iterator[Placed]:
        """Say where the tensors of a foreign network belong; what has no place goes into the report.

        Args:
            weights: state dict of another code base.
            report: of the file.

        Raises:
            WeightsError: another network.
        """
