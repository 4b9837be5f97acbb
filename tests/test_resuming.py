"""What a training makes of an output of which something is gone, or whose settings are others by now."""

import shutil
from pathlib import Path

import pytest

from stabn.storage import open_storage
from stabn.training.checkpoint import CheckpointError, read_checkpoint
from stabn.training.schedule import best_epoch
from stabn.training.stage import train
from stabn.training.states import StateStore
from tests.tiny_run import same, settings, write_dataset


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a manifest and a training of two epochs, the last of which is the one to use."""
    folder = tmp_path_factory.mktemp("finished")
    train(write_dataset(folder), settings(train__epochs=2, train__keep="last"), str(folder / "out"))
    return folder


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished / "out", tmp_path / "out"))


def run(finished: Path, output: Path, epochs: int = 2, **changes: object) -> int:
    config = settings(train__epochs=epochs, train__keep="last", **changes)
    return len(train(str(finished / "manifest.parquet"), config, str(output)).history)


@pytest.mark.parametrize("damage", [None, b"truncated"])
def test_a_best_network_that_is_gone_is_written_again_from_the_state(
    finished: Path, output: Path, damage: bytes | None, capfd: pytest.CaptureFixture[str]
) -> None:
    (output / "best.pt").unlink() if damage is None else (output / "best.pt").write_bytes(damage)
    assert run(finished, output) == 2
    assert "best.pt was gone or damaged: written again from" in capfd.readouterr().out
    same(read_checkpoint(str(output / "best.pt")), read_checkpoint(str(finished / "out" / "best.pt")))


def test_a_best_network_that_no_state_holds_is_named_before_anything_is_trained(
    finished: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stabn.training.saving.best_epoch", lambda history, keep, attention_epochs: 1)
    (output / "best.pt").unlink()
    with pytest.raises(CheckpointError, match=r"best\.pt: no such file; it was the network of epoch 1.*another output"):
        run(finished, output, epochs=3)


def test_states_that_are_gone_do_not_cost_the_finished_network(finished: Path, output: Path) -> None:
    shutil.rmtree(output / "states")
    with pytest.raises(CheckpointError, match=r"best\.pt: of a training of 2 epochs whose states are gone.*delete it"):
        run(finished, output)
    assert (output / "best.pt").read_bytes() == (finished / "out" / "best.pt").read_bytes()


def test_a_rate_below_the_smallest_is_refused_with_more_epochs_too(finished: Path, output: Path) -> None:
    with pytest.raises(CheckpointError, match=r"learning_rate = 0\.0 instead of 0\.01 would change nothing"):
        run(finished, output, epochs=3, train__learning_rate=0.0)
    assert StateStore(open_storage(str(output)), 1).newest(lambda content, uri: None, print) is not None


def test_the_best_epoch_is_the_newest_of_equals() -> None:
    row = {"validation_top1": 0.5, "validation_loss": 1.0}
    assert best_epoch([row, row, {"train_loss": 1.0}], "best") == 2
    assert best_epoch([{"train_loss": 1.0}], "best") == 0 and best_epoch([row, {}], "last") == 2
