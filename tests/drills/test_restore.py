"""Backup and restore as docs/operations.md says: MLflow's database and files, and a round with its edits."""

import shutil
import sqlite3
from pathlib import Path

from mlflow.tracking import MlflowClient
from round_factory import make_round

from stabn.attention.edit_document import Edit
from stabn.attention.edits import read_edits, save_edit
from stabn.attention.rounds import check_round, load_round, model_attention
from stabn.local_mlflow import prepare_mlflow
from stabn.storage import open_storage
from stabn.tracking import stage_run


def test_mlflow_is_restored_while_somebody_writes(mlflow_uri: str, tmp_path: Path) -> None:
    """The backup is taken with a run open; it is whole, and holds what was committed before."""
    database = Path(mlflow_uri.removeprefix("sqlite:///"))
    with stage_run("train", settings={"epochs": 3}, inputs={}) as run:
        run.log_metrics({"loss": 0.5})
    with stage_run("evaluate", settings={}, inputs={}) as run:
        with sqlite3.connect(database) as source, sqlite3.connect(tmp_path / "backup.db") as target:
            source.backup(target)
        run.log_metrics({"top1": 0.5})
    restored = tmp_path / "restored"
    shutil.copytree(database.parent, restored)
    shutil.copy(tmp_path / "backup.db", restored / database.name)
    client = MlflowClient(prepare_mlflow(restored))
    runs = client.search_runs([item.experiment_id for item in client.search_experiments()])
    found = {item.info.run_name: item.data.metrics for item in runs}
    assert any(metrics.get("loss") == 0.5 for metrics in found.values()), found


def test_a_round_and_its_edits_are_restored_elsewhere(tmp_path: Path, s3_uri: str) -> None:
    (tmp_path / "made").mkdir()
    item = make_round(tmp_path / "made", s3_uri)
    own = tuple(model_attention(item, "10"))
    edit = Edit(
        round_id=item.round_id,
        video_id="10",
        revision=1,
        num_frames=len(own),
        model_attention=own,
        edited_attention=tuple(1.0 for _ in own),
        status="edited",
        editor="ann",
        edited_at="2026-01-01T00:00:00+00:00",
    )
    save_edit(item, edit)
    before = {video_id: edit.to_json() for video_id, edit in read_edits(item).items()}
    assert before
    source, target = open_storage(item.uri), open_storage(str(tmp_path / "restored"))
    for key in source.list():
        source.download(key, tmp_path / "one")
        target.upload(tmp_path / "one", key)
    again = load_round(str(tmp_path / "restored"))
    check_round(again)
    assert {video_id: edit.to_json() for video_id, edit in read_edits(again).items()} == before
