"""Several processes train as one: the same gradients, every video once, and nothing lost when one dies."""

import os
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
from test_training import CLASSES, manifest_path, same, settings, without_times  # noqa: F401
from torch import Tensor, nn

from stabn.config import DataConfig, ModelConfig, TrainConfig
from stabn.data.dataset import ClipDataset
from stabn.data.manifest import Manifest
from stabn.errors import RetryableError, StabnError
from stabn.evaluation.metrics import Predictions
from stabn.evaluation.predict import evaluate
from stabn.models import Output
from stabn.storage import open_storage
from stabn.training.checkpoint import read_checkpoint
from stabn.training.distributed import World, join, run_on_processes
from stabn.training.loop import Fit
from stabn.training.losses import training_loss
from stabn.training.train import train

DATA = DataConfig(num_frames=4, crop_size=32, scales=(1.0,), color_jitter=0.1, workers=0)


class WithoutNormalisation(nn.Module):
    """A network whose output for a video does not depend on the others of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(3, 4, 3, stride=2)
        self.classifier = nn.Linear(4, 3)

    def forward(self, clips: Tensor) -> Output:
        features = self.convolution(clips).relu().mean((2, 3, 4))
        return Output(self.classifier(features), None, None, None)


def fit_history(path: str, folder: str, batch_size: int, micro_batch_size: int) -> list[dict[str, float]]:
    """Train the network without normalisation in as many processes as there are."""
    manifest = Manifest.load(path)
    rows = manifest.indices("train")
    torch.manual_seed(0)
    config = TrainConfig(
        epochs=2, batch_size=batch_size, micro_batch_size=micro_batch_size, learning_rate=0.1, precision="fp32"
    )
    with join(torch.device("cpu"), 60) as world:
        fit = Fit(
            model=WithoutNormalisation(),
            model_config=ModelConfig(num_classes=3, num_frames=4),
            data_config=DATA,
            settings=config,
            train_data=ClipDataset(manifest, rows, DATA, train=True),
            validation_data=ClipDataset(manifest, manifest.indices("validation"), DATA, train=False),
            storage=open_storage(folder),
            stage="train",
            loss=lambda output, batch: training_loss(output, batch["target"]),
            epoch_rows=lambda epoch: rows,
            identity={},
            world=world,
        )
        return fit.run()


@pytest.mark.parametrize("batch_size", [4, 8])  # of nine videos: the last step leaves one process without any
def test_two_processes_learn_what_one_learns(manifest_path: str, tmp_path: Path, batch_size: int) -> None:  # noqa: F811
    alone = fit_history(manifest_path, str(tmp_path / "one"), batch_size, 0)
    pieces = fit_history(manifest_path, str(tmp_path / "pieces"), batch_size, 3)
    arguments = (manifest_path, str(tmp_path / "two"), batch_size, 1)
    together = run_on_processes(2, 0, fit_history, *arguments)
    for one, *others in zip(alone, pieces, together, strict=True):
        for other in others:
            for name in ("train_loss", "validation_loss", "learning_rate"):
                assert other[name] == pytest.approx(one[name], rel=1e-4), name
            for name in ("train_top1", "validation_top1", "validation_top5"):
                assert other[name] == one[name], name
    weights = [read_checkpoint(str(tmp_path / name / "last.pt"))["model"] for name in ("one", "pieces", "two")]
    for other in weights[1:]:
        for name, value in weights[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-5)


def fail(rank: int, error: type[StabnError]) -> None:
    with join(torch.device("cpu"), 5) as world:
        if world.rank == rank:
            raise error("no such thing")
        world.any(True)


@pytest.mark.parametrize("error", [StabnError, RetryableError])
def test_an_error_in_one_process_ends_all(error: type[StabnError]) -> None:
    started, handler = time.monotonic(), signal.getsignal(signal.SIGTERM)
    with pytest.raises(StabnError, match="process 1 of 2 ended with code") as raised:
        run_on_processes(2, 0, fail, 1, error)
    assert signal.getsignal(signal.SIGTERM) == handler
    assert type(raised.value) is error and time.monotonic() - started < 60


def test_alone_nothing_is_exchanged() -> None:
    world = World()
    model = nn.Linear(1, 1)
    assert world.wrap(model) is model and world.any(False, True) == (False, True)
    assert world.gather("x") == ["x"] and world.sum({"a": 0.1}) == {"a": 0.1}


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from test_training import settings
from stabn.errors import StabnError
from stabn.training.train import train

if __name__ == "__main__":
    try:
        train({manifest!r}, settings(**{changes!r}), {output!r})
    except StabnError as error:
        print(error, flush=True)
        sys.exit(error.exit_code)
"""


