"""A stage on several nodes: a Kubeflow TrainJob that is built from settings, submitted, followed and ended.

`build_trainjob` makes the manifest and nothing else; `run_trainjob` sends it, shows in the step's log what the job
does, starts it again after an eviction or the loss of a machine, and deletes it in the end, whatever the end is.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from components.cluster.api import GROUP, VERSION, ApiUnavailable, ClusterError, KubeApi
from components.cluster.config import ClusterConfig
from components.cluster.follow import Follower
from components.cluster.logs import clock
from components.cluster.manifest import Work, build_runtime, build_trainjob, needs_own_runtime, passed_on, run_selector
from components.cluster.pods import Cause, without_launcher
from stabn.errors import Overdue, RetryableError, StabnError
from stabn.signals import Terminated, exit_on_signals

__all__ = ["ClusterConfig", "JobFailed", "Work", "build_trainjob", "passed_on", "run_trainjob"]

CLEAN_UP_SECONDS = 20.0  # of the thirty that Kubernetes gives a step that is to end
UNSEEN, UNSEEN_SECONDS = "must be created before the TrainJob", 15.0  # Trainer's words, and how long they may be wrong
GONE_SECONDS = 120.0  # beyond their time to save, after which the pods of a deleted job are on no machine that lives


class JobFailed(StabnError):
    """The work failed, and the same work would again."""


def run_trainjob(
    work: Work, cluster: ClusterConfig, api: KubeApi | None = None, say: Callable[[str], None] | None = None
) -> None:
    """Have the work done: return when it is.

    A step that is tried again finds the job of its former attempt and follows that. The job is deleted in the end,
    also when the step is told to end (SIGTERM) or the job fails; only if Kubernetes does not answer it goes on.

    Raises:
        RetryableError: evicted or lost more often than `max_restarts`, or Kubernetes is away; another try goes on from
            the last checkpoint.
        JobFailed: the work failed, and would again; the last lines of the node that explains it were shown.
        StabnError: Kubernetes refuses the job.
    """
    api = api or KubeApi(cluster.namespace, cluster.api_minutes * 60)
    tell = say or (lambda line: print(line, flush=True))
    with exit_on_signals():
        try:
            work = _submit(api, work, cluster, tell)
            while cause := Follower(api, work.name, work.num_nodes, cluster, tell).run():
                _show_end(cause, cluster, tell)
                message = f"TrainJob {work.name} failed: {cause.reason}"
                if not cause.is_retryable:
                    raise JobFailed(message)
                if work.restarts >= cluster.max_restarts:
                    raise Overdue(f"{message}; it was started again {work.restarts} times already")
                again = dataclasses.replace(work, restarts=work.restarts + 1)
                tell(f"{message}; started again from its last checkpoint, {again.restarts} of {cluster.max_restarts}")
                _delete(api, work, cluster, tell)
                work = again
                _create(api, work, cluster)
        except ApiUnavailable:
            raise
        except (Terminated, KeyboardInterrupt):
            # First of all: KFP's launcher dies of the same signal, and this process with it within a second.
            _clean_up(api, work, cluster, tell)
            tell(f"TrainJob {work.name}: deleted, since the step is told to end")
            raise
        except Exception:
            _clean_up(api, work, cluster, tell)
            raise
        tell(f"TrainJob {work.name}: complete")
        _clean_up(api, work, cluster, tell)


def delete_jobs_of(run_id: str) -> list[str]:
    """Delete the TrainJobs that steps of a pipeline run have left behind, killed or with their node; return which.

    Raises:
        RetryableError: Kubernetes does not answer.
        StabnError: it refuses.
    """
    if not run_id:
        return []
    cluster = ClusterConfig.load()
    api = KubeApi(cluster.namespace, cluster.api_minutes * 60)
    names = api.names("trainjobs", run_selector(run_id))
    for name in names:
        api.delete("trainjobs", name)
    return names


def _submit(api: KubeApi, work: Work, cluster: ClusterConfig, tell: Callable[[str], None]) -> Work:
    """Create the job, or find that of a former attempt; return the work as that job has it.

    Raises:
        RetryableError: jobs of former attempts are on machines that do not answer, as many as may be.
    """
    free = []
    for restarts in reversed(range(cluster.max_restarts + 1)):
        candidate = dataclasses.replace(work, restarts=restarts)
        job = api.get("trainjobs", candidate.name)
        conditions = {item["type"]: item["status"] for item in (job or {}).get("status", {}).get("conditions", [])}
        if job and "deletionTimestamp" not in job["metadata"] and conditions.get("Failed") != "True":
            tell(f"TrainJob {candidate.name} of a former attempt of this step is there; it is followed")
            return candidate
        if job is None or _delete(api, candidate, cluster, tell):
            free.append(candidate)
    if not free:
        raise RetryableError(f"TrainJob {work.name}: every job of former attempts is still being deleted")
    work = free[-1]
    tell(
        f"TrainJob {work.name} in namespace {api.namespace}: {work.num_nodes} nodes of {work.procs_per_node} processes"
        + (f" on {work.accelerator}" if work.accelerator else "")
    )
    _create(api, work, cluster)
    return work


def _create(api: KubeApi, work: Work, cluster: ClusterConfig) -> None:
    manifest = build_trainjob(work, cluster, api.namespace)
    if not needs_own_runtime(cluster):
        api.create("trainjobs", manifest)
        return
    is_namespaced = cluster.runtime_kind == "TrainingRuntime"
    plural = "trainingruntimes" if is_namespaced else "clustertrainingruntimes"
    original = api.get(plural, cluster.runtime, is_namespaced)
    if original is None:
        raise StabnError(f"no {cluster.runtime_kind} {cluster.runtime}: apply k8s/base, or set STABN_TRAINJOB_RUNTIME")
    api.create("trainingruntimes", build_runtime(original, work.name, cluster))
    made = _create_with(api, manifest)
    owner = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "TrainJob", "name": work.name, "uid": made["metadata"]["uid"]}
    api.patch("trainingruntimes", work.name, {"metadata": {"ownerReferences": [owner]}})  # goes with the job


def _create_with(api: KubeApi, manifest: dict[str, Any]) -> dict[str, Any]:
    """Create a job whose runtime was made a moment ago: Trainer's webhook may not have seen it yet."""
    until = time.monotonic() + UNSEEN_SECONDS
    while True:
        try:
            return api.create("trainjobs", manifest)
        except ClusterError as error:
            if UNSEEN not in str(error) or time.monotonic() > until:
                raise
            time.sleep(UNSEEN_SECONDS / 30)


