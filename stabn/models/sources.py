"""Where initial weights come from: names that libraries know, a file, object storage, or chance, if one says so."""

import http.client
import os
import socket
import urllib.error
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from stabn.config import ModelConfig, spec_of
from stabn.config.weight_names import LIBRARIES
from stabn.errors import RetryableError
from stabn.masking import masked
from stabn.models.weights import WeightsError, read_weights

MIRROR = "STABN_WEIGHTS_MIRROR"  # an address that has torchvision's files under the same names
HUB_MIRROR = "HF_ENDPOINT"
QUIET_SECONDS = 60.0  # without a byte, after which a server is given up
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # of a repository, the first that there is
REMEDY = (
    "copy the file where this machine can read it and give its path or s3:// URI as train.init_weights, or set {} to a "
    "mirror; train.init_weights=random begins without, on purpose"
)


def fetch_initial_weights(name: str, config: ModelConfig) -> tuple[Mapping[str, Tensor], str] | None:
    """Return initial weights and where they are from; None: none are wanted.

    Args:
        name: `imagenet`: torchvision's ResNet of the network's depth; `torchvision:MODEL` or `timm:MODEL`: that of the
            package, if it is installed; `hf:ORGANISATION/NAME`, with `@REVISION` and `:FILE` if wanted: a repository of
            the Hugging Face hub, through the package huggingface_hub, its cache (HF_HOME) and mirror (HF_ENDPOINT);
            `random`, or empty as in earlier versions: none; else a path or URI.
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
        weights = _had(
            lambda: torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True, check_hash=True),
            url,
            MIRROR,
        )
        return weights, masked(url)
    library, colon, model = name.partition(":")
    if f"{library}{colon}" in LIBRARIES:
        return _had(lambda: FETCHERS[library](model), name, HUB_MIRROR), name
    return read_weights(name), name


def _timm(model: str) -> dict[str, Tensor]:
    import timm  # type: ignore[import-not-found,unused-ignore]

    weights: dict[str, Tensor] = timm.create_model(model, pretrained=True).state_dict()
    return weights


def _torchvision(model: str) -> dict[str, Tensor]:
    from torchvision.models import get_model_weights  # type: ignore[import-not-found,unused-ignore]

    weights: dict[str, Tensor] = get_model_weights(model).DEFAULT.get_state_dict(progress=False, check_hash=True)
    return weights


def _hugging_face(repository: str) -> dict[str, Tensor]:
    from huggingface_hub import hf_hub_download  # type: ignore[import-not-found,unused-ignore]
    from huggingface_hub.errors import (  # type: ignore[import-not-found,unused-ignore]
        EntryNotFoundError,
        LocalEntryNotFoundError,
    )

    name, _, file = repository.partition(":")
    name, _, revision = name.partition("@")
    for candidate in (file,) if file else HUB_FILES:
        try:
            return read_weights(hf_hub_download(name, candidate, revision=revision or None))
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):  # nobody could be asked
                raise
    raise WeightsError(f"hf:{repository}: it has no {' or '.join((file,) if file else HUB_FILES)}; add :FILE")


FETCHERS = {"timm": _timm, "torchvision": _torchvision, "hf": _hugging_face}


def _had(get: Callable[[], Any], source: str, mirror: str) -> Any:
    remedy, before = REMEDY.format(mirror), socket.getdefaulttimeout()
    socket.setdefaulttimeout(QUIET_SECONDS)  # torch.hub gives no limit of its own
    try:
        return get()
    except ModuleNotFoundError as error:
        raise WeightsError(f"init_weights = {source}: the package {error.name} is not installed; {remedy}") from None
    except WeightsError:
        raise
    except Exception as error:  # the network, the cache folder and the libraries raise many kinds
        kind = RetryableError if _passes(error) else WeightsError
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise kind(f"init_weights: {masked(source)} cannot be had ({said}); {remedy}") from None
    finally:
        socket.setdefaulttimeout(before)


def _passes(error: Exception) -> bool:
    """Tell whether somebody was there who may answer, or answer in full, another time."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code == 429 or error.code >= 500
    return isinstance(error, ConnectionResetError | TimeoutError | http.client.IncompleteRead)