def start(manifest: str, output: Path, **changes: Any) -> subprocess.Popen[str]:
    """Start training in a process of its own."""
    script = output.with_suffix(".py")
    tests = str(Path(__file__).parent)
    script.write_text(SCRIPT.format(tests=tests, manifest=manifest, changes=changes, output=str(output)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.Popen(
        [sys.executable, script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for_epoch(output: Path, epoch: int, process: subprocess.Popen[str]) -> None:
    while True:
        assert process.poll() is None, process.communicate()[0]
        if (output / "last.pt").exists() and read_checkpoint(str(output / "last.pt"))["epoch"] >= epoch:
            return
        time.sleep(0.05)


LONG = {"train__epochs": 40, "train__checkpoint_minutes": 0.0, "train__plateau_patience": 100}


def test_sigterm_saves_the_step_and_resuming_changes_nothing(manifest_path: str, tmp_path: Path) -> None:  # noqa: F811
    process = start(manifest_path, tmp_path / "stopped", **LONG)
    wait_for_epoch(tmp_path / "stopped", 2, process)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == RetryableError.exit_code, output
    assert "stopped by SIGTERM in epoch" in output and "run it again" in output
    assert read_checkpoint(str(tmp_path / "stopped" / "last.pt"))["epoch"] < 40
    config = settings(**LONG)
    resumed = train(manifest_path, config, str(tmp_path / "stopped")).history
    whole = train(manifest_path, config, str(tmp_path / "whole")).history
    assert without_times(resumed) == without_times(whole)
    weights = [read_checkpoint(str(tmp_path / name / "last.pt"))["model"] for name in ("stopped", "whole")]
    same(*weights)


def test_a_killed_process_is_replaced(manifest_path: str, tmp_path: Path) -> None:  # noqa: F811
    process = start(manifest_path, tmp_path / "out", **LONG, train__processes=2, train__collective_timeout=30.0)
    wait_for_epoch(tmp_path / "out", 2, process)
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    assert len(workers) == 2
    workers[1].kill()
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert "goes on after epoch" in output
    history = read_checkpoint(str(tmp_path / "out" / "last.pt"))["history"]
    assert [row["epoch"] for row in history] == list(range(1, 41))
    assert all(0 <= row["train_top1"] <= 1 and np.isfinite(row["train_loss"]) for row in history)


def test_sigterm_to_the_launcher_lets_all_processes_save(manifest_path: str, tmp_path: Path) -> None:  # noqa: F811
    process = start(manifest_path, tmp_path / "out", train__epochs=400, train__processes=2)
    wait_for_epoch(tmp_path / "out", 1, process)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == RetryableError.exit_code, output
    assert "stopped by SIGTERM in epoch" in output and "run it again to go on" in output


def test_evaluation_in_two_processes_counts_every_video_once(manifest_path: str, tmp_path: Path) -> None:  # noqa: F811
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


def test_another_number_of_processes_goes_on(manifest_path: str, tmp_path: Path) -> None:  # noqa: F811
    two = start(manifest_path, tmp_path / "out", train__epochs=1, train__processes=2)
    assert two.wait(timeout=120) == 0, two.communicate()[0]
    content = read_checkpoint(str(tmp_path / "out" / "last.pt"))
    assert len(content["processes"]) == 2 and len(CLASSES) == 3
    content["identity"]["epochs"] = 3
    torch.save(content, tmp_path / "out" / "last.pt")
    history = train(manifest_path, settings(train__epochs=3), str(tmp_path / "out")).history
    assert [row["epoch"] for row in history] == [1, 2, 3]
