"""What a pod of a job says of itself, and which pod's end explains the end of the job."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from stabn.errors import RetryableError, StabnError
from stabn.failures import LOST, judge, judge_end

CONTAINER = "node"
JOB_LABEL = "jobset.sigs.k8s.io/jobset-name"
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
DISRUPTIONS = (
    "Evicted",
    "NodeAffinity",
    "NodeLost",
    "NodeShutdown",
    "Preempting",
    "Shutdown",
    "Terminated",
    "UnexpectedAdmissionError",
)
HOPELESS = ("InvalidImageName", "ErrImageNeverPull")
STUCK = ("CreateContainer", "ErrImagePull", "ImagePullBackOff", "RunContainerError")
EXIT_CODE = re.compile(r"exitcode\s*:\s*(-?\d+)")  # in torchrun's table of failed processes
OWN_ERROR = re.compile(r"^(?:\[\w+\]:\s*)?(?:stabn [\w-]+|process \d+): (?P<text>.+)")
PYTHON_ERROR = re.compile(r"^(?:\[\w+\]:\s*)?(?P<text>(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Interrupt)\b.*)")
LAUNCHER_ERROR = ("ChildFailedError", "SignalException")
KILLED = (135, 137, 139, 143)  # 128 + SIGBUS, SIGKILL, SIGSEGV, SIGTERM
LAUNCHER = re.compile(r"torch/distributed/(elastic|launcher|run\.py)|bin/torchrun")


@dataclass
class Pod:
    """One pod as it was last seen.

    Attributes:
        index: number of the node, 0 for the one that logs.
        machine: where it runs; empty before it is placed.
        waiting: why its container does not start yet, "ImagePullBackOff: ..."; empty if it has, or nothing is known.
        exit_code: of its container; None while it has none.
        reason: why it ended in one or two words, as Kubernetes says it: Error, OOMKilled, Evicted.
        message: Kubernetes' own sentence on it.
        disrupted: it was ended for reasons that are not its own.
        leaving: it was told to go.
        gone: it does not exist any more.
        restarts: how often its container was started again in place.
        crash: how the container before that ended.
        lines: the end of its log.
    """

    uid: str
    name: str
    index: int
    created_at: str = ""
    machine: str = ""
    phase: str = "Pending"
    waiting: str = ""
    is_started: bool = False
    exit_code: int | None = None
    ended_at: str = ""
    reason: str = ""
    message: str = ""
    disrupted: bool = False
    leaving: bool = False
    gone: bool = False
    restarts: int = 0
    crash: str = ""
    lines: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        """Return what it is called in messages."""
        return f"node {self.index} ({self.name}{f' on {self.machine}' if self.machine else ''})"

    @property
    def has_failed(self) -> bool:
        """Whether it ended, vanished, or was told to go, without having done its work."""
        has_left = (self.gone or self.leaving) and self.phase != "Succeeded"
        return self.phase == "Failed" or bool(self.exit_code) or has_left


@dataclass(frozen=True)
class Cause:
    """Why a job failed.

    Attributes:
        reason: one line.
        is_retryable: whether the same job may succeed when it is started again from its last checkpoint.
        pod: whose end explains it; None when no pod does.
    """

    reason: str
    is_retryable: bool
    pod: Pod | None = None


def read_pod(item: dict[str, Any]) -> Pod:
    """Read a pod as the API returns it."""
    metadata, status = item["metadata"], item.get("status", {})
    labels = {**metadata.get("annotations", {}), **metadata.get("labels", {})}
    pod = Pod(
        uid=metadata["uid"],
        name=metadata["name"],
        index=int(labels.get(INDEX_LABEL, 0)),
        created_at=metadata.get("creationTimestamp", ""),
        machine=item.get("spec", {}).get("nodeName", ""),
        phase=status.get("phase", "Pending"),
        reason=status.get("reason", ""),
        message=status.get("message", ""),
        leaving="deletionTimestamp" in metadata,
    )
    for condition in status.get("conditions", []):
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            pod.disrupted = True
            pod.reason = pod.reason or condition.get("reason", "")
            pod.message = pod.message or condition.get("message", "")
        elif condition["type"] == "PodScheduled" and condition["status"] == "False":
            pod.waiting = f"{condition.get('reason', '')}: {condition.get('message', '')}"
    pod.disrupted |= status.get("reason", "") in DISRUPTIONS
    for container in status.get("containerStatuses", []):
        if container["name"] != CONTAINER:
            continue
        state = container.get("state", {})
        pod.restarts = container.get("restartCount", 0)
        pod.is_started = "running" in state or "terminated" in state
        if crashed := container.get("lastState", {}).get("terminated"):
            pod.crash = f"{crashed.get('reason', '')}, exit code {crashed.get('exitCode')}"
        if waiting := state.get("waiting"):
            pod.waiting = ": ".join(filter(None, (waiting.get("reason"), waiting.get("message"))))
        if ended := state.get("terminated"):
            pod.exit_code = ended.get("exitCode", 0)
            pod.ended_at = ended.get("finishedAt") or ""
            pod.reason = pod.reason or ended.get("reason", "")
            pod.message = pod.message or ended.get("message", "")
    return pod


def newest_of_each(pods: Iterable[Pod]) -> list[Pod]:
    """Return the last pod of each node: those before it were replaced."""
    newest: dict[int, Pod] = {}
    for pod in sorted(pods, key=lambda pod: pod.created_at):
        newest[pod.index] = pod
    return list(newest.values())


def find_cause(pods: Sequence[Pod]) -> Cause | None:
    """Return why the job of these pods failed; None if no pod failed.

    The end of one node makes the others fail too, and the job's end makes Kubernetes remove the rest. So what a pod
    says of itself goes before what it suffered, and then the earliest goes first.
    """
    failed = [pod for pod in pods if pod.has_failed]
    if not failed:
        return None
    ranked = [(*_judge(pod), pod.ended_at or "9", pod.index, pod) for pod in failed]
    _, reason, is_retryable, _, _, pod = min(ranked, key=lambda item: (item[0], item[3], item[4]))
    return Cause(" ".join(f"{pod.label} {reason}".split()), is_retryable, pod)


def _judge(pod: Pod) -> tuple[int, str, bool]:
    """Return how well a pod's end explains the job's (0 best), the reason, and whether to try again."""
    codes = [int(code) for line in pod.lines for code in EXIT_CODE.findall(line)]
    codes = codes or ([] if pod.exit_code is None else [pod.exit_code])
    said = error_line(pod.lines)
    if pod.reason == "OOMKilled":
        return 0, "was out of memory: raise STABN_TRAINJOB_MEMORY, or lower micro_batch_size or data.workers", False
    if pod.disrupted:
        return 2, f"was ended by the cluster: {pod.reason} {pod.message}", True
    if pod.leaving or pod.gone:
        return 6, "was removed while it ran; its machine was lost, or somebody deleted it", True
    if StabnError.exit_code in codes and said:
        return 1, said, False
    if (verdict := judge(said)) and not verdict.passes:  # the others of its node were ended for it
        return 1, verdict.text, False
    if LOST.search(said) or (not said and any(LOST.search(line) for line in pod.lines[-100:])):
        return 5, f"lost another node: {said}", True
    if RetryableError.exit_code in codes:
        return 3, *_verdict(RetryableError.exit_code, said)
    killed = [code for code in codes if code < 0 or code in KILLED]
    if killed:
        return 4, *_verdict(killed[0], "")
    code = pod.exit_code or 1
    if not said:
        return 4, *_verdict(code, "", f": {pod.reason} {pod.message}")
    return 4, *_verdict(code, said)


def _verdict(code: int, said: str, more: str = "") -> tuple[str, bool]:
    verdict = judge_end(code, said)
    return verdict.text + more, verdict.passes


def error_line(lines: Sequence[str]) -> str:
    """Return the line of a log that says what went wrong: stabn's own message, else Python's; empty if none does."""
    for pattern in (OWN_ERROR, PYTHON_ERROR):
        for line in reversed(lines):
            match = pattern.match(line.strip())
            if match and not any(name in match["text"] for name in LAUNCHER_ERROR):
                return match["text"]
    return ""


def without_launcher(lines: Sequence[str]) -> list[str]:
    """Return a log without what torchrun itself says of a failure at its end: half a page that holds no reason."""
    ends = [i for i, line in enumerate(lines) if any(name in line for name in LAUNCHER_ERROR)]
    if ends:
        starts = [i for i in range(ends[-1]) if lines[i].startswith("Traceback ")]
        lines = lines[: starts[-1] if starts else ends[-1]]
    return [line for line in lines if not LAUNCHER.search(line)]
