"""MLflow's model registry: versions, the alias `champion`, and how often networks were measured on some videos."""

import logging
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from stabn.errors import StabnError
from stabn.masking import first_line, masked
from stabn.tracking.approval import APPROVAL
from stabn.tracking.client import find_experiment, start_errors, tracking_client
from stabn.tracking.datasets import Dataset
from stabn.tracking.names import CHAMPION, TrackingError, check_model_name, safe_name

log = logging.getLogger(__name__)

LOOK = "stabn.look"  # how the tags of looks begin
CHECKPOINT = "stabn.checkpoint_uri"  # tag of a version and of its model: where the weights are
MODELS = "models:/"
Save = Callable[[str, Any], None]  # writes a model's folder, given its path and MLflow's Model


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
    """The model version that the alias `champion` points at: its number, its checkpoint's URI, run, tags."""

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
    save: Save | None = None,
    dataset: Dataset | None = None,
) -> Registration:
    """Register a checkpoint as a model version, and make it the champion only if it wins.

    Registering the same checkpoint of the same run again returns the version made before. With `save` the version is a
    model that `mlflow.pyfunc.load_model` loads; a server that keeps no such models gets the checkpoint's URI alone.

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
        save: writes the model's folder; None: the version only names the checkpoint.
        dataset: that `after` was measured on.

    Raises:
        ChampionChanged: it wins, but the champion is not the rival any more; nothing is registered.
        TrackingError: MLFLOW_TRACKING_URI cannot be used.
        RetryableError: the tracking server does not answer.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return Registration("", False)
    tags = {**tags, **{f"before.{key}": str(value) for key, value in before.items()}}
    tags |= {f"after.{key}": str(value) for key, value in after.items()} | {"wins": str(wins).lower()}
    tags[CHECKPOINT] = checkpoint_uri
    check_model_name(name)
    with start_errors():
        client = tracking_client()
        _ensure_model(client, name)
        versions = client.search_model_versions(f"name = '{name}'")
        if wins and rival is not None:  # MLflow cannot do this and the move in one: milliseconds are left between
            champion = find_champion(name)
            if (champion.version if champion else "") != rival:
                raise ChampionChanged(f"{name}: the champion is no longer version {rival or 'none'}; comparing again")
        own = [v for v in versions if _checkpoint_of(v) == checkpoint_uri]
        same = [v for v in own if (v.run_id or "") == run_id or APPROVAL in v.tags]  # that a person was asked about
        if same:
            version = str(same[0].version)
            client.set_model_version_tag(name, version, "wins", str(wins).lower())
            client.update_model_version(name, version, masked(reason))
        else:
            model = _log_model(client, name, checkpoint_uri, run_id, save, after, dataset) if save else ""
            made = client.create_model_version(
                name,
                f"{MODELS}{model}" if model else checkpoint_uri,
                run_id or None,
                tags={safe_name(key): masked(value) for key, value in tags.items()},
                description=masked(reason),
                model_id=model or None,
            )
            version = str(made.version)
        if wins:
            client.set_registered_model_alias(name, CHAMPION, version)
    return Registration(version, wins)


def _log_model(
    client: Any,
    name: str,
    checkpoint_uri: str,
    run_id: str,
    save: Save,
    metrics: Mapping[str, float],
    dataset: Dataset | None,
) -> str:
    """Make a LoggedModel with its numbers, and return its id; "" where the server cannot keep it, which is said."""
    from mlflow.entities import Metric
    from mlflow.models import Model

    experiment = client.get_run(run_id).info.experiment_id if run_id else find_experiment(client)
    try:
        made = client.create_logged_model(experiment, name, run_id or None, tags={CHECKPOINT: masked(checkpoint_uri)})
        with tempfile.TemporaryDirectory() as folder:
            described = Model(made.artifact_location, run_id or None, model_id=made.model_id, model_uuid=made.model_id)
            save(f"{folder}/model", described)
            client.log_model_artifacts(made.model_id, f"{folder}/model")
        client.finalize_logged_model(made.model_id, "READY")
        if run_id and metrics:
            measured = {"dataset_name": dataset.name, "dataset_digest": dataset.digest} if dataset else {}
            now = round(datetime.now(UTC).timestamp() * 1000)
            numbers = [
                Metric(safe_name(key), float(value), now, 0, model_id=made.model_id, run_id=run_id, **measured)
                for key, value in metrics.items()
            ]
            client.log_batch(run_id, metrics=numbers)
    except Exception as error:  # an older server, or a store of artifacts that this step cannot write to
        log.warning(
            "%s: the version is registered by its checkpoint's URI alone, mlflow.pyfunc cannot load it: %s",
            name,
            first_line(error),
        )
        return ""
    return str(made.model_id)


def _checkpoint_of(version: Any) -> str:
    """Return where the weights of a version are; versions of before name it as their source."""
    return str(version.tags.get(CHECKPOINT) or version.source)


def find_checkpoint(uri: str) -> str:
    """Return where the weights of `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `models:/m-ID` are.

    Any other path or URI is returned as it is.

    Raises:
        TrackingError: no tracking, no such model, or one that this product did not make.
        RetryableError: the tracking server does not answer.
    """
    if not uri.startswith(MODELS):
        return uri
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise TrackingError(f"{uri}: MLFLOW_TRACKING_URI is not set; set it to the server whose model this is")
    match = re.fullmatch(r"(?:(m-\w+)|([^/@]+)(?:@([\w-]+)|/(\d+)))", uri.removeprefix(MODELS).strip("/"))
    if not match:
        raise TrackingError(f"{uri}: write models:/NAME@{CHAMPION}, models:/NAME/VERSION or models:/m-ID")
    model_id, name, alias, version = match.groups()
    from mlflow.exceptions import MlflowException

    if name:
        check_model_name(name)
    with start_errors():
        client = tracking_client()
        try:
            if model_id:
                place = client.get_logged_model(model_id).tags.get(CHECKPOINT, "")
            elif alias:
                place = _checkpoint_of(client.get_model_version_by_alias(name, alias))
            else:
                place = _checkpoint_of(client.get_model_version(name, version))
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise TrackingError(f"{uri}: MLflow has none: {first_line(error)}; `stabn promote` registers one") from None
    if not place or place.startswith((MODELS, "runs:/")):
        raise TrackingError(f"{uri}: it does not say where its checkpoint is (tag {CHECKPOINT}); give the file itself")
    return place


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
    return Champion(str(found.version), _checkpoint_of(found), found.run_id or "", dict(found.tags))
