"""Several files that belong together, and one file that several write: each output has one writer at a time."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from stabn.cli import main
from stabn.data.edit_table import load_edit_table, save_edit_table
from stabn.editor.accounts import add_accounts, load_accounts
from stabn.storage import Claim, ObjectExists, claims, local, open_storage
from stabn.training.checkpoint import dump_checkpoint
from tests.tiny_run import settings


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "LOOK_SECONDS", 0.02)


def together(calls: list[Callable[[], Any]]) -> None:
    start = threading.Barrier(len(calls))

    def call(one: Callable[[], Any]) -> None:
        start.wait()
        one()

    with ThreadPoolExecutor(len(calls)) as pool:
        list(pool.map(call, calls))


def test_accounts_that_are_added_at_once_are_all_there(storage_uri: str) -> None:
    uri, names = f"{storage_uri}/accounts.json", [f"person{i}" for i in range(4)]
    together([lambda name=name: add_accounts(uri, [name], "annotator", ["long enough"]) for name in names])
    assert sorted(load_accounts(uri)) == names
    assert list(open_storage(storage_uri).list()) == ["accounts.json"]


def test_two_that_write_one_table_at_once_both_succeed(tmp_path: Path) -> None:
    def write(editor: str) -> None:
        row = {"video_id": "1", "edited_attention": [0.5], "editor": editor, "revision": 1, "status": "edited"}
        for _ in range(100):
            save_edit_table(tmp_path / "edits.parquet", [row], {"fingerprint": editor, "round_id": "r"})

    together([lambda: write("a"), lambda: write("b")])
    assert load_edit_table(tmp_path / "edits.parquet").fingerprint in ("a", "b")
    assert [path.name for path in tmp_path.iterdir()] == ["edits.parquet"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    from stabn.models import build_model

    config = settings()
    path = tmp_path / "network.pt"
    model = build_model(config.model)
    named = [f"Doing {number}" for number in range(config.model.num_classes)]
    path.write_bytes(
        dump_checkpoint(model, config.model, config.data, named, manifest_fingerprint="", stage="train", epoch=1)
    )
    return str(path)


def test_an_export_does_not_mix_with_another_networks(
    tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    with Claim(open_storage(output), "export-model", {"checkpoint": "another"}), pytest.raises(SystemExit):
        main(["export-model", "--checkpoint", checkpoint, "--output", str(output), "--program", "no"])
    assert "writes this output (checkpoint: 'another' there" in capsys.readouterr().err
    (output / "model.pt2").write_bytes(b"of another network")
    main(["export-model", "--checkpoint", checkpoint, "--output", str(output), "--program", "no"])
    assert sorted(path.name for path in output.iterdir()) == ["README.md", "config.json", "model.safetensors"]


_COMMANDS = {
    "import-edits": ["--round", "rounds/none"],
    "report": [word for name in ("before", "after", "before-inverted", "after-inverted", "selection", "control",
               "before-checkpoint", "after-checkpoint", "control-checkpoint", "manifest", "edits")
               for word in (f"--{name}", "none")],
}  # fmt: skip


@pytest.mark.parametrize("name", _COMMANDS)
def test_a_folder_of_results_has_one_writer(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Claim(open_storage(tmp_path), name, {"other": 1}), pytest.raises(SystemExit):
        main([name, *_COMMANDS[name], "--output", str(tmp_path)])
    assert "writes this output" in capsys.readouterr().err


# A file system without hard links


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)


_KILLED = """
import os, sys
from stabn.storage import open_storage
def refuse(*paths):
    raise PermissionError(1, "Operation not permitted")
os.link, os.replace = refuse, lambda *paths: os._exit(9)
open_storage(sys.argv[1]).write("x", b"first", if_absent=True)
"""


def test_a_process_killed_between_two_steps_leaves_no_empty_object(
    tmp_path: Path, no_links: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "LEFT_SECONDS", 0.1)
    assert subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)]).returncode == 9
    store = open_storage(tmp_path)
    assert list(store.list()) == [] and not store.exists("x")
    store.write("x", b"second", if_absent=True)
    with pytest.raises(ObjectExists):
        store.write("x", b"third", if_absent=True)
    assert store.read("x") == b"second"


def test_of_many_at_once_one_gets_a_name(tmp_path: Path, no_links: None) -> None:
    store, won = open_storage(tmp_path), []

    def write(number: int) -> None:
        try:
            store.write("x", b"%d" % number, if_absent=True)
            won.append(number)
        except ObjectExists:
            pass

    together([lambda number=number: write(number) for number in range(8)])
    assert len(won) == 1 and store.read("x") == b"%d" % won[0]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
