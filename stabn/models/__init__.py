"""The networks and their initial weights."""

from stabn.config import ModelConfig
from stabn.models.baseline import Baseline
from stabn.models.network import Network
from stabn.models.output import Output
from stabn.models.st_abn import STABN

__all__ = ["STABN", "Baseline", "Network", "Output", "build_model"]


def build_model(config: ModelConfig) -> STABN | Baseline:
    """Return the network that a config describes, with random weights."""
    return STABN(config) if config.has_attention else Baseline(config)
