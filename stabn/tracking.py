"""MLflow: one parent run per pipeline run, one child per stage, found again by tag so that separate pods share them.

Environment: MLFLOW_TRACKING_URI (unset: nothing is tracked and every stage works the same), STABN_RUN_ID and
STABN_PIPELINE (the pipeline run; unset: stages are runs of their own), STABN_EXPERIMENT, STABN_GIT_COMMIT,
STABN_IMAGE, STABN_MLFLOW_UI_URL (the server's address as a browser sees it). KFP backends that track to MLflow
themselves set MLFLOW_RUN_ID and MLFLOW_EXPERIMENT_ID: that run is then the parent.
"""

import contextlib
import json
import logging
import os
import re
import subprocess
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stabn.errors import Preempted, RetryableError, StabnError
from stabn.signals import Terminated, exit_on_sigterm

log = logging.getLogger(__name__)

EXPERIMENT = "stabn"
CHAMPION = "champion"
STAGE, STAGE_KEY, RUN_ID, PIPELINE = "stabn.stage", "stabn.stage_key", "stabn.run_id", "stabn.pipeline"
ROLE, ERROR, IMAGE, PARENT_MODEL = "stabn.role", "stabn.error", "stabn.image", "stabn.parent_model"
PARENT_RUN, COMMIT = "mlflow.parentRunId", "mlflow.source.git.commit"  # names that MLflow's pages know
MAX_METRICS, MAX_PARAMS = 1000, 100  # per request
MAX_PARAM_CHARS, MAX_TAG_CHARS, MAX_NAME_CHARS = 6000, 5000, 250
SETTLE_SECONDS = 0.5  # after which every process that made the same parent at once sees the others' too
RETRY_SECONDS = 30.0  # between attempts while the server is away
REQUEST_RETRIES = "3"  # MLflow's own 7 would stop a training for minutes


class TrackingError(StabnError):
    """The tracking settings are unusable."""


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


class StageRun:
    """The MLflow run of one stage; without tracking every method does nothing.

    Nothing here raises once the run is open: a server that goes away must not end a paid-for training. Metrics are
    kept and sent when it is back.
    """

    def __init__(self, client: Any = None, run_id: str = "", experiment_id: str = ""):
        self.run_id = run_id
        self.experiment_id = experiment_id
        self._client = client
        self._pending: list[Any] = []
        self._warned = False
        self._retry_at = 0.0

    @property
    def link(self) -> str:
        """Return the address of the run's page; empty without a server."""
        base = _ui_url()
        return f"{base}/#/experiments/{self.experiment_id}/runs/{self.run_id}" if base and self.run_id else ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record numbers, of one epoch if `step` is given."""
        self.log_metrics_history([{**metrics, "step": step or 0}])

    def log_metrics_history(self, history: Sequence[Mapping[str, float]]) -> None:
        """Record the numbers of many epochs, each a dict with its `step`, in as few requests as possible."""
        if self._client is None:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for entry in history:
            step = int(entry["step"])
            values = ((name, value) for name, value in entry.items() if name != "step")
            self._pending += [Metric(_name(name), float(value), now, step) for name, value in values]
        if time.monotonic() >= self._retry_at:
            self._flush()

    def log_params(self, settings: Mapping[str, Any]) -> None:
        """Record settings, nested ones under dotted names; MLflow keeps the first value of each."""
        if self._client is not None:
            self._try(lambda: self._log_params(settings))

    def log_artifact(self, path: str | os.PathLike[str], folder: str | None = None) -> None:
        """Store a small local file with the run; checkpoints are recorded by URI instead."""
        self._try(lambda: self._client.log_artifact(self.run_id, os.fspath(path), folder))

    def log_text(self, text: str, name: str) -> None:
        """Store text with the run as a file, `name` like `report/table2.md`."""
        self._try(lambda: self._client.log_text(self.run_id, text, name))

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags, replacing those of the same name."""
        values = {_name(name): str(value)[:MAX_TAG_CHARS] for name, value in tags.items()}
        self._try(lambda: self._log_batches(tags=values))

    def end(self, status: str, error: BaseException | None = None) -> None:
        """Send what is pending and close the run as FINISHED, FAILED or KILLED."""
        if self._client is None:
            return
        self._flush()
        if error is not None:
            self.set_tags({ERROR: f"{type(error).__name__}: {error}"[:500]})
        self._try(lambda: self._client.set_terminated(self.run_id, status))

    def _flush(self) -> None:
        while self._pending:
            batch = self._pending[:MAX_METRICS]
            if not self._try(lambda batch=batch: self._client.log_batch(self.run_id, metrics=batch)):  # type: ignore[misc]
                self._retry_at = time.monotonic() + RETRY_SECONDS
                return
            del self._pending[: len(batch)]

    def _log_params(self, settings: Mapping[str, Any]) -> None:
        values = {_name(name): value[:MAX_PARAM_CHARS] for name, value in _flatten(settings)}
        known = self._client.get_run(self.run_id).data.params
        changed = sorted(name for name in values.keys() & known.keys() if values[name] != known[name])
        if changed:
            log.warning("MLflow run %s keeps the first values of %s", self.run_id, ", ".join(changed))
            self.set_tags({f"stabn.changed.{name}": values[name] for name in changed})
        self._log_batches(params={name: value for name, value in values.items() if name not in known})

    def _log_batches(self, params: Mapping[str, str] = {}, tags: Mapping[str, str] = {}) -> None:
        from mlflow.entities import Param, RunTag

        items: list[Any] = [Param(*item) for item in params.items()] + [RunTag(*item) for item in tags.items()]
        for start in range(0, len(items), MAX_PARAMS):
            part = items[start : start + MAX_PARAMS]
            self._client.log_batch(
                self.run_id,
                params=[item for item in part if isinstance(item, Param)],
                tags=[item for item in part if isinstance(item, RunTag)],
            )

    def _try(self, action: Callable[[], Any]) -> bool:
        if self._client is None:
            return True
        try:
            action()
        except Exception as error:  # MLflow, its HTTP client, the database and the artifact store raise many kinds
            if not self._warned:
                log.warning("MLflow run %s: %s; the stage goes on without", self.run_id, _first_line(error))
                self._warned = True
            return False
        return True


