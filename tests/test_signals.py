"""What happens when a whole group of processes is told to end, as KFP, timeout, systemd and Ctrl+C do, and twice."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import ffmpeg
import psutil
import pytest
from mlflow import MlflowClient
from test_distributed import wait_for_epoch
from tiny_run import newest_state

from stabn.data.ffmpeg_process import run_ffmpeg
from stabn.errors import Interrupted, RetryableError
from stabn.signals import deaf_children, leave_signals_to_parent

TINY = {
    "data.num_frames": 4,
    "data.crop_size": 32,
    "data.cache_mb": 0,
    "model.width": 4,
    "train.epochs": 1000,
    "train.batch_size": 4,
    "train.device": "cpu",
    "train.precision": "fp32",
}


def start(arguments: list[str], **environment: str) -> subprocess.Popen[str]:
    """Start a command of the command line at the head of a group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "stabn.cli", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def train(manifest: str, output: Path, **settings: object) -> list[str]:
    words = [word for name, value in {**TINY, **settings}.items() for word in (f"--{name}", str(value))]
    return ["train", "--preset", "mini", "--manifest", manifest, "--output", str(output), *words]


def of_group(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the processes of a session that live, but for what keeps Python's semaphores."""
    alive = []
    for one in psutil.process_iter():
        try:
            if os.getsid(one.pid) == process.pid and "resource_tracker" not in " ".join(one.cmdline()):
                alive.append(one)
        except (psutil.Error, ProcessLookupError):
            continue
    return alive


def end(process: subprocess.Popen[str], number: signal.Signals) -> str:
    """Send a signal to the whole group twice, one after the other, and return what the process said."""
    os.killpg(process.pid, number)
    time.sleep(0.1)
    if process.poll() is None:
        os.killpg(process.pid, number)
    output = process.communicate(timeout=300)[0]
    psutil.wait_procs(of_group(process), 10)
    assert of_group(process) == [], "processes are left behind"
    return output


@pytest.mark.parametrize(
    ("number", "processes", "code"),
    [(signal.SIGTERM, 1, RetryableError.exit_code), (signal.SIGINT, 2, Interrupted.exit_code)],
)
def test_training_saves_when_its_group_is_told_to_end_twice(
    manifest_path: str, mlflow_uri: str, tmp_path: Path, number: signal.Signals, processes: int, code: int
) -> None:
    is_tracked = processes == 1
    process = start(
        train(manifest_path, tmp_path / "out", **{"data.workers": 2, "train.processes": processes}),
        MLFLOW_TRACKING_URI=mlflow_uri if is_tracked else "",
    )
    wait_for_epoch(tmp_path / "out", 1, process)
    output = end(process, number)
    assert process.returncode == code, output
    assert f"asked to end ({number.name}); saved in" in output and "Traceback" not in output, output
    state = newest_state(tmp_path / "out")
    assert state is not None
    assert f"after {state.content['seen']} videos of epoch {state.content['epoch'] + 1}" in output
    if is_tracked:
        client = MlflowClient(mlflow_uri)
        runs = client.search_runs([client.get_experiment_by_name("stabn").experiment_id])
        assert [run.info.status for run in runs] == ["KILLED"]


def work_slowly(connection: Connection) -> None:
    leave_signals_to_parent()
    connection.send("ready")
    while True:
        time.sleep(0.05)


@pytest.fixture
def worker() -> Iterator[multiprocessing.Process]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=work_slowly, args=[theirs], daemon=True)
    with deaf_children():
        process.start()
    assert ours.recv() == "ready"
    yield process
    process.kill()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a worker is out of the group instead")
def test_a_worker_ends_when_its_parent_says_so_and_not_when_others_do(worker: multiprocessing.Process) -> None:
    for name in ("TERM", "INT", "TERM"):
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    worker.join(0.3)
    assert worker.is_alive()
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


ORPHAN = """
import multiprocessing, os, time
from stabn.signals import leave_signals_to_parent

def work():
    leave_signals_to_parent()
    ready.set()
    time.sleep(60)

context = multiprocessing.get_context("fork")
ready = context.Event()
process = context.Process(target=work)
process.start()
ready.wait()
print(process.pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_worker_ends_after_its_parent() -> None:
    said = subprocess.run([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True, check=False).stdout
    worker = int(said)
    until = time.monotonic() + 10
    while psutil.pid_exists(worker) and psutil.Process(worker).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until, "the worker lives on"
        time.sleep(0.05)


def test_a_signal_to_the_group_is_not_a_broken_video(small_dataset: Path) -> None:
    """ffmpeg would end in the middle, and its video be taken for unusable, for good."""
    stream = ffmpeg.output(ffmpeg.input(str(small_dataset / "videos" / "1.webm")), "pipe:", format="rawvideo")
    with run_ffmpeg(stream, "1.webm", stdout=subprocess.PIPE) as process:
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(process.pid, number)
        assert process.stdout is not None
        size = len(process.stdout.read())
    assert size == 24 * 128 * 96 * 3 // 2


SAVES = """
import signal, sys, time
def save(*_):
    time.sleep(0.5)
    open("saved", "w").close()
    sys.exit()
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(60)
"""
STARTS = f"""
import subprocess, sys
from stabn.signals import passed_on_to_children
with passed_on_to_children():
    subprocess.run([sys.executable, "-c", {SAVES!r}])
"""


def test_who_lets_others_work_tells_them_and_waits(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", STARTS], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    assert process.wait(20) == 143
    assert (tmp_path / "saved").exists()
