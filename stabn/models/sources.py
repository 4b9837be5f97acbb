"""Where initial weights come from: ImageNet networks by name, a file, object storage, or chance, if one says so."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from stabn.config import ModelConfig, spec_of
from stabn.masking import masked
from stabn.models.weights import WeightsError, read_weights

MIRROR = "STABN_WEIGHTS_MIRROR"
REMEDY = (
    "copy the file where this machine can read it and give its path or s3:// URI as train.init_weights, or set "
    f"{MIRROR} to an address that has files of the same names; train.init_weights=random begins without, on purpose"
)


def fetch_initial_weights(name: str, config: ModelConfig) -> tuple[Mapping[str, Tensor], str] | None:
    """Return initial weights and where they are from; None: none are wanted.

    Args:
        name: `imagenet`: torchvision's ResNet of the network's depth; `timm:MODEL`: that of the package timm, if it is
            installed; `random`, or empty as in earlier versions: none; else a path or URI.
        config: of the network that they are for.

    Raises:
        ConfigError: ImageNet's are wanted for a network that there are none for.
        WeightsError: they cannot be had; says how else.
    """
    if name in ("random", ""):
        return None
    if name == "imagenet":
        url = spec_of(config).imagenet_url()
        if mirror := os.environ.get(MIRROR):
            url = f"{mirror.rstrip('/')}/{url.rpartition('/')[2]}"
        weights = _had(lambda: torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True), url)
        return weights, masked(url)
    if name.startswith("timm:"):
        return _had(lambda: _timm(name.removeprefix("timm:")), name), name
    return read_weights(name), name


def _timm(model: str) -> dict[str, Tensor]:
    import timm  # type: ignore[import-not-found,unused-ignore]

    weights: dict[str, Tensor] = timm.create_model(model, pretrained=True).state_dict()
    return weights


def _had(get: Callable[[], Any], source: str) -> Any:
    try:
        return get()
    except ModuleNotFoundError as error:
        raise WeightsError(f"init_weights = {source}: the package {error.name} is not installed; {REMEDY}") from None
    except Exception as error:  # the network, the cache folder and the libraries raise many kinds
        raise WeightsError(f"init_weights: {source} cannot be had ({str(error).splitlines()[0]}); {REMEDY}") from None
