"""SIGTERM as an orderly exit: what Kubernetes and launchers send before they kill."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any


class Terminated(SystemExit):
    """The process was asked to end; unwinds the stack like Ctrl+C and exits with 143 (128 + SIGTERM)."""


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Raise Terminated in the main thread when SIGTERM arrives, once; the former handler comes back after the block.

    A handler that is there already stays. Forked workers do not inherit this one: SIGTERM ends them as usual.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Request:
    """Whether SIGTERM has arrived."""

    received = False

    def note(self, number: int, frame: Any) -> None:
        """Remember the signal; the handler."""
        self.received = True


@contextlib.contextmanager
def deferred_sigterm() -> Iterator[Request]:
    """Note SIGTERM instead of ending, so that the block can stop where it can go on later; then as it was before.

    Forked workers do not inherit this: SIGTERM ends them as usual.
    """
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    former = signal.signal(signal.SIGTERM, request.note)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if former is None else former)


def _leave(number: int, frame: Any) -> None:
    signal.signal(number, _go_on)
    raise Terminated(128 + number)


def _go_on(number: int, frame: Any) -> None:
    """Let a second SIGTERM not interrupt the clean-up; unlike SIG_IGN, programs started meanwhile do not inherit it."""


# Python forgets a signal that reaches a child before its fork is complete, and a pool that ends its workers at once
# would then wait for ever. So the kernel holds SIGTERM back until the child has its own handler.
_masks = threading.local()


def _before_fork() -> None:
    _masks.former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _after_fork_in_parent() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.former)


def _after_fork_in_child() -> None:
    handler = signal.getsignal(signal.SIGTERM)
    if handler in (_leave, _go_on) or isinstance(getattr(handler, "__self__", None), Request):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.former)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


def end_with_parent() -> Callable[[], object] | None:
    """Return what a new child process runs so that the kernel ends it if its parent is killed; None if impossible.

    The kernel watches the thread that starts the child: take it where that thread lives as long as the process.
    """
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG
