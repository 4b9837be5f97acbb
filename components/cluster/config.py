"""Settings of the cluster that runs TrainJobs, named STABN_TRAINJOB_<SETTING>.

They say where and with what a stage runs, never what comes out, so they are no parameters of the pipelines: changing
them does not invalidate KFP's cache. They are environment variables; on a cluster the ConfigMap `stabn-trainjob` has
them as keys, and the pipelines mount it, if there is one, as a folder of files.
"""

import dataclasses
import os
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stabn.config import ConfigError, Settings, setting

PREFIX = "STABN_TRAINJOB_"
CONFIG_MAP = "stabn-trainjob"
CONFIG_DIR = Path("/etc/stabn-trainjob")
QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?")
LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?")
ENV_NAME = re.compile(r"[A-Za-z_]\w*")
EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
RESERVED = ("PET_", "KUBERNETES_")
S3_SECRET = "stabn-s3"


@dataclass(frozen=True, kw_only=True)
class ClusterConfig(Settings):
    """Where the nodes of a stage run, and how long they may take. Lists are written with commas."""

    namespace: str = setting("", "namespace of the jobs; empty: that of the step")
    image: str = setting("", "container image of the nodes; empty: that of the step")
    runtime: str = setting("stabn-torch", "training runtime that the jobs build on")
    runtime_kind: str = setting(
        "TrainingRuntime", "kind of the runtime", choices=("TrainingRuntime", "ClusterTrainingRuntime")
    )
    service_account: str = setting("", "service account of the nodes; empty: the runtime's")
    secrets: tuple[str, ...] = setting(
        tuple(f"{name}={S3_SECRET}/{name}?" for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")),
        "environment variables from secrets, VARIABLE=secret/key, with ? at the end one that may be missing",
    )
    env: tuple[str, ...] = setting((), "further environment variables, VARIABLE=value; nothing secret")
    cpu: str = setting("4", "processor cores that a node is promised for each of its processes")
    cpu_limit: str = setting("", "processor cores that it may use for each of them; empty: as many as it is promised")
    memory: str = setting("16Gi", "memory of a node, with its /dev/shm, for each of its processes")
    memory_limit: str = setting("", "memory at which it is killed, for each of them; empty: what it is promised")
    shm_size: str = setting("6Gi", "size of /dev/shm, which the loaders use, at most, for each of a node's processes")
    tmp_size: str = setting("20Gi", "size of /tmp, with data.cache_dir below it, at most")
    node_selector: tuple[str, ...] = setting((), "labels that the machines must have, key=value")
    tolerations: tuple[str, ...] = setting((), "taints of the machines that do not matter, key[=value][:effect]")
    topology_key: str = setting(
        "", "label whose values the nodes are spread over evenly, as kubernetes.io/hostname; empty: not spread"
    )
    topology_required: bool = setting(False, "wait rather than spread unevenly")
    pull_secrets: tuple[str, ...] = setting((), "secrets for pulling the image")
    priority_class: str = setting("", "priority class of the nodes; empty: the cluster's default")
    queue: str = setting("", "Kueue's local queue; empty: none")
    run_as_user: int = setting(0, "user id in the containers, never root; 0: the image's own", low=0)
    pending_minutes: float = setting(
        1440.0, "minutes that the nodes may wait for machines, images and their queue; 0: no limit", low=0.0
    )
    running_hours: float = setting(168.0, "hours that the nodes may run; 0: no limit", low=0.0)
    max_restarts: int = setting(
        3, "times that a job is started again after an eviction, a preemption or the loss of a machine", low=0
    )
    grace_seconds: int = setting(60, "seconds that a node has to save its state when it is asked to end", low=1)
    poll_seconds: float = setting(5.0, "seconds between looks at the job", low=0.05)
    api_minutes: float = setting(10.0, "minutes that the Kubernetes API may be away", low=0.0)
    tail_lines: int = setting(30, "last lines of a failed node that are shown", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("cpu", "cpu_limit", "memory", "memory_limit", "shm_size", "tmp_size"):
            amount = getattr(self, name)
            if not QUANTITY.fullmatch(amount) and (amount or not name.endswith("_limit")):
                raise ConfigError(f"{name} = {amount!r}: write an amount such as 4, 500m or 16Gi")
        for name in ("node_selector", "env", "secrets"):
            for item in getattr(self, name):
                key, equals, value = item.partition("=")
                pattern = LABEL_KEY if name == "node_selector" else ENV_NAME
                if not equals or not pattern.fullmatch(key):
                    raise ConfigError(f"{name}: {item!r}: write key=value")
                if name == "secrets" and not all(value.partition("/")):
                    raise ConfigError(f"{name}: {item!r}: write VARIABLE=secret/key")
                if name != "node_selector" and key.startswith(RESERVED):
                    raise ConfigError(f"{name}: {item!r}: variables {RESERVED[0]}… and {RESERVED[1]}… are set for you")
        for item in self.tolerations:
            toleration(item)
        if self.topology_key and not LABEL_KEY.fullmatch(self.topology_key):
            raise ConfigError(f"topology_key = {self.topology_key!r}: not the name of a label")

    @classmethod
    def load(cls, environment: Mapping[str, str] = os.environ, folder: Path | None = None) -> "ClusterConfig":
        """Return the settings of the environment and of the folder's files; what is unset or empty has its default.

        Args:
            environment: variables STABN_TRAINJOB_...; they go before the files.
            folder: the mounted ConfigMap; None: where the pipelines mount it.

        Raises:
            ConfigError: an unknown name, or a value that does not fit.
        """
        types = typing.get_type_hints(cls)
        files = [] if folder is None and not CONFIG_DIR.is_dir() else sorted((folder or CONFIG_DIR).iterdir())
        texts = {path.name: path.read_text() for path in files if not path.name.startswith(".")}
        texts |= {name: text for name, text in environment.items() if name.startswith(PREFIX)}
        values: dict[str, Any] = {}
        for variable, text in texts.items():
            name = variable.removeprefix(PREFIX).lower()
            if name not in types or variable != f"{PREFIX}{name.upper()}":
                raise ConfigError(f"{variable}: no such setting; there are {', '.join(variables())}")
            if text.strip():
                values[name] = _parse(variable, types[name], text.strip())
        try:
            return cls(**values)
        except ConfigError as error:
            name = re.split(r"[ :]", str(error), maxsplit=1)[0]
            raise ConfigError(f"{PREFIX}{name.upper()}{str(error).removeprefix(name)}") from None


def variables() -> list[str]:
    """Return the names of all settings, as environment and ConfigMap have them."""
    return [f"{PREFIX}{item.name.upper()}" for item in dataclasses.fields(ClusterConfig)]


def times(amount: str, number: int) -> str:
    """Return so many times an amount of Kubernetes: 3 times 500m is 1500m."""
    match = QUANTITY.fullmatch(amount)
    assert match is not None, f"{amount} was checked"
    return f"{float(match[1]) * number:.12g}{match[2] or ''}"


def toleration(text: str) -> dict[str, str]:
    """Read `key[=value][:effect]` as Kubernetes writes a toleration.

    Raises:
        ConfigError: an unknown effect or a malformed key.
    """
    rest, colon, effect = text.partition(":")
    key, equals, value = rest.partition("=")
    if not LABEL_KEY.fullmatch(key) or (colon and effect not in EFFECTS):
        raise ConfigError(f"tolerations: {text!r}: write key[=value][:effect], effect one of {', '.join(EFFECTS)}")
    item = {"key": key, "operator": "Equal", "value": value} if equals else {"key": key, "operator": "Exists"}
    return {**item, "effect": effect} if effect else item


def _parse(variable: str, kind: Any, text: str) -> Any:
    if kind is str:
        return text
    try:
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if kind in (int, float):
            return kind(text)
    except (KeyError, ValueError):
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise ConfigError(f"{variable} = {text!r}: expected {wanted}") from None
    if text.lower() == "none":
        return ()
    return tuple(part.strip() for part in text.split(",") if part.strip())
