"""Files that are damaged or made to do harm: each is read or refused with one line, whatever is in it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hostile import SIZE, spoilt_bytes, spoilt_document, spoilt_json, spoilt_table, try_many
from hypothesis import strategies as st
from test_checkpoint import dump, network
from test_selection import make_split
from tiny_run import newest_state, write_edits

from stabn.attention.edit_document import Edit, parse_edit
from stabn.attention.rounds import load_round, model_attention
from stabn.attention.selection import SelectedClass, Selection, load_selection, save_selection
from stabn.data.edit_table import load_edit_table
from stabn.data.manifest import Manifest
from stabn.data.ssv2 import LABELS_FILE, SPLIT_FILES, load_labels
from stabn.editor.accounts import add_accounts, load_accounts
from stabn.evaluation.prediction_table import Predictions
from stabn.models.weights import read_weights
from stabn.storage import open_storage
from stabn.training.checkpoint import load_model, parse_checkpoint, serialize
from stabn.training.states import StateStore

Case = tuple[st.SearchStrategy[Any], Callable[[Any], object]]
EXAMPLES = int(20 * SIZE)

VIDEOS = [{"video_id": "10", "class_index": 0, "label": "a", "predicted": 1, "score": 0.5, "num_frames": 3}]
ROUND = {
    "format": 1, "round_id": "r", "created_at": "2026-01-01T00:00:00+00:00", "manifest_fingerprint": "m",
    "checkpoint_fingerprint": "c", "classes": ["a", "b"], "selected_classes": [0],
    "videos": [{**VIDEOS[0], "width": 8, "height": 6}],
}  # fmt: skip
EDIT = Edit(
    round_id="r", video_id="10", revision=1, num_frames=3, model_attention=(0.1, 0.2, 0.3),
    edited_attention=(0.1, None, 1.0), status="edited", editor="ann", edited_at="2026-01-01T00:00:00+00:00",
)  # fmt: skip
CLASSES = {"Moving something up": "0", "Moving something down": "1"}
ENTRIES = [
    {"id": "1", "label": "moving a cup up", "template": "Moving [something] up", "placeholders": ["a cup"]},
    {"id": "2", "label": "moving a cup down", "template": "Moving [something] down", "placeholders": ["a cup"]},
]
TABLE = "id,label,split\n1,a,train\n2,b,train\n3,a,validation\n4,,test\n"


def file_case(path: Path, spoilt: st.SearchStrategy[bytes], read: Callable[[str], object]) -> Case:
    def write_and_read(data: bytes) -> object:
        path.write_bytes(data)
        return read(str(path))

    return spoilt, write_and_read


def labels(folder: Path, name: str) -> Case:
    (folder / LABELS_FILE).write_text(json.dumps(CLASSES))
    for split in ("train", "validation"):
        (folder / SPLIT_FILES[split]).write_text(json.dumps(ENTRIES))
    good = CLASSES if name == LABELS_FILE else ENTRIES
    return file_case(folder / name, spoilt_json(good), lambda path: load_labels(folder, 0.1))


def table(folder: Path, name: str) -> Case:
    return file_case(folder / name, spoilt_bytes(TABLE.encode()), lambda path: load_labels(folder))


def manifest(folder: Path, manifest_path: str) -> Case:
    def read(path: str) -> None:
        found = Manifest.load(path)
        for row in range(len(found)):
            video = found.video(row)
            assert found.index_of(video.video_id) == row and len(video.frame_sizes) == video.num_frames
        assert found.dataset

    return file_case(folder / "m.parquet", spoilt_table(Path(manifest_path).read_bytes()), read)


def edit_table(folder: Path) -> Case:
    good = write_edits(folder / "edits.parquet", {"1": [1.0, 0.5], "2": [0.0, float("nan")]})
    return file_case(folder / "edits.parquet", spoilt_table(Path(good).read_bytes()), load_edit_table)


def predictions(folder: Path) -> Case:
    make_split("train", [0.5, 0.9]).save(folder / "p.parquet")
    return file_case(folder / "p.parquet", spoilt_table((folder / "p.parquet").read_bytes()), Predictions.load)


def selection(folder: Path) -> Case:
    save_selection(Selection([SelectedClass(0, "a", 0.1, 0.2, 3, 4)], ["1", "2"], ["3"]), folder / "s.json")
    return file_case(folder / "s.json", spoilt_json(json.loads((folder / "s.json").read_text())), load_selection)


def round_file(folder: Path) -> Case:
    return file_case(folder / "round.json", spoilt_json(ROUND), lambda path: load_round(str(folder)))


def attention(folder: Path) -> Case:
    (folder / "round.json").write_text(json.dumps(ROUND))
    item = load_round(str(folder))
    path = folder / "videos" / "10" / "attention.json"
    path.parent.mkdir(parents=True)
    return file_case(
        path, spoilt_json({"temporal_attention": [0.1, 0.2, 0.3]}), lambda path: model_attention(item, "10")
    )


def accounts(folder: Path) -> Case:
    add_accounts(str(folder / "a.json"), ["ann"], "lead", ["correct horse"])
    return file_case(folder / "a.json", spoilt_json(json.loads((folder / "a.json").read_text())), load_accounts)


def checkpoint_bytes(folder: Path) -> Case:
    return file_case(folder / "c.pt", spoilt_bytes(dump(*network())), load_model)


def checkpoint_content(folder: Path) -> Case:
    """Well-formed files whose description is not: the fingerprint names the weights alone."""
    content = parse_checkpoint(dump(*network(), history=[{"epoch": 1, "loss": 0.5}]), "c.pt")
    plain = {name: value for name, value in content.items() if name != "model"}
    spoilt = spoilt_document(plain).map(
        lambda value: serialize({**value, "model": content["model"]} if isinstance(value, dict) else {"x": value})
    )
    return file_case(folder / "c.pt", spoilt, load_model)


def weights(folder: Path) -> Case:
    good = safetensors.torch.save({"conv.weight": torch.ones(2, 3), "bn.bias": torch.zeros(4)})
    return file_case(folder / "w.safetensors", spoilt_bytes(good), read_weights)


def state(folder: Path) -> Case:
    """A run's saved states, of which there are several: a spoilt one is reported, and the one before is used."""
    store = StateStore(open_storage(str(folder)), 2)
    for number in (1, 2):
        store.write(f"0000{number}", {"epoch": number}, {"network": b"weights of %d" % number})
    newest = folder / "states" / "00002.json"
    good = newest.read_bytes()
    parts = {path: path.read_bytes() for path in (folder / "states" / "parts").iterdir()}

    def read(data: bytes) -> object:
        newest.write_bytes(data)
        for path, content in parts.items():
            path.write_bytes(content)
        found = newest_state(folder)
        assert found is not None and found.parts["network"] == b"weights of %d" % found.content["epoch"]

    return spoilt_json(json.loads(good)), read


