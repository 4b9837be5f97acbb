"""What only Linux has: each function also without the call, as on macOS or on a file system without locks."""

import errno
import os
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from stabn import machine

MAKE_DATABASE = """
import os, sys, time
import mlflow.store.tracking.sqlalchemy_store
from mlflow.store.db import utils
from stabn.tracking import stage_run

make = utils._initialize_tables

def make_alone(engine):
    name = "making-" + sys.argv[1]
    open(name, "w").close()
    time.sleep(1)  # for all of those that saw no tables
    found = [other for other in os.listdir(".") if other.startswith("making-")]
    assert found == [name], f"made by several: {found}"
    make(engine)
    os.remove(name)

utils._initialize_tables = make_alone
open("ready-" + sys.argv[1], "w").close()
while sum(name.startswith("ready-") for name in os.listdir(".")) < 3:
    time.sleep(0.01)
with stage_run("train", settings={"a": 1}, inputs={}) as run:
    run.log_metrics({"top1": 0.5})
"""


def test_the_cores_without_affinity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    if hasattr(os, "sched_getaffinity"):
        assert machine.num_cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert machine.num_cores() == (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "400000 100000"}, 4),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "max 100000"}, 64),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ({}, 64),
    ],
)
def test_a_container_may_use_fewer_cores_than_its_machine_has(
    files: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda number: range(64), raising=False)
    assert machine.num_cores() == expected


def test_a_limit_of_memory_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    def refuse(*arguments: object) -> None:
        raise ValueError("current limit exceeds maximum limit")

    with monkeypatch.context() as without:
        without.setattr(resource, "setrlimit", refuse)
        assert machine.limit_memory(1 << 40) is False
    with monkeypatch.context() as without:
        without.delattr(resource, "RLIMIT_AS")
        assert machine.limit_memory(1 << 40) is False
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "resource", None)
        assert machine.limit_memory(1 << 40) is False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits the address space")
def test_a_limit_of_memory_holds() -> None:
    program = (
        "import psutil, sys\nfrom stabn.machine import limit_memory\n"
        "assert limit_memory(psutil.Process().memory_info().vms + (64 << 20))\n"
        "try:\n    bytearray(256 << 20)\nexcept MemoryError:\n    sys.exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 9


def test_a_child_that_ends_with_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (machine.end_with_parent() is not None) == sys.platform.startswith("linux")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert machine.end_with_parent() is None


def test_whose_process_numbers_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.process_space() == machine.process_space() != ""

    def refuse(*arguments: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", refuse)
    assert machine.process_space() == socket.gethostname()


def test_locks_and_file_systems_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    with open(tmp_path / "lock", "a") as one, open(tmp_path / "lock", "a") as other:
        assert machine.lock(one, shared=True) and machine.lock(other, wait=False, shared=True)
        assert not machine.lock(one, wait=False)

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with open(tmp_path / "lock", "a") as one, pytest.raises(machine.NoLocks, match="No locks available"):
        machine.lock(one, wait=False)
    with machine.locked(tmp_path / "lock"), machine.locked(tmp_path / "lock"):
        pass
    with machine.locked("/proc/none/lock"):
        pass


def test_several_processes_meet_a_fresh_database(tmp_path: Path) -> None:
    """Each in its own container, where what MLflow itself locks, a file among the temporary ones, is another's."""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "STABN_RUN_ID": ""}
    started = []
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        own = {**environment, "TMPDIR": str(tmp_path / name)}
        command = [sys.executable, "-c", MAKE_DATABASE, name]
        started.append(subprocess.Popen(command, env=own, cwd=tmp_path, stderr=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], said
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("SELECT count(*) FROM runs WHERE status = 'FINISHED'").fetchone() == (3,)
