"""Saved states: whole or not there, the newest whole one is found, old ones go."""

import json
from pathlib import Path
from typing import Any

import pytest

from stabn.storage import open_storage
from stabn.training.checkpoint import CheckpointError
from stabn.training.states import StateStore


def accept(content: dict[str, Any], uri: str) -> None:
    """Take any state."""


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    """Return a store with three states of which it keeps two."""
    store = StateStore(open_storage(str(tmp_path)), keep=2)
    for number in range(3):
        store.write(f"0000{number}", {"epoch": number}, {"network": b"weights %d" % number, "optimizer": b"the same"})
    return store


def test_the_newest_state_is_found_and_old_ones_go(store: StateStore, tmp_path: Path) -> None:
    state = store.newest(accept, print)
    assert state is not None and state.name == "00002" and state.content == {"epoch": 2}
    assert state.parts == {"network": b"weights 2", "optimizer": b"the same"}
    assert sorted(path.name for path in tmp_path.glob("states/*.json")) == ["00001.json", "00002.json"]
    assert len(list(tmp_path.glob("states/parts/*.pt"))) == 3, "two networks, and once what both share"


@pytest.mark.parametrize("damage", ["truncated part", "changed part", "missing part", "truncated json", "changed json"])
def test_a_damaged_newest_state_falls_back_to_the_one_before(store: StateStore, tmp_path: Path, damage: str) -> None:
    description = tmp_path / "states" / "00002.json"
    part = tmp_path / json.loads(description.read_text())["state"]["parts"]["network"]["key"]
    path, data = (part, part.read_bytes()) if "part" in damage else (description, description.read_bytes())
    if damage.startswith("missing"):
        path.unlink()
    else:
        path.write_bytes(data[:-3] if damage.startswith("truncated") else data.replace(b"2", b"3", 1))
    told: list[str] = []
    state = store.newest(accept, told.append)
    assert state is not None and state.name == "00001" and state.parts["network"] == b"weights 1"
    assert len(told) == 1 and "00002.json" in told[0] and "the state before it is used" in told[0]
    store.write("00002", {"epoch": 2}, {"network": b"weights 2", "optimizer": b"the same"})
    state = store.newest(accept, told.append)
    assert state is not None and state.name == "00002" and len(told) == 1, "what was damaged is written again"


def test_no_whole_state_is_an_error_and_no_state_is_none(store: StateStore, tmp_path: Path) -> None:
    assert StateStore(open_storage(str(tmp_path / "empty")), 1).newest(accept, print) is None
    for path in tmp_path.glob("states/*.json"):
        path.write_text("{")
    with pytest.raises(CheckpointError, match="none of the 2 states can be used; give another output"):
        store.newest(accept, print)


def test_an_interrupted_write_leaves_the_state_before(store: StateStore, tmp_path: Path) -> None:
    class Full(Exception):
        pass

    real = store.storage.write

    def write(key: str, data: bytes, **options: Any) -> Any:
        if key.endswith(".json"):
            raise Full
        return real(key, data, **options)

    store.storage.write = write  # type: ignore[method-assign]
    with pytest.raises(Full):
        store.write("00003", {"epoch": 3}, {"network": b"weights 3", "optimizer": b"the same"})
    store.storage.write = real  # type: ignore[method-assign]
    state = store.newest(accept, print)
    assert state is not None and state.name == "00002"
    store.write("00003", {"epoch": 3}, {"network": b"weights 4", "optimizer": b"the same"})
    assert len(list(tmp_path.glob("states/parts/*.pt"))) == 3, "what the interrupted write left is gone too"
