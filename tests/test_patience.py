"""A step tries again itself what may pass, for as long as it is told to, and nothing else."""

import time
from collections.abc import Callable

import pytest

from components import patience
from components.patience import PATIENCE, patiently
from stabn.errors import Overdue, Preempted, RetryableError, StabnError


def failing(times: int, error: Exception) -> Callable[[], int]:
    """Return a call that fails so often and then returns how often it was called."""
    calls = 0

    def call() -> int:
        nonlocal calls
        calls += 1
        if calls <= times:
            raise error
        return calls

    return call


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(patience, "LONGEST_WAIT_SECONDS", 0.02)


def test_what_passes_is_waited_for_with_a_line_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    away = RetryableError("s3://b: it is overloaded")
    assert patiently(failing(3, away), "export-attention", minutes=15) == 4
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("export-attention: s3://b: it is overloaded;") for line in lines)
    assert "for 15 minutes at most (STABN_PATIENCE_MINUTES)" in lines[0]


def test_what_does_not_pass_in_time_fails_as_it_is() -> None:
    with pytest.raises(RetryableError, match="away"):
        patiently(failing(10**6, RetryableError("away")), "train", minutes=0.1 / 60)


@pytest.mark.parametrize("error", [StabnError("bad"), Preempted("asked to end"), Overdue("people"), ValueError("bug")])
def test_what_does_not_pass_or_has_waited_already_is_not_tried_again(error: Exception) -> None:
    with pytest.raises(type(error)):
        patiently(failing(1, error), "train", minutes=15)


def test_on_ones_own_machine_nothing_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PATIENCE, raising=False)
    with pytest.raises(RetryableError):
        patiently(failing(1, RetryableError("away")), "train")
    monkeypatch.setenv(PATIENCE, "1")
    assert patiently(failing(1, RetryableError("away")), "train") == 2


def test_work_between_two_failures_begins_a_new_count() -> None:
    calls = 0

    def call() -> int:
        nonlocal calls
        calls += 1
        time.sleep(0.12)  # longer than the patience: the work went on
        if calls < 4:
            raise RetryableError("away")
        return calls

    assert patiently(call, "train", minutes=0.1 / 60) == 4
