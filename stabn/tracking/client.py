"""The server, its errors, and the runs on it: experiments, parents, children."""

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stabn.endpoint import checksum_variables, own_endpoint
from stabn.errors import RetryableError, StabnError
from stabn.local_mlflow import prepare_database
from stabn.machine import locked
from stabn.masking import first_line, masked
from stabn.tracking.names import EXPERIMENT, PARENT_RUN, ROLE, RUN_ID, TrackingError, check_name, common_tags, safe_name
from stabn.variables import variables

SETTLE_SECONDS = 0.5  # after which every process that made the same parent at once sees the others' too
SHORT_SECONDS = "5"  # for a request to a server that was away
REQUEST_RETRIES = "3"  # MLflow's own 7 would stop a training for minutes
PASSING = (408, 429)
NOT_THIS_REQUEST = (401, 403, 404, *PASSING)  # a refusal that another content would meet, too


@contextlib.contextmanager
def start_errors() -> Iterator[None]:
    """Turn what MLflow raises before the work begins into an error that names the setting."""
    try:
        yield
    except StabnError:
        raise
    except Exception as error:  # MLflow, its HTTP client and the database raise many kinds
        uri = masked(os.environ["MLFLOW_TRACKING_URI"])
        status, is_page = _answer_of(error)
        if is_page and not 500 <= status < 600:
            raise TrackingError(
                f"MLFLOW_TRACKING_URI = {uri!r}: it answers with a web page, as a sign-in does; set "
                "MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or give an address "
                "that needs none"
            ) from error
        answered = type(error).__name__ == "RestException" or (400 <= status < 500 and status not in PASSING)
        kind = RetryableError if uri.startswith("http") and not answered else TrackingError
        raise kind(
            f"MLFLOW_TRACKING_URI = {uri!r}: {first_line(error)}; check the address and that it runs, or unset it"
        ) from error


def _answer_of(error: Exception) -> tuple[int, bool]:
    """Return the HTTP status that MLflow's error tells of, 0 for none, and whether the answer was a web page."""
    text = str(error)
    status = re.search(r"failed with error code (\d{3})", text)
    return int(status[1]) if status else 0, bool(re.search(r"<(!doctype )?html", text, re.IGNORECASE))


def is_refused(error: Exception) -> bool:
    """Tell whether the server refused the content of a request, so that the same would be refused again."""
    from mlflow.exceptions import MlflowException

    if not isinstance(error, MlflowException):
        return False
    status, _ = _answer_of(error)
    if status:
        return 400 <= status < 500 and status not in NOT_THIS_REQUEST
    return error.error_code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "REQUEST_LIMIT_EXCEEDED", "MALFORMED_REQUEST")


@contextlib.contextmanager
def one_short_attempt() -> Iterator[None]:
    """Let requests inside be tried once and not long: a server that was away keeps nobody waiting again."""
    with variables({"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": SHORT_SECONDS}):
        yield


def tracking_client() -> Any:
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
    os.environ.update(checksum_variables(os.environ.get("MLFLOW_S3_ENDPOINT_URL", ""), own_endpoint()))
    from mlflow import MlflowClient

    if not root:
        return MlflowClient(uri)
    database = Path(uri.removeprefix("sqlite:///")).absolute()
    if {"'", '"'} <= set(os.getcwd()) and not database.exists():  # MLflow's SQL holds both as they are
        prepare_database(database)
    with locked(f"{database}.lock"):  # several processes that make its tables would all but one die
        return MlflowClient(uri)


def artifact_root(tracking_uri: str) -> str | None:
    """Return where a SQLite database keeps artifacts, `mlflow-artifacts` beside it; None: the server decides."""
    if not tracking_uri.startswith("sqlite:///"):
        return None
    return str(Path(tracking_uri.removeprefix("sqlite:///")).absolute().parent / "mlflow-artifacts")


def experiment_and_parent(client: Any) -> tuple[str, str]:
    """Return the ids of the experiment and of the pipeline's parent run, "" for a stage by itself."""
    given = os.environ.get("MLFLOW_RUN_ID")
    if given:
        run = client.get_run(given)
        return run.info.experiment_id, run.data.tags.get(PARENT_RUN, given)  # MLflow shows one level of children
    experiment = find_experiment(client)
    pipeline_run = os.environ.get("STABN_RUN_ID")
    if not pipeline_run:
        return experiment, ""
    return experiment, find_parent(client, experiment, pipeline_run) or _make_parent(client, experiment, pipeline_run)


def find_experiment(client: Any) -> str:
    from mlflow.exceptions import MlflowException

    name = os.environ.get("STABN_EXPERIMENT")
    if not name and os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return os.environ["MLFLOW_EXPERIMENT_ID"]
    name = name or EXPERIMENT
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            root = artifact_root(os.environ["MLFLOW_TRACKING_URI"])
            return client.create_experiment(name, artifact_location=root and f"{root}/{safe_name(name)}")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"MLflow experiment {name!r} is deleted: restore it or set STABN_EXPERIMENT to another name"
        )
    return found.experiment_id


def find_parent(client: Any, experiment: str, pipeline_run: str) -> str:
    check_name(pipeline_run, "STABN_RUN_ID")
    query = f"tags.`{RUN_ID}` = '{pipeline_run}' and tags.`{ROLE}` = 'parent'"
    found = search(client, experiment, query)
    return found[0].info.run_id if found else ""


def _make_parent(client: Any, experiment: str, pipeline_run: str) -> str:
    """Make the parent; of several made at the same time the earliest stays, and each process deletes its own other."""
    pipeline = os.environ.get("STABN_PIPELINE", "pipeline")
    tags = {ROLE: "parent"} | {name: value for name, value in common_tags().items() if value}
    made = client.create_run(experiment, run_name=f"{pipeline} {pipeline_run[:20]}", tags=tags).info.run_id
    time.sleep(SETTLE_SECONDS)
    winner = find_parent(client, experiment, pipeline_run) or made
    if winner != made:
        client.delete_run(made)
    return winner


def search(client: Any, experiment: str, query: str) -> list[Any]:
    """Return the runs that match, earliest first."""
    found = client.search_runs([experiment], query, max_results=100)
    return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))
