"""The paper's baseline: the backbone with a classifier, and no attention (table 1)."""

from torch import Tensor

from stabn.config import ModelConfig
from stabn.models.backbone import PERCEPTION
from stabn.models.network import Network, initialize
from stabn.models.output import Output


class Baseline(Network):
    """A backbone and its classifier."""

    parts = {**Network.parts, PERCEPTION: "classifier"}  # noqa: RUF012

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.feature_extractor = self.backbone.feature_extractor()
        self.classifier = self.backbone.perception_branch()
        initialize(self.modules())
        self.backbone.initialize(self.modules())

    def forward(self, video: Tensor) -> Output:
        """Classify clips.

        Args:
            video: float (B, 3, T, H, W), normalised.

        Raises:
            ShapeError: see `extract_features`.
        """
        return Output(self.classifier(self.extract_features(video)))
