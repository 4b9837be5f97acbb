"""Why something ended, and whether the same would succeed when it is tried again: decided here, for all who ask.

The command line and the steps ask about what was raised, the launcher about the end of a process, the follower of a
TrainJob about the lines of a log. What is not the user's to change and passes by itself exits with 75 and is tried
again; anything else would burn the same hours once more.
"""

import re
import signal
from dataclasses import dataclass
from typing import NamedTuple

from stabn.errors import RetryableError, StabnError
from stabn.memory import has_been_short

NOT_STARTED = (126, 127)  # what shells answer: not a program, no such program
LOST = re.compile(
    r"connection (closed|reset|refused)|connectionreset|broken pipe|lost another process|remote process exited"
    r"|another process of the run died"
    r"|dist(network|backend|store)error|timed out after \d+|socket timeout|rendezvous\w*(error|timeout)",
    re.IGNORECASE,
)
SHARED_MEMORY_REMEDY = (
    "lower data.workers, or enlarge /dev/shm (a step: stages.<stage>.shm of the compile settings; a TrainJob: "
    "STABN_TRAINJOB_SHM_SIZE; a container: --shm-size)"
)
MEMORY_REMEDY = "lower train.micro_batch_size or data.workers, or give it more memory"


@dataclass(frozen=True)
class Cause:
    """A known cause of failures.

    Attributes:
        name: what happened, in a few words.
        pattern: found in `KIND: message` of an exception or in a log's line.
        passes: whether the same may succeed when it is tried again.
        remedy: what to change, or what to look at.
    """

    name: str
    pattern: re.Pattern[str]
    passes: bool
    remedy: str


def _cause(name: str, pattern: str, passes: bool, remedy: str) -> Cause:
    return Cause(name, re.compile(pattern, re.IGNORECASE), passes, remedy)


CAUSES = (
    _cause(
        "out of GPU memory",
        r"OutOfMemoryError|(CUDA|HIP|MPS|XPU)( backend)? out of memory|(CU|HIP)\w+_STATUS_ALLOC_FAILED"
        r"|(CUDA|HIP)( driver)? error: out of memory|Cuda failure\b.*out of memory",
        False,
        "halve micro_batch_size (of train or finetune), or set activation_checkpointing = true",
    ),
    _cause(
        "/dev/shm is full",
        r"bus error|insufficient shared memory|shared memory (file|object|region).*(resize|allocate|No space|mmap)"
        r"|unable to (resize|allocate|mmap) .*shared memory|</torch_\S*>.*No space|No space left on device.*/dev/shm",
        False,
        SHARED_MEMORY_REMEDY,
    ),
    _cause(
        "a disk is full",
        r"No space left on device|Disk quota exceeded",
        False,
        "free space there, or move data.cache_dir, TMPDIR or the output to a larger one",
    ),
    _cause(
        "out of memory",
        r"^MemoryError|can't allocate memory|Cannot allocate memory|std::bad_alloc",
        False,
        MEMORY_REMEDY,
    ),
    _cause(
        "too many open files",
        r"Too many open files|received 0 items of ancdata",
        False,
        "raise the limit (ulimit -n), or lower data.workers",
    ),
    _cause(
        "the GPU failed",
        r"uncorrectable ECC|CUDA error: (unspecified launch failure|unknown error|the launch timed out|misaligned"
        r"|an illegal memory access|device.*unavailable|hardware)|NVLink|NCCL.*(error|timeout|unhandled)|GPU is lost",
        True,
        "look at the machine's GPU if it happens again",
    ),
    _cause(
        "a loading process died",
        r"DataLoader worker \(pid.*\) (exited unexpectedly|is killed)",
        True,
        "look at the memory of the machine if it happens again",
    ),
)


class Verdict(NamedTuple):
    """Whether the same may succeed when it is tried again, and one line on what happened."""

    passes: bool
    text: str


def recognize(text: str) -> Cause | None:
    """Return the known cause that `KIND: message` of an exception, or a log's line, tells of; None if there is none."""
    return next((cause for cause in CAUSES if cause.pattern.search(text)), None)


def judge(text: str, was_short: bool = False) -> Verdict | None:
    """Judge `KIND: message` of an exception, or a log's line; None if its cause is none of the known ones.

    Args:
        text: what was said.
        was_short: whether the memory limit was reached where it was said, see `has_been_short`.
    """
    cause = recognize(text)
    if cause is None:
        return None
    if cause.name == "a loading process died" and was_short:
        return Verdict(False, f"{_first_line(text)}: the memory limit was reached; {MEMORY_REMEDY}")
    return Verdict(cause.passes, f"{cause.name} ({_first_line(text)}); {cause.remedy}")


def as_error(error: BaseException) -> StabnError | None:
    """Return what was raised as an error of one line and an exit code; None if its cause is none of the known ones."""
    if isinstance(error, StabnError):
        return error
    verdict = judge(f"{type(error).__name__}: {error}", has_been_short())
    if verdict is None:
        return None
    return (RetryableError if verdict.passes else StabnError)(verdict.text)


def judge_end(code: int, said: str = "", was_short: bool = False) -> Verdict:
    """Judge the end of a process that was to train or to evaluate.

    Args:
        code: its exit code; a negative one: ended by that signal.
        said: its own line of reason; empty: it gave none.
        was_short: whether the memory limit was reached where it ran.

    Returns:
        The text is what it said, or how it ended.
    """
    if code == StabnError.exit_code and said:
        return Verdict(False, said)
    if code > 128 and code != RetryableError.exit_code and not said:
        code = 128 - code
    if code == RetryableError.exit_code:
        return Verdict(True, said or f"ended with exit code {code}: may pass by itself")
    if code < 0:
        return _judge_signal(signal.Signals(-code), was_short)
    if said:
        if verdict := judge(said, was_short):
            return verdict
        return Verdict(bool(LOST.search(said)), f"ended with exit code {code}: {said}")
    return Verdict(code not in NOT_STARTED, f"ended with exit code {code}")


def _judge_signal(number: signal.Signals, was_short: bool) -> Verdict:
    text = f"was ended by {number.name}"
    if number == signal.SIGBUS:
        return Verdict(False, f"{text}, mostly as /dev/shm is full; {SHARED_MEMORY_REMEDY}")
    if number == signal.SIGKILL:
        if was_short:
            return Verdict(False, f"{text}: the memory limit was reached; {MEMORY_REMEDY}")
        return Verdict(True, f"{text}, often for want of memory on its machine")
    return Verdict(True, text)


def _first_line(text: str) -> str:
    """Return the line that says most: of a traceback the last one, else the first."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if not lines:
        return text
    line = lines[-1] if any("Traceback (most recent" in one for one in lines) else lines[0]
    return line if len(line) <= 200 else f"{line[:200]}…"
