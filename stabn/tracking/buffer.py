"""Metrics on their way to the server: kept while it is away, sent when it is back."""

import time
from collections.abc import Callable
from typing import Any

MAX_METRICS = 1000  # per request
RETRY_SECONDS = 30.0  # between attempts while the server is away


class MetricBuffer:
    """Hold metrics until they are sent.

    Args:
        send: sends some, and tells whether they arrived.
    """

    def __init__(self, send: Callable[[list[Any]], bool]) -> None:
        self._send = send
        self._pending: list[Any] = []
        self._retry_at = 0.0

    def add(self, metrics: list[Any]) -> None:
        """Send metrics, with those that wait, unless the server was away a moment ago."""
        self._pending += metrics
        if time.monotonic() >= self._retry_at:
            self.flush()

    def flush(self) -> None:
        """Send all that waits, in as few requests as possible."""
        while self._pending:
            batch = self._pending[:MAX_METRICS]
            if not self._send(batch):
                self._retry_at = time.monotonic() + RETRY_SECONDS
                return
            del self._pending[: len(batch)]
