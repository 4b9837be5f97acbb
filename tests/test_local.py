"""The local run, in folders and with values that have spaces, quotes and the word that KFP's runner rewrites."""

import shutil
import sys
from pathlib import Path

import pytest
from kfp import dsl

from pipelines.local import run_local
from stabn import local_mlflow
from stabn.errors import StabnError
from stabn.local_mlflow import prepare_mlflow
from stabn.tracking import stage_run

ODD = """a 'python3' "folder" $(id) & é"""


@dsl.component(base_image="python:3.11")
def note(text: str, place: str, written: dsl.OutputPath(str)):  # type: ignore[valid-type]
    import pathlib
    import sys

    pathlib.Path(place).write_text(f"{text}\n{sys.executable}")
    pathlib.Path(written).write_text(text)
    if text == "fail":
        sys.exit(2)


@dsl.pipeline(name="odd")
def odd(text: str, place: str):
    first = note(text=text, place=place).set_caching_options(False)
    note(text=first.outputs["written"], place=place).set_caching_options(False)


@pytest.fixture
def interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let this interpreter lie in a folder like that, as in a checkout that lies in one."""
    (tmp_path / ODD).mkdir()
    link = tmp_path / ODD / "venv"
    link.symlink_to(sys.prefix)
    monkeypatch.setattr(sys, "executable", str(link / "bin" / Path(sys.executable).name))
    return sys.executable


def test_a_task_gets_its_values_as_they_are(tmp_path: Path, interpreter: str) -> None:
    place = tmp_path / ODD / "said.txt"
    run_local(odd, {"text": f"{ODD} 100%", "place": str(place)}, tmp_path / ODD / "run")
    assert place.read_text() == f"{ODD} 100%\n{interpreter}"


def test_a_task_that_fails_is_one_error(tmp_path: Path, interpreter: str) -> None:
    with pytest.raises(StabnError, match="run the same command again to go on"):
        run_local(odd, {"text": "fail", "place": str(tmp_path / "said.txt")}, tmp_path / "run")


def test_a_database_beside_both_kinds_of_quotes(
    tmp_path: Path, _mlflow_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow puts its first experiment, whose place is below the working folder, into SQL with Python's quotes."""
    (tmp_path / ODD).mkdir()
    monkeypatch.chdir(tmp_path / ODD)
    shutil.copytree(_mlflow_template, "mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", prepare_mlflow("mlflow"))
    (tmp_path / "report.html").write_text("x")
    with stage_run("train", settings={"a": ODD}, inputs={}) as run:
        run.log_metrics({"top1": 0.5})
        run.log_artifact(tmp_path / "report.html")
    assert [path.parent.name for path in (tmp_path / ODD / "mlflow").rglob("report.html")] == ["artifacts"]


def test_a_users_own_fresh_database_beside_both_kinds_of_quotes(
    tmp_path: Path, _mlflow_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ODD).mkdir()
    monkeypatch.chdir(tmp_path / ODD)
    monkeypatch.setattr(local_mlflow, "_upgrade", lambda path: shutil.copyfile(_mlflow_template / "mlflow.db", path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///own.db")
    with stage_run("train", settings={"a": ODD}, inputs={}) as run:
        run.log_metrics({"top1": 0.5})
    assert run.run_id and (tmp_path / ODD / "own.db").exists()
