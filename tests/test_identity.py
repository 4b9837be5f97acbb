"""Every table that is kept by an id refuses one that comes twice, when written and when read, and says where."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from stabn.attention.rounds import ROUND_FILE, Round, RoundError, RoundVideo, load_round, save_round
from stabn.attention.selection import SelectedClass, Selection, SelectionError, load_selection, save_selection
from stabn.data.edit_table import EditError, load_edit_table, save_edit_table
from stabn.data.manifest import Manifest, ManifestError, build_manifest
from stabn.data.segments import SegmentsError, load_segments
from stabn.editor.accounts import AccountError, add_accounts, load_accounts
from stabn.evaluation.prediction_table import MetricsError, Predictions
from stabn.identity import repeated

TWICE = "video '1' comes twice, in rows 1 and 2"


def twice(path: Path) -> None:
    """Repeat the first row of a Parquet file, as no writer of ours would."""
    table = pq.read_table(path)
    rows = [0, *range(len(table))]
    pq.write_table(table.take(rows).replace_schema_metadata(table.schema.metadata), path)


def test_the_first_id_that_comes_again_is_found() -> None:
    assert repeated(["a", "b", "c", "b", "a"]) == ("b", 2, 4)
    assert repeated(["a", "b"]) is repeated([]) is None


def test_a_manifest_has_each_id_once(manifest_path: str, tmp_path: Path) -> None:
    manifest = Manifest.load(manifest_path)
    rows = manifest.table.to_pylist()
    with pytest.raises(ManifestError, match=f"manifest of {manifest.storage_uri}: {TWICE}; .*extract-frames again"):
        build_manifest([*rows, rows[0]], manifest.classes, manifest.storage_uri, {})
    other = {**rows[0], "split": "validation"}  # the same frames would be learnt and judged
    with pytest.raises(ManifestError, match="video '1' comes twice, in rows 1 and 10"):
        build_manifest([*rows, other], manifest.classes, manifest.storage_uri, {})
    path = tmp_path / "manifest.parquet"
    manifest.save(path)
    twice(path)
    with pytest.raises(ManifestError, match=f"{path}: manifest of .*: {TWICE}"):
        Manifest.load(path)


def test_a_prediction_table_has_each_id_once(tmp_path: Path) -> None:
    columns = {
        "class_index": np.zeros(2),
        "top5": np.zeros((2, 2)),
        "scores": np.zeros((2, 2)),
        "loss": np.zeros(2),
        "metadata": {"classes": ["a", "b"], "split": "validation", "attention": "as_is"},
    }
    with pytest.raises(MetricsError, match=f"{TWICE}; run the evaluation again"):
        Predictions(video_ids=("1", "1"), **columns)
    path = tmp_path / "predictions.parquet"
    Predictions(video_ids=("1", "2"), **columns).save(path)
    twice(path)
    with pytest.raises(MetricsError, match=f"{path}: .*{TWICE}"):
        Predictions.load(path)


def test_an_edit_table_has_each_id_once(tmp_path: Path) -> None:
    row = {"video_id": "1", "edited_attention": [0.5], "editor": "ann", "revision": 1, "status": "edited"}
    path, header = tmp_path / "edits.parquet", {"fingerprint": "f", "round_id": "r"}
    with pytest.raises(EditError, match=f"{path}: {TWICE}; import the round again"):
        save_edit_table(path, [row, {**row, "status": "skipped"}], header)
    save_edit_table(path, [row], header)
    twice(path)
    with pytest.raises(EditError, match=f"{path}: {TWICE}"):
        load_edit_table(path)


def test_a_round_has_each_id_once(tmp_path: Path) -> None:
    video = RoundVideo("1", 0, "a", 1, 0.5, 10, 32, 32)
    item = Round(str(tmp_path), "r", "now", "m", "c", ("a", "b"), (0,), (video,))
    with pytest.raises(RoundError, match=f"{ROUND_FILE}: {TWICE}; .*export the round again"):
        save_round(dataclasses.replace(item, videos=(video, video)))
    save_round(item)
    content = json.loads((tmp_path / ROUND_FILE).read_text())
    content["videos"] *= 2
    (tmp_path / ROUND_FILE).write_text(json.dumps(content))
    with pytest.raises(RoundError, match=f"{ROUND_FILE}: {TWICE}"):
        load_round(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video_ids": ["1", "1"]}, "video '1'"),
        ({"validation_video_ids": ["1", "1"]}, "validation video '1'"),
        ({"classes": [SelectedClass(3, "a", 0.1, 0.1, 9, 9)] * 2}, "action 3"),
    ],
)
def test_a_selection_has_each_id_once(change: dict, message: str, tmp_path: Path) -> None:
    good = Selection([SelectedClass(3, "a", 0.1, 0.1, 9, 9)], ["1"], ["2"])
    path = tmp_path / "selection.json"
    with pytest.raises(SelectionError, match=f"{path}: {message} comes twice, in rows 1 and 2; run select-classes"):
        save_selection(dataclasses.replace(good, **change), path)
    save_selection(good, path)
    name = next(iter(change))
    content = json.loads(path.read_text())
    content[name] = content[name][:1] * 2
    path.write_text(json.dumps(content))
    with pytest.raises(SelectionError, match="comes twice, in rows 1 and 2"):
        load_selection(path)


def test_segments_have_each_id_once(tmp_path: Path) -> None:
    path = tmp_path / "segments.json"
    path.write_text('{"1": [0, 5], "2": [0, 5], "1": [2, 9]}')
    with pytest.raises(SegmentsError, match="'1' comes twice in one object, at places 1 and 3"):
        load_segments(str(path))


def test_accounts_have_each_name_once(tmp_path: Path) -> None:
    uri = str(tmp_path / "accounts.json")
    with pytest.raises(AccountError, match="account 'ann' comes twice, in rows 1 and 2"):
        add_accounts(uri, ["ann", "ann"], "annotator", ["correct horse", "battery staple"])
    entry = '"ann": {"role": "lead", "password_hash": ""}'
    Path(uri).write_text(f'{{"accounts": {{{entry}, {entry}}}}}')
    with pytest.raises(AccountError, match="'ann' comes twice"):
        load_accounts(uri)
