"""Follow a run on a KFP server: a line for each task that changes, until the run ends."""

import re
import time
from collections.abc import Callable
from typing import Any

from pipelines.server import Server
from stabn.errors import Overdue, RetryableError, StabnError

ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
INTERNAL = re.compile(r"root|executor|.*-driver")  # nodes of KFP's own, next to each task
ATTEMPT = re.compile(r"\(\d+\)$")  # what a node that may be tried again has at the end of its name
POLL_SECONDS = 10.0
PATIENCE_SECONDS = 900.0


class RunFailed(StabnError):
    """The run ended, and not well."""

    exit_code = 1


def follow(server: Server, run_id: str, timeout_hours: float = 0.0, show: Callable[[str], None] = print) -> Any:
    """Wait for a run, showing each change of a task's state.

    A server that is away for less than a quarter of an hour is waited for: the run goes on without us.

    Args:
        server: where it runs.
        run_id: the run.
        timeout_hours: hours to wait at most; 0: no limit.
        show: gets each line.

    Raises:
        RunFailed: it failed or was cancelled; names the tasks and the reason.
        RetryableError: the server stayed away, or the time is over.
    """
    started = answered = time.monotonic()
    states: dict[str, str] = {}
    while True:
        try:
            run = server.get_run(run_id)
            answered = time.monotonic()
        except RetryableError as error:
            if time.monotonic() - answered > PATIENCE_SECONDS:
                raise RetryableError(f"{error}; the run itself may go on: {server.link(run_id)}") from None
            show(f"{_clock(started)}  {error}; waiting")
        else:
            for task in tasks_of(run):
                state = task.state or "PENDING"
                if states.get(task.task_id) != state:
                    states[task.task_id] = state
                    show(f"{_clock(started)}  {task.display_name:40} {state.lower()}{_duration(task)}")
            if run.state in ENDED:
                break
        if timeout_hours and time.monotonic() - started > timeout_hours * 3600:
            raise Overdue(f"still running after {timeout_hours:g} hours, and goes on: {server.link(run_id)}")
        time.sleep(POLL_SECONDS)
    show(f"{_clock(started)}  run {run.state.lower()}")
    if run.state != "SUCCEEDED":
        raise RunFailed(f"the run {run.state.lower()}{_reasons(run)}; logs: {server.link(run_id)}")
    return run


def tasks_of(run: Any) -> list[Any]:
    """Return the tasks that are stages, without KFP's own drivers and groups."""
    details = (run.run_details and run.run_details.task_details) or []
    names = [ATTEMPT.sub("", task.display_name or "") for task in details]
    return [task for task, name in zip(details, names) if name and not INTERNAL.fullmatch(name)]


def _reasons(run: Any) -> str:
    failed = [task for task in tasks_of(run) if task.state == "FAILED"]
    texts = [f"{task.display_name}: {task.error.message if task.error else 'see its log'}" for task in failed]
    if not texts and run.error:
        texts = [run.error.message]
    return f" ({'; '.join(texts)})" if texts else ""


def _duration(task: Any) -> str:
    if task.state not in ENDED or not task.end_time or not task.start_time:
        return ""
    seconds = int((task.end_time - task.start_time).total_seconds())
    return f"  {seconds // 60}:{seconds % 60:02}" if 0 <= seconds < 10**8 else ""


def _clock(started: float) -> str:
    seconds = int(time.monotonic() - started)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
