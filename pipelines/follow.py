"""Follow a run on a KFP server: a line for each task that changes, until the run ends."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from pipelines.server import Server
from pipelines.tasks import ENDED, Task, tasks_of_details, tasks_of_workflow
from stabn.errors import Overdue, RetryableError, StabnError

POLL_SECONDS = 10.0
PATIENCE_SECONDS = 900.0


class RunFailed(StabnError):
    """The run ended, and not well."""

    exit_code = 1


def follow(
    server: Server,
    run_id: str,
    timeout_hours: float = 0.0,
    show: Callable[[str], None] = print,
    titles: Mapping[str, str] = {},
) -> Any:
    """Wait for a run, showing each change of a task's state.

    A server that is away for less than a quarter of an hour is waited for: the run goes on without us.

    Args:
        server: where it runs.
        run_id: the run.
        timeout_hours: hours to wait at most; 0: no limit.
        show: gets each line.
        titles: names of the tasks, see `pipelines.tasks.titles_of`; empty: KFP's own.

    Raises:
        RunFailed: it failed or was cancelled; names the tasks and the reason.
        RetryableError: the server stayed away, or the time is over.
    """
    started = answered = time.monotonic()
    states: dict[str, str] = {}
    tasks: list[Task] = []
    blind = False
    while True:
        try:
            run = server.get_run(run_id)
            found = tasks_of(server, run, titles)
            answered = time.monotonic()
        except RetryableError as error:
            if time.monotonic() - answered > PATIENCE_SECONDS:
                raise RetryableError(f"{error}; the run itself may go on: {server.link(run_id)}") from None
            show(f"{_clock(started)}  {error}; waiting")
        else:
            tasks = found or tasks
            if not found and states and not blind and run.state not in ENDED:
                blind = True
                show(f"{_clock(started)}  KFP no longer says which tasks run; the run itself is followed to its end")
            for task in tasks:
                if states.get(task.title) != task.state:
                    states[task.title] = task.state
                    show(f"{_clock(started)}  {task.title:40} {task.state.lower()}{_ending(task)}")
            if run.state in ENDED:
                break
        if timeout_hours and time.monotonic() - started > timeout_hours * 3600:
            raise Overdue(f"still running after {timeout_hours:g} hours, and goes on: {server.link(run_id)}")
        time.sleep(POLL_SECONDS)
    show(f"{_clock(started)}  run {run.state.lower()}")
    if run.state != "SUCCEEDED":
        raise RunFailed(f"the run {run.state.lower()}{_reasons(run, tasks)}; logs: {server.link(run_id)}")
    return run


def tasks_of(server: Server, run: Any, titles: Mapping[str, str]) -> list[Task]:
    """Return the tasks from the workflow, or where it cannot be had as KFP's API tells of them."""
    workflow = server.workflow(run.run_id)
    found = tasks_of_workflow(workflow, titles) if workflow else None
    if found is None:
        found = tasks_of_details((run.run_details and run.run_details.task_details) or [], titles)
    return found


def _reasons(run: Any, tasks: list[Task]) -> str:
    texts = [f"{task.title}: {task.reason or 'see its log'}" for task in tasks if task.state == "FAILED"]
    if not texts and run.error:
        texts = [run.error.message]
    return f" ({'; '.join(texts)})" if texts else ""


def _ending(task: Task) -> str:
    took = "" if task.seconds is None else f"  {task.seconds // 60}:{task.seconds % 60:02}"
    return took + (f"  {task.reason}" if task.reason else "")


def _clock(started: float) -> str:
    seconds = int(time.monotonic() - started)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
