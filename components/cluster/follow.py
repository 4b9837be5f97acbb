"""Following a TrainJob: everything a person would look up with kubectl, in the step's own log, until the job ends."""

import queue
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from components.cluster.api import KubeApi
from components.cluster.config import ClusterConfig
from components.cluster.logs import PROGRESS_SECONDS, LogFollower, Overall, clock
from components.cluster.pods import (
    CONTAINER,
    HOPELESS,
    JOB_LABEL,
    STUCK,
    Cause,
    Pod,
    find_cause,
    newest_of_each,
    read_pod,
)
from components.cluster.progress import describe_trainer
from stabn.errors import StabnError

KEPT_LINES = 400  # of each log, to find the reason of a failure in
REMIND_SECONDS = 300.0  # after which a job that still waits says so again
STUCK_SECONDS = 600.0  # that a container may fail to start for reasons that somebody could still mend
LOST_SECONDS = 60.0  # beyond their time to save, after which pods that do not end are on a machine that is dead
SETTLE_SECONDS = 10.0  # that the pods of a failed job get to show their end
DULL = ("Created", "Pulled", "Scheduled", "Started", "SuccessfulCreate", "SuccessfulDelete")
ERRORS = re.compile(
    r"^stabn [\w-]+: |^process \d+: |error|exception|traceback \(|killed|abort|out of memory|nccl warn", re.IGNORECASE
)
NOISE = re.compile(r"distributed[./](elastic|run)|error_file|exitcode|traceback :|ChildFailedError")


