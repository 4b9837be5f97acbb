"""Several processes train as one: the same gradients, every video once, and nothing lost when one dies."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from tiny_run import EDITED, last_weights, newest_state, same, settings, without_times, write_edits
from torch import Tensor, nn

from stabn.config import ConfigError, DataConfig, ModelConfig, TrainConfig
from stabn.data.dataset import ClipDataset
from stabn.data.manifest import Manifest
from stabn.errors import Overdue, RetryableError, StabnError
from stabn.evaluation.predict import evaluate
from stabn.evaluation.prediction_table import Predictions
from stabn.models import Output
from stabn.storage import open_storage
from stabn.training.checkpoint import read_checkpoint
from stabn.training.distributed import Control, World, collective_errors, join_world
from stabn.training.launch import launch
from stabn.training.loop import Loop
from stabn.training.losses import training_loss
from stabn.training.recipes import Recipe
from stabn.training.stage import train
from stabn.training.step import Stepper

DATA = DataConfig(num_frames=4, crop_size=32, scales=(1.0,), color_jitter=0.1, workers=0)
TWO = TrainConfig(processes=2, restarts=0, device="cpu")


class WithoutNormalisation(nn.Module):
    """A network whose output for a video does not depend on the others of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.config = ModelConfig(num_classes=3, num_frames=4)
        self.convolution = nn.Conv3d(3, 4, 3, stride=2)
        self.classifier = nn.Linear(4, 3)

    def set_activation_checkpointing(self, enabled: bool) -> None:
        assert not enabled

    def forward(self, video: Tensor) -> Output:
        features = self.convolution(video).relu().mean((2, 3, 4))
        return Output(self.classifier(features), None, None, None)


def fit_history(path: str, folder: str, batch_size: int, micro_batch_size: int) -> list[dict[str, float]]:
    """Train the network without normalisation in as many processes as there are."""
    manifest = Manifest.load(path)
    rows = manifest.indices("train")
    torch.manual_seed(0)
    config = TrainConfig(
        epochs=2,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        reference_batch_size=0,
        learning_rate=0.1,
        precision="fp32",
        device="cpu",
        log_steps=1,
        processes=int(os.environ.get("WORLD_SIZE", "1")),
    )
    with join_world("cpu", 60) as world:
        recipe = Recipe(
            name="train",
            model=WithoutNormalisation(),
            settings=config,
            videos=ClipDataset(manifest, rows, DATA, train=True),
            validation=ClipDataset(manifest, manifest.indices("validation"), DATA, train=False),
            epoch_rows=lambda epoch: rows,
            loss=lambda output, batch: training_loss(output, batch["target"]),
            inputs={},
        )
        history = Loop(recipe, open_storage(folder), world).run()
    if world.is_main:
        Path(folder, "history.json").write_text(json.dumps(history))
    return history


@pytest.mark.parametrize("batch_size", [4, 8])  # of nine videos: the last step leaves one process without any
def test_two_processes_learn_what_one_learns(manifest_path: str, tmp_path: Path, batch_size: int) -> None:
    alone = fit_history(manifest_path, str(tmp_path / "one"), batch_size, 0)
    pieces = fit_history(manifest_path, str(tmp_path / "pieces"), batch_size, 3)
    two = tmp_path / "two"
    launch(fit_history, TWO, path=manifest_path, folder=str(two), batch_size=batch_size, micro_batch_size=1)
    together = json.loads((two / "history.json").read_text())
    for one, *others in zip(alone, pieces, together, strict=True):
        for other in others:
            for name in ("train_loss", "validation_loss", "learning_rate"):
                assert other[name] == pytest.approx(one[name], rel=1e-4), name
            for name in ("train_top1", "validation_top1", "validation_top5"):
                assert other[name] == one[name], name
    weights = [last_weights(tmp_path / name) for name in ("one", "pieces", "two")]
    for other in weights[1:]:
        for name, value in weights[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-5)


def fail(rank: int, error: type[Exception], code: int = 0) -> None:
    with join_world("cpu", 5) as world:
        if world.rank == rank:
            if code:
                os._exit(code)
            raise error("no such thing")
        world.gather(None)


@pytest.mark.parametrize("error", [StabnError, RetryableError, MemoryError])
def test_an_error_in_one_process_ends_all(error: type[Exception], capfd: pytest.CaptureFixture[str]) -> None:
    started, handler = time.monotonic(), signal.getsignal(signal.SIGTERM)
    settings = dataclasses.replace(TWO, restarts=0 if error is RetryableError else 1)
    with pytest.raises(StabnError, match="no such thing") as raised:
        launch(fail, settings, rank=1, error=error)
    assert signal.getsignal(signal.SIGTERM) == handler
    assert type(raised.value) is (Overdue if error is RetryableError else StabnError)
    assert time.monotonic() - started < 60
    assert "started again" not in capfd.readouterr().err, "what the user must change is not tried twice"


def test_a_process_that_always_dies_is_given_up(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RetryableError, match=r"process 1 ended with exit code 9; started again 1 times in vain"):
        launch(fail, dataclasses.replace(TWO, restarts=1), rank=1, error=StabnError, code=9)
    assert "all 2 processes are started again from the newest state, 1 of at most 1 times" in capfd.readouterr().err


def hang(rank: int) -> None:
    with collective_errors(), join_world("cpu", 3) as world:
        if world.rank == rank:
            time.sleep(600)
        world.gather(None)


def test_a_hung_process_ends_all_in_bounded_time() -> None:
    started = time.monotonic()
    with pytest.raises(RetryableError, match="process 0: another process of the run died or did not answer in time"):
        launch(hang, TWO, rank=1)
    assert time.monotonic() - started < 60


def test_alone_nothing_is_exchanged() -> None:
    world = World()
    assert world.gather("x") == ["x"] and world.broadcast("x") == "x" and world.on_main(lambda: 3) == 3
    assert Control(world).exchange(True, False) == (True, False)


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from tiny_run import settings
from stabn.errors import StabnError
from stabn.training.stage import train

if __name__ == "__main__":
    try:
        train({manifest!r}, settings(**{changes!r}), {output!r}, edits_path={edits!r})
    except StabnError as error:
        print(error, flush=True)
        sys.exit(error.exit_code)