def _delete(api: KubeApi, work: Work, cluster: ClusterConfig, tell: Callable[[str], None]) -> bool:
    """Delete the job with its pods; return whether it is gone.

    A pod on a machine that is dead stays, and the job with it, until somebody removes the machine from the cluster.
    """
    limit = cluster.grace_seconds + GONE_SECONDS
    until = time.monotonic() + limit
    for plural in _plurals(cluster):
        api.delete(plural, work.name)
        while api.get(plural, work.name) is not None:
            if time.monotonic() > until:
                tell(f"{plural}/{work.name} is not gone {clock(limit)} after it was deleted: a machine does not answer")
                return False
            time.sleep(min(1.0, cluster.poll_seconds))
    return True


def _clean_up(api: KubeApi, work: Work, cluster: ClusterConfig, tell: Callable[[str], None]) -> None:
    """Have the job deleted, without waiting for it and without hiding how it ended."""
    for plural in _plurals(cluster):
        try:
            api.delete(plural, work.name, CLEAN_UP_SECONDS)
        except StabnError as error:
            tell(f"{plural}/{work.name} is left behind, delete it: {error}")


def _plurals(cluster: ClusterConfig) -> tuple[str, ...]:
    return ("trainjobs", "trainingruntimes") if needs_own_runtime(cluster) else ("trainjobs",)


def _show_end(cause: Cause, cluster: ClusterConfig, tell: Callable[[str], None]) -> None:
    if cause.pod and (lines := without_launcher(cause.pod.lines)):
        tell(f"the last lines of {cause.pod.label}:")
        for line in lines[-cluster.tail_lines :]:
            tell(f"  | {line}")
