"""What is on its way to the server: kept while it is away, sent when it is back, metrics in pieces that it takes."""

import os
import shutil
import tempfile
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


class Outbox:
    """What a stage wants of the server besides metrics, in order; used for tags and the like, and again for files."""

    def __init__(self) -> None:
        self._is_busy = False
        self._items: list[tuple[str, Callable[[], Any]]] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._retry_at = 0.0

    def add(self, what: str, action: Callable[[], Any]) -> None:
        """Put something to the end; `what` names it in messages."""
        self._items.append((what, action))

    def copy(self, path: str | os.PathLike[str]) -> str:
        """Return a copy of a file, under its own name, that stays until `close`."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="stabn-mlflow-")
        place = os.path.join(tempfile.mkdtemp(dir=self._folder.name), os.path.basename(path))
        try:
            return shutil.copyfile(path, place)
        except OSError:  # said when it is sent
            return place

    def wake(self) -> None:
        """Let `work_off` try at once."""
        self._retry_at = 0.0

    def work_off(self, attempt: Callable[[str, Callable[[], Any]], bool]) -> bool:
        """Do what waits, unless the server was away a moment ago; return whether nothing is left.

        Args:
            attempt: does one thing, which may add others; tells whether it is done with.
        """
        if self._is_busy:
            return False
        self._is_busy = True
        try:
            while self._items and time.monotonic() >= self._retry_at:
                if not attempt(*self._items[0]):
                    self._retry_at = time.monotonic() + RETRY_SECONDS
                    break
                del self._items[0]
        finally:
            self._is_busy = False
        return not self._items

    def put_off(self) -> None:
        """Let what comes first come last."""
        self._items.append(self._items.pop(0))

    def close(self) -> list[str]:
        """Forget everything; return what was left."""
        left, self._items = [what for what, _ in self._items], []
        if self._folder is not None:
            self._folder.cleanup()
        return left
