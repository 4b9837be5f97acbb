"""What stages have recorded, read back: their metrics, their files, the page that compares them."""

import json
import logging
import os
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stabn.masking import first_line
from stabn.tracking.client import find_experiment, one_short_attempt, search, start_errors, tracking_client
from stabn.tracking.names import ERROR, EXPERIMENT, PARENT_RUN, ROLE, RUN_ID, STAGE_KEY, check_name, ui_url

log = logging.getLogger(__name__)

LOOKED_AT = 100  # runs, to find some pipelines' among their stages


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
    check_name(pipeline_run, "run id")
    with start_errors():
        client = tracking_client()
        named = client.get_experiment_by_name(experiment) if experiment else None
        if experiment and named is None:
            return []
        where = named.experiment_id if named else find_experiment(client)
        found = search(client, where, f"tags.`{RUN_ID}` = '{pipeline_run}'")
    stages = ((run.info.run_id, run.data.metrics, run.data.tags) for run in found if STAGE_KEY in run.data.tags)
    return [Stage(tags[STAGE_KEY], run_id, dict(metrics), dict(tags)) for run_id, metrics, tags in stages]


class StageState(NamedTuple):
    """Where a stage is: see `Stage`; times are seconds since 1970.

    Attributes:
        epochs: that a training takes; 0: the stage has none.
        epoch: those that are done, reached at `reached`.
    """

    key: str
    run_id: str
    status: str
    began: float
    ended: float | None
    params: dict[str, str]
    metrics: dict[str, float]
    error: str
    epochs: int = 0
    epoch: int = 0
    reached: float = 0.0

    @property
    def stage(self) -> str:
        """The stage without what tells it from its sisters."""
        return self.key.split("/")[0]


class PipelineRun(NamedTuple):
    """A pipeline's run, or a stage by itself, as MLflow has it; times are seconds since 1970."""

    run_id: str
    name: str
    status: str
    began: float
    ended: float | None
    link: str
    stages: list[StageState]


def recent_runs(number: int, pipeline_run: str = "") -> list[PipelineRun]:
    """Return the newest pipeline runs and stages by themselves, newest first; only the one of an id if it is given.

    Nothing is made on the server.

    Raises:
        TrackingError: MLFLOW_TRACKING_URI cannot be used.
        RetryableError: the tracking server does not answer.
    """
    if pipeline_run:
        check_name(pipeline_run, "run id")
    with start_errors(), one_short_attempt():
        client = tracking_client()
        found = client.get_experiment_by_name(os.environ.get("STABN_EXPERIMENT") or EXPERIMENT)
        if found is None:
            return []
        only = f"tags.`{RUN_ID}` = '{pipeline_run}'" if pipeline_run else ""
        queries = [" and ".join(filter(None, (only, more))) for more in (f"tags.`{ROLE}` = 'parent'", "")]
        newest = ["attributes.start_time DESC"]
        runs = [
            run
            for query in queries
            for run in client.search_runs([found.experiment_id], query, max_results=LOOKED_AT, order_by=newest)
        ]
        tops = {run.info.run_id: run for run in runs if PARENT_RUN not in run.data.tags}
        chosen = sorted(tops.values(), key=lambda run: run.info.start_time, reverse=True)[:number]
        return [_pipeline_run(client, run) for run in chosen]


def _pipeline_run(client: Any, run: Any) -> PipelineRun:
    info, tags = run.info, run.data.tags
    children = [run]
    if STAGE_KEY not in tags:
        children = search(client, info.experiment_id, f"tags.`{PARENT_RUN}` = '{info.run_id}'")
    base = ui_url()
    return PipelineRun(
        tags.get(RUN_ID) or info.run_id,
        info.run_name,
        info.status,
        info.start_time / 1000,
        info.end_time and info.end_time / 1000,
        f"{base}/#/experiments/{info.experiment_id}/runs/{info.run_id}" if base else f"run {info.run_id}",
        [_stage_state(client, child) for child in children],
    )


def _stage_state(client: Any, run: Any) -> StageState:
    info, params, metrics = run.info, dict(run.data.params), dict(run.data.metrics)
    epochs, epoch, reached = int(params.get("train.epochs") or 0), 0, 0.0
    by_epoch = next((name for name in metrics if not name.startswith("step/")), "")
    if epochs and by_epoch and info.status == "RUNNING":
        newest = max(client.get_metric_history(info.run_id, by_epoch), key=lambda item: item.step)
        epoch, reached = newest.step, newest.timestamp / 1000
    began, ended = info.start_time / 1000, info.end_time and info.end_time / 1000
    key, error = run.data.tags.get(STAGE_KEY, info.run_name), run.data.tags.get(ERROR, "")
    return StageState(key, info.run_id, info.status, began, ended, params, metrics, error, epochs, epoch, reached)


def compare_link(run_ids: Sequence[str]) -> str:
    """Return the address of MLflow's page that puts runs side by side; empty without a server."""
    base = ui_url()
    if not base or not run_ids:
        return ""
    with start_errors():
        client = tracking_client()
        experiments = sorted({client.get_run(run_id).info.experiment_id for run_id in run_ids})
    runs, experiments_text = (urllib.parse.quote(json.dumps(ids)) for ids in (list(run_ids), experiments))
    return f"{base}/#/compare-runs?runs={runs}&experiments={experiments_text}"


def run_link(run_id: str) -> str:
    """Return the address of a run's files in MLflow; empty without a server."""
    base = ui_url()
    if not base:
        return ""
    with start_errors():
        experiment = tracking_client().get_run(run_id).info.experiment_id
    return f"{base}/#/experiments/{experiment}/runs/{run_id}/artifacts"


def fetch_artifact(run_id: str, name: str, folder: str | os.PathLike[str]) -> Path | None:
    """Download a file that a stage stored with its run; None: it is not there any more."""
    from mlflow.exceptions import MlflowException

    with start_errors():
        try:
            return Path(tracking_client().download_artifacts(run_id, name, os.fspath(folder)))
        except (MlflowException, OSError) as error:
            log.warning("MLflow run %s: %s", run_id, first_line(error))
            return None
