"""Logs of pods: each line once, and what the lines say of the progress of the whole job."""

import datetime
import queue
import re
import threading
import time
from typing import Any

from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from components.cluster.api import KubeApi
from components.cluster.pods import CONTAINER, Pod

EPOCH = re.compile(r"epoch (?P<epoch>\d+)/(?P<epochs>\d+)\s+(?:\S+\s+)?(?P<done>[\d,]+)/(?P<all>[\d,]+) ")
PROGRESS_SECONDS = 60.0
STAMPED = re.compile(
    r"(?P<seconds>[\d-]{10}T[\d:]{8})(?:\.(?P<fraction>\d+))?(?P<zone>Z|[+-]\d\d:\d\d) ?(?P<text>.*)", re.DOTALL
)
CLOCKS_DIFFER_SECONDS = 60


class Overall:
    """Tell from a stage's own progress lines how far the whole job is."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None
        self._shown = 0.0

    def read(self, line: str, now: float) -> str:
        """Return a line about the whole job when `line` tells something and it is time for one, else nothing."""
        match = EPOCH.search(line)
        if not match:
            return ""
        done, total = (int(match[name].replace(",", "")) for name in ("done", "all"))
        share = (int(match["epoch"]) - 1 + done / max(1, total)) / int(match["epochs"])
        if self._first is None or share < self._first[1]:
            self._first, self._shown = (now, share), now
        began, share_then = self._first
        if now - self._shown < PROGRESS_SECONDS or share <= share_then:
            return ""
        self._shown = now
        left = (now - began) / (share - share_then) * (1 - share)
        return f"epoch {match['epoch']} of {match['epochs']}, {share:.0%} of the whole, about {clock(left)} left"


class LogFollower(threading.Thread):
    """Put the lines of one pod's log into a queue, each once, through any number of broken connections."""

    def __init__(self, api: KubeApi, pod: Pod, lines: queue.SimpleQueue[tuple[str, Any]], poll_seconds: float):
        super().__init__(daemon=True, name=f"log of {pod.name}")
        self._api, self._pod, self._queue, self._poll = api, pod, lines, poll_seconds
        self._newest: tuple[str, str] = ("", "")
        self._num_newest, self._taken = 0, 0.0
        self._zone = "Z"
        self.ended = threading.Event()  # set when the pod has: what is there is read once more, and no more

    def run(self) -> None:
        """Read until the pod has ended and its log was read to the end."""
        while True:
            is_last = self.ended.is_set()
            try:
                skip = self._num_newest
                for line in self._api.follow_log(self._pod.name, CONTAINER, self._since_seconds()):
                    skip = self._take(line, skip)
            except (ApiException, HTTPError, OSError):
                pass  # the container is not there yet or no more, or the connection broke
            if is_last:
                return
            self.ended.wait(self._poll)

    def _since_seconds(self) -> int | None:
        """Return how far back to read, the newest line included, whatever the clocks of two machines differ by."""
        if not self._newest[0]:
            return None
        newest = datetime.datetime.fromisoformat(f"{self._newest[0]}{self._zone}")
        ago = (datetime.datetime.now(datetime.UTC) - newest).total_seconds()  # negative: this clock is behind
        return int(max(ago, time.monotonic() - self._taken)) + CLOCKS_DIFFER_SECONDS

    def _take(self, line: str, skip: int) -> int:
        """Pass a line on unless it was passed on before; return how many of the newest time are to be skipped yet."""
        match = STAMPED.fullmatch(line)
        if not match:  # the kubelet's own words, such as "unable to retrieve container logs"
            return skip
        self._zone = match["zone"]  # the machine's own, always the same
        at, text = (match["seconds"], (match["fraction"] or "").ljust(9, "0")), match["text"]
        if at < self._newest:
            return skip
        if at == self._newest:
            if skip:
                return skip - 1
            self._num_newest += 1
        else:
            self._newest, self._num_newest, skip, self._taken = at, 1, 0, time.monotonic()
        self._queue.put(("LINE", (self._pod.uid, text)))
        return skip


def clock(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds, "1:02:03" or "2:03"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
