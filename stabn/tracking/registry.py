"""MLflow's model registry: versions, the alias `champion`, and how often networks were measured on some videos."""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from stabn.errors import StabnError
from stabn.masking import masked
from stabn.tracking.client import start_errors, tracking_client
from stabn.tracking.names import CHAMPION, check_model_name, safe_name

LOOK = "stabn.look"  # how the tags of looks begin


class ChampionChanged(StabnError):
    """The alias `champion` points at another version than the one that was compared with."""


class Registration(NamedTuple):
    """A registered model version.

    Attributes:
        version: its number, as text; empty without tracking.
        moved: whether the alias `champion` now points at it.
    """

    version: str
    moved: bool


class Champion(NamedTuple):
    """The model version that the alias `champion` points at: its number, checkpoint, run and tags."""

    version: str
    source: str
    run_id: str
    tags: dict[str, str]


def register_if_better(
    name: str,
    checkpoint_uri: str,
    before: Mapping[str, float],
    after: Mapping[str, float],
    wins: bool,
    reason: str,
    run_id: str = "",
    tags: Mapping[str, str] = {},
    rival: str | None = None,
) -> Registration:
    """Register a checkpoint as a model version, and make it the champion only if it wins.

    Registering the same checkpoint of the same run again returns the version made before.

    Args:
        name: name of the registered model, made if absent.
        checkpoint_uri: where the checkpoint is; it is not copied.
        before: metrics of the model it has to beat, kept as tags `before.*`.
        after: its own metrics, kept as tags `after.*`.
        wins: whether the alias `champion` moves to it.
        reason: why, in one sentence; the version's description.
        run_id: MLflow run that made it.
        tags: what else the version is known by.
        rival: the champion's version that it beats, empty for none; None: whichever.

    Raises:
        ChampionChanged: it wins, but the champion is not the rival any more; nothing is registered.
        TrackingError: MLFLOW_TRACKING_URI cannot be used.
        RetryableError: the tracking server does not answer.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return Registration("", False)
    tags = {**tags, **{f"before.{key}": str(value) for key, value in before.items()}}
    tags |= {f"after.{key}": str(value) for key, value in after.items()} | {"wins": str(wins).lower()}
    check_model_name(name)
    with start_errors():
        client = tracking_client()
        _ensure_model(client, name)
        versions = client.search_model_versions(f"name = '{name}'")
        if wins and rival is not None:  # MLflow cannot do this and the move in one: milliseconds are left between
            champion = find_champion(name)
            if (champion.version if champion else "") != rival:
                raise ChampionChanged(f"{name}: the champion is no longer version {rival or 'none'}; comparing again")
        same = [v for v in versions if v.source == checkpoint_uri and (v.run_id or "") == run_id]
        if same:
            version = str(same[0].version)
        else:
            made = client.create_model_version(
                name,
                checkpoint_uri,
                run_id or None,
                tags={safe_name(key): masked(value) for key, value in tags.items()},
                description=masked(reason),
            )
            version = str(made.version)
        if wins:
            client.set_registered_model_alias(name, CHAMPION, version)
    return Registration(version, wins)


def count_look(name: str, videos: str, network: str) -> int | None:
    """Record that a network was measured on some videos to decide on promotion; return how many networks were so far.

    Each look is a tag of its own on the registered model, so that of two promotions at once none is lost, a step that
    is tried again counts once, and deleting versions forgets nothing.

    Args:
        name: of the registered model, made if absent.
        videos: fingerprint of the videos; others are counted from zero.
        network: the checkpoint's fingerprint.

    Returns:
        None without tracking.

    Raises:
        TrackingError: MLFLOW_TRACKING_URI cannot be used.
        RetryableError: the tracking server does not answer.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return None
    check_model_name(name)
    with start_errors():
        client = tracking_client()
        _ensure_model(client, name)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        client.set_registered_model_tag(name, safe_name(f"{LOOK}.{videos}.{network}"), now)
    return next_look(name, videos, network)


def next_look(name: str, videos: str, network: str) -> int | None:
    """Return how many networks were measured on some videos, with this one, whether or not it is recorded yet.

    Arguments, result and errors as in `count_look`; nothing is written.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return None
    from mlflow.exceptions import MlflowException

    check_model_name(name)
    with start_errors():
        try:
            tags = tracking_client().get_registered_model(name).tags
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            tags = {}
    prefix = safe_name(f"{LOOK}.{videos}.")
    return len({tag.removeprefix(prefix) for tag in tags if tag.startswith(prefix)} | {safe_name(network)})


def _ensure_model(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def find_champion(name: str) -> Champion | None:
    """Return the version that the alias `champion` points at; None: there is none yet, or nothing is tracked.

    Raises:
        TrackingError: MLFLOW_TRACKING_URI cannot be used.
        RetryableError: the tracking server does not answer.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return None
    from mlflow.exceptions import MlflowException

    check_model_name(name)
    with start_errors():
        try:
            found = tracking_client().get_model_version_by_alias(name, CHAMPION)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
    return Champion(str(found.version), found.source, found.run_id or "", dict(found.tags))
