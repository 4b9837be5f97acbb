"""Every combination of signals, numbers of processes and loaders, each told twice and gone on with; two machines."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from test_distributed import start as start_training
from test_distributed import wait_for_epoch
from test_signals import end, start, train
from tiny_run import newest_state

from stabn.errors import Interrupted, RetryableError

CODES = {signal.SIGTERM: RetryableError.exit_code, signal.SIGINT: Interrupted.exit_code}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_training_told_to_end_goes_on(
    manifest_path: str, tmp_path: Path, number: signal.Signals, processes: int, workers: int
) -> None:
    own = {"data.workers": workers, "train.processes": processes, "train.epochs": 1000}
    process = start(train(manifest_path, tmp_path / "out", **own), MLFLOW_TRACKING_URI="")
    wait_for_epoch(tmp_path / "out", 1, process)
    output = end(process, number)
    assert process.returncode == CODES[number], output
    assert f"asked to end ({number.name}); saved in" in output and "Traceback" not in output, output
    state = newest_state(tmp_path / "out")
    assert state is not None
    done = state.content["epoch"]
    again = start(train(manifest_path, tmp_path / "out", **own), MLFLOW_TRACKING_URI="")
    wait_for_epoch(tmp_path / "out", done + 2, again)
    assert end(again, number) and again.returncode == CODES[number]


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
@pytest.mark.parametrize("stage", ["extract-frames", "evaluate"])
def test_another_stage_told_to_end_starts_again_and_ends_well(
    small_dataset: Path, trained: str, manifest_path: str, tmp_path: Path, stage: str, number: signal.Signals
) -> None:
    """Told while its processes start: nothing is left behind, and the next run has everything."""
    commands = {
        "extract-frames": [
            stage, "--videos", str(small_dataset / "videos"), "--labels", str(small_dataset / "labels"), "--storage",
            str(tmp_path / "store"), "--manifest", str(tmp_path / "out"), "--rejects", str(tmp_path / "rejects"),
        ],
        "evaluate": [
            stage, "--preset", "mini", "--checkpoint", trained, "--manifest", manifest_path, "--split", "train",
            "--train.processes", "2", "--output", str(tmp_path / "out"),
        ],
    }  # fmt: skip
    process = start(commands[stage], MLFLOW_TRACKING_URI="")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)
    output = end(process, number)
    assert process.returncode in (CODES[number], 128 + number, -number) and "Traceback" not in output, output
    assert not (tmp_path / "out").exists()
    again = subprocess.run([sys.executable, "-m", "stabn.cli", *commands[stage]], capture_output=True, text=True)
    assert again.returncode == 0 and (tmp_path / "out").exists(), again.stderr


def test_sigterm_to_the_launcher_lets_all_processes_save(manifest_path: str, tmp_path: Path) -> None:
    process = start_training(manifest_path, tmp_path / "out", train__epochs=400, train__processes=2)
    wait_for_epoch(tmp_path / "out", 1, process)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == RetryableError.exit_code, output
    assert "asked to end (SIGTERM); saved in" in output and "run it again, it goes on" in output


def test_torchrun_on_two_nodes_is_the_same_command(manifest_path: str, tmp_path: Path) -> None:
    """Two agents of torchrun, as on two machines: the command line trains once, and process 0 alone writes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = {"model.width": 4, "data.num_frames": 4, "data.crop_size": 32, "train.epochs": 2, "train.batch_size": 4}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "run"]
    command += [
        "--local-addr",
        "127.0.0.1",
        "-m",
        "stabn.cli",
        "train",
        "--preset",
        "mini",
        "--manifest",
        manifest_path,
    ]
    command += ["--output", str(tmp_path / "out"), "--train.device", "cpu", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    nodes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    outputs = [node.communicate(timeout=180)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    said = "".join(outputs)
    assert said.count("4 videos per step = 2 processes x 2") == 1 and said.count("epoch 2: validation loss") == 1
    state = newest_state(tmp_path / "out")
    assert state is not None and state.content["world_size"] == 2 and state.content["epoch"] == 2
