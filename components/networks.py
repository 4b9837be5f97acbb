"""Networks between steps: an artifact says where a network is; the network stays in our own storage.

What a step leaves at an output's path KFP uploads to its own store, and downloads for every step that reads it:
hundreds of MB each time, of what our storage has anyway. So the artifact is a line of JSON, and its metadata, which
KFP's page shows, say the same. Its own URI stays KFP's: from any other its launcher would download with KFP's
credentials.
"""

import json
from typing import Any

from stabn.errors import StabnError
from stabn.storage import uri_exists
from stabn.text import parse_json

MAX_BYTES = 10_000  # of such a line; what is longer is something else


class NetworkLost(StabnError):
    """An artifact names no network, or one that is not there."""


def leave_network(artifact: Any, uri: str, fingerprint: str) -> None:
    """Write where a network is, and which, into the artifact that stands for it."""
    content = {"uri": uri, "fingerprint": fingerprint}
    artifact.metadata.update(content)
    with open(artifact.path, "w") as file:
        json.dump(content, file)


def network_uri(artifact: Any, stage: str) -> str:
    """Return where the network is that an artifact stands for, for what can read it in object storage.

    Args:
        artifact: of a step's input.
        stage: that made the network: its name for `--no-cache`.

    Raises:
        NetworkLost: it is not there any more, which KFP's cache does not know.
    """
    with open(artifact.path, "rb") as file:
        text = file.read(MAX_BYTES)
    try:
        uri = str(parse_json(text)["uri"])
    except (ValueError, KeyError, TypeError):
        raise NetworkLost(f"{artifact.path}: it does not say where a network is; {_again(stage)}") from None
    if not uri_exists(uri):
        raise NetworkLost(f"{uri}: the network is not there any more; {_again(stage)}")
    return uri


def _again(stage: str) -> str:
    return (
        f"have it made again, on a KFP server with `--no-cache {stage}` of `python -m pipelines submit`, on this "
        "machine in a new --dir"
    )
