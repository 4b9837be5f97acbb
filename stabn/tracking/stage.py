"""What a stage sees of MLflow: its own run, opened with the stage and closed with it."""

import contextlib
import logging
import math
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from stabn.errors import Preempted, RetryableError, StabnError
from stabn.masking import first_line, masked
from stabn.signals import Terminated, exit_on_signals
from stabn.tracking.buffer import RETRY_SECONDS, MetricBuffer, Outbox, Refused
from stabn.tracking.client import (
    experiment_and_parent,
    find_experiment,
    find_parent,
    is_refused,
    one_short_attempt,
    search,
    start_errors,
    tracking_client,
)
from stabn.tracking.datasets import Dataset, dataset_of
from stabn.tracking.names import (
    ERROR,
    FORMER_MAX_CHARS,
    MAX_PARAM_CHARS,
    MAX_TAG_CHARS,
    PARENT_MODEL,
    PARENT_RUN,
    STAGE,
    STAGE_KEY,
    check_name,
    common_tags,
    flatten,
    safe_name,
    ui_url,
)

log = logging.getLogger(__name__)

MAX_PARAMS = 100  # per request
FILE_FAILURES = 3  # at the end of a stage


class StageRun:
    """The MLflow run of one stage; without tracking every method does nothing.

    Nothing here raises for a server that is away, at the start or later: it must not end a paid-for training. What is
    recorded meanwhile is kept and sent when it is back.

    Args:
        open_run: makes the run, or finds that of a former try: client, run id, experiment id; None: no tracking.
    """

    def __init__(self, open_run: Callable[[], tuple[Any, str, str]] | None = None):
        self.run_id = ""
        self.experiment_id = ""
        self._client: Any = None
        self._open_run = open_run
        self._open_again_at = 0.0
        self._waiting, self._files = Outbox(), Outbox()
        self._warned = False
        self._buffer = MetricBuffer(self._send, self._drop)

    @property
    def link(self) -> str:
        """Return the address of the run's page; empty without a server."""
        base = ui_url()
        return f"{base}/#/experiments/{self.experiment_id}/runs/{self.run_id}" if base and self.run_id else ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record numbers, of one epoch if `step` is given."""
        self.log_metrics_history([{**metrics, "step": step or 0}])

    def log_metrics_history(self, history: Sequence[Mapping[str, float]]) -> None:
        """Record the numbers of many epochs, each a dict with its `step`, in as few requests as possible."""
        if self._open_run is None:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._buffer.add(
            [
                Metric(safe_name(name), float(value), now, int(entry["step"]))
                for entry in history
                for name, value in entry.items()
                if name != "step"
            ]
        )

    def log_params(self, settings: Mapping[str, Any]) -> None:
        """Record settings, nested ones under dotted names; MLflow keeps the first value of each."""
        self._do("settings", lambda: self._log_params(settings))

    def log_artifact(self, path: str | os.PathLike[str], folder: str | None = None) -> None:
        """Store a small local file with the run; checkpoints are recorded by URI instead."""
        place = [os.fspath(path)]
        if not self._do(f"file {path}", lambda: self._client.log_artifact(self.run_id, place[0], folder), self._files):
            place[0] = self._files.copy(path)  # the caller may delete it meanwhile

    def log_text(self, text: str, name: str) -> None:
        """Store text with the run as a file, `name` like `report/table2.md`."""
        self._do(f"file {name}", lambda: self._client.log_text(self.run_id, masked(text), name), self._files)

    def log_dataset(self, dataset: Dataset, context: str) -> None:
        """Name a dataset that the stage read or made, `context` saying what for; older servers keep only the tags."""
        self._do("its dataset", lambda: self._log_dataset(dataset, context))

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags, replacing those of the same name."""
        values = {safe_name(name): masked(str(value)) for name, value in tags.items()}
        self._do(f"tags {', '.join(values)}", lambda: self._log_batches(tags=values))

    def end(self, status: str, error: BaseException | None = None) -> None:
        """Send what is pending and close the run as FINISHED, FAILED or KILLED."""
        if self._open_run is None:
            return
        self._open_again_at = 0.0
        if not self._opened():
            log.warning("MLflow did not answer to the end: this stage is not in it (%s)", status)
            self._close()
            return
        self._waiting.wake()
        self._buffer.flush()
        if error is not None:
            self.set_tags({ERROR: f"{type(error).__name__}: {error}"[:500]})
        if len(self._buffer):
            log.warning("MLflow run %s: %d numbers not recorded, the server is away", self.run_id, len(self._buffer))
        for _ in range(FILE_FAILURES):  # one that cannot be stored holds up no other
            self._files.wake()
            if self._files.work_off(self._try):
                break
            self._files.put_off()
        self._do(f"that it ended as {status}", lambda: self._client.set_terminated(self.run_id, status))
        if left := self._close():
            log.warning("MLflow run %s: not recorded to the end: %s", self.run_id, "; ".join(left))

    def _close(self) -> list[str]:
        return [*self._files.close(), *self._waiting.close()]

    def is_open(self) -> bool:
        """Open the run unless it is open or the server was away a moment ago; return whether it is.

        Raises:
            TrackingError: the server answers, and refuses.
        """
        if self._client is not None:
            return True
        if self._open_run is None or time.monotonic() < self._open_again_at:
            return False
        try:
            with start_errors():
                self._client, self.run_id, self.experiment_id = self._open_run()
        except RetryableError as error:
            if not self._warned:
                log.warning("%s; the stage goes on, what it records is sent when the server answers", error)
                self._warned = True
            # Many steps start together: they come back at different times.
            self._open_again_at = time.monotonic() + RETRY_SECONDS * random.uniform(0.5, 1.5)
            return False
        self._warned = False
        for waiting in (self._waiting, self._files):
            waiting.wake()
            waiting.work_off(self._try)
        return True

    def _send(self, metrics: list[Any]) -> bool:
        def send() -> None:
            try:
                self._client.log_batch(self.run_id, metrics=metrics)
            except Exception as error:
                if is_refused(error):
                    raise Refused(first_line(error)) from error
                raise

        return self._opened() and self._try("numbers", send)

    def _opened(self) -> bool:
        """Return whether the run is open, also if the server refuses it: the stage is under way by now."""
        try:
            return self.is_open()
        except StabnError as error:
            log.warning("%s; the stage goes on without", error)
            self._open_again_at = math.inf
            return False

    def _drop(self, metric: Any, reason: Exception) -> None:
        log.warning("MLflow run %s: %s = %s is refused: %s", self.run_id, metric.key, metric.value, reason)

    def _log_dataset(self, dataset: Dataset, context: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.log_inputs(self.run_id, [dataset.to_input(context)])
        except MlflowException as error:  # its tag with the fingerprint is there anyway
            if error.error_code not in ("ENDPOINT_NOT_FOUND", "INVALID_PARAMETER_VALUE"):
                raise
            log.info("MLflow run %s: no dataset is shown with it: %s", self.run_id, first_line(error))

    def _log_params(self, settings: Mapping[str, Any]) -> None:
        values = {safe_name(name): masked(value) for name, value in flatten(settings)}
        known = self._client.get_run(self.run_id).data.params
        same = {name for name in values.keys() & known.keys() if _is_short_for(known[name], values[name])}
        changed = sorted((values.keys() & known.keys()) - same)
        if changed:
            log.warning("MLflow run %s keeps the first values of %s", self.run_id, ", ".join(changed))
            self.set_tags({f"stabn.changed.{name}": values[name] for name in changed})
        self._log_batches(params={name: value for name, value in values.items() if name not in known})

    def _log_batches(self, params: Mapping[str, str] = {}, tags: Mapping[str, str] = {}) -> None:
        from mlflow.entities import Param, RunTag

        items: list[Any] = [self._shortened(Param, *item, MAX_PARAM_CHARS) for item in params.items()]
        items += [self._shortened(RunTag, *item, MAX_TAG_CHARS) for item in tags.items()]
        for start in range(0, len(items), MAX_PARAMS):
            self._log_batch(items[start : start + MAX_PARAMS])

    def _log_batch(self, items: list[Any]) -> None:
        """Send parameters and tags; what the server refuses in smaller parts, and a single one shorter."""
        from mlflow.entities import Param

        try:
            self._client.log_batch(
                self.run_id,
                params=[item for item in items if isinstance(item, Param)],
                tags=[item for item in items if not isinstance(item, Param)],
            )
        except Exception as error:
            if not is_refused(error):
                raise
            if len(items) > 1:
                half = len(items) // 2
                self._log_batch(items[:half])
                self._log_batch(items[half:])
                return
            (item,) = items
            shorter = next((length for length in FORMER_MAX_CHARS if length < len(item.value)), 0)
            if shorter:
                self._log_batch([self._shortened(type(item), item.key, item.value, shorter)])
            else:
                log.warning("MLflow run %s: %s is refused: %s", self.run_id, item.key, first_line(error))

    def _shortened(self, kind: Any, name: str, value: str, length: int) -> Any:
        """Return a parameter or tag; of a value that is too long the whole is kept as a file of the run."""
        if len(value) > length:
            file = f"long/{re.sub('[^A-Za-z0-9._-]', '_', name)}.txt"
            log.warning("MLflow run %s: %s is cut to %d characters; the whole: %s", self.run_id, name, length, file)
            if len(value) not in (MAX_PARAM_CHARS, MAX_TAG_CHARS, *FORMER_MAX_CHARS):  # else it was cut before
                self.log_text(value, file)
        return kind(name, value[:length])

    def _do(self, what: str, action: Callable[[], Any], waiting: Outbox | None = None) -> bool:
        """Do something with the run after all that waits, now or when the server answers; return whether it is done."""
        if self._open_run is None:
            return True
        waiting = waiting or self._waiting
        waiting.add(what, action)
        return self._opened() and waiting.work_off(self._try)

    def _try(self, what: str, action: Callable[[], Any]) -> bool:
        """Return whether something is done, or never can be, which is said."""
        try:
            with one_short_attempt() if self._warned else contextlib.nullcontext():
                action()
            self._warned = False
        except Refused:
            raise
        except Exception as error:  # MLflow, its HTTP client, the database and the artifact store raise many kinds
            if is_refused(error) or isinstance(error, FileNotFoundError | NotADirectoryError):
                log.warning("MLflow run %s: %s not recorded: %s", self.run_id, what, first_line(error))
                return True
            if not self._warned:
                said = "the stage goes on, what it records is sent when the server answers"
                log.warning("MLflow run %s: %s; %s", self.run_id, first_line(error), said)
                self._warned = True
            return False
        return True


def _is_short_for(recorded: str, value: str) -> bool:
    """Tell whether a recorded value is this one, which may have been cut."""
    return recorded == value or (len(recorded) in (*FORMER_MAX_CHARS, MAX_PARAM_CHARS) and value.startswith(recorded))


@contextlib.contextmanager
def stage_run(
    stage: str,
    *,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    parent_model: str = "",
    dataset: Dataset | None = None,
) -> Iterator[StageRun]:
    """Record a stage as an MLflow run for as long as the block runs.

    A stage that is run again in the same pipeline run, after a retry or a resume, continues its former run. An
    exception closes the run as FAILED, SIGTERM and Ctrl+C as KILLED.

    Args:
        stage: the stage and what tells it from its sisters, `evaluate/validation/as_is/before`.
        settings: everything that was chosen, nested dicts allowed.
        inputs: fingerprints of what the stage reads, `{"manifest": …, "checkpoint": …}`.
        parent_model: URI or name of the model that this stage starts from or evaluates.
        dataset: what the stage reads; None: what the inputs say of it.

    A server that does not answer is asked again while the stage runs.

    Raises:
        TrackingError: MLFLOW_TRACKING_URI cannot be used.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        yield StageRun()
        return
    check_name(stage, "stage")
    owner = os.getpid()
    with exit_on_signals():
        run = StageRun(lambda: _open(stage, inputs, parent_model))
        run.is_open()
        status, failure = "FAILED", None  # type: str, BaseException | None
        try:
            run.log_params(settings)
            if dataset := dataset or dataset_of(inputs):
                run.log_dataset(dataset, stage.split("/")[0])
            yield run
            status = "FINISHED"
        except (KeyboardInterrupt, Terminated, Preempted) as error:
            status, failure = "KILLED", error
            raise
        except SystemExit as error:
            status, failure = ("FAILED", error) if error.code else ("FINISHED", None)
            raise
        except Exception as error:
            failure = error
            raise
        finally:
            if os.getpid() == owner:  # a forked worker that unwinds this stack must not close the run
                run.end(status, failure)


def end_parent(status: str) -> None:
    """Close the pipeline's parent run as FINISHED, FAILED or KILLED; one that KFP made is left to KFP.

    A stage whose process was killed, or whose machine died, could not close its own run: that is closed too.
    """
    if os.environ.get("MLFLOW_TRACKING_URI") and os.environ.get("STABN_RUN_ID") and not os.environ.get("MLFLOW_RUN_ID"):
        with start_errors():
            client = tracking_client()
            experiment = find_experiment(client)
            parent = find_parent(client, experiment, os.environ["STABN_RUN_ID"])
            if parent:
                for run in search(client, experiment, f"tags.`{PARENT_RUN}` = '{parent}' and status = 'RUNNING'"):
                    client.set_terminated(run.info.run_id, "KILLED")
                client.set_terminated(parent, status)


def _open(stage: str, inputs: Mapping[str, str], parent_model: str) -> tuple[Any, str, str]:
    """Return the client, and the ids of a stage's run and of its experiment; the run of a former try goes on."""
    client = tracking_client()
    experiment, parent = experiment_and_parent(client)
    tags = {STAGE: stage.split("/")[0], STAGE_KEY: stage, PARENT_MODEL: parent_model} | common_tags()
    tags |= {f"stabn.{safe_name(name)}_fingerprint": value for name, value in inputs.items()}
    tags = {name: masked(value)[:MAX_TAG_CHARS] for name, value in tags.items() if value}
    former = []
    if parent:
        tags[PARENT_RUN] = parent
        query = f"tags.`{PARENT_RUN}` = '{parent}' and tags.`{STAGE_KEY}` = '{stage}'"
        former = search(client, experiment, query)
    if not former:
        return client, client.create_run(experiment, run_name=stage, tags=tags).info.run_id, experiment
    run_id = former[0].info.run_id
    client.update_run(run_id, status="RUNNING")
    if ERROR in former[0].data.tags:
        client.delete_tag(run_id, ERROR)
    for name, value in tags.items():
        if former[0].data.tags.get(name) != value:
            client.set_tag(run_id, name, value)
    return client, run_id, experiment
