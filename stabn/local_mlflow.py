"""The tracking of a run without a cluster: an MLflow database in one folder, its artifacts beside it."""

import contextlib
import importlib.metadata
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from stabn.errors import StabnError
from stabn.machine import locked

ARTIFACTS = "mlflow-artifacts"  # beside the database
PLACES = (  # columns that hold where artifacts are
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)


class LocalServiceError(StabnError):
    """A local service cannot run in this folder."""


def prepare_mlflow(folder: str | os.PathLike[str]) -> str:
    """Return the tracking URI of the folder's SQLite database, which is made or upgraded first if needed.

    Processes that meet an empty database at the same time corrupt it, so this comes before any parallel stage.
    Artifacts go to `mlflow-artifacts` beside the database (see `stabn.tracking.artifact_root`).

    Raises:
        LocalServiceError: MLflow could not upgrade the database.
    """
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    database = folder / "mlflow.db"
    prepare_database(database)
    with locked(_lock_of(database)):
        _follow_move(database)
    return f"sqlite:///{database}"


def prepare_database(database: Path) -> None:
    """Make or upgrade a SQLite database of MLflow, in a folder of any name.

    Raises:
        LocalServiceError: MLflow could not upgrade it.
    """
    with locked(_lock_of(database)):
        _upgrade(database)
        _make_first_experiment(database)


def _lock_of(database: Path) -> Path:
    return database.with_name(f"{database.name}.lock")


def _upgrade(database: Path) -> None:
    marker = database.with_name(f"{database.name}.version")
    uri, version = f"sqlite:///{database}", importlib.metadata.version("mlflow")
    if not database.exists() or not marker.exists() or marker.read_text() != version:
        command = [sys.executable, "-m", "mlflow", "db", "upgrade", uri]
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            end = "\n".join(done.stdout.strip().splitlines()[-15:])
            raise LocalServiceError(f"{database}: `mlflow db upgrade` failed; move the file away\n{end}")
        marker.write_text(version)


def _make_first_experiment(database: Path) -> None:
    """Make the experiment that MLflow wants in every database: its own way fails beside both kinds of quotes."""
    now = int(time.time() * 1000)
    row = (0, "Default", f"{database.parent}/{ARTIFACTS}/0", "active", now, now, "default")
    columns = "experiment_id, name, artifact_location, lifecycle_stage, creation_time, last_update_time, workspace"
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(f"INSERT OR IGNORE INTO experiments ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", row)


def _follow_move(database: Path) -> None:
    """Let the artifacts of a folder that was moved be found: MLflow keeps where they are from the root on."""
    own = f"{database.parent}/{ARTIFACTS}"
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        places = [row[0] for row in connection.execute("SELECT artifact_location FROM experiments")]
        roots = {place[: place.index(f"/{ARTIFACTS}/")] for place in places if f"/{ARTIFACTS}/" in (place or "")}
        for root in roots - {str(database.parent)}:
            former = f"{root}/{ARTIFACTS}"
            if Path(former.removeprefix("file://")).exists():
                continue  # copied, not moved; or another's
            for table, column in PLACES:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                    (own, len(former) + 1, len(former) + 1, f"{former}/"),
                )
