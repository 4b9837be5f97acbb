"""The whole job in a folder with spaces, quotes, a dollar sign and the word python3 in its name, and what it prints."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_demo import run_demo

NAME = """my 'python3' "demo" $HOME & é"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("whole-job") / NAME / "demo"
    folder.parent.mkdir()
    return folder, run_demo(folder, 3600)


def command(output: str, pattern: str) -> str:
    """Return a command that was printed, as people copy it."""
    found = re.search(rf"^  (\S.*{pattern}.*(?:\\\n.*)*)$", output, re.MULTILINE)
    assert found, output
    return found[1]


def test_it_ends_with_the_report(finished: tuple[Path, str]) -> None:
    folder, output = finished
    assert "Table 2" in output and "Table 3" in (folder / "report.html").read_text()


def test_the_printed_evaluation_runs_in_a_shell(finished: tuple[Path, str]) -> None:
    folder, output = finished
    (folder / "predictions.parquet").unlink(missing_ok=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "MLFLOW_", "STABN_"))}
    done = subprocess.run(
        ["bash", "-c", command(output, "stabn evaluate")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "predictions.parquet").exists()


def test_the_printed_address_of_mlflow_names_the_database(finished: tuple[Path, str]) -> None:
    folder, output = finished
    words = shlex.split(command(output, " ui --backend-store-uri"))
    assert Path(words[0]).resolve() == (Path(sys.executable).parent / "mlflow").resolve()
    assert Path(words[3].removeprefix("sqlite:///")).resolve() == folder / "mlflow" / "mlflow.db"