"""


def start(manifest: str, output: Path, edits: str = "", **changes: Any) -> subprocess.Popen[str]:
    """Start training in a process of its own, with edits where there are any."""
    script = output.with_suffix(".py")
    tests = str(Path(__file__).parent)
    script.write_text(SCRIPT.format(tests=tests, manifest=manifest, changes=changes, output=str(output), edits=edits))
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONUNBUFFERED": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.Popen(
        [sys.executable, script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for_epoch(output: Path, epoch: int, process: subprocess.Popen[str]) -> None:
    while True:
        assert process.poll() is None, process.communicate()[0]
        if any(int(path.name[:5]) >= epoch for path in output.glob("states/*.json")):
            return
        time.sleep(0.05)


def arguments(manifest: str, config: Any, output: Path) -> dict[str, Any]:
    return {"manifest_uri": manifest, "config": config, "output_uri": str(output)}


LONG = {"train__epochs": 40, "train__checkpoint_minutes": 1e-9, "train__plateau_patience": 100}


def test_sigterm_saves_the_step_and_resuming_changes_nothing(manifest_path: str, tmp_path: Path) -> None:
    process = start(manifest_path, tmp_path / "stopped", **LONG)
    wait_for_epoch(tmp_path / "stopped", 2, process)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == RetryableError.exit_code, output
    assert "asked to end (SIGTERM); saved in" in output and "run it again" in output
    state = newest_state(tmp_path / "stopped")
    assert state is not None and state.content["epoch"] < 40
    config = settings(**LONG)
    resumed = train(manifest_path, config, str(tmp_path / "stopped")).history
    whole = train(manifest_path, config, str(tmp_path / "whole")).history
    assert without_times(resumed) == without_times(whole)
    same(last_weights(tmp_path / "stopped"), last_weights(tmp_path / "whole"))


def test_a_killed_process_is_replaced(manifest_path: str, tmp_path: Path) -> None:
    """Also while the attention is learnt alone, when much of the network has nothing to learn."""
    edits = write_edits(tmp_path / "edits.parquet", EDITED)
    changes = {**LONG, "train__processes": 2, "train__timeout_seconds": 30.0, "train__attention_epochs": 20}
    process = start(manifest_path, tmp_path / "out", edits, **changes)
    wait_for_epoch(tmp_path / "out", 2, process)
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    assert len(workers) == 2
    workers[1].kill()
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert re.search(
        r"process 1 was ended by SIGKILL, often for want of memory.*; all 2 processes are started again", output
    )
    assert re.search(r"goes on (after|in) epoch", output), output
    history = read_checkpoint(str(tmp_path / "out" / "best.pt"))["history"]
    assert [row["epoch"] for row in history] == list(range(1, 41))
    assert all(0 <= row["train_top1"] <= 1 and np.isfinite(row["train_loss"]) for row in history)
    assert history[19]["train_loss"] < 1 < history[20]["train_loss"], "the recognition joins in epoch 21"


def test_evaluation_in_two_processes_counts_every_video_once(manifest_path: str, tmp_path: Path) -> None:
    best = train(manifest_path, settings(train__epochs=1), str(tmp_path / "out")).best_uri
    found = []
    for processes in (1, 2):
        config = settings(train__processes=processes)
        path = tmp_path / f"{processes}.parquet"
        metrics = evaluate(best, manifest_path, "train", "as_is", path, config).metrics
        found.append((Predictions.load(path), metrics))
    (one, metrics), (two, others) = found
    assert one.video_ids == two.video_ids and len(set(one.video_ids)) == 9
    assert np.array_equal(one.top5, two.top5) and np.array_equal(one.class_index, two.class_index)
    np.testing.assert_allclose(one.scores, two.scores, rtol=1e-4)
    assert {k: v for k, v in metrics.items() if "top" in k} == {k: v for k, v in others.items() if "top" in k}


def evaluate_slowly(checkpoint: str, manifest: str, output: str) -> None:
    """Evaluate with a process 1 that needs longer for its share than an exchange may take, but not for one batch."""
    load = ClipDataset.__getitem__

    def load_slowly(self: ClipDataset, index: int) -> Any:
        time.sleep(1.2 if os.environ["RANK"] == "1" else 0)
        return load(self, index)

    ClipDataset.__getitem__ = load_slowly  # type: ignore[method-assign]
    config = settings(train__timeout_seconds=3.0, train__batch_size=2)
    evaluate(checkpoint, manifest, "train", "as_is", output, config)


def test_a_slow_process_of_an_evaluation_is_waited_for(manifest_path: str, tmp_path: Path) -> None:
    checkpoint = train(manifest_path, settings(train__epochs=1), str(tmp_path / "out")).best_uri
    output = str(tmp_path / "predictions.parquet")
    launch(evaluate_slowly, TWO, checkpoint=checkpoint, manifest=manifest_path, output=output)
    assert len(Predictions.load(output)) == 9


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_told_by_several_processes_as_by_one(manifest_path: str, tmp_path: Path) -> None:
    for processes in (1, 2):
        config = settings(train__epochs=1, train__device="cuda", train__processes=processes)
        with pytest.raises(ConfigError if processes == 1 else StabnError, match="'cuda': there is no GPU") as failed:
            train(manifest_path, config, str(tmp_path / str(processes)))
        assert failed.value.exit_code == StabnError.exit_code


def test_another_number_of_processes_goes_on_within_the_epoch(manifest_path: str, tmp_path: Path) -> None:
    """Groups of three videos: BatchNorm and dropout see the same on one process and on three."""
    changes = {"train__batch_size": 9, "train__micro_batch_size": 3, "train__checkpoint_minutes": 1e-9}
    changes |= {"train__epochs": 2, "train__learning_rate": 1e-4}
    config = settings(**changes)
    launch(train, dataclasses.replace(config.train, processes=3), **arguments(manifest_path, config, tmp_path / "out"))
    whole = train(manifest_path, config, str(tmp_path / "whole")).history
    split = read_checkpoint(str(tmp_path / "out" / "best.pt"))["history"]
    for row, expected in zip(split, whole, strict=True):
        for name in ("train_loss", "validation_loss"):
            assert row[name] == pytest.approx(expected[name], rel=1e-3), name
        assert row["train_top1"] == expected["train_top1"]
    state = newest_state(tmp_path / "out")
    assert state is not None and state.content["world_size"] == 3
    resumed = train(manifest_path, config, str(tmp_path / "out")).history
    assert without_times(resumed) == without_times(split), "nothing is left to do"


def seen_videos(manifest: str, folder: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Train in this process and return the rows that each step saw."""
    seen: list[int] = []
    real = Stepper.step

    def step(self: Stepper, batch: Any, **options: Any) -> Any:
        seen.extend(batch["index"][: options["num_real"]].tolist())
        return real(self, batch, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", step)
        train(manifest, settings(**changes), str(folder))
    return seen


def test_after_a_stop_the_rest_of_the_epoch_is_seen(
    manifest_path: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two processes are stopped inside an epoch; one goes on with exactly the videos that are left."""
    changes = {"train__epochs": 30, "train__batch_size": 2}
    process = start(manifest_path, tmp_path / "out", **changes, train__processes=2)
    wait_for_epoch(tmp_path / "out", 1, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == RetryableError.exit_code
    state = newest_state(tmp_path / "out")
    assert state is not None and state.content["world_size"] == 2
    rest = seen_videos(manifest_path, tmp_path / "out", changes, monkeypatch)
    whole = seen_videos(manifest_path, tmp_path / "whole", changes, monkeypatch)
    assert rest == whole[9 * state.content["epoch"] + state.content["seen"] :]
