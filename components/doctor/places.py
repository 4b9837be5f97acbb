"""What `stabn doctor` looks at, and the two ways in which a check ends without success."""

import dataclasses
import os

from stabn.errors import StabnError

TIMEOUT_SECONDS = 10


class Skipped(Exception):
    """There is nothing to check; the message says why."""


class Wrong(StabnError):
    """A check failed; the message says what to do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
    """What is to be checked; an empty text is not.

    Attributes:
        storage_uri: folder or s3:// prefix of the runs.
        tracking_uri: MLflow's.
        kfp_host: address of the KFP API.
        namespace: where TrainJobs run; empty: the step's own, or that of the kubeconfig's context.
        runtime: of the jobs; runtime_kind: TrainingRuntime or ClusterTrainingRuntime.
        accelerator: resource that the nodes shall have, such as nvidia.com/gpu.
        kfp_namespace: where KFP itself runs, with Argo.
    """

    storage_uri: str = ""
    tracking_uri: str = ""
    kfp_host: str = ""
    namespace: str = ""
    runtime: str = "stabn-torch"
    runtime_kind: str = "TrainingRuntime"
    accelerator: str = "nvidia.com/gpu"
    kfp_namespace: str = "kubeflow"

    @classmethod
    def from_environment(cls) -> "Places":
        """Return what the variables of a step or of the ConfigMaps stabn-storage and stabn-trainjob name."""
        get = os.environ.get
        return cls(
            storage_uri=get("STABN_STORAGE_URI", ""),
            tracking_uri=get("MLFLOW_TRACKING_URI", ""),
            kfp_host=get("KF_PIPELINES_ENDPOINT", ""),
            namespace=get("STABN_TRAINJOB_NAMESPACE", ""),
            runtime=get("STABN_TRAINJOB_RUNTIME", "") or "stabn-torch",
            runtime_kind=get("STABN_TRAINJOB_RUNTIME_KIND", "") or "TrainingRuntime",
        )


def short(error: object) -> str:
    """Return an error's text in one line of bearable length."""
    return " ".join(str(error).split())[:300]
