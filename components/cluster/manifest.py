"""The manifest of a TrainJob: pure functions from settings to what is sent to Kubernetes."""

import copy
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from components.cluster.api import GROUP, VERSION
from components.cluster.config import ClusterConfig, times, toleration
from components.cluster.pods import CONTAINER, JOB_LABEL
from stabn.config import ConfigError, fingerprint
from stabn.endpoint import CHECKSUMS

RUN_LABEL, STAGE_LABEL = "stabn/run-id", "stabn/stage"
KFP_RUN_LABEL, QUEUE_LABEL = "pipeline/runid", "kueue.x-k8s.io/queue-name"
MANAGER = "stabn/step"
HOME, LIMIT_SECONDS_AFTER = "/home/stabn", 3600
# What the nodes take over from the step. Nothing here is secret: secrets come from settings, by reference.
PASSED_ON = re.compile(
    r"STABN_(?!TRAINJOB_)\w+|MLFLOW_\w+|AWS_(DEFAULT_)?REGION|AWS_ENDPOINT_URL(_S3)?|(NCCL|GLOO)_\w+|"
    + "|".join(CHECKSUMS)
)
SECRET = re.compile(r"PASSWORD|TOKEN|SECRET|CREDENTIAL|\w://[^/@\s]*:[^/@\s]*@", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to run.

    Attributes:
        stage: train, finetune or evaluate.
        command: with its arguments; the same for all nodes, torchrun reads its numbers from the environment.
        num_nodes: pods, each on its share of a machine.
        procs_per_node: processes of each pod, and accelerators if there are any.
        accelerator: resource name such as nvidia.com/gpu; empty: the processor.
        env: variables that the nodes take over from the step.
        run_id: the pipeline run; empty: none.
        restarts: how often it was started before. Each start is a job of its own name, since a job with a pod on a dead
            machine cannot be removed.
    """

    stage: str
    command: tuple[str, ...]
    num_nodes: int
    procs_per_node: int = 1
    accelerator: str = ""
    env: Mapping[str, str] | None = None
    run_id: str = ""
    restarts: int = 0

    @property
    def name(self) -> str:
        """Return the job's name, which a step that is tried again finds: made from the run and all settings."""
        shape = [self.num_nodes, self.procs_per_node, self.accelerator]
        name = f"stabn-{self.stage}-{fingerprint(self.run_id, list(self.command), shape)}"
        return f"{name}-{self.restarts}" if self.restarts else name


def passed_on(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the step's variables that the nodes need: tracking, storage, networking.

    Raises:
        ConfigError: a variable holds a password, which would be readable in the job.
    """
    values = {name: value for name, value in environment.items() if value and PASSED_ON.fullmatch(name)}
    for name in list(values):
        if SECRET.search(name):
            del values[name]
        elif SECRET.search(values[name]) and "://" in values[name]:
            raise ConfigError(f"{name} holds a password: put it into a secret and name that in STABN_TRAINJOB_SECRETS")
    return values


def build_trainjob(work: Work, cluster: ClusterConfig, namespace: str = "") -> dict[str, Any]:
    """Return the manifest of a TrainJob.

    The pods fulfil the restricted Pod Security Standard and need no writable root file system.

    Args:
        work: what runs.
        cluster: where and with what.
        namespace: of the job.

    Raises:
        ConfigError: the settings contradict each other or leave something open.
    """
    if not cluster.image:
        raise ConfigError("no image for the nodes: set STABN_TRAINJOB_IMAGE")
    labels = {"app.kubernetes.io/name": "stabn", STAGE_LABEL: work.stage}
    if work.run_id:
        labels[RUN_LABEL] = _label(work.run_id)
    pending, running = cluster.pending_minutes * 60, cluster.running_hours * 3600
    spec: dict[str, Any] = {
        "runtimeRef": {"apiGroup": GROUP, "kind": cluster.runtime_kind, "name": cluster.runtime},
        "trainer": {
            "image": cluster.image,
            # Kubernetes would replace $(NAME) by a variable's value.
            "command": [part.replace("$(", "$$(") for part in work.command],
            "env": _environment(work, cluster),
            "numNodes": work.num_nodes,
            "numProcPerNode": work.procs_per_node,
            "resourcesPerNode": _resources(work, cluster),
        },
        "runtimePatches": [_patch(work, cluster, labels)],
    }
    if needs_own_runtime(cluster):
        spec["runtimeRef"] = {"apiGroup": GROUP, "kind": "TrainingRuntime", "name": work.name}
    if pending and running:  # the job ends even if every step that could end it is dead
        spec["activeDeadlineSeconds"] = int(pending + running) + LIMIT_SECONDS_AFTER
    metadata: dict[str, Any] = {
        "name": work.name,
        "labels": {**labels, **({QUEUE_LABEL: cluster.queue} if cluster.queue else {})},
    }
    if namespace:
        metadata["namespace"] = namespace
    return checked({"apiVersion": f"{GROUP}/{VERSION}", "kind": "TrainJob", "metadata": metadata, "spec": spec})


def run_selector(run_id: str) -> str:
    """Return what selects the jobs of a pipeline run by their labels."""
    return f"{RUN_LABEL}={_label(run_id)}"


def checked(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest if it says nothing that Trainer's own models do not know.

    Raises:
        ConfigError: names the first difference; `from_dict` alone would drop an unknown field in silence.
    """
    from kubeflow_trainer_api import models

    kind = {"TrainJob": models.TrainerV1alpha1TrainJob, "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime}
    try:
        understood = kind[manifest["kind"]].from_dict(copy.deepcopy(manifest))
    except ValueError as error:  # pydantic's
        raise ConfigError(f"{manifest['kind']}: {error}") from None
    assert understood is not None
    if difference := _difference(manifest, understood.to_dict(), manifest["kind"]):
        raise ConfigError(f"{difference}: not a field of {GROUP}/{VERSION}, or of another type")
    return manifest


def needs_own_runtime(cluster: ClusterConfig) -> bool:
    """Tell whether settings are asked for that a job cannot change in its runtime, so that it needs a copy."""
    return bool(cluster.topology_key or cluster.priority_class)


def build_runtime(runtime: dict[str, Any], name: str, cluster: ClusterConfig) -> dict[str, Any]:
    """Return a copy of a runtime for one job, with the priority class and the spreading of the settings."""
    spec = copy.deepcopy(runtime["spec"])
    for job in spec["template"]["spec"]["replicatedJobs"]:
        pod = job["template"]["spec"]["template"]["spec"]
        if job["name"] != CONTAINER:
            continue
        if cluster.priority_class:
            pod["priorityClassName"] = cluster.priority_class
        if cluster.topology_key:
            pod["topologySpreadConstraints"] = [
                {
                    "maxSkew": 1,
                    "topologyKey": cluster.topology_key,
                    "whenUnsatisfiable": "DoNotSchedule" if cluster.topology_required else "ScheduleAnyway",
                    "labelSelector": {"matchLabels": {JOB_LABEL: name}},
                }
            ]
    labels = {**runtime["metadata"].get("labels", {}), "app.kubernetes.io/name": "stabn"}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainingRuntime",
        "metadata": {"name": name, "labels": labels},
        "spec": spec,
    }


def _environment(work: Work, cluster: ClusterConfig) -> list[dict[str, Any]]:
    values = {
        **(work.env or {}),
        **dict(item.split("=", 1) for item in cluster.env),
        "HOME": HOME,
        "USER": "stabn",  # a user id without a name has no entry in /etc/passwd
        "TMPDIR": "/tmp",
        "PYTHONUNBUFFERED": "1",
        "STABN_IMAGE": cluster.image,
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    entries: dict[str, dict[str, Any]] = {name: {"name": name, "value": value} for name, value in values.items()}
    for item in cluster.secrets:
        name, _, reference = item.partition("=")
        secret, _, key = reference.removesuffix("?").partition("/")
        optional = {"optional": True} if reference.endswith("?") else {}
        entries[name] = {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key, **optional}}}
    return [entries[name] for name in sorted(entries)]


def _resources(work: Work, cluster: ClusterConfig) -> dict[str, Any]:
    processes = work.procs_per_node
    amounts = {"cpu": times(cluster.cpu, processes), "memory": times(cluster.memory, processes)}
    if work.accelerator:
        amounts[work.accelerator] = str(processes)
    limits = {"cpu": cluster.cpu_limit or cluster.cpu, "memory": cluster.memory_limit or cluster.memory}
    return {
        "requests": amounts,
        "limits": {**amounts, **{name: times(limit, processes) for name, limit in limits.items()}},
    }


def _patch(work: Work, cluster: ClusterConfig, labels: dict[str, str]) -> dict[str, Any]:
    """Return what the job changes in its runtime's pods."""
    user = {"runAsUser": cluster.run_as_user} if cluster.run_as_user else {}
    shared = times(cluster.shm_size, work.procs_per_node)
    folders = {
        "dshm": ("/dev/shm", {"medium": "Memory", "sizeLimit": shared}),
        "home": (HOME, {}),  # as large as the runtime says
        "tmp": ("/tmp", {"sizeLimit": cluster.tmp_size}),
    }
    pod: dict[str, Any] = {
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, **user},
        "terminationGracePeriodSeconds": cluster.grace_seconds,
        "volumes": [{"name": name, "emptyDir": source} for name, (_, source) in folders.items()],
        "containers": [
            {
                "name": CONTAINER,
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                    "readOnlyRootFilesystem": True,
                },
                "volumeMounts": [{"name": name, "mountPath": path} for name, (path, _) in folders.items()],
            }
        ],
    }
    if cluster.service_account:
        pod["serviceAccountName"] = cluster.service_account
    if cluster.node_selector:
        pod["nodeSelector"] = dict(item.split("=", 1) for item in cluster.node_selector)
    if cluster.tolerations:
        pod["tolerations"] = [toleration(item) for item in cluster.tolerations]
    if cluster.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in cluster.pull_secrets]
    # A sidecar of the service mesh would outlive the training and refuse the nodes' connections.
    metadata = {"labels": {**labels, "sidecar.istio.io/inject": "false"}}
    job = {"name": CONTAINER, "template": {"spec": {"template": {"metadata": metadata, "spec": pod}}}}
    return {"manager": MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [job]}}}}


def _label(text: str) -> str:
    return re.sub(r"[^\w.-]", "-", text)[:63].strip("-_.")


def _difference(given: Any, understood: Any, where: str) -> str:
    """Return where two JSON values differ; empty if nowhere."""
    if isinstance(given, dict) and isinstance(understood, dict):
        for key in given:
            if found := _difference(given[key], understood.get(key), f"{where}.{key}"):
                return found
        return ""
    if isinstance(given, list) and isinstance(understood, list) and len(given) == len(understood):
        pairs = enumerate(zip(given, understood))
        return next((d for i, (a, b) in pairs if (d := _difference(a, b, f"{where}[{i}]"))), "")
    return "" if given == understood else f"{where} = {given!r}"
