"""SIGTERM and Ctrl+C as an orderly exit: what Kubernetes, launchers, systemd and people send before they kill.

They often send it to every process of a group, and more than once. So the first signal decides how the process ends,
further ones change nothing, and processes that only work for another one leave the signal to that one.
"""

import contextlib
import multiprocessing
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import psutil

from stabn.machine import end_with_parent

ENDING = (signal.SIGTERM, signal.SIGINT)
GRACE_SECONDS = 25  # that a process has to save and end; Kubernetes gives 30
WATCH_SECONDS = 1.0  # between two looks whether the parent process still lives

_DEFAULTS: dict[signal.Signals, Any] = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}


class Terminated(SystemExit):
    """The process was asked to end; unwinds the stack like Ctrl+C and exits with 143 (128 + SIGTERM)."""


@contextlib.contextmanager
def exit_on_signals(for_good: bool = False) -> Iterator[None]:
    """Raise Terminated (SIGTERM) or KeyboardInterrupt (SIGINT) in the main thread at the first signal, and only then.

    A handler that is there already stays. The former ones come back after the block. Forked processes do not inherit
    these: signals end them as usual.

    Args:
        for_good: the process ends with the block: after a signal, further ones do not disturb what is left either.
    """
    mine = [number for number in ENDING if _is_main_thread() and signal.getsignal(number) is _DEFAULTS[number]]
    for number in mine:
        signal.signal(number, _leave)
    try:
        yield
    finally:
        leaving = any(signal.getsignal(number) is _go_on for number in mine)
        for number in mine:
            # Python puts the default back in its last moments, but not in place of SIG_IGN.
            signal.signal(number, signal.SIG_IGN if leaving and for_good else _DEFAULTS[number])


class Request:
    """Which signal has asked the process to end; None as long as none has."""

    def __init__(self, act: Callable[[signal.Signals], None] = lambda number: None) -> None:
        self.received: signal.Signals | None = None
        self._act = act

    def note(self, number: int, frame: Any) -> None:
        """Remember the first signal and act on it; the handler."""
        if self.received is None:
            self.received = signal.Signals(number)
            self._act(self.received)


@contextlib.contextmanager
def on_signal(act: Callable[[signal.Signals], None]) -> Iterator[Request]:
    """Call something at the first SIGTERM or SIGINT instead of ending; further ones change nothing.

    Signals that the process was started to ignore (nohup, a shell's `&`) stay so. After the block it is as before; but
    if one has come, and `exit_on_signals` is around, further ones are ignored: the process is on its way out. Forked
    processes do not inherit this: signals end them as usual.
    """
    request = Request(act)
    if not _is_main_thread():
        yield request
        return
    heard = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    former = {number: signal.signal(number, request.note) for number in heard}
    try:
        yield request
    finally:
        for number, handler in former.items():
            if handler is _leave and request.received:
                handler = _go_on
            signal.signal(number, _DEFAULTS[number] if handler is None else handler)


def deferred_signals() -> contextlib.AbstractContextManager[Request]:
    """Note the signal alone, so that the block can stop where it can go on later; else like `on_signal`."""
    return on_signal(lambda number: None)


@contextlib.contextmanager
def passed_on_to_children() -> Iterator[None]:
    """End like `exit_on_signals`, but the child processes are told first, and get time to save and end.

    For a process whose children do the work. One with a session of its own serves the others, and is not told.
    """

    def tell(number: signal.Signals) -> None:
        told = []
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                if os.getsid(child.pid) == os.getsid(0):
                    child.send_signal(number)
                    told.append(child)
        psutil.wait_procs(told, GRACE_SECONDS)  # now: who waits for a child kills it when something is raised
        _end(number)

    with on_signal(tell):
        yield


def _end(number: int) -> NoReturn:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Terminated(128 + number)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _leave(number: int, frame: Any) -> None:
    for one in ENDING:
        if signal.getsignal(one) is _leave:
            signal.signal(one, _go_on)
    _end(number)


def _go_on(number: int, frame: Any) -> None:
    """Let a further signal not interrupt the clean-up; unlike SIG_IGN, programs started meanwhile do not inherit it."""


# Python forgets a signal that reaches a child before its fork is complete, and a pool that ends its workers at once
# would then wait for ever. So the kernel holds signals back until the child has its own handlers.
_masks = threading.local()


def _before_fork() -> None:
    _masks.former = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)


def _after_fork_in_parent() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.former)


def _after_fork_in_child() -> None:
    for number in ENDING:
        handler = signal.getsignal(number)
        if handler in (_leave, _go_on) or isinstance(getattr(handler, "__self__", None), Request):
            signal.signal(number, _DEFAULTS[number])
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.former)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


@contextlib.contextmanager
def deaf_children() -> Iterator[None]:
    """Let processes and threads that are started in the block begin with SIGTERM and SIGINT held back.

    Worker processes then call `leave_signals_to_parent`, and no moment is left in which a signal ends them.
    """
    multiprocessing.resource_tracker.ensure_running()  # starting it would let the signals through again
    former = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def leave_signals_to_parent() -> None:
    """Let this worker process of `multiprocessing` end only when its parent ends it, or is gone.

    What whole groups of processes are sent does not reach it; what the parent itself sends does. Outside Linux, where
    a process does not learn who sent a signal, it leaves the group instead.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is no worker process"
    if sys.platform.startswith("linux"):
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)  # for threads that were started before
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        watch = _end_when_parent_says
    else:
        os.setpgid(0, 0)
        for number in ENDING:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        watch = _end_after_parent
    threading.Thread(target=watch, args=[parent], name="stabn-parent", daemon=True).start()


def _end_when_parent_says(parent: Any) -> None:
    while True:
        sent = signal.sigtimedwait(ENDING, WATCH_SECONDS)
        if (sent is not None and sent.si_pid == parent.pid) or not parent.is_alive():
            os._exit(0)


def _end_after_parent(parent: Any) -> None:
    parent.join()
    os._exit(0)


def deaf_program() -> Callable[[], object]:
    """Return what a new program runs before it begins, so that its parent alone ends it, with `kill`; see above."""
    end = end_with_parent()

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        if end is not None:
            end()

    return prepare
