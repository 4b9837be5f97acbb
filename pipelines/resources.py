"""What KFP fixes when a pipeline is compiled: images, sizes, retries, time limits, caching, environment.

One settings object per compilation; a YAML file or flags of `python -m pipelines compile` replace its defaults. Without
one, as in the local run, `configure` leaves a task as it is.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from kfp import kubernetes
from kfp.dsl import PipelineConfig, PipelineTask

from components.images import DATA_IMAGE, TRAINER_IMAGE
from components.mounted import SECRET_DIR, STORAGE_DIR
from components.patience import PATIENCE
from stabn.config import ConfigError, Settings, setting

MUTABLE_TAG = "latest"
BACKOFF_FACTOR = 2.0
NO_LIMIT_SECONDS = 365 * 24 * 3600
MAX_DAYS = 10_000.0  # in seconds still a number that Kubernetes takes
RUN_ID_FIELD = "metadata.labels['pipeline/runid']"


@dataclass(frozen=True, kw_only=True)
class StageSettings(Settings):
    """What the pod of one stage gets."""

    cpu: str = setting("500m", "CPU cores that the pod is promised")
    cpu_limit: str = setting("2", "CPU cores that the pod may use; empty: all of the node")
    memory: str = setting("1Gi", "memory that the pod is promised")
    memory_limit: str = setting("2Gi", "memory at which the pod is killed; empty: all of the node")
    accelerator: str = setting("", "resource such as nvidia.com/gpu that the pod itself gets; empty: none")
    accelerators: int = setting(1, "how many of it", low=1)
    shm: str = setting("", "size of /dev/shm, through which loading processes hand over clips; empty: the node's 64 MB")
    retries: int = setting(2, "times that a failed pod is started again; it goes on where it was", low=0)
    timeout_hours: float = setting(6.0, "hours that one attempt may take; 0: no limit", low=0.0)
    cache: bool = setting(True, "reuse the stage's former outputs for the same inputs and code")


_SMALL = StageSettings()
_NETWORK = {"cpu": "2", "cpu_limit": "8", "memory": "6Gi", "memory_limit": "16Gi", "shm": "6Gi"}
# train, finetune and evaluate are these pods only on one node without an accelerator. Otherwise their step starts a
# TrainJob, whose nodes have sizes of their own (ConfigMap stabn-trainjob), and the accelerators are there; the step's
# time limit holds the day that nodes may wait for room.
STAGES: dict[str, StageSettings] = {
    "plan": StageSettings(timeout_hours=1.0),
    "extract": StageSettings(cpu="2", cpu_limit="4", memory="2Gi", memory_limit="6Gi", timeout_hours=48.0),
    "merge": StageSettings(memory="2Gi", memory_limit="6Gi"),
    "train": StageSettings(**_NETWORK, timeout_hours=336.0, retries=5),  # type: ignore[arg-type]
    "finetune": StageSettings(**_NETWORK, timeout_hours=96.0, retries=5),  # type: ignore[arg-type]
    "evaluate": StageSettings(**_NETWORK, timeout_hours=48.0),  # type: ignore[arg-type]
    "select": _SMALL,
    "export": StageSettings(**_NETWORK, timeout_hours=24.0),  # type: ignore[arg-type]
    "edits": StageSettings(cpu="50m", cpu_limit="1", memory="512Mi", memory_limit="1Gi", timeout_hours=0, cache=False),
    "import": StageSettings(memory="2Gi", memory_limit="4Gi"),
    "report": StageSettings(cpu="1", memory="4Gi", memory_limit="8Gi", shm="1Gi"),
    "promote": StageSettings(**_NETWORK, timeout_hours=48.0, cache=False),  # type: ignore[arg-type]
}


@dataclass(frozen=True, kw_only=True)
class CompileSettings(Settings):
    """Everything that a compiled pipeline cannot take as a parameter."""

    data_image: str = setting(DATA_IMAGE, "image of the stages without a network")
    trainer_image: str = setting(TRAINER_IMAGE, "image of the stages with a network")
    image_pull_policy: str = setting(
        "IfNotPresent", "when nodes pull the images", choices=("Always", "IfNotPresent", "Never")
    )
    image_pull_secret: str = setting("", "secret of type dockerconfigjson for a private registry; empty: none")
    storage_config_map: str = setting(
        "stabn-storage", "ConfigMap of variables that say where storage and MLflow are; empty: none"
    )
    storage_secret: str = setting("stabn-s3", "secret with AWS_… variables; empty: workload identity")
    experiment: str = setting("", "experiment in MLflow; empty: stabn")
    dropdowns: bool = setting(
        True,
        "write the choices of parameters into the forms (`literals`), which KFP's page shows as dropdowns; false for "
        "servers before 2.16, which refuse them",
    )
    commit: str = setting("", "git commit of the images' code, for MLflow; empty: unknown")
    success_days: float = setting(
        7.0,
        "days after which what a run that succeeded left in Kubernetes (its workflow and pods, with their logs) is "
        "deleted; storage, MLflow and KFP's record stay; 0: as the server has it, also for servers before 2.17",
        low=0.0,
        high=MAX_DAYS,
    )
    failure_days: float = setting(30.0, "the same for a run that failed", low=0.0, high=MAX_DAYS)
    deadline_days: float = setting(
        0.0,
        "days after which a run that has not ended is ended as failed, with the time that people take for their "
        "corrections; 0: each step has its own limit, the run none",
        low=0.0,
        high=MAX_DAYS,
    )
    backoff_seconds: int = setting(30, "wait before the first retry, doubled each time", low=1)
    patience_minutes: float = setting(
        30.0,
        "minutes for which a step itself tries again what may pass, such as a storage that is away",
        low=0.0,
    )
    stages: Mapping[str, StageSettings] = field(default_factory=lambda: STAGES)
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path | None, **flags: str) -> "CompileSettings":
        """Read settings from a YAML file; flags that are not empty replace them.

        `stages` and `parameters` (the form's defaults at this installation) may be given in part.

        Raises:
            ConfigError: an unreadable file, an unknown name, or a value that does not fit.
        """
        where = path or "settings"
        try:
            values = (yaml.safe_load(path.read_text()) or {}) if path else {}
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: expected names and values, such as `data_image: stabn-data:1.0`")
        given = {**values, **{name: value for name, value in flags.items() if value}}
        stages = dict(STAGES)
        for name, changes in (given.pop("stages", None) or {}).items():
            if name not in STAGES:
                raise ConfigError(f"{where}: stages.{name}: no such stage; there are {', '.join(STAGES)}")
            stages[name] = _replaced(stages[name], changes, f"{where}: stages.{name}")
        given["stages"] = stages
        if "parameters" in given:
            given["parameters"] = dict(given["parameters"] or {})
        return _replaced(cls(), given, str(where))

    def without_cache(self, stages: Iterable[str]) -> "CompileSettings":
        """Return the same settings with KFP's cache off for some stages."""
        changed = {name: dataclasses.replace(self.stages[name], cache=False) for name in stages}
        return dataclasses.replace(self, stages={**self.stages, **changed})

    def run_limits(self) -> PipelineConfig:
        """Return when a run is ended, and when it is cleared away: Argo's `activeDeadlineSeconds` and `ttlStrategy`."""

        def seconds(days: float) -> int | None:
            return math.ceil(days * 24 * 3600) or None

        return PipelineConfig(
            ttl_seconds_after_success=seconds(self.success_days),
            ttl_seconds_after_failure=seconds(self.failure_days),
            active_deadline_seconds=seconds(self.deadline_days),
        )

    @property
    def images_are_fixed(self) -> bool:
        """Whether the images' names stand for their contents; only then may KFP's cache, keyed by name, be used."""
        return not any(_is_mutable(image) for image in (self.data_image, self.trainer_image))


_current: ContextVar[tuple[str, CompileSettings] | None] = ContextVar("settings", default=None)


@contextlib.contextmanager
def compiled_with(pipeline: str, settings: CompileSettings) -> Iterator[None]:
    """Give the tasks that `configure` meets inside the block these settings."""
    token = _current.set((pipeline, settings))
    try:
        yield
    finally:
        _current.reset(token)


def configure(task: PipelineTask, stage: str) -> PipelineTask:
    """Give a task of the pipeline being defined its stage's image, sizes, retries, time limit and environment."""
    current = _current.get()
    if current is None:
        return task
    pipeline, settings = current
    own = settings.stages[stage]
    container = task.container_spec
    assert container is not None, f"{stage} has no container"
    image = settings.data_image if container.image == DATA_IMAGE else settings.trainer_image
    task.set_container_image(image)
    task.set_cpu_request(own.cpu).set_memory_request(own.memory)
    if own.cpu_limit:
        task.set_cpu_limit(own.cpu_limit)
    if own.memory_limit:
        task.set_memory_limit(own.memory_limit)
    if own.accelerator:
        task.set_accelerator_type(own.accelerator).set_accelerator_limit(own.accelerators)
    if own.retries:
        task.set_retry(
            own.retries,
            backoff_duration=f"{settings.backoff_seconds}s",
            backoff_factor=BACKOFF_FACTOR,
            backoff_max_duration=f"{_retry_window(own, settings.backoff_seconds)}s",
        )
    if not (own.cache and settings.images_are_fixed):
        task.set_caching_options(False)
    if own.timeout_hours:
        kubernetes.set_timeout(task, round(own.timeout_hours * 3600))
    if own.shm:
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=own.shm)
    kubernetes.set_security_context(task, run_as_non_root=True)  # the rest of `restricted` KFP sets by itself
    kubernetes.set_image_pull_policy(task, settings.image_pull_policy)
    if settings.image_pull_secret:
        kubernetes.set_image_pull_secrets(task, [settings.image_pull_secret])
    _set_environment(task, pipeline, image, settings)
    if own.timeout_hours:
        patience = min(settings.patience_minutes, own.timeout_hours * 60)
    else:
        patience = settings.patience_minutes
    task.set_env_variable(PATIENCE, f"{patience:g}")
    return task