CASES: dict[str, Callable[..., Case]] = {
    "labels": lambda folder, **_: labels(folder, LABELS_FILE),
    "label entries": lambda folder, **_: labels(folder, SPLIT_FILES["train"]),
    "label table": lambda folder, **_: table(folder, "labels.csv"),
    "manifest": lambda folder, manifest_path, **_: manifest(folder, manifest_path),
    "edit": lambda folder, **_: (spoilt_json(json.loads(EDIT.to_json())), lambda data: parse_edit(data, "e.json")),
    "edit table": lambda folder, **_: edit_table(folder),
    "predictions": lambda folder, **_: predictions(folder),
    "selection": lambda folder, **_: selection(folder),
    "round": lambda folder, **_: round_file(folder),
    "attention": lambda folder, **_: attention(folder),
    "accounts": lambda folder, **_: accounts(folder),
    "checkpoint's bytes": lambda folder, **_: checkpoint_bytes(folder),
    "checkpoint's content": lambda folder, **_: checkpoint_content(folder),
    "safetensors": lambda folder, **_: weights(folder),
    "state": lambda folder, **_: state(folder),
}


@pytest.mark.parametrize("name", CASES)
def test_a_spoilt_file_is_read_or_refused(name: str, tmp_path: Path, manifest_path: str) -> None:
    spoilt, read = CASES[name](tmp_path, manifest_path=manifest_path)
    try_many(spoilt, read, EXAMPLES, refuses=name != "state")
