"""What stages have recorded, read back: their metrics, their files, the page that compares them."""

import json
import logging
import os
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from stabn.masking import first_line
from stabn.tracking.client import find_experiment, search, start_errors, tracking_client
from stabn.tracking.names import RUN_ID, STAGE_KEY, check_name, ui_url

log = logging.getLogger(__name__)


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


def fetch_artifact(run_id: str, name: str, folder: str | os.PathLike[str]) -> Path | None:
    """Download a file that a stage stored with its run; None: it is not there any more."""
    from mlflow.exceptions import MlflowException

    with start_errors():
        try:
            return Path(tracking_client().download_artifacts(run_id, name, os.fspath(folder)))
        except (MlflowException, OSError) as error:
            log.warning("MLflow run %s: %s", run_id, first_line(error))
            return None
