"""Metrics on their way to the server: kept while it is away, sent when it is back, in pieces that it takes."""

import time
from collections.abc import Callable
from typing import Any

MAX_METRICS = 1000  # per request
RETRY_SECONDS = 30.0  # between attempts while the server is away
WAITING_SHARE = 0.05  # of a training's time, at most, that attempts may take


class Refused(Exception):
    """The server does not take these metrics, now or later."""


class MetricBuffer:
    """Hold metrics until they are sent.

    Args:
        send: sends some, and tells whether they arrived; raises Refused.
        drop: told of a metric that the server refuses by itself.
    """

    def __init__(self, send: Callable[[list[Any]], bool], drop: Callable[[Any, Exception], None]) -> None:
        self._send, self._drop = send, drop
        self._pending: list[Any] = []
        self._retry_at = 0.0
        self._size = MAX_METRICS

    def __len__(self) -> int:
        """Return how many metrics wait."""
        return len(self._pending)

    def add(self, metrics: list[Any]) -> None:
        """Send metrics, with those that wait, unless the server was away a moment ago."""
        self._pending += metrics
        if time.monotonic() >= self._retry_at:
            self.flush()

    def flush(self) -> None:
        """Send all that waits, in as few requests as the server takes."""
        while self._pending:
            batch, started = self._pending[: self._size], time.monotonic()
            try:
                arrived = self._send(batch)
            except Refused as error:
                if len(batch) > 1:  # too many for this server, or one of them is wrong
                    self._size = len(batch) // 2
                    continue
                self._drop(batch[0], error)
                self._size, arrived = MAX_METRICS, True
            if not arrived:
                now = time.monotonic()
                self._retry_at = now + max(RETRY_SECONDS, (now - started) / WAITING_SHARE)
                return
            del self._pending[: len(batch)]
