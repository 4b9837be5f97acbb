"""A stage killed at random moments, its group at once, and started again: it ends as one that nobody disturbed.

STABN_DRILL_KILLS says how often each is killed (3), STABN_DRILL_SEED where the moments come from (0).
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from mlflow.tracking import MlflowClient
from tiny_run import checkpoints, same

KILLS = int(os.environ.get("STABN_DRILL_KILLS", "3"))
SEED = int(os.environ.get("STABN_DRILL_SEED", "0"))
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM}


def run(command: list[str], place: Path, uri: str, end: float | None = None, number: int = 0) -> tuple[int, str, float]:
    """Run a stage in a group of its own; told to end after `end` seconds. Returns exit code, output and seconds."""
    place.mkdir(exist_ok=True)
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": uri, "TMPDIR": str(place), "STABN_RUN_ID": "",
    }  # fmt: skip
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "stabn.cli", *command], env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        if end is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(end)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        output = process.communicate(timeout=300)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert not list(of_group(process.pid)), "a process lives on"
    return process.returncode, output, time.monotonic() - started


def of_group(group: int) -> Iterator[psutil.Process]:
    """Yield the processes of a group that are still there ten seconds later."""
    until = time.monotonic() + 10
    while True:
        found = []
        for process in psutil.process_iter(["status"]):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if process.info["status"] != psutil.STATUS_ZOMBIE and os.getpgid(process.pid) == group:
                    found.append(process)
        if not found or time.monotonic() > until:
            yield from found
            return
        time.sleep(0.1)


def disturbed(command: list[str], folder: Path, uri: str, seconds: float, number: int) -> str:
    """Kill a stage at random moments, then let it end; return what the last run said."""
    moments = random.Random(SEED)
    for _ in range(KILLS):
        code, output, _ = run(command, folder / "tmp", uri, moments.uniform(0.2, 1.0) * seconds, number)
        assert code in (0, 75, -number, 128 + number), output
        assert number == signal.SIGKILL or "Traceback" not in output, output
        if number == signal.SIGTERM:
            assert not list((folder / "tmp").rglob("*.video")), "temporary files are left"
    code, output, _ = run(command, folder / "tmp", uri)
    assert code == 0, output
    return output


def runs_that_are_open(uri: str) -> list[str]:
    client = MlflowClient(uri)
    ids = [item.experiment_id for item in client.search_experiments()]
    return [item.data.tags.get("stabn.stage", "?") for item in client.search_runs(ids, "attributes.status = 'RUNNING'")]


def parts(folder: Path) -> list[Path]:
    """Return unfinished files below a folder."""
    return [path for path in folder.rglob("*") if path.name.startswith(".part-") or path.name.endswith(".partial")]


@pytest.mark.parametrize("name", SIGNALS)
def test_extract_frames(name: str, small_dataset: Path, tmp_path: Path, mlflow_uri: str) -> None:
    def command(folder: str) -> list[str]:
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        return [
            "extract-frames", "--videos", str(small_dataset / "videos"), "--labels", str(small_dataset / "labels"),
            "--storage", str(tmp_path / "store"), "--manifest", str(place / "m.parquet"),
            "--rejects", str(place / "r.parquet"), "--workers", "2",
        ]  # fmt: skip

    seconds = run(command("whole"), tmp_path / "tmp", mlflow_uri)[2]
    whole = {path.name: path.read_bytes() for path in (tmp_path / "store").glob("*.mjpeg")}
    shutil.rmtree(tmp_path / "store")
    disturbed(command("killed"), tmp_path, mlflow_uri, seconds, SIGNALS[name])
    assert (tmp_path / "killed" / "m.parquet").read_bytes() == (tmp_path / "whole" / "m.parquet").read_bytes()
    assert {path.name: path.read_bytes() for path in (tmp_path / "store").glob("*.mjpeg")} == whole
    if name == "SIGTERM":
        assert not parts(tmp_path) and not runs_that_are_open(mlflow_uri)


@pytest.mark.parametrize("name", SIGNALS)
def test_train(name: str, manifest_path: str, tmp_path: Path, mlflow_uri: str) -> None:
    flags = {
        "model.width": 4, "data.num_frames": 4, "data.crop_size": 32, "data.workers": 0, "train.epochs": 6,
        "train.batch_size": 4, "train.device": "cpu", "train.init_weights": "random",
    }  # fmt: skip
    words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]

    def command(folder: str) -> list[str]:
        return ["train", "--preset", "mini", "--manifest", manifest_path, "--output", str(tmp_path / folder), *words]

    code, output, seconds = run(command("whole"), tmp_path / "tmp", mlflow_uri)
    assert code == 0, output
    disturbed(command("killed"), tmp_path, mlflow_uri, seconds, SIGNALS[name])
    same(checkpoints(tmp_path / "killed"), checkpoints(tmp_path / "whole"))
    if name == "SIGTERM":
        assert not parts(tmp_path) and not runs_that_are_open(mlflow_uri)