class Follower:
    """Follow one job until it ends.

    Args:
        api: Kubernetes.
        name: the job's.
        num_nodes: how many pods it has.
        config: deadlines and intervals.
        say: prints one line.
    """

    def __init__(
        self, api: KubeApi, name: str, num_nodes: int, config: ClusterConfig, say: Callable[[str], None] = print
    ):
        self.api, self.name, self.num_nodes, self.config, self.say = api, name, num_nodes, config, say
        self.pods: dict[str, Pod] = {}
        self._queue: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()  # a signal may interrupt its get
        self._logs: dict[str, LogFollower] = {}
        self._tails: dict[str, deque[str]] = {}
        self._stop = threading.Event()
        self._overall = Overall()
        self._reported, self._reported_at = "", 0.0  # by the trainer, of its progress
        self._told: set[str] = set()
        self._stuck_since: dict[str, float] = {}
        self._failed_since: float | None = None
        self._waiting_for = ""
        self._pending_since: float | None = time.monotonic()
        self._running_since: float | None = None
        self._reminded = time.monotonic()

    def run(self) -> Cause | None:
        """Return None when the job is complete, else why it failed.

        Raises:
            StabnError: the job was deleted by somebody, or Kubernetes refuses something.
            ApiUnavailable: Kubernetes does not answer; the job goes on.
        """
        threading.Thread(target=self._watch, daemon=True, name=f"pods of {self.name}").start()
        try:
            while True:
                self._drain(self.config.poll_seconds)
                job = self.api.get("trainjobs", self.name)
                if job is None:
                    raise StabnError(f"TrainJob {self.name} was deleted by somebody while it was followed")
                self._tell_progress(job)
                conditions = {item["type"]: item for item in job.get("status", {}).get("conditions", [])}
                if _is_true(conditions.get("Complete")):
                    self._read_logs_to_the_end()
                    return None
                if _is_true(conditions.get("Failed")):
                    return self._failure(conditions["Failed"])
                if cause := self._judge_time(conditions.get("Suspended")):
                    return cause
        finally:
            self._stop.set()
            for follower in self._logs.values():
                follower.ended.set()

    def _watch(self) -> None:
        try:
            for kind, items in self.api.watch_pods(f"{JOB_LABEL}={self.name}", self._stop):
                self._queue.put((kind, items))
        except Exception as error:  # raised again in the main thread
            self._queue.put(("FAILURE", error))

    def _drain(self, seconds: float) -> None:
        """Handle what comes within some seconds."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            try:
                kind, what = self._queue.get(timeout=left)
            except queue.Empty:
                return
            if kind == "FAILURE":
                raise what
            if kind == "LINE":
                self._show_line(*what)
            elif kind == "LIST":
                self._see_all(what)
            elif kind in ("ADDED", "MODIFIED", "DELETED"):
                self._see(what[0])
                if kind == "DELETED":
                    self._lose(self.pods[what[0]["metadata"]["uid"]])

    def _see_all(self, items: list[dict[str, Any]]) -> None:
        found = {item["metadata"]["uid"] for item in items}
        for uid, pod in self.pods.items():
            if uid not in found:
                self._lose(pod)
        for item in items:
            self._see(item)

    def _lose(self, pod: Pod) -> None:
        pod.gone = True
        if pod.uid in self._logs:
            self._logs[pod.uid].ended.set()

    def _see(self, item: dict[str, Any]) -> None:
        now = read_pod(item)
        before = self.pods.get(now.uid)
        self.pods[now.uid] = now
        if now.is_started and not (before and before.is_started):
            self.say(f"{now.label}: started")
        if now.is_started and now.uid not in self._logs:
            self._tails[now.uid] = deque(maxlen=KEPT_LINES)
            follower = LogFollower(self.api, now, self._queue, self.config.poll_seconds)
            self._logs[now.uid] = follower
            follower.start()
        if before and now.restarts > before.restarts:
            self.say(f"{now.label}: its container ended ({now.crash}) and is started again; its last lines:")
            for line in self.api.log_tail(now.name, CONTAINER, self.config.tail_lines, previous=True):
                self.say(f"  | {line}")
        if now.phase in ("Failed", "Succeeded") and now.uid in self._logs:
            self._logs[now.uid].ended.set()
        if now.exit_code and not (before and before.exit_code is not None):
            self.say(f"{now.label}: ended with exit code {now.exit_code}, {now.reason}")
        if now.disrupted and not (before and before.disrupted):
            self.say(f"{now.label}: {now.reason} {now.message}")

    def _show_line(self, uid: str, line: str) -> None:
        self._tails[uid].append(line)
        index = self.pods[uid].index
        if index == 0:
            self.say(line)
            overall = self._overall.read(line, time.monotonic())
            if overall and not self._reported:
                self.say(f"TrainJob {self.name}: {overall}")
        elif ERRORS.search(line) and not NOISE.search(line):
            self.say(f"node {index}: {line}")

    def _tell_progress(self, job: dict[str, Any]) -> None:
        """Say what the trainer itself reports to Kubernetes, once a minute; it knows better than its log's lines."""
        reported = (job.get("status") or {}).get("trainerStatus")
        text, now = describe_trainer(reported), time.monotonic()
        if text and text != self._reported and (not self._reported or now - self._reported_at >= PROGRESS_SECONDS):
            self._reported, self._reported_at = text, now
            self.say(f"TrainJob {self.name}: {text}")

    def _judge_time(self, suspended: dict[str, Any] | None) -> Cause | None:
        """Say what the job waits for, and return a cause when it has waited or run too long or waits in vain."""
        now = time.monotonic()
        if cause := self._judge_loss(now, _is_true(suspended)):
            return cause
        alive = [pod for pod in newest_of_each(self.pods.values()) if not pod.gone and not pod.leaving]
        if sum(pod.is_started for pod in alive) >= self.num_nodes:
            if self._pending_since is not None:
                self.say(f"TrainJob {self.name}: all {self.num_nodes} nodes have started")
                self._pending_since = None
                self._running_since = self._running_since or now
        elif self._pending_since is None and not any(pod.has_failed for pod in alive):
            self._pending_since = self._reminded = now
        if self._pending_since is not None:
            self._tell_waiting(alive, suspended)
            waited, limit = now - self._pending_since, self.config.pending_minutes * 60
            for pod in alive:
                if not pod.waiting.startswith((*HOPELESS, *STUCK)):
                    self._stuck_since.pop(pod.uid, None)
                elif (
                    pod.waiting.startswith(HOPELESS) or now - self._stuck_since.setdefault(pod.uid, now) > STUCK_SECONDS
                ):
                    return Cause(" ".join(f"{pod.label} cannot start: {pod.waiting}".split()), False)
            if limit and waited > limit:
                return Cause(
                    f"its nodes did not start within {clock(limit)} (STABN_TRAINJOB_PENDING_MINUTES): "
                    f"{self._waiting_for or 'Kubernetes gives no reason; does the training runtime exist?'}",
                    False,
                )
            if now - self._reminded > REMIND_SECONDS:
                self._reminded = now
                self.say(f"TrainJob {self.name}: waiting for {clock(waited)} now: {self._waiting_for}")
        limit = self.config.running_hours * 3600
        if limit and self._running_since is not None and now - self._running_since > limit:
            return Cause(f"it did not end within {clock(limit)} (STABN_TRAINJOB_RUNNING_HOURS)", False)
        return None

    def _judge_loss(self, now: float, is_suspended: bool) -> Cause | None:
        """Return why the job fails, if its pods have but it has not: it waits for those of a machine that is dead.

        The pods of a job that is suspended leave too, and come back.
        """
        left = any(pod.has_failed and not pod.gone for pod in newest_of_each(self.pods.values()))
        if is_suspended or not left:
            self._failed_since = None
            return None
        if self._failed_since is None:
            self._failed_since = now
        if now - self._failed_since <= self.config.grace_seconds + LOST_SECONDS:
            return None
        return self._failure({"reason": "NodeLost", "message": "a machine does not answer"})

    def _tell_waiting(self, alive: list[Pod], suspended: dict[str, Any] | None) -> None:
        """Say every reason to wait once: the queue, what the pods say, and the events about job and pods."""
        if _is_true(suspended):
            queue_name = f" in queue {self.config.queue}" if self.config.queue else ""
            self._tell(f"suspended{queue_name}: {(suspended or {}).get('message', '')}")
        waiting = [pod for pod in alive if not pod.is_started]
        for pod in waiting:
            if pod.waiting and not pod.waiting.startswith(("ContainerCreating", "PodInitializing")):
                self._tell(f"{pod.label}: {pod.waiting}")
        for name in (self.name, f"{self.name}-{CONTAINER}-0", *(pod.name for pod in waiting[:4])):
            for event in self.api.events(name):
                kind, reason = event.get("involvedObject", {}).get("kind", ""), event.get("reason", "")
                if reason not in DULL:
                    text = f"{kind} {name}: {reason}: {event.get('message', '')}"
                    self._tell(text, is_reason=event.get("type") == "Warning")

    def _tell(self, text: str, is_reason: bool = True) -> None:
        text = " ".join(text.split())
        if is_reason:
            self._waiting_for = text
        if text not in self._told:
            self._told.add(text)
            self.say(f"waiting: {text}")

    def _read_logs_to_the_end(self) -> None:
        """Show what the logs still hold, those too of pods that the watch has not told of."""
        self._see_all(self.api.pods(f"{JOB_LABEL}={self.name}")["items"])
        for follower in self._logs.values():
            follower.ended.set()
        until = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < until and (
            any(follower.is_alive() for follower in self._logs.values()) or not self._queue.empty()
        ):
            self._drain(0.05)

    def _failure(self, condition: dict[str, Any]) -> Cause:
        """Return why the job failed, once its pods have shown it."""
        until = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < until and not any(pod.has_failed for pod in self.pods.values()):
            self._drain(0.05)
        self._read_logs_to_the_end()
        for pod in self.pods.values():
            tail = self._tails.get(pod.uid)
            pod.lines = list(tail) if tail else []
            if pod.has_failed and not pod.lines and not pod.gone:
                pod.lines = self.api.log_tail(pod.name, CONTAINER, KEPT_LINES)
        said = " ".join(f"{condition.get('reason', '')}: {condition.get('message', '')}".split())
        if condition.get("reason") == "DeadlineExceeded":  # the pods were removed, and would be again
            return Cause(said, False)
        return find_cause(newest_of_each(self.pods.values())) or Cause(said, False)


def _is_true(condition: dict[str, Any] | None) -> bool:
    return condition is not None and condition.get("status") == "True"
