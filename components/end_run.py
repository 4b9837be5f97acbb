"""Component end-run: what is left to do when a pipeline's run ends, however it ended."""

import os
import sys
from collections.abc import Callable

from components.component import Step, component
from components.images import DATA_IMAGE
from components.patience import patiently
from stabn.errors import StabnError

STATES = {"SUCCEEDED": "FINISHED", "CANCELLED": "KILLED", "CANCELED": "KILLED"}  # of KFP, and MLflow's for the same


def run_end(step: Step) -> None:
    """End the run's parent in MLflow as the run ended, and delete TrainJobs that a step had no time to delete.

    What cannot be done is said: it must not fail a run whose work is done.
    """
    from components.cluster.api import cluster_is_reachable
    from stabn.tracking import end_parent

    if cluster_is_reachable():
        _try("TrainJobs that steps may have left were not looked for", _delete_jobs)
    _try("its parent in MLflow stays open", lambda: end_parent(STATES.get(step.status.state, "FAILED")))
    print(f"end-run: the run {step.status.state.lower()}", flush=True)


def _delete_jobs() -> None:
    from components.trainjob import delete_jobs_of

    for name in delete_jobs_of(os.environ.get("STABN_RUN_ID", "")):
        print(f"end-run: TrainJob {name} was left behind; deleted", flush=True)


def _try(otherwise: str, action: Callable[[], None]) -> None:
    try:
        patiently(action, "end-run")
    except StabnError as error:
        print(f"end-run: {error}; {otherwise}", file=sys.stderr, flush=True)


end_run = component("end-run", run_end, DATA_IMAGE, at_end=True)
