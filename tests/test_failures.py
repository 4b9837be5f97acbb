"""Which failures are tried again, and what is said of them."""

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from components.attempts import tried_once_here
from stabn.errors import RetryableError, StabnError
from stabn.failures import as_error, judge_end


@pytest.mark.parametrize(
    ("error", "passes", "text"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), False, "halve micro_batch_size"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), False, "out of GPU memory"),
        (RuntimeError("CUDA driver error: out of memory"), False, "out of GPU memory"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB)"), False, "out of GPU memory"),
        (RuntimeError("HIP out of memory. Tried to allocate 2 GiB"), False, "out of GPU memory"),
        (
            RuntimeError("NCCL: unhandled cuda error, Cuda failure 2 'out of memory'"),
            False,
            "out of GPU memory",
        ),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible"), False, "--shm-size"),
        (RuntimeError("unable to write to file </torch_9>: No space left on device"), False, "/dev/shm is full"),
        (
            RuntimeError("unable to allocate shared memory(shm) for file </torch_9>: No space left on device (28)"),
            False,
            "/dev/shm is full",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), False, "a disk is full"),
        (MemoryError(), False, "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), False, "lower train.mi"),
        (RuntimeError("received 0 items of ancdata"), False, "ulimit -n"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), True, "the GPU failed"),
        (RuntimeError("DataLoader worker (pid 7) exited unexpectedly"), True, "a loading process died"),
    ],
)
def test_what_was_raised_is_judged_by_its_cause(error: Exception, passes: bool, text: str) -> None:
    known = as_error(error)
    assert known is not None and text in str(known) and "\n" not in str(known)
    assert known.exit_code == (RetryableError if passes else StabnError).exit_code


def test_what_nobody_knows_stays_what_it_is() -> None:
    assert as_error(ValueError("seven")) is None
    error = StabnError("m.parquet: no such file")
    assert as_error(error) is error


def test_an_error_of_a_loading_process_is_one_line() -> None:
    last = "OSError: [Errno 28] No space left on device: '/cache/1'"
    error = OSError(f'Caught OSError in worker 0.\nOriginal Traceback (most recent call last):\n  File "x"\n{last}')
    assert str(as_error(error)).startswith(f"a disk is full ({last}); ")


@pytest.mark.parametrize(
    ("code", "said", "short", "passes", "text"),
    [
        (2, "m.parquet: no such file", False, False, "m.parquet: no such file"),
        (75, "s3://b: no answer", False, True, "s3://b: no answer"),
        (1, "ValueError: seven", False, False, "ended with exit code 1: ValueError: seven"),
        (1, "torch.OutOfMemoryError: CUDA out of memory", False, False, "out of GPU memory"),
        (1, "RuntimeError: Connection closed by peer", False, True, "Connection closed"),
        (-7, "", False, False, "SIGBUS"),
        (135, "", False, False, "SIGBUS"),
        (-9, "", False, True, "SIGKILL"),
        (-9, "", True, False, "the memory limit was reached"),
        (-15, "", True, True, "SIGTERM"),
        (9, "", False, True, "exit code 9"),
        (127, "", False, False, "exit code 127"),
    ],
)
def test_the_end_of_a_process_is_judged(code: int, said: str, short: bool, passes: bool, text: str) -> None:
    verdict: Any = judge_end(code, said, short)
    assert verdict.passes is passes and text in verdict.text


def test_a_step_does_not_repeat_what_failed_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[BaseException] = []

    def work(error: BaseException, *settings: object) -> None:
        with tried_once_here(str(tmp_path), "train", "out", *settings):
            tries.append(error)
            raise error

    monkeypatch.setenv("STABN_RUN_ID", "run-1")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    for error in (RetryableError("no answer"), RetryableError("no answer"), MemoryError("too large")):
        with pytest.raises(type(error)):
            work(error, 8)
    with pytest.raises(StabnError, match=r"out of memory \(MemoryError: too large\).*the try before.*failed/train-"):
        work(MemoryError(), 8)
    assert len(tries) == 3
    with pytest.raises(MemoryError):
        work(MemoryError(), 4)  # other settings
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")  # as in the demo: whoever runs it again has made room
    with pytest.raises(MemoryError):
        work(MemoryError(), 8)
