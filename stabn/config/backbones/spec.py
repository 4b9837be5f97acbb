"""What settings alone say of a backbone; what it computes is in stabn/models."""

from abc import ABC, abstractmethod

from stabn.config.model import ModelConfig
from stabn.config.settings import ConfigError

OTHER_WEIGHTS = "give the path or URI of other weights, or begin without: train.init_weights=random"


class BackboneSpec(ABC):
    """A backbone's numbers and names, for whoever has no PyTorch: forms, data, reports.

    Attributes:
        temporal_stride: frames of the clip that share one value of the temporal attention.
        spatial_stride: pixels of the input along a side of the spatial attention's cells.
    """

    temporal_stride: int
    spatial_stride: int

    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    @property
    def num_slots(self) -> int:
        """Return how many values the temporal attention of a clip has."""
        return self.config.num_frames // self.temporal_stride

    @abstractmethod
    def describe(self) -> str:
        """Return the usual name, `3D ResNet-50`, or what it is made of."""

    def imagenet_url(self) -> str:
        """Return where the weights are that `train.init_weights = imagenet` stands for.

        Raises:
            ConfigError: there are none for this network.
        """
        raise ConfigError(
            f"train.init_weights = 'imagenet': there are no such weights for {self.describe()}; {OTHER_WEIGHTS}"
        )

    def check(self, crop_size: int) -> None:
        """Refuse settings that contradict each other, or clips that the backbone cannot be given.

        Args:
            crop_size: side of the input, in pixels.

        Raises:
            ConfigError: names the setting.
        """
        if self.config.num_frames % self.temporal_stride:
            raise ConfigError(
                f"data.num_frames = {self.config.num_frames}: {self.describe()} has one attention value for "
                f"{self.temporal_stride} frames; give a multiple of {self.temporal_stride}"
            )