@contextlib.contextmanager
def stage_run(
    stage: str, *, settings: Mapping[str, Any], inputs: Mapping[str, str], parent_model: str = ""
) -> Iterator[StageRun]:
    """Record a stage as an MLflow run for as long as the block runs.

    A stage that is run again in the same pipeline run, after a retry or a resume, continues its former run. An
    exception closes the run as FAILED, SIGTERM and Ctrl+C as KILLED.

    Args:
        stage: the stage and what tells it from its sisters, `evaluate/validation/as_is/before`.
        settings: everything that was chosen, nested dicts allowed.
        inputs: fingerprints of what the stage reads, `{"manifest": …, "checkpoint": …}`.
        parent_model: URI or name of the model that this stage starts from or evaluates.

    Raises:
        TrackingError: MLFLOW_TRACKING_URI cannot be used.
        RetryableError: the tracking server does not answer.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        yield StageRun()
        return
    _check_name(stage, "stage")
    owner = os.getpid()
    with exit_on_sigterm():
        with _start_errors():
            run = _open(stage, inputs, parent_model)
        status, failure = "FAILED", None  # type: str, BaseException | None
        try:
            run.log_params(settings)
            yield run
            status = "FINISHED"
        except (KeyboardInterrupt, Terminated, Preempted) as error:
            status, failure = "KILLED", error
            raise
        except SystemExit as error:
            status, failure = ("FAILED", error) if error.code else ("FINISHED", None)
            raise
        except Exception as error:
            failure = error
            raise
        finally:
            if os.getpid() == owner:  # a forked worker that unwinds this stack must not close the run
                run.end(status, failure)


def end_parent(status: str) -> None:
    """Close the pipeline's parent run as FINISHED, FAILED or KILLED; one that KFP made is left to KFP."""
    if os.environ.get("MLFLOW_TRACKING_URI") and os.environ.get("STABN_RUN_ID") and not os.environ.get("MLFLOW_RUN_ID"):
        with _start_errors():
            client = _client()
            parent = _find_parent(client, _experiment(client), os.environ["STABN_RUN_ID"])
            if parent:
                client.set_terminated(parent, status)


class Stage(NamedTuple):
    """What MLflow keeps of one stage of a pipeline run: `evaluate/before`, its run's id, newest metrics and tags."""

    key: str
    run_id: str
    metrics: dict[str, float]
    tags: dict[str, str]


