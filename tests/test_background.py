"""Saving beside the training: nothing waits for the storage, the newest is written, nothing that fails is forgotten."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import last_weights, newest_state, same, settings, without_times

from stabn.errors import RetryableError, StabnError
from stabn.storage import ClaimLost, FolderStorage
from stabn.training import schedule
from stabn.training.background import BackgroundWriter, copy_to_memory
from stabn.training.checkpoint import read_checkpoint
from stabn.training.loop import Loop
from stabn.training.saving import BEST, Saving
from stabn.training.stage import train
from stabn.training.states import dump_part, load_part


class Writing:
    """Note what is written; each write waits until it may go on, and fails if it is an error."""

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Semaphore(0), threading.Semaphore(0)
        self.written: list[Any] = []

    def __call__(self, item: Any) -> None:
        self.begun.release()
        assert self.may_end.acquire(timeout=600)
        if isinstance(item, Exception):
            raise item
        self.written.append(item)


def test_the_newest_takes_the_place_of_one_that_waits() -> None:
    writing = Writing()
    with BackgroundWriter(writing, print) as writer:
        writer.submit(1)
        assert writing.begun.acquire(timeout=600) and writer.busy
        for number in (2, 3, 4):
            writer.submit(number)
        writing.may_end.release(2)
        writer.finish()
        assert writing.written == [1, 4] and not writer.busy
        writer.submit(5)
        writing.may_end.release()
    assert writing.written == [1, 4, 5], "leaving waits for the last write"


def test_failures_are_told_and_raised_when_they_go_on() -> None:
    told: list[str] = []
    writing = Writing()
    writing.may_end.release(100)
    with BackgroundWriter(writing, told.append) as writer:
        for item in (RetryableError("no route"), RetryableError("no route"), 1):
            writer.submit(item)
            writer.wait()
        writer.finish()
        assert told == ["not saved: no route; training goes on, the next state is tried again"] * 2
        for _ in range(3):
            writer.submit(RetryableError("no route"))
            writer.wait()
        with pytest.raises(StabnError, match="no route"):
            writer.submit(2)


@pytest.mark.parametrize("error", [ClaimLost("another run's"), ZeroDivisionError("a bug")])
def test_what_cannot_pass_is_raised_at_once(error: Exception) -> None:
    writing = Writing()
    writing.may_end.release(100)
    with BackgroundWriter(writing, print) as writer:
        writer.submit(error)
        writer.wait()
        with pytest.raises(type(error)):
            writer.submit(1)


def test_a_failure_is_told_when_training_ends_by_another_error() -> None:
    told: list[str] = []
    writing = Writing()
    writing.may_end.release()
    with pytest.raises(ZeroDivisionError), BackgroundWriter(writing, told.append) as writer:
        writer.submit(ClaimLost("another run's"))
        raise ZeroDivisionError
    assert told == ["not saved: another run's"]


def test_a_copy_does_not_follow_the_original_and_its_memory_is_used_again() -> None:
    original: dict[str, Any] = {"a": [torch.zeros(2), {"b": torch.ones(1)}], "c": 3}
    original["d"] = torch.randn(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d)
    copied = copy_to_memory(original)
    original["a"][0].fill_(7)
    assert copied["a"][0].tolist() == [0, 0] and load_part(dump_part(copied))["a"][1]["b"].tolist() == [1]
    assert copied["d"].stride() == original["d"].stride()
    again = copy_to_memory(original, copied)
    assert again["a"][0] is copied["a"][0] and again["d"] is copied["d"] and again["a"][0].tolist() == [7, 7]
    original["a"][0] = torch.ones(3)
    assert copy_to_memory(original, copied)["a"][0].tolist() == [1, 1, 1], "another shape has its own"


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Let the storage not answer before the event is set."""
    back, write = threading.Event(), FolderStorage.write

    def wait_and_write(self: FolderStorage, key: str, data: bytes, **options: Any) -> Any:
        if key == BEST or key.startswith("states/"):
            assert back.wait(600)
        return write(self, key, data, **options)

    monkeypatch.setattr(FolderStorage, "write", wait_and_write)
    yield back
    back.set()


def test_training_does_not_wait_for_the_storage_and_loses_nothing(
    manifest_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: threading.Event
) -> None:
    """All epochs run while the first save hangs; its end leaves the best network, of an epoch between, and the last."""
    best, epochs = 2, 3
    monkeypatch.setattr(schedule, "score", lambda row: -abs(row["epoch"] - best))
    finish, done = Saving.finish, []

    def storage_comes_back(self: Saving) -> None:
        done.append(self)
        away.set()
        finish(self)

    monkeypatch.setattr(Saving, "finish", storage_comes_back)
    result = train(manifest_path, settings(train__epochs=epochs), str(tmp_path / "slow"))
    assert done and result.history[-1]["epoch"] == epochs
    quick = train(manifest_path, settings(train__epochs=epochs), str(tmp_path / "quick"))
    assert without_times(result.history) == without_times(quick.history)
    assert read_checkpoint(result.best_uri)["epoch"] == best and result.fingerprint == quick.fingerprint
    same(last_weights(tmp_path / "slow"), last_weights(tmp_path / "quick"))
    states, others = newest_state(tmp_path / "slow"), newest_state(tmp_path / "quick")
    assert states is not None and others is not None and states.name == others.name
    assert states.keys["optimizer"] == others.keys["optimizer"], (
        "the network's part also tells how long each epoch took"
    )
    assert len(list((tmp_path / "slow" / "states").glob("*.json"))) == 2, "the first and the newest"


@pytest.mark.parametrize(
    ("key", "what"), [(BEST, "the best network and the last state"), ("states/", "the last state")]
)
def test_an_end_that_could_not_be_saved_is_an_error(
    manifest_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, what: str
) -> None:
    write = FolderStorage.write

    def refuse(self: FolderStorage, name: str, data: bytes, **options: Any) -> Any:
        if name.startswith(key):
            raise RetryableError(f"{self.uri}: no answer")
        return write(self, name, data, **options)

    monkeypatch.setattr(FolderStorage, "write", refuse)
    with pytest.raises(RetryableError, match=rf"train: {what} could not be saved: .*no answer"):
        train(manifest_path, settings(train__epochs=1), str(tmp_path / "out"))


def test_the_best_network_is_written_with_the_next_state_if_it_could_not_be_before(
    manifest_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = 2
    monkeypatch.setattr(schedule, "score", lambda row: -abs(row["epoch"] - best))
    write, written, save = FolderStorage.write, [], Loop._save

    def fail_at_the_best(self: FolderStorage, key: str, data: bytes, **options: Any) -> None:
        if key == BEST:
            written.append(key)
            if len(written) == best:
                raise RetryableError("no answer")
        write(self, key, data, **options)

    def save_and_wait(self: Loop, best: bool = False) -> None:
        save(self, best)
        self.saving._writer.wait()

    monkeypatch.setattr(FolderStorage, "write", fail_at_the_best)
    monkeypatch.setattr(Loop, "_save", save_and_wait)
    result = train(manifest_path, settings(train__epochs=best + 1), str(tmp_path / "out"))
    assert read_checkpoint(result.best_uri)["epoch"] == best and len(written) > best
