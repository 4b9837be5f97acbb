"""A step tries again itself: on KFP 2.17 a failed container is final, whatever retries its task has.

What passes by itself (storage, tracking or Kubernetes being away) raises RetryableError, and every stage goes on where
it was. So the step calls it again, for as long as STABN_PATIENCE_MINUTES says. What ends the process (out of memory, an
eviction, a lost machine) only Kubernetes can try again.
"""

import os
import random
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from stabn.errors import Overdue, Preempted, RetryableError

PATIENCE = "STABN_PATIENCE_MINUTES"  # of a step; not set: none, as on one's own machine
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 5.0, 120.0
T = TypeVar("T")


def patiently(call: Callable[[], T], name: str, minutes: float | None = None) -> T:
    """Return what a call returns, called again after failures that may pass.

    Args:
        call: the work; called again it goes on where it was.
        name: of the step, for the lines that say so.
        minutes: from the first failure to the last try; a try that took longer than that begins a new count. None: as
            the environment says.

    Raises:
        RetryableError: it did not pass in time, or trying again at once would not help.
    """
    patience = 60 * (float(os.environ.get(PATIENCE, "0")) if minutes is None else minutes)
    failing_since, wait = 0.0, FIRST_WAIT_SECONDS
    while True:
        started = time.monotonic()
        try:
            return call()
        except (Preempted, Overdue):
            raise
        except RetryableError as error:
            now = time.monotonic()
            if not failing_since or now - started > patience:
                failing_since, wait = now, FIRST_WAIT_SECONDS
            pause = wait * random.uniform(0.5, 1.0)  # steps that failed together come back apart
            left = patience - (now - failing_since)
            if left < pause:
                raise
            print(
                f"{name}: {error}; tried again in {pause:.0f} s, for {left / 60:.0f} minutes at most ({PATIENCE})",
                file=sys.stderr,
                flush=True,
            )
            time.sleep(pause)
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)
