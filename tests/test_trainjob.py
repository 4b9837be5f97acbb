"""TrainJobs: manifests that Kubernetes takes, and steps that follow a job to any end it may come to."""

import copy
import datetime
import functools
import json
import os
import queue
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kube_server import NAMESPACE, RUNTIME, KubeServer, kube_server, refusals, run_processes, unknown_fields
from kubeflow_trainer_api import models

from components.cluster.api import ApiUnavailable, KubeApi
from components.cluster.config import ClusterConfig, variables
from components.cluster.logs import LogFollower, Overall
from components.cluster.manifest import build_runtime, checked
from components.cluster.pods import Pod, find_cause, without_launcher
from components.component import run_step
from components.end_run import run_end
from components.trainjob import Work, build_trainjob, passed_on, run_trainjob
from stabn.config import ConfigError
from stabn.data.edit_table import EDIT_SCHEMA
from stabn.errors import RetryableError, StabnError

ROOT = Path(__file__).parent.parent
COMMAND = ("torchrun", "-m", "stabn.cli", "train", "--manifest=s3://data/manifest.parquet", "--preset=mini")
WORK = Work(stage="train", command=COMMAND, num_nodes=2, procs_per_node=2, run_id="run-1")
EVERYTHING = ClusterConfig(
    image="registry.example/stabn-trainer:1",
    service_account="trainer",
    secrets=("AWS_ACCESS_KEY_ID=s3/id", "AWS_SECRET_ACCESS_KEY=s3/key", "MLFLOW_TRACKING_PASSWORD=mlflow/password"),
    env=("NCCL_DEBUG=WARN",),
    node_selector=("gpu.example/model=h200",),
    tolerations=("nvidia.com/gpu:NoSchedule", "team=research", "spot=true:NoExecute"),
    topology_key="kubernetes.io/hostname",
    pull_secrets=("registry",),
    priority_class="training",
    queue="research-queue",
    run_as_user=1000,
)


