"""A stage on several nodes: a Kubeflow TrainJob that is built from settings, submitted, followed and ended.

`build_trainjob` makes the manifest and nothing else; `run_trainjob` sends it, shows in the step's log what the job
does, starts it again after an eviction or the loss of a machine, and deletes it in the end, whatever the end is.
"""

import time
from collections.abc import Callable

from components.cluster.api import GROUP, VERSION, ApiUnavailable, KubeApi
from components.cluster.config import ClusterConfig
from components.cluster.follow import Follower
from components.cluster.logs import clock
from components.cluster.manifest import RESTARTS, Work, build_runtime, build_trainjob, needs_own_runtime, passed_on
from components.cluster.pods import Cause, without_launcher
from stabn.errors import RetryableError, StabnError
from stabn.signals import Terminated, exit_on_sigterm

__all__ = ["ClusterConfig", "Work", "build_trainjob", "passed_on", "run_trainjob"]

STEP_GRACE_SECONDS = 20.0  # of the thirty that Kubernetes gives a step that is to end


def run_trainjob(
    work: Work, cluster: ClusterConfig, api: KubeApi | None = None, say: Callable[[str], None] | None = None
) -> None:
    """Have the work done: return when it is.

    A step that is tried again finds the job of its former attempt and follows that. The job is deleted in the end,
    also when the step is told to end (SIGTERM) or the job fails; only if Kubernetes does not answer it goes on.

    Raises:
        RetryableError: evicted or lost more often than `max_restarts`, or Kubernetes is away; another try goes on from
            the last checkpoint.
        StabnError: the work failed, and would again; the last lines of the node that explains it were shown.
    """
    api = api or KubeApi(cluster.namespace, cluster.api_minutes * 60)
    tell = say or (lambda line: print(line, flush=True))
    with exit_on_sigterm():
        try:
            restarts = _submit(api, work, cluster, tell)
            while cause := Follower(api, work.name, work.num_nodes, cluster, tell).run():
                _show_end(cause, cluster, tell)
                message = f"TrainJob {work.name} failed: {cause.reason}"
                if not cause.is_retryable:
                    raise StabnError(message)
                if restarts >= cluster.max_restarts:
                    raise RetryableError(f"{message}; it was started again {restarts} times already")
                restarts += 1
                tell(f"{message}; started again from its last checkpoint, {restarts} of at most {cluster.max_restarts}")
                _delete(api, work, cluster)
                _create(api, work, cluster, restarts)
        except ApiUnavailable:
            raise
        except (Terminated, KeyboardInterrupt):
            tell(f"TrainJob {work.name}: the step is told to end, so the job is deleted")
            _clean_up(api, work, cluster, tell)
            raise
        except Exception:
            _clean_up(api, work, cluster, tell)
            raise
        tell(f"TrainJob {work.name}: complete")
        _clean_up(api, work, cluster, tell)


def _submit(api: KubeApi, work: Work, cluster: ClusterConfig, tell: Callable[[str], None]) -> int:
    """Create the job, or find that of a former attempt; return how often it was started again."""
    job = api.get("trainjobs", work.name)
    conditions = {item["type"]: item["status"] for item in (job or {}).get("status", {}).get("conditions", [])}
    if job and "deletionTimestamp" not in job["metadata"] and conditions.get("Failed") != "True":
        tell(f"TrainJob {work.name} of a former attempt of this step is there; it is followed")
        return int(job["metadata"].get("annotations", {}).get(RESTARTS, "0"))
    if job:
        _delete(api, work, cluster)
    tell(
        f"TrainJob {work.name} in namespace {api.namespace}: {work.num_nodes} nodes of {work.procs_per_node} processes"
        + (f" on {work.accelerator}" if work.accelerator else "")
    )
    _create(api, work, cluster, 0)
    return 0


def _create(api: KubeApi, work: Work, cluster: ClusterConfig, restarts: int) -> None:
    manifest = build_trainjob(work, cluster, api.namespace, restarts)
    if not needs_own_runtime(cluster):
        api.create("trainjobs", manifest)
        return
    is_namespaced = cluster.runtime_kind == "TrainingRuntime"
    plural = "trainingruntimes" if is_namespaced else "clustertrainingruntimes"
    original = api.get(plural, cluster.runtime, is_namespaced)
    if original is None:
        raise StabnError(f"no {cluster.runtime_kind} {cluster.runtime}: apply k8s/base, or set STABN_TRAINJOB_RUNTIME")
    api.create("trainingruntimes", build_runtime(original, work.name, cluster))
    made = api.create("trainjobs", manifest)
    owner = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "TrainJob", "name": work.name, "uid": made["metadata"]["uid"]}
    api.patch("trainingruntimes", work.name, {"metadata": {"ownerReferences": [owner]}})  # goes with the job


def _delete(api: KubeApi, work: Work, cluster: ClusterConfig) -> None:
    """Delete the job with its pods, and see it gone."""
    limit = cluster.grace_seconds + 120
    until = time.monotonic() + limit
    for plural in _plurals(cluster):
        api.delete(plural, work.name)
        while api.get(plural, work.name) is not None:
            if time.monotonic() > until:
                raise RetryableError(f"{plural}/{work.name} is not gone {clock(limit)} after it was deleted")
            time.sleep(min(1.0, cluster.poll_seconds))


def _clean_up(api: KubeApi, work: Work, cluster: ClusterConfig, tell: Callable[[str], None]) -> None:
    """Have the job deleted, without waiting for it and without hiding how it ended."""
    for plural in _plurals(cluster):
        try:
            api.delete(plural, work.name, STEP_GRACE_SECONDS)
        except StabnError as error:
            tell(f"{plural}/{work.name} is left behind, delete it: {error}")


def _plurals(cluster: ClusterConfig) -> tuple[str, ...]:
    return ("trainjobs", "trainingruntimes") if needs_own_runtime(cluster) else ("trainjobs",)


def _show_end(cause: Cause, cluster: ClusterConfig, tell: Callable[[str], None]) -> None:
    if cause.pod and (lines := without_launcher(cause.pod.lines)):
        tell(f"the last lines of {cause.pod.label}:")
        for line in lines[-cluster.tail_lines :]:
            tell(f"  | {line}")
