"""How far a stage is: one rewritten line on a terminal, a line every few seconds in a log."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import IO, Any, Self, TypeVar

T = TypeVar("T")

TERMINAL_SECONDS = 0.1
LOG_SECONDS = 5.0  # STABN_PROGRESS_SECONDS overrides it
BAR_WIDTH = 20


class Progress:
    """Count finished items and show count, rate, time left and the latest numbers.

    Used as `for item in Progress(len(items), "extract").track(items)` or
    `with Progress(4800, "train  epoch 3/20") as progress: progress.update(16, loss=1.23)`.

    Args:
        total: items to come; 0 if unknown.
        what: what is being done, first in the line.
        unit: plural name of the items.
        stream: where to write; standard error by default.
        interval: seconds between two lines; None: 0.1 on a terminal, 5 elsewhere.

    Attributes:
        numbers: the newest that are shown.
    """

    def __init__(
        self, total: int, what: str, unit: str = "videos", stream: IO[str] | None = None, interval: float | None = None
    ):
        self.total, self.what, self.unit = total, what, unit
        self.count = 0
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        default = TERMINAL_SECONDS if self._terminal else float(os.environ.get("STABN_PROGRESS_SECONDS") or LOG_SECONDS)
        self._interval = default if interval is None else interval
        self.numbers: dict[str, Any] = {}
        self._start = self._shown = time.monotonic()
        self._closed = False

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def update(self, n: int = 1, **numbers: float) -> None:
        """Count n more items and remember numbers to show, like `loss=1.23`."""
        self.count += n
        self.numbers |= numbers
        if time.monotonic() - self._shown >= self._interval:
            self._show(self.line())

    def track(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, counting each when its work is done."""
        with self:
            for item in items:
                yield item
                self.update()

    def close(self) -> None:
        """Show the last line with the time taken; more calls do nothing."""
        if not self._closed:
            self._closed = True
            self._show(self.line(), end="\n")

    def line(self) -> str:
        """Return the present line, "train  1,200/4,800 videos  112/s  0:32 left  loss 1.23"."""
        seconds = self.seconds
        rate = self.count / seconds if seconds > 0 else 0.0
        total = f"/{self.total:,}" if self.total else ""
        parts = [self.what, f"{self.count:,}{total} {self.unit}", f"{_number(rate)}/s"]
        if self._closed:
            parts.append(f"{_duration(seconds)} taken")
        elif self.total and rate:
            parts.append(f"{_duration(max(0, self.total - self.count) / rate)} left")
        parts += [f"{name} {_number(value)}" for name, value in self.numbers.items()]
        if self._terminal and self.total:
            filled = min(BAR_WIDTH, BAR_WIDTH * self.count // self.total)
            parts.insert(1, "█" * filled + "░" * (BAR_WIDTH - filled))
        return "  ".join(parts)

    def _show(self, line: str, end: str = "") -> None:
        self._shown = time.monotonic()
        if self._terminal:
            try:
                width = os.get_terminal_size(self._stream.fileno()).columns or 80
            except (OSError, ValueError):
                width = 80
            self._stream.write(f"\r\033[K{line[: width - 1]}{end}")
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _number(value: float) -> str:
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
