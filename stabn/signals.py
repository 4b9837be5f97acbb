"""SIGTERM as an orderly exit: what Kubernetes and launchers send before they kill."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Terminated(SystemExit):
    """The process was asked to end; unwinds the stack like Ctrl+C and exits with 143 (128 + SIGTERM)."""


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Raise Terminated in the main thread when SIGTERM arrives, once; the former handler comes back after the block.

    A handler that is there already stays. Forked workers, which inherit the handler, die of SIGTERM as usual.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    owner = os.getpid()

    def leave(number: int, frame: Any) -> None:
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the clean-up
        raise Terminated(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        if os.getpid() == owner:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
