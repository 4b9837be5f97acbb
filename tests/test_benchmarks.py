"""The tables of the docs are those of the recorded measurements."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu  # noqa: E402
import record  # noqa: E402
import tables  # noqa: E402


def test_the_docs_show_what_was_recorded() -> None:
    shown = set()
    for page in tables.PAGES:
        text = page.read_text()
        assert tables.renewed(text) == text, f"{page}: run python benchmarks/tables.py"
        shown |= {(match[2], int(match[3])) for match in tables.PLACE.finditer(text)}
    kept = {(path.name, n) for path in tables.RESULTS.glob("*.json") for n in range(len(record.load(path)))}
    assert shown == kept, "every recorded table stands in the docs, once"


def test_a_changed_number_changes_the_page(tmp_path: Path) -> None:
    page = tables.PAGES[0].read_text()
    for path in tables.RESULTS.glob("*.json"):
        content = json.loads(path.read_text())
        for table in content["tables"]:
            table["rows"][0][-2] = 12345.678
        (tmp_path / path.name).write_text(json.dumps(content))
    assert page.count("1234") < tables.renewed(page, tmp_path).count("1234")


def test_a_record_says_where_its_numbers_are_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = record.Table(
        "2 clips", ("method", "ms", "share"), ("", ".1f", ".0%"), [("ours", 1.25, 0.5), ("lost", None, None)]
    )
    record.report([table], tmp_path / "results" / "x.json")
    assert capsys.readouterr().out == str(table) + "\n"
    assert str(table).splitlines()[2:] == [
        "| method | ms | share |",
        "|---|---|---|",
        "| ours | 1.2 | 50% |",
        "| lost | | |",
    ]
    kept = json.loads((tmp_path / "results" / "x.json").read_text())
    assert {"date", "command", "commit", "machine", "versions"} < set(kept) and kept["versions"]["torch"]
    assert record.load(tmp_path / "results" / "x.json") == [
        table._replace(columns=[*table.columns], formats=[*table.formats], rows=[[*row] for row in table.rows])
    ]


def test_what_a_gpu_decides_is_kept_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a machine cannot measure is in the file with the reason, and takes nothing else away."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    out = tmp_path / "gpu.json"
    gpu.run(("several", "guard", "loop"), gpu.SMALL, 60, out)
    kept = json.loads(out.read_text())
    assert "needs two" in kept["parts"]["several"] and kept["parts"]["loop"].startswith("done")
    assert [table["columns"][0] for table in kept["tables"]] == ["convolution", "videos"] and kept["device"]["torch"]
    gpu.run(("loop",), gpu.FULL, 1, out)
    assert "it takes at least" in json.loads(out.read_text())["parts"]["loop"]