def stages_of(pipeline_run: str, experiment: str = "") -> list[Stage]:
    """Return the stages that a pipeline run has recorded so far, earliest first; none without tracking.

    Args:
        pipeline_run: what STABN_RUN_ID was for its stages.
        experiment: what STABN_EXPERIMENT was for them; empty: what it is here.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return []
    _check_name(pipeline_run, "run id")
    with _start_errors():
        client = _client()
        named = client.get_experiment_by_name(experiment) if experiment else None
        if experiment and named is None:
            return []
        where = named.experiment_id if named else _experiment(client)
        found = _search(client, where, f"tags.`{RUN_ID}` = '{pipeline_run}'")
    stages = ((run.info.run_id, run.data.metrics, run.data.tags) for run in found if STAGE_KEY in run.data.tags)
    return [Stage(tags[STAGE_KEY], run_id, dict(metrics), dict(tags)) for run_id, metrics, tags in stages]


def compare_link(run_ids: Sequence[str]) -> str:
    """Return the address of MLflow's page that puts runs side by side; empty without a server."""
    base = _ui_url()
    if not base or not run_ids:
        return ""
    with _start_errors():
        client = _client()
        experiments = sorted({client.get_run(run_id).info.experiment_id for run_id in run_ids})
    runs, experiments_text = (urllib.parse.quote(json.dumps(ids)) for ids in (list(run_ids), experiments))
    return f"{base}/#/compare-runs?runs={runs}&experiments={experiments_text}"


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
    from mlflow.exceptions import MlflowException

    tags = {**tags, **{f"before.{key}": str(value) for key, value in before.items()}}
    tags |= {f"after.{key}": str(value) for key, value in after.items()} | {"wins": str(wins).lower()}
    _check_name(name, "model")
    with _start_errors():
        client = _client()
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
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
                tags={_name(key): value for key, value in tags.items()},
                description=reason,
            )
            version = str(made.version)
        if wins:
            client.set_registered_model_alias(name, CHAMPION, version)
    return Registration(version, wins)


def find_champion(name: str) -> Champion | None:
    """Return the version that the alias `champion` points at; None: there is none yet, or nothing is tracked.

    Raises:
        TrackingError: MLFLOW_TRACKING_URI cannot be used.
        RetryableError: the tracking server does not answer.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return None
    from mlflow.exceptions import MlflowException

    _check_name(name, "model")
    with _start_errors():
        try:
            found = _client().get_model_version_by_alias(name, CHAMPION)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
    return Champion(str(found.version), found.source, found.run_id or "", dict(found.tags))


def fetch_artifact(run_id: str, name: str, folder: str | os.PathLike[str]) -> Path | None:
    """Download a file that a stage stored with its run; None: it is not there any more."""
    from mlflow.exceptions import MlflowException

    with _start_errors():
        try:
            return Path(_client().download_artifacts(run_id, name, os.fspath(folder)))
        except (MlflowException, OSError) as error:
            log.warning("MLflow run %s: %s", run_id, _first_line(error))
            return None


def artifact_root(tracking_uri: str) -> str | None:
    """Return where a SQLite database keeps artifacts, `mlflow-artifacts` beside it; None: the server decides."""
    if not tracking_uri.startswith("sqlite:///"):
        return None
    return str(Path(tracking_uri.removeprefix("sqlite:///")).absolute().parent / "mlflow-artifacts")


def _client() -> Any:
    uri = os.environ["MLFLOW_TRACKING_URI"]
    root = artifact_root(uri)
    if root:
        try:
            Path(root).mkdir(parents=True, exist_ok=True)
        except OSError as error:  # MLflow would go on trying for minutes
            raise TrackingError(
                f"MLFLOW_TRACKING_URI = {uri!r}: {error}; choose a folder that can be written"
            ) from error
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", REQUEST_RETRIES)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    from mlflow import MlflowClient

    return MlflowClient(uri)


def _open(stage: str, inputs: Mapping[str, str], parent_model: str) -> StageRun:
    client = _client()
    experiment, parent = _experiment_and_parent(client)
    tags = {STAGE: stage.split("/")[0], STAGE_KEY: stage, PARENT_MODEL: parent_model} | _common_tags()
    tags |= {f"stabn.{_name(name)}_fingerprint": value for name, value in inputs.items()}
    tags = {name: value[:MAX_TAG_CHARS] for name, value in tags.items() if value}
    former = []
    if parent:
        tags[PARENT_RUN] = parent
        query = f"tags.`{PARENT_RUN}` = '{parent}' and tags.`{STAGE_KEY}` = '{stage}'"
        former = _search(client, experiment, query)
    if not former:
        run_id = client.create_run(experiment, run_name=stage, tags=tags).info.run_id
        return StageRun(client, run_id, experiment)
    run = StageRun(client, former[0].info.run_id, experiment)
    client.update_run(run.run_id, status="RUNNING")
    if ERROR in former[0].data.tags:
        client.delete_tag(run.run_id, ERROR)
    run.set_tags(tags)
    return run


def _experiment_and_parent(client: Any) -> tuple[str, str]:
    """Return the ids of the experiment and of the pipeline's parent run, "" for a stage by itself."""
    given = os.environ.get("MLFLOW_RUN_ID")
    if given:
        run = client.get_run(given)
        return run.info.experiment_id, run.data.tags.get(PARENT_RUN, given)  # MLflow shows one level of children
    experiment = _experiment(client)
    pipeline_run = os.environ.get("STABN_RUN_ID")
    if not pipeline_run:
        return experiment, ""
    return experiment, _find_parent(client, experiment, pipeline_run) or _make_parent(client, experiment, pipeline_run)