def config(**changes: Any) -> ClusterConfig:
    """Return settings with which a test takes no time."""
    fast = {"image": "stabn-trainer:1", "poll_seconds": 0.05, "api_minutes": 0.5, "grace_seconds": 1}
    return ClusterConfig(**{**fast, **changes})


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeServer]:
    """Return a cluster that KUBECONFIG leads to."""
    monkeypatch.setattr("components.cluster.api.RETRY_STARTS_AT", 0.01)
    monkeypatch.setattr("components.cluster.follow.SETTLE_SECONDS", 5.0)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with kube_server(tmp_path) as (server, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        yield server
        assert not server.errors, server.errors


def run(cluster: KubeServer, *controllers: Callable[..., None], work: Work = WORK, **changes: Any) -> list[str]:
    """Run a job to its end and return what the step said; `lines` of an error hold it too."""
    cluster.controllers = list(controllers)
    lines: list[str] = []
    try:
        run_trainjob(work, config(**changes), say=lines.append)
    except StabnError as error:
        error.lines = lines  # type: ignore[attr-defined]
        raise
    return lines


def succeed(cluster: KubeServer, job: dict[str, Any]) -> None:
    """Be a job that works."""
    first, second = cluster.start_pods(job)
    cluster.write(first, "train: 16 videos a step", "train epoch 1/2  10/20 videos  5/s  0:02 left  loss 1.2")
    cluster.write(second, "nothing of interest")
    for name in (second, first):
        cluster.end(name, 0)
    cluster.condition(job, "Complete", "AllJobsCompleted")


# The manifest.


def refused(manifest: dict[str, Any], runtime: dict[str, Any] = RUNTIME) -> list[str]:
    name = manifest["spec"]["runtimeRef"]["name"]
    return refusals(manifest, {name: runtime})


@pytest.mark.parametrize("settings", [config(), EVERYTHING], ids=["defaults", "everything"])
@pytest.mark.parametrize("accelerator", ["", "nvidia.com/gpu"])
def test_manifests_are_what_the_api_takes(settings: ClusterConfig, accelerator: str) -> None:
    work = Work(stage="train", command=COMMAND, num_nodes=2, procs_per_node=4, accelerator=accelerator, run_id="Run_1")
    manifest = build_trainjob(work, settings, NAMESPACE)
    assert refused(manifest) == []
    assert json.loads(json.dumps(manifest)) == manifest, "plain JSON"


@pytest.mark.parametrize(
    "path",
    [
        ("spec", "trainer", "numProcsPerNode"),
        ("spec", "podTemplateOverrides"),
        ("spec", "trainer", "resourcesPerNode", "limit"),
        ("metadata", "label"),
        ("spec", "runtimePatches", 0, "trainingRuntimeSpec", "template", "spec", "replicatedJobs", 0, "templates"),
    ],
    ids=lambda path: str(path[-1]),
)
def test_a_misspelt_field_is_found(path: tuple[Any, ...]) -> None:
    manifest = build_trainjob(WORK, EVERYTHING)
    broken = copy.deepcopy(manifest)
    place: Any = broken
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = {"a": "b"}
    models.TrainerV1alpha1TrainJob.from_dict(copy.deepcopy(broken))  # does not notice
    assert unknown_fields(models.TrainerV1alpha1TrainJob, broken, "TrainJob")
    with pytest.raises(ConfigError, match=str(path[-1])):
        checked(broken)
    assert checked(manifest) == manifest


def test_a_field_deep_in_the_pod_is_found() -> None:
    manifest = build_trainjob(WORK, EVERYTHING)
    pod(manifest)["priorityClassName"] = "training"  # a field of pods that Trainer lets nobody patch
    assert unknown_fields(models.TrainerV1alpha1TrainJob, manifest, "TrainJob")
    with pytest.raises(ConfigError, match="priorityClassName"):
        checked(manifest)


def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    (patch,) = manifest["spec"]["runtimePatches"]
    (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    return job["template"]["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def test_pods_fulfil_the_restricted_standard_and_write_only_where_they_may() -> None:
    spec = pod(build_trainjob(WORK, config()))
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = spec["containers"]
    security = container["securityContext"]
    assert security["allowPrivilegeEscalation"] is False and security["capabilities"] == {"drop": ["ALL"]}
    assert security["readOnlyRootFilesystem"] is True
    mounts = {item["mountPath"]: item["name"] for item in container["volumeMounts"]}
    volumes = {item["name"]: item["emptyDir"] for item in spec["volumes"]}
    env = {item["name"]: item.get("value") for item in build_trainjob(WORK, config())["spec"]["trainer"]["env"]}
    assert {"/tmp", "/dev/shm", env["HOME"]} == set(mounts) and env["TMPDIR"] == "/tmp"
    assert volumes[mounts["/dev/shm"]]["medium"] == "Memory" and set(volumes) == set(mounts.values())


def test_every_setting_is_in_the_manifest() -> None:
    manifest = build_trainjob(WORK, EVERYTHING)
    spec, trainer = pod(manifest), manifest["spec"]["trainer"]
    assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research-queue"
    assert spec["nodeSelector"] == {"gpu.example/model": "h200"}
    assert spec["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "team", "operator": "Equal", "value": "research"},
        {"key": "spot", "operator": "Equal", "value": "true", "effect": "NoExecute"},
    ]
    assert spec["imagePullSecrets"] == [{"name": "registry"}] and spec["serviceAccountName"] == "trainer"
    assert spec["securityContext"]["runAsUser"] == 1000
    env = {item["name"]: item for item in trainer["env"]}
    assert env["AWS_SECRET_ACCESS_KEY"]["valueFrom"] == {"secretKeyRef": {"name": "s3", "key": "key"}}
    assert env["NCCL_DEBUG"]["value"] == "WARN"
    (first, *_) = build_trainjob(WORK, config())["spec"]["trainer"]["env"]
    by_default = {"name": "stabn-s3", "key": "AWS_ACCESS_KEY_ID", "optional": True}
    assert first == {"name": "AWS_ACCESS_KEY_ID", "valueFrom": {"secretKeyRef": by_default}}
    assert (trainer["numNodes"], trainer["numProcPerNode"], trainer["command"]) == (2, 2, list(COMMAND))
    own = build_runtime(RUNTIME, WORK.name, EVERYTHING)
    assert unknown_fields(models.TrainerV1alpha1TrainingRuntime, own, "TrainingRuntime") == []
    own_pod = own["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert own_pod["priorityClassName"] == "training"
    assert own_pod["topologySpreadConstraints"][0]["topologyKey"] == "kubernetes.io/hostname"
    assert manifest["spec"]["runtimeRef"] == {
        "apiGroup": "trainer.kubeflow.org",
        "kind": "TrainingRuntime",
        "name": own["metadata"]["name"],
    }


@pytest.mark.parametrize(("nodes", "processes"), [(1, 1), (2, 8)])
def test_a_node_grows_with_its_processes(nodes: int, processes: int) -> None:
    work = Work(stage="train", command=COMMAND, num_nodes=nodes, procs_per_node=processes, accelerator="nvidia.com/gpu")
    own = config(cpu="500m", cpu_limit="1.5", memory="60Gi", shm_size="8Gi")
    manifest = build_trainjob(work, own)
    resources = manifest["spec"]["trainer"]["resourcesPerNode"]
    both = {"memory": f"{60 * processes}Gi", "nvidia.com/gpu": str(processes)}
    assert resources["requests"] == {"cpu": f"{500 * processes}m", **both}
    assert resources["limits"] == {"cpu": "1.5" if processes == 1 else "12", **both}
    assert f"'sizeLimit': '{8 * processes}Gi'" in str(manifest["spec"]["runtimePatches"])
    small = build_trainjob(work, config(memory="384Mi", memory_limit="2Gi"))["spec"]["trainer"]["resourcesPerNode"]
    asked, allowed = small["requests"]["memory"], small["limits"]["memory"]
    assert (asked, allowed) == (f"{384 * processes}Mi", f"{2 * processes}Gi")
    plain = build_trainjob(work, config())["spec"]["trainer"]["resourcesPerNode"]
    assert plain["limits"] == plain["requests"], "without a limit of its own a node has what it is promised"


def test_a_dollar_in_a_command_is_not_a_variable() -> None:
    work = Work(stage="train", command=("stabn", "--name=$(HOME)"), num_nodes=1)
    assert build_trainjob(work, config())["spec"]["trainer"]["command"][1] == "--name=$$(HOME)"


def test_names_differ_with_run_command_and_shape_only() -> None:
    def name(**changes: Any) -> str:
        return Work(**{"stage": "train", "command": COMMAND, "num_nodes": 2, "run_id": "a", **changes}).name

    same = {name(), name(env={"A": "b"})}
    others = {name(run_id="b"), name(command=(*COMMAND, "x")), name(num_nodes=3), name(procs_per_node=2)}
    assert len(same) == 1 and len(others) == 4 and not same & others
    assert re.fullmatch(r"stabn-train-[0-9a-f]{16}", name())


def test_nodes_take_over_tracking_and_storage_but_nothing_secret() -> None:
    env = {
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "STABN_RUN_ID": "r",
        "AWS_ENDPOINT_URL": "http://s3",
        "STABN_TRAINJOB_IMAGE": "i",
        "AWS_SECRET_ACCESS_KEY": "s",
        "MLFLOW_TRACKING_PASSWORD": "p",
        "MLFLOW_TRACKING_TOKEN": "t",
        "HOME": "/root",
        "PET_NNODES": "3",
    }
    assert set(passed_on(env)) == {"MLFLOW_TRACKING_URI", "STABN_RUN_ID", "AWS_ENDPOINT_URL"}
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI holds a password"):
        passed_on({"MLFLOW_TRACKING_URI": "http://me:secret@mlflow"})


# The settings.


def test_settings_come_from_the_environment() -> None:
    env = {
        "STABN_TRAINJOB_CPU": "8",
        "STABN_TRAINJOB_SECRETS": "A=s/k, B=s/l",
        "STABN_TRAINJOB_TOPOLOGY_REQUIRED": "true",
        "STABN_TRAINJOB_MAX_RESTARTS": "5",
        "STABN_TRAINJOB_QUEUE": "",
    }
    read = ClusterConfig.load({**env, "OTHER": "x"})
    assert (read.cpu, read.secrets, read.topology_required, read.max_restarts) == ("8", ("A=s/k", "B=s/l"), True, 5)
    assert ClusterConfig.load({}) == ClusterConfig()
    assert ClusterConfig.load({"STABN_TRAINJOB_SECRETS": "none"}).secrets == ()


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("MEMORRY", "1Gi", r"STABN_TRAINJOB_MEMORRY: no such setting; there are .*STABN_TRAINJOB_MEMORY"),
        ("MEMORY", "much", r"STABN_TRAINJOB_MEMORY = 'much': write an amount"),
        ("MAX_RESTARTS", "many", r"STABN_TRAINJOB_MAX_RESTARTS = 'many': expected a whole number"),
        ("PENDING_MINUTES", "-1", r"STABN_TRAINJOB_PENDING_MINUTES = -1.0: must be at least"),
        ("SECRETS", "AWS_KEY=justasecret", r"STABN_TRAINJOB_SECRETS: 'AWS_KEY=justasecret': write VARIABLE=secret/key"),
        ("TOLERATIONS", "a:Never", r"STABN_TRAINJOB_TOLERATIONS: 'a:Never': write key"),
        ("ENV", "PET_NNODES=4", r"STABN_TRAINJOB_ENV: 'PET_NNODES=4': variables PET_"),
        ("RUNTIME_KIND", "Job", r"STABN_TRAINJOB_RUNTIME_KIND = 'Job': choose one of"),
    ],
)
def test_settings_that_do_not_fit_are_named(variable: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ClusterConfig.load({f"STABN_TRAINJOB_{variable}": value})


def test_the_page_explains_every_setting() -> None:
    page = (ROOT / "docs" / "cluster-training.md").read_text()
    assert [name for name in variables() if f"`{name.removeprefix('STABN_TRAINJOB_')}`" not in page] == []


def test_no_image_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(ConfigError, match="STABN_TRAINJOB_IMAGE"):
        build_trainjob(WORK, ClusterConfig())


def test_settings_come_from_a_mounted_config_map_and_the_environment_goes_before(tmp_path: Path) -> None:
    (tmp_path / "..data").mkdir()  # as Kubernetes mounts it
    (tmp_path / "STABN_TRAINJOB_CPU").write_text("8\n")
    (tmp_path / "STABN_TRAINJOB_MEMORY").write_text("64Gi")
    read = ClusterConfig.load({"STABN_TRAINJOB_CPU": "2"}, tmp_path)
    assert (read.cpu, read.memory) == ("2", "64Gi")
    (tmp_path / "MEMORY").write_text("1Gi")
    with pytest.raises(ConfigError, match=r"^MEMORY: no such setting; there are STABN_TRAINJOB_NAMESPACE"):
        ClusterConfig.load({}, tmp_path)


# Following.


def test_a_job_that_works(cluster: KubeServer) -> None:
    lines = run(cluster, succeed)
    assert "train: 16 videos a step" in lines and not any("nothing of interest" in line for line in lines)
    assert any("2 nodes of 2 processes" in line for line in lines)
    assert lines[-1] == f"TrainJob {WORK.name}: complete"
    cluster.wait_for(lambda: cluster.deleted == [WORK.name])


def test_what_the_trainer_reports_to_kubernetes_is_shown(cluster: KubeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once each, instead of what the log's lines let guess."""
    monkeypatch.setattr("components.cluster.follow.PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr("components.cluster.logs.PROGRESS_SECONDS", 0.0)

    def controller(cluster: KubeServer, job: dict[str, Any]) -> None:
        first, second = cluster.start_pods(job)
        for percent in (10, 37):
            with cluster.changed:
                status = cluster.jobs[WORK.name].setdefault("status", {})
                status["trainerStatus"] = {"progressPercentage": percent, "estimatedRemainingSeconds": 4200}
                status["trainerStatus"]["metrics"] = [{"name": "loss", "value": "2.31"}]
            time.sleep(0.4)
            cluster.write(first, f"train epoch {1 + percent // 30}/2  10/20 videos  5/s  0:02 left  loss 1.2")
        for name in (second, first):
            cluster.end(name, 0)
        cluster.condition(job, "Complete", "AllJobsCompleted")

    lines = run(cluster, controller)
    told = [line for line in lines if line.startswith(f"TrainJob {WORK.name}: ") and "%" in line]
    assert told == [f"TrainJob {WORK.name}: {n}%, about 1:10:00 left, loss 2.31" for n in (10, 37)]


def test_pending_says_why_and_ends_at_its_deadline(cluster: KubeServer) -> None:
    message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."

    def wait(cluster: KubeServer, job: dict[str, Any]) -> None:
        for name in cluster.start_pods(job, "Pending"):
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
            cluster.set_status(name, conditions=[condition])
            cluster.event(name, "FailedScheduling", message)

    with pytest.raises(StabnError, match=r"did not start within 0:01 .*3 Insufficient nvidia.com/gpu") as failed:
        run(cluster, wait, pending_minutes=0.02)
    assert failed.value.exit_code == 2 and "\n" not in str(failed.value)
    said = [line for line in failed.value.lines if message in line and "FailedScheduling" in line]  # type: ignore[attr-defined]
    assert len(said) == 2, "each pod's event, once"
    cluster.wait_for(lambda: cluster.deleted)


def test_pods_that_are_not_even_made_are_explained(cluster: KubeServer) -> None:
    def refuse(cluster: KubeServer, job: dict[str, Any]) -> None:
        cluster.event(f"{job['metadata']['name']}-node-0", "FailedCreate", "exceeded quota: gpus", kind="Job")

    with pytest.raises(StabnError, match="exceeded quota: gpus"):
        run(cluster, refuse, pending_minutes=0.01)


def test_an_image_that_cannot_be_is_not_waited_for(cluster: KubeServer) -> None:
    def wait(cluster: KubeServer, job: dict[str, Any]) -> None:
        name, _ = cluster.start_pods(job, "Pending")
        waiting = {"waiting": {"reason": "InvalidImageName", "message": "couldn't parse image name"}}
        cluster.set_status(name, containerStatuses=[{"name": "node", "state": waiting}])

    with pytest.raises(StabnError, match="cannot start: InvalidImageName: couldn't parse"):
        run(cluster, wait)


def test_a_missing_secret_is_not_waited_for_until_the_deadline(
    cluster: KubeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("components.cluster.follow.STUCK_SECONDS", 0.3)

    def wait(cluster: KubeServer, job: dict[str, Any]) -> None:
        name, _ = cluster.start_pods(job, "Pending")
        waiting = {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "stabn-s3" not found'}}
        cluster.set_status(name, containerStatuses=[{"name": "node", "state": waiting}])

    with pytest.raises(StabnError, match='cannot start: CreateContainerConfigError: secret "stabn-s3" not found'):
        run(cluster, wait)


def test_a_queue_is_waited_in(cluster: KubeServer) -> None:
    def queue_then_run(cluster: KubeServer, job: dict[str, Any]) -> None:
        assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
        cluster.condition(job, "Suspended", "Suspended", "TrainJob is suspended")
        time.sleep(0.3)
        cluster.condition(job, "Suspended", "Resumed", "", status="False")
        succeed(cluster, job)

    assert "waiting: suspended in queue team: TrainJob is suspended" in run(cluster, queue_then_run, queue="team")


def test_a_job_that_its_queue_suspends_comes_back(cluster: KubeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.cluster.follow.LOST_SECONDS", 0.1)

    def be_preempted(cluster: KubeServer, job: dict[str, Any]) -> None:
        names = cluster.start_pods(job)
        cluster.condition(job, "Suspended", "Suspended", "preempted by a job of higher priority")
        for name in names:
            cluster.tell_to_go(name)
        time.sleep(1.6)
        for name in names:
            cluster.remove(name)
        cluster.condition(job, "Suspended", "Resumed", "", status="False")
        succeed(cluster, job)

    lines = run(cluster, be_preempted, queue="team")
    assert len(cluster.created) == 1 and any("preempted by a job of higher priority" in line for line in lines)


def test_running_too_long_ends(cluster: KubeServer) -> None:
    with pytest.raises(StabnError, match="did not end within 0:01"):
        run(cluster, lambda cluster, job: cluster.start_pods(job), running_hours=1 / 3600)
    cluster.wait_for(lambda: cluster.deleted)


TORCHRUN_TABLE = [
    "Traceback (most recent call last):",
    "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: ",
    "Root Cause (first observed failure):",
    "  rank      : 1 (local_rank: 0)",
]


def test_a_failure_is_one_line_with_the_pods_last_lines(cluster: KubeServer) -> None:
    def fail(cluster: KubeServer, job: dict[str, Any]) -> None:
        first, second = cluster.start_pods(job)
        cluster.write(second, "stabn train: s3://data/m.parquet: not a manifest; extract the frames again")
        cluster.write(second, *TORCHRUN_TABLE, "  exitcode  : 2 (pid: 77)")
        cluster.end(second, 1)
        time.sleep(0.05)
        cluster.write(first, "RuntimeError: Connection closed by peer [10.0.0.2]:3333", *TORCHRUN_TABLE)
        cluster.write(first, "  exitcode  : 1 (pid: 78)")
        cluster.end(first, 1)
        cluster.condition(job, "Failed", "JobsFailed", "jobset failed due to one or more job failures")

    with pytest.raises(StabnError, match=r"node 1 \(\S+ on worker-1\) s3://data/m.parquet: not a manifest") as failed:
        run(cluster, fail)
    assert failed.value.exit_code == 2 and "\n" not in str(failed.value)
    lines = failed.value.lines  # type: ignore[attr-defined]
    assert "  | stabn train: s3://data/m.parquet: not a manifest; extract the frames again" in lines
    assert any(line.startswith("node 1: stabn") or "node 1: " in line for line in lines)
    assert len(cluster.created) == 1, "it would fail again"
    cluster.wait_for(lambda: cluster.deleted)


def test_out_of_memory_is_final_and_says_what_to_change(cluster: KubeServer) -> None:
    def fail(cluster: KubeServer, job: dict[str, Any]) -> None:
        first, second = cluster.start_pods(job)
        cluster.write(second, "ConnectionResetError: [Errno 104] Connection reset by peer")
        cluster.end(second, 1)
        cluster.end(first, 137, "OOMKilled")
        cluster.condition(job, "Failed", "JobsFailed")

    with pytest.raises(StabnError, match=r"node 0 .* was out of memory: raise STABN_TRAINJOB_MEMORY") as failed:
        run(cluster, fail)
    assert failed.value.exit_code == 2


@pytest.mark.parametrize(
    ("line", "torchrun", "code", "reason", "is_retryable"),
    [
        ("stabn train: m.parquet: no such file", 2, 1, "m.parquet: no such file", False),
        ("stabn train: s3://b: no answer", 75, 1, "s3://b: no answer", True),
        ("ValueError: too many values", 1, 1, "ended with exit code 1: ValueError: too many values", False),
        ("[rank0]: torch.OutOfMemoryError: CUDA out of memory", 1, 1, "CUDA out of memory", False),
        ("working", -9, 1, "was ended by SIGKILL, often for want of memory", True),
        ("working", -6, 1, "was ended by SIGABRT", True),
        ("stabn train: process 0: another process of the run died", 75, 1, "lost another node: process 0", True),
        ("working", None, 143, "was ended by SIGTERM", True),
        ("exec: torchrun: not found", None, 127, "ended with exit code 127: Error", False),
    ],
)
def test_causes_are_told_apart(line: str, torchrun: int | None, code: int, reason: str, is_retryable: bool) -> None:
    table = [] if torchrun is None else [*TORCHRUN_TABLE, f"  exitcode  : {torchrun} (pid: 5)"]
    pod = Pod("u", "p", 0, phase="Failed", exit_code=code, reason="Error", lines=["line before", line, *table])
    other = Pod("v", "q", 1, phase="Running", gone=True)
    cause = find_cause([other, pod])
    assert cause is not None and cause.pod is pod and cause.is_retryable is is_retryable
    assert reason in cause.reason
    assert without_launcher(pod.lines) == ["line before", line]


def test_a_nodes_own_error_explains_more_than_that_others_lost_it() -> None:
    lost = "stabn train: process 0: another process of the run died or did not answer in time"
    table = [*TORCHRUN_TABLE, "  exitcode  : 75 (pid: 5)"]
    first = Pod("u", "p", 0, phase="Failed", exit_code=1, ended_at="2026-01-01T00:00:00Z", lines=[lost, *table])
    second = Pod("v", "q", 1, phase="Failed", exit_code=1, ended_at="2026-01-01T00:00:09Z", lines=["ValueError: seven"])
    cause = find_cause([first, second])
    assert cause is not None and cause.pod is second and not cause.is_retryable


def evict(cluster: KubeServer, job: dict[str, Any]) -> None:
    """Be a job whose second node is evicted."""
    first, second = cluster.start_pods(job)
    cluster.write(first, "train epoch 1/2")
    target = {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "TerminationByKubelet",
        "message": "low on memory",
    }
    cluster.end(second, 143, conditions=[target])
    cluster.write(first, "torch.distributed.DistBackendError: connection reset")
    cluster.end(first, 1)
    cluster.condition(job, "Failed", "JobsFailed")


def lose_machine(cluster: KubeServer, job: dict[str, Any]) -> None:
    """Be a job one of whose pods vanishes."""
    first, second = cluster.start_pods(job)
    cluster.write(first, "train epoch 2/2")
    cluster.wait_for(lambda: any(f"{second}/log" in request for request in cluster.requests))
    cluster.remove(second)
    cluster.end(first, 1)
    cluster.write(first, "RuntimeError: [gloo] Connection closed by peer")
    cluster.condition(job, "Failed", "JobsFailed")


def test_eviction_and_loss_start_the_job_again(cluster: KubeServer) -> None:
    lines = run(cluster, evict, lose_machine, succeed)
    names = [job["metadata"]["name"] for job in cluster.created]
    assert names == [WORK.name, f"{WORK.name}-1", f"{WORK.name}-2"]
    text = "\n".join(lines)
    assert "was ended by the cluster: TerminationByKubelet low on memory" in text
    assert "started again from its last checkpoint, 1 of 3" in text
    assert text.index("2 of 3") < text.index("train: 16 videos a step")


@pytest.mark.parametrize("order", ["machine first", "other node first"])
def test_a_machine_that_dies_is_not_waited_for(
    cluster: KubeServer, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    """Kubernetes does not call a job failed, nor remove it, while a pod of it may still run somewhere."""
    monkeypatch.setattr("components.cluster.follow.LOST_SECONDS", 0.2)
    monkeypatch.setattr("components.cluster.follow.SETTLE_SECONDS", 0.2)
    monkeypatch.setattr("components.trainjob.GONE_SECONDS", 0.2)

    def die(cluster: KubeServer, job: dict[str, Any]) -> None:
        first, second = cluster.start_pods(job)
        cluster.write(first, "train epoch 1/2")
        if order == "machine first":
            cluster.kill_machine(second)
            time.sleep(0.3)
        cluster.write(first, "RuntimeError: [gloo] Connection closed by peer")
        cluster.end(first, 1)
        if order == "other node first":
            time.sleep(0.3)
            cluster.kill_machine(second)

    def elsewhere(cluster: KubeServer, job: dict[str, Any]) -> None:
        assert cluster.jobs[WORK.name]["metadata"]["deletionTimestamp"], "it cannot be removed"
        succeed(cluster, job)

    lines = run(cluster, die, elsewhere)
    assert [job["metadata"]["name"] for job in cluster.created] == [WORK.name, f"{WORK.name}-1"]
    text = "\n".join(lines)
    assert "started again from its last checkpoint, 1 of 3" in text and "a machine does not answer" in text
    assert "did not start within" not in text
    run(cluster, succeed)
    assert cluster.created[-1]["metadata"]["name"] == f"{WORK.name}-1", "the first name that is free"


def test_restarts_have_a_limit_and_then_the_step_may_be_retried(cluster: KubeServer) -> None:
    with pytest.raises(RetryableError, match="started again 1 times already") as failed:
        run(cluster, evict, max_restarts=1)
    assert failed.value.exit_code == 75 and len(cluster.created) == 2


def test_a_stages_own_retryable_failure_restarts(cluster: KubeServer) -> None:
    def storage_is_away(cluster: KubeServer, job: dict[str, Any]) -> None:
        first, second = cluster.start_pods(job)
        cluster.write(first, "stabn train: s3://data: no answer", *TORCHRUN_TABLE, "  exitcode  : 75 (pid: 7)")
        cluster.end(first, 1)
        cluster.remove(second)
        cluster.condition(job, "Failed", "JobsFailed")

    assert any("s3://data: no answer; started again" in line for line in run(cluster, storage_is_away, succeed))


def test_the_log_of_a_crashed_container_is_shown(cluster: KubeServer) -> None:
    def crash(cluster: KubeServer, job: dict[str, Any]) -> None:
        first, second = cluster.start_pods(job)
        cluster.wait_for(lambda: f"{first}/log" in "".join(cluster.requests))
        cluster.previous[second] = ["ImportError: libcuda.so.1"]
        cluster.run(second, restarts=1, terminated={"exitCode": 1, "reason": "Error"})
        time.sleep(0.2)
        cluster.end(second, 0)
        cluster.end(first, 0)
        cluster.condition(job, "Complete")

    lines = run(cluster, crash)
    where = next(i for i, line in enumerate(lines) if "its container ended (Error, exit code 1)" in line)
    assert lines[where + 1] == "  | ImportError: libcuda.so.1"


def test_a_runtime_that_fails_without_pods_is_explained(cluster: KubeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.cluster.follow.SETTLE_SECONDS", 0.2)

    def fail(cluster: KubeServer, job: dict[str, Any]) -> None:
        cluster.condition(job, "Failed", "TrainingRuntimeNotSupported", "the runtime is not supported")

    with pytest.raises(StabnError, match="TrainingRuntimeNotSupported: the runtime is not supported"):
        run(cluster, fail)


def test_a_job_that_ends_by_its_own_deadline_is_not_started_again(cluster: KubeServer) -> None:
    def fail(cluster: KubeServer, job: dict[str, Any]) -> None:
        first, second = cluster.start_pods(job)
        time.sleep(0.2)
        cluster.remove(first)
        cluster.remove(second)
        cluster.condition(job, "Failed", "DeadlineExceeded", "TrainJob exceeded its deadline")

    with pytest.raises(StabnError, match="DeadlineExceeded") as failed:
        run(cluster, fail)
    assert failed.value.exit_code == 2


def test_a_container_that_is_started_again_in_place_keeps_its_log(cluster: KubeServer) -> None:
    def restart(cluster: KubeServer, job: dict[str, Any]) -> None:
        first, second = cluster.start_pods(job)
        cluster.write(first, "first life")
        ended = {"terminated": {"exitCode": 1, "reason": "Error", "finishedAt": "2026-01-01T00:00:00Z"}}
        cluster.set_status(first, containerStatuses=[{"name": "node", "state": ended, "restartCount": 0}])
        time.sleep(0.3)
        cluster.run(first, restarts=1, terminated=ended["terminated"])
        cluster.write(first, "second life")
        cluster.end(first, 0)
        cluster.end(second, 0)
        cluster.condition(job, "Complete")

    lines = run(cluster, restart)
    assert [line for line in lines if line.endswith("life")] == ["first life", "second life"]


def test_a_job_that_somebody_deletes_is_not_waited_for(cluster: KubeServer) -> None:
    with pytest.raises(StabnError, match="was deleted by somebody"):
        run(cluster, lambda cluster, job: cluster.delete("trainjobs", job["metadata"]["name"]))


# What goes wrong between the step and the API.


def test_bad_answers_are_tried_again(cluster: KubeServer) -> None:
    cluster.fail("GET .*trainjobs", 500, 3)
    cluster.fail("POST .*trainjobs", 503, 2)
    cluster.fail("GET .*pods\\?labelSelector", 429, 1)
    cluster.fail("GET .*/log", 502, 2)
    cluster.fail("DELETE", 504, 2)
    lines = run(cluster, succeed)
    assert lines.count("train: 16 videos a step") == 1 and len(cluster.created) == 1
    cluster.wait_for(lambda: cluster.deleted == [WORK.name])


def test_a_creation_whose_answer_is_lost_makes_one_job(cluster: KubeServer) -> None:
    cluster.fail("POST .*trainjobs", 500, 1, arrives=True)
    run(cluster, succeed)
    assert len([request for request in cluster.requests if request.startswith("POST")]) == 2
    assert len(cluster.created) == 1


def test_dropped_watches_and_logs_lose_and_repeat_nothing(cluster: KubeServer) -> None:
    numbers = [f"line {i}" for i in range(60)]

    def drop(cluster: KubeServer, job: dict[str, Any]) -> None:
        first, second = cluster.start_pods(job)
        for i, line in enumerate(numbers):
            cluster.write(first, line)
            if i % 10 == 5:
                cluster.forget()
                cluster.drop_streams()
            time.sleep(0.01)
        cluster.drop_streams()
        cluster.end(first, 0)
        cluster.end(second, 0)
        cluster.condition(job, "Complete")

    lines = run(cluster, drop)
    assert [line for line in lines if line.startswith("line ")] == numbers
    assert sum("watch=True" in request or "watch=true" in request for request in cluster.requests) > 3


@pytest.mark.parametrize("zone", ["Z", "+09:00"])
def test_lines_of_one_moment_are_told_apart_after_a_break(zone: str) -> None:
    """Machines stamp lines in their own time zone, with as many digits as they like, several in one moment."""
    now = datetime.datetime.now(datetime.UTC if zone == "Z" else datetime.timezone(datetime.timedelta(hours=9)))
    stamp = now.strftime("%Y-%m-%dT%H:%M:%S")
    lines = [
        f"{stamp}{fraction}{zone} {i}" for i, fraction in enumerate((".1", ".123456789", ".123456789", ".2", ".2"))
    ]
    answers = [lines[:2], lines[1:4], ["unable to retrieve container logs"], lines]
    asked: list[int | None] = []
    taken: queue.Queue[Any] = queue.Queue()

    def follow_log(pod: str, container: str, since_seconds: int | None) -> Iterator[str]:
        asked.append(since_seconds)
        if len(asked) == len(answers):
            follower.ended.set()
        yield from answers[min(len(asked), len(answers)) - 1]

    follower = LogFollower(SimpleNamespace(follow_log=follow_log), Pod("u", "p", 0), taken, 0.01)  # type: ignore[arg-type]
    follower.run()
    assert [taken.get_nowait()[1][1] for _ in range(taken.qsize())] == ["0", "1", "2", "3", "4"]
    assert asked[0] is None and all(0 < since < 120 for since in asked[1:] if since is not None)


def test_an_api_that_stays_away_leaves_the_job_for_the_next_try(cluster: KubeServer) -> None:
    def run_on(cluster: KubeServer, job: dict[str, Any]) -> None:
        cluster.start_pods(job)
        cluster.fail(".", 503, 10_000)

    with pytest.raises(ApiUnavailable, match="no answer for 1 seconds") as failed:
        run(cluster, run_on, api_minutes=0.02)
    assert failed.value.exit_code == 75 and not cluster.deleted and WORK.name in cluster.jobs
    cluster._failures.clear()

    def go_on() -> None:
        for name in sorted(cluster.pods):
            cluster.write(name, "the rest")
            cluster.end(name, 0)
        cluster.condition(cluster.jobs[WORK.name], "Complete")

    go_on()
    lines = run(cluster, run_on)
    assert any("of a former attempt of this step is there" in line for line in lines) and "the rest" in lines
    assert len(cluster.created) == 1, "the second attempt found the first one's job"


def test_a_failed_job_of_a_former_attempt_is_replaced(cluster: KubeServer) -> None:
    cluster.controllers = [lambda cluster, job: None, succeed]
    cluster.create("trainjobs", build_trainjob(WORK, config(), NAMESPACE))
    cluster.condition(cluster.jobs[WORK.name], "Failed", "JobsFailed")
    run_trainjob(WORK, config(), say=lambda line: None)
    assert len(cluster.created) == 2


def test_a_job_that_the_api_refuses_is_final_and_says_why(cluster: KubeServer) -> None:
    with pytest.raises(StabnError, match="specified trainingRuntime must be created before") as failed:
        run(cluster, succeed, runtime="missing")
    assert failed.value.exit_code == 2 and "\n" not in str(failed.value)


def test_a_missing_permission_is_named(cluster: KubeServer) -> None:
    cluster.fail("POST .*trainjobs", 403)
    with pytest.raises(StabnError, match=r"create trainjobs/stabn-train-.* in namespace research: 403"):
        run(cluster, succeed)


def test_priority_and_spreading_come_with_a_runtime_of_the_jobs_own(cluster: KubeServer) -> None:
    seen: list[dict[str, Any]] = []
    cluster.webhook_lag = 2

    def look(cluster: KubeServer, job: dict[str, Any]) -> None:
        cluster.wait_for(lambda: "ownerReferences" in cluster.runtimes[job["metadata"]["name"]]["metadata"])
        seen.append(cluster.runtimes[job["spec"]["runtimeRef"]["name"]])
        (evict if len(seen) == 1 else succeed)(cluster, job)

    run(cluster, look, priority_class="training")
    assert len(seen) == 2
    for runtime in seen:
        job = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]
        assert job["template"]["spec"]["template"]["spec"]["priorityClassName"] == "training"
    cluster.wait_for(lambda: list(cluster.runtimes) == ["stabn-torch"] and not cluster.jobs)


def end(run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the last task of a pipeline's run that succeeded, without tracking."""
    monkeypatch.setenv("STABN_RUN_ID", run_id)
    monkeypatch.setenv("STABN_TRAINJOB_NAMESPACE", NAMESPACE)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run_step("end-run", run_end, {"status": SimpleNamespace(state="SUCCEEDED")})


def test_the_end_of_a_run_deletes_its_own_jobs_that_were_left(
    cluster: KubeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when a step was killed, or lost with its machine, before it could."""
    cluster.controllers = [lambda cluster, job: None]
    works = [Work(stage="train", command=COMMAND, num_nodes=2, run_id=run_id) for run_id in ("Run_1", "Run_2")]
    for work in works:
        KubeApi(NAMESPACE).create("trainjobs", build_trainjob(work, config(), NAMESPACE))
    end("Run_1", monkeypatch)
    assert f"TrainJob {works[0].name} was left behind; deleted" in capsys.readouterr().out
    cluster.wait_for(lambda: list(cluster.jobs) == [works[1].name])


@pytest.mark.parametrize(("status", "said"), [(404, "not found"), (403, "having a bad day"), (503, "no answer")])
def test_a_cluster_without_trainer_or_rights_does_not_fail_a_run_that_is_done(
    cluster: KubeServer, status: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STABN_TRAINJOB_API_MINUTES", "0.001")
    cluster.fail("GET .*trainjobs", status, times=100)
    end("Run_1", monkeypatch)
    captured = capsys.readouterr()
    assert "were not looked for" in captured.err and "end-run: the run succeeded" in captured.out


STEP = """
from components.trainjob import ClusterConfig, Work, run_trainjob
work = Work(stage="train", command={command!r}, num_nodes=2, procs_per_node=2, run_id="run-1")
run_trainjob(work, ClusterConfig(image="i", poll_seconds=0.05))
"""


@pytest.mark.parametrize("phase", ["Running", "Pending"])
def test_cancelling_the_run_deletes_the_job(cluster: KubeServer, phase: str) -> None:
    """A real process gets the signal that a cancelled step gets."""
    cluster.controllers = [lambda cluster, job: cluster.start_pods(job, phase)]  # type: ignore[list-item,return-value]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", STEP.format(command=COMMAND)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        cluster.wait_for(lambda: any("watch=" in request for request in cluster.requests), 60)
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1.0)  # all that is left once KFP's launcher has died of the same signal
    finally:
        process.kill()
    output, _ = process.communicate()
    assert "deleted, since the step is told to end" in output and "Traceback" not in output
    cluster.wait_for(lambda: cluster.deleted == [WORK.name])


def test_progress_of_the_whole_is_told_from_the_stages_own() -> None:
    overall = Overall()
    assert overall.read("train epoch 1/4  0/1,000 videos  0/s", 0.0) == ""
    assert overall.read("train epoch 1/4  500/1,000 videos  50/s", 30.0) == "", "not every line"
    said = overall.read("train epoch 2/4  0/1,000 videos  50/s  0:20 left", 100.0)
    assert said == "epoch 2 of 4, 25% of the whole, about 5:00 left"
    assert overall.read("train epoch 2: validation loss 1.2", 300.0) == ""


def test_outside_a_cluster_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
    with pytest.raises(StabnError, match="no access to a Kubernetes cluster"):
        KubeApi()


# Stages.


def write_edits(path: Path, curves: dict[str, list[float]]) -> str:
    """Write a table like that of import-edits."""
    rows = [{"video_id": name, "edited_attention": curve, "status": "edited"} for name, curve in curves.items()]
    header = json.dumps({"round_id": "round", "fingerprint": "f" * 16}).encode()
    pq.write_table(pa.Table.from_pylist(rows, schema=EDIT_SCHEMA.with_metadata({b"stabn": header})), path)
    return str(path)


def test_stages_run_on_two_nodes_as_they_do_on_one(
    cluster: KubeServer,
    small_dataset: Path,
    s3_uri: str,
    mlflow_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The pods' commands really run, as torchrun of two nodes each, with object storage between them and the step."""
    from mlflow import MlflowClient

    from components import nodes as stages
    from stabn.data.frames import extract_frames
    from stabn.evaluation.prediction_table import Predictions
    from stabn.presets import resolve
    from stabn.storage import open_storage

    for name, value in {
        "STABN_TRAINJOB_IMAGE": "stabn-trainer:1",
        "STABN_TRAINJOB_POLL_SECONDS": "0.1",
        "STABN_RUN_ID": "run-1",
        "STABN_PIPELINE": "full",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }.items():
        monkeypatch.setenv(name, value)
    cluster.controllers = [functools.partial(run_processes, lose_after="train epoch 3/"), run_processes]
    text = "train.epochs=4 train.batch_size=2 finetune.epochs=1 finetune.batch_size=2 extract.fps=0"
    settings = resolve("mini", text)
    manifest = str(tmp_path / "manifest")
    folders = (str(small_dataset / "videos"), str(small_dataset / "labels"))
    extract_frames(*folders, s3_uri, Path(manifest), tmp_path / "rejects", settings.extract)
    placement = stages.Placement(num_nodes=2)

    trained = stages.train(manifest, settings, s3_uri, placement)
    assert len(trained.history) == 4 and set(trained.metrics) >= {"validation_top1", "train_loss"}
    assert "--train.epochs=4" in cluster.created[0]["spec"]["trainer"]["command"]
    said = capfd.readouterr().out
    assert len(cluster.created) == 2 and "started again from its last checkpoint, 1 of 3" in said
    assert "train: goes on" in said[said.index("started again") :], "nothing that was saved is trained twice"

    def evaluate(name: str, placement: stages.Placement) -> Any:
        arguments = (trained.best_uri, manifest, "validation", "as_is", str(tmp_path / name), settings, name, s3_uri)
        return stages.evaluate(*arguments, placement)

    together, alone = evaluate("together", placement), evaluate("alone", stages.Placement())
    assert len(cluster.created) == 3, "one node and no accelerator need no job"
    assert together.metrics == pytest.approx(alone.metrics)
    first, second = (Predictions.load(tmp_path / name) for name in ("together", "alone"))
    assert first.video_ids == second.video_ids and first.top5.tolist() == second.top5.tolist()

    edits = write_edits(tmp_path / "edits", {"1": [0.5] * 24})
    places = (trained.best_uri, manifest, edits, settings, s3_uri, "finetune")
    finetuned, again = stages.finetune(*places, placement), stages.finetune(*places, stages.Placement())
    assert finetuned == again, "complete: not repeated"
    copied = list(open_storage(s3_uri).list("inputs/"))
    assert copied and not [key for key in copied if key.endswith(".pt")], "networks are where they are"

    client = MlflowClient(mlflow_uri)
    runs = client.search_runs([client.get_experiment_by_name("stabn").experiment_id])
    keys = sorted(run.data.tags.get("stabn.stage_key", "parent") for run in runs)
    evaluations = [f"evaluate/{name}/validation/as_is" for name in ("alone", "together")]
    assert keys == [*evaluations, "extract-frames", "finetune", "parent", "train"], (
        "one run per stage, whatever the number of nodes"
    )
    assert {run.data.tags.get("stabn.run_id") for run in runs} == {"run-1"}


def test_a_job_that_failed_for_good_is_not_tried_again_with_the_same_settings(
    cluster: KubeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KFP tries a failed step again, whatever its exit code."""
    from components.nodes import Placement, _run
    from stabn.presets import load

    def fail(cluster: KubeServer, job: dict[str, Any]) -> None:
        first, second = cluster.start_pods(job)
        cluster.end(first, 137, "OOMKilled")
        cluster.end(second, 1)
        cluster.condition(job, "Failed", "JobsFailed")

    monkeypatch.setenv("STABN_TRAINJOB_IMAGE", "stabn-trainer:1")
    monkeypatch.setenv("STABN_TRAINJOB_POLL_SECONDS", "0.05")
    monkeypatch.setenv("STABN_TRAINJOB_GRACE_SECONDS", "1")
    cluster.controllers = [fail, succeed]
    step = functools.partial(_run, "train", {}, load("mini"), Placement(2), str(tmp_path))
    with pytest.raises(StabnError, match="was out of memory"):
        step()
    cluster.wait_for(lambda: cluster.deleted)
    with pytest.raises(StabnError, match=r"out of memory.*the try before this one; .* delete \S+/failed/stabn-train"):
        step()
    assert len(cluster.created) == 1
    monkeypatch.setenv("STABN_TRAINJOB_MEMORY", "32Gi")
    step()
    assert len(cluster.created) == 2


def test_several_nodes_without_a_cluster_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from components.nodes import Placement

    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    assert Placement(1, 4, "nvidia.com/gpu").is_here
    with pytest.raises(ConfigError, match="num_nodes = 2: needs a Kubernetes cluster"):
        _ = Placement(2).is_here
    with pytest.raises(ConfigError, match=r"whole name, such as nvidia\.com/gpu"):
        Placement(2, 1, "gpu")


def test_a_component_ends_with_one_line_and_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from components.train import train

    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as ended:
        files = (SimpleNamespace(path="c"), None)
        train.python_func(SimpleNamespace(path="m"), "", "s3://data", "mini", "", 2, 1, "", *files)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("train: num_nodes = 2: needs a Kubernetes cluster") and said.count("\n") == 1


def test_an_accelerator_on_a_cluster_is_a_job_also_for_one_node(cluster: KubeServer) -> None:
    from components.nodes import Placement

    assert not Placement(1, 1, "nvidia.com/gpu").is_here and Placement(1, 4).is_here


def test_commands_carry_every_setting_that_differs_and_that_the_stage_takes() -> None:
    from components.nodes import command
    from stabn.cli import COMMANDS, build_parser
    from stabn.config import override
    from stabn.presets import load, resolve

    text = (
        "data.num_frames=4 data.scales=1.0,0.8 train.nesterov=false train.epochs=3 train.processes=4 finetune.gamma=5"
    )
    settings = resolve("mini", text)
    for stage in ("train", "finetune", "evaluate"):
        given = {"manifest": "s3://m", "output": "s3://o", "checkpoint": "s3://c", "edits": "s3://e"}
        own = {names[0].strip("-") for names, _ in COMMANDS[stage].arguments}
        words = command(stage, {name: value for name, value in given.items() if name in own}, settings)
        assert words[:4] == ("torchrun", "-m", "stabn.cli", stage)
        args = build_parser().parse_args(words[3:])
        flags = {key: value for key, value in vars(args).items() if "." in key and value is not None}
        rebuilt = override(load(args.preset), flags)
        for section in {name.partition(".")[0] for name in COMMANDS[stage].sections}:
            if section in COMMANDS[stage].sections and section != "train":
                assert getattr(rebuilt, section) == getattr(settings, section), (stage, section)
        assert "train.processes" not in flags
    assert "--finetune.gamma=5.0" in command("finetune", {}, settings)


def test_processes_of_one_node_become_settings() -> None:
    from components.nodes import Placement, _with_processes
    from stabn.presets import resolve

    settings = resolve("mini", "train.processes=3")
    assert _with_processes(settings, Placement()).train.processes == 3, "the settings' own number"
    changed = _with_processes(settings, Placement(procs_per_node=2))
    assert (changed.train.processes, changed.finetune.processes) == (2, 2)


def test_storage_that_pods_cannot_read_is_refused(cluster: KubeServer, tmp_path: Path) -> None:
    from components.nodes import Placement, evaluate
    from stabn.presets import load

    with pytest.raises(ConfigError, match="the nodes of a job cannot read it"):
        evaluate("c", "m", "train", "as_is", "p", load("mini"), "x", str(tmp_path), Placement(2))
