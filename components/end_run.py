"""Component end-run: what is left to do when a pipeline's run ends, however it ended."""

import os

from components.component import Step, component
from components.images import DATA_IMAGE

STATES = {"SUCCEEDED": "FINISHED", "CANCELLED": "KILLED", "CANCELED": "KILLED"}  # of KFP, and MLflow's for the same


def run_end(step: Step) -> None:
    """End the run's parent in MLflow as the run ended, and delete TrainJobs that a step had no time to delete."""
    from components.cluster.api import cluster_is_reachable
    from stabn.tracking import end_parent

    if cluster_is_reachable():
        from components.trainjob import delete_jobs_of

        for name in delete_jobs_of(os.environ.get("STABN_RUN_ID", "")):
            print(f"end-run: TrainJob {name} was left behind; deleted", flush=True)
    end_parent(STATES.get(step.status.state, "FAILED"))
    print(f"end-run: the run {step.status.state.lower()}", flush=True)


end_run = component("end-run", run_end, DATA_IMAGE, at_end=True)