def _experiment(client: Any) -> str:
    from mlflow.exceptions import MlflowException

    name = os.environ.get("STABN_EXPERIMENT")
    if not name and os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return os.environ["MLFLOW_EXPERIMENT_ID"]
    name = name or EXPERIMENT
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            root = artifact_root(os.environ["MLFLOW_TRACKING_URI"])
            return client.create_experiment(name, artifact_location=root and f"{root}/{_name(name)}")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"MLflow experiment {name!r} is deleted: restore it or set STABN_EXPERIMENT to another name"
        )
    return found.experiment_id


def _find_parent(client: Any, experiment: str, pipeline_run: str) -> str:
    _check_name(pipeline_run, "STABN_RUN_ID")
    query = f"tags.`{RUN_ID}` = '{pipeline_run}' and tags.`{ROLE}` = 'parent'"
    found = _search(client, experiment, query)
    return found[0].info.run_id if found else ""


def _make_parent(client: Any, experiment: str, pipeline_run: str) -> str:
    """Make the parent; of several made at the same time the earliest stays, and each process deletes its own other."""
    pipeline = os.environ.get("STABN_PIPELINE", "pipeline")
    tags = {ROLE: "parent"} | {name: value for name, value in _common_tags().items() if value}
    made = client.create_run(experiment, run_name=f"{pipeline} {pipeline_run[:20]}", tags=tags).info.run_id
    time.sleep(SETTLE_SECONDS)
    winner = _find_parent(client, experiment, pipeline_run) or made
    if winner != made:
        client.delete_run(made)
    return winner


def _search(client: Any, experiment: str, query: str) -> list[Any]:
    """Return the runs that match, earliest first."""
    found = client.search_runs([experiment], query, max_results=100)
    return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))


def _common_tags() -> dict[str, str]:
    return {
        PIPELINE: os.environ.get("STABN_PIPELINE", ""),
        RUN_ID: os.environ.get("STABN_RUN_ID", ""),
        COMMIT: os.environ.get("STABN_GIT_COMMIT") or git_commit(),
        IMAGE: os.environ.get("STABN_IMAGE", ""),
    }


def git_commit() -> str:
    """Return the commit of the checkout this code runs from, with `-dirty` if it was changed; "" if it is none."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


@contextlib.contextmanager
def _start_errors() -> Iterator[None]:
    """Turn what MLflow raises before the work begins into an error that names the setting."""
    try:
        yield
    except StabnError:
        raise
    except Exception as error:  # MLflow, its HTTP client and the database raise many kinds
        uri = _without_password(os.environ["MLFLOW_TRACKING_URI"])
        answered = type(error).__name__ == "RestException"
        kind = RetryableError if uri.startswith("http") and not answered else TrackingError
        raise kind(
            f"MLFLOW_TRACKING_URI = {uri!r}: {_first_line(error)}; check the address and that it runs, or unset it"
        ) from error


def _ui_url() -> str:
    uri = os.environ.get("STABN_MLFLOW_UI_URL") or os.environ.get("MLFLOW_TRACKING_URI", "")
    return uri.rstrip("/") if uri.startswith("http") else ""


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.dumps(value) if isinstance(value, list | tuple) else str(value)


def _name(text: str) -> str:
    """Return a name that MLflow accepts for a metric, parameter or tag."""
    return re.sub(r"[^A-Za-z0-9_\-. :/]", "_", text)[:MAX_NAME_CHARS]


def _check_name(text: str, what: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}", text):
        raise TrackingError(f"{what} {text!r}: use letters, digits, '.', '_', '-' and '/'")


def _first_line(error: BaseException) -> str:
    return _without_password((str(error).strip().splitlines() or [type(error).__name__])[0][:300])


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//***@", text)
