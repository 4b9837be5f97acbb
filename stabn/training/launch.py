"""Several processes on one machine: a stage starts itself again under torchrun's agent, and watches.

The agent of torch.distributed starts the processes, gives them their numbers, and ends all when one dies. What happens
then is decided here: a user's error ends the stage; anything else is started again, from the newest state, a number of
times. On several machines torchrun itself is started on each, see docs/training.md.
"""

import contextlib
import logging
import os
import signal
import sys
import tempfile
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, get_error_handler
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from stabn.config import FitConfig
from stabn.errors import Interrupted, Overdue, Preempted, RetryableError, StabnError
from stabn.failures import as_error, judge_end
from stabn.machine import end_with_parent
from stabn.masking import hide_secrets
from stabn.memory import has_been_short
from stabn.signals import GRACE_SECONDS, exit_on_signals, on_signal
from stabn.training.distributed import is_main


def number_of_processes(settings: FitConfig) -> int:
    """Return how many processes the settings want on this machine."""
    return settings.processes or max(1, torch.cuda.device_count())


def must_launch(settings: FitConfig) -> bool:
    """Tell whether this process is to start others; one that a launcher started never does."""
    return "RANK" not in os.environ and number_of_processes(settings) > 1


def launch(function: Callable[..., Any], settings: FitConfig, **arguments: Any) -> None:
    """Run a function in several processes on this machine, until all have returned.

    Args:
        function: importable by its name; in each process it joins the others with `join_world`.
        settings: how many processes, and how often they are started again.
        arguments: of the function. What it returns is dropped.

    Raises:
        StabnError: what a process said that is the user's to change.
        RetryableError: processes died more often than `restarts`.
        Preempted: SIGTERM came, or Interrupted: Ctrl+C; the processes have saved and ended.
    """
    for talkative in ("torch.distributed.elastic", "torch.multiprocessing.spawn"):
        logging.getLogger(talkative).setLevel(logging.CRITICAL)  # what they would say is said below
    name, processes = function.__name__, number_of_processes(settings)
    with tempfile.TemporaryDirectory(prefix="stabn-launch-") as folder, _ending_processes(name):
        for attempt in range(settings.restarts + 1):
            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=processes,
                run_id=uuid.uuid4().hex,
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                local_addr="localhost",
                start_method="spawn",
                monitor_interval=0.5,
                max_restarts=0,  # the agent's own would meet the addresses of the dead, and say nothing of the reason
                shutdown_timeout=GRACE_SECONDS,
                signals_to_handle="SIGHUP,SIGQUIT",  # the others are `_ending_processes`' own
                logs_specs=DefaultLogsSpecs(log_dir=folder),
            )
            try:
                elastic_launch(config, _process)(function, arguments)
                return
            except ChildFailedError as error:
                failure = _cause(error)
                verdict = judge_end(failure.exitcode, _said(failure), has_been_short())
                own = failure.exitcode in (StabnError.exit_code, RetryableError.exit_code)
                reason = verdict.text if own else f"process {failure.local_rank} {verdict.text}"
                if not verdict.passes:
                    raise StabnError(reason) from None
                if attempt == settings.restarts:
                    raise Overdue(
                        f"{name}: {reason}; started again {attempt} times in vain, run it again to go on"
                    ) from None
                print(
                    f"{name}: {reason}; all {processes} processes are started again from the newest state, "
                    f"{attempt + 1} of at most {settings.restarts} times",
                    file=sys.stderr,
                    flush=True,
                )


def _cause(error: ChildFailedError) -> ProcessFailure:
    """Return the failure that explains the others: a user's error, a killed process, then the earliest."""

    def order(failure: ProcessFailure) -> tuple[bool, bool, bool, int]:
        code = failure.exitcode
        return code != StabnError.exit_code, code >= 0, code == RetryableError.exit_code, failure.timestamp

    return min(error.failures.values(), key=order)


def _said(failure: ProcessFailure) -> str:
    """Return what the process gave as its reason, in one line: its own error without the kind; empty: nothing."""
    message: Any = failure.message
    text = message["message"] if isinstance(message, dict) else message
    kind, separator, said = text.partition(": ")
    if not separator or failure.error_file == "<N/A>":
        return ""
    is_own = failure.exitcode in (StabnError.exit_code, RetryableError.exit_code)
    return next(iter((said if is_own else text).strip().splitlines()), kind)


@contextlib.contextmanager
def _ending_processes(name: str) -> Iterator[None]:
    """Let the first signal make the agent end the processes it has started; further ones do not disturb it.

    The agent's own handlers would raise at every signal, also while it waits for processes that save.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kinds = (signal.SIGHUP, signal.SIGQUIT)
    former = {kind: signal.getsignal(kind) for kind in kinds}

    def end(number: signal.Signals) -> None:
        raise SignalException(f"got {number.name}", number)

    try:
        with on_signal(end):
            yield
    except SignalException as error:
        number = signal.Signals(error.sigval)
        raise (Interrupted if number == signal.SIGINT else Preempted)(
            f"{name}: asked to end ({number.name}); run it again, it goes on"
        ) from None
    finally:
        for kind, handler in former.items():
            signal.signal(kind, handler)


def _process(function: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """Be one of the processes: run the function, and tell the agent why if it fails."""
    hide_secrets()
    end = end_with_parent(signal.SIGTERM)
    if end is not None:
        end()
    with exit_on_signals(for_good=True):
        _work(function, arguments)


def _work(function: Callable[..., Any], arguments: dict[str, Any]) -> None:
    try:
        function(**arguments)
    except Exception as error:
        known = as_error(error)
        if known is None:
            traceback.print_exc()
            raise
        if isinstance(known, Preempted) and is_main():
            print(known, file=sys.stderr, flush=True)  # the agent has been asked to end too, and reads no reasons
        get_error_handler().record_exception(known)
        sys.exit(known.exit_code)
