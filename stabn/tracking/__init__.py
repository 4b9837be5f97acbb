"""MLflow: one parent run per pipeline run, one child per stage, found again by tag so that separate pods share them.

Environment: MLFLOW_TRACKING_URI (unset: nothing is tracked and every stage works the same), STABN_RUN_ID and
STABN_PIPELINE (the pipeline run; unset: stages are runs of their own), STABN_EXPERIMENT, STABN_GIT_COMMIT,
STABN_IMAGE, STABN_MLFLOW_UI_URL (the server's address as a browser sees it). KFP backends that track to MLflow
themselves set MLFLOW_RUN_ID and MLFLOW_EXPERIMENT_ID: that run is then the parent.
"""

from stabn.tracking.approval import NO, WANTED, YES, Approval, ask_for_approval, decide, read_approval
from stabn.tracking.client import artifact_root
from stabn.tracking.datasets import Dataset
from stabn.tracking.names import CHAMPION, TrackingError, git_commit
from stabn.tracking.registry import (
    Champion,
    ChampionChanged,
    Registration,
    count_look,
    find_champion,
    find_checkpoint,
    next_look,
    register_if_better,
)
from stabn.tracking.results import (
    PipelineRun,
    Stage,
    StageState,
    compare_link,
    fetch_artifact,
    recent_runs,
    run_link,
    stages_of,
)
from stabn.tracking.stage import StageRun, end_parent, stage_run