def _retry_window(stage: StageSettings, backoff_seconds: int) -> int:
    """Return the seconds that all attempts of a stage may take, with the waits between them.

    KFP's longest duration of retrying runs from the start of the first attempt; when it is over, no other one begins
    and one that runs is ended.
    """
    waits = sum(backoff_seconds * BACKOFF_FACTOR**i for i in range(stage.retries))
    attempts = (stage.retries + 1) * stage.timeout_hours * 3600 if stage.timeout_hours else NO_LIMIT_SECONDS
    return math.ceil(waits + attempts)


def _set_environment(task: PipelineTask, pipeline: str, image: str, settings: CompileSettings) -> None:
    """Tell the task where storage and MLflow are, and which run of what it belongs to."""
    if settings.storage_config_map:
        kubernetes.use_config_map_as_volume(task, settings.storage_config_map, str(STORAGE_DIR), optional=True)
    if settings.storage_secret:
        kubernetes.use_secret_as_volume(task, settings.storage_secret, str(SECRET_DIR), optional=True)
    kubernetes.use_field_path_as_env(task, "STABN_RUN_ID", RUN_ID_FIELD)
    values = {
        "STABN_PIPELINE": pipeline,
        "STABN_IMAGE": image,
        "STABN_EXPERIMENT": settings.experiment,
        "STABN_GIT_COMMIT": settings.commit,
    }
    for name, value in values.items():
        if value:
            task.set_env_variable(name, value)


def _is_mutable(image: str) -> bool:
    name, at, _ = image.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    return not at and tag in ("", MUTABLE_TAG)


def _replaced(settings: Any, changes: Any, where: str) -> Any:
    """Return settings with some fields replaced, each checked to be known and of its default's type."""
    if not isinstance(changes, dict):
        raise ConfigError(f"{where}: expected names and values, not {changes!r}")
    known = {item.name: getattr(settings, item.name) for item in dataclasses.fields(settings)}
    values = {}
    for name, value in changes.items():
        if name not in known:
            raise ConfigError(f"{where}: no setting {name!r}; there are {', '.join(known)}")
        kind = type(known[name])
        if isinstance(value, int) and not isinstance(value, bool) and kind in (float, str):
            value = kind(value)  # `cpu: 2` and `timeout_hours: 1` are what people write
        if not isinstance(value, kind):
            raise ConfigError(f"{where}: {name} = {value!r}: expected {kind.__name__}")
        values[name] = value
    try:
        return dataclasses.replace(settings, **values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
