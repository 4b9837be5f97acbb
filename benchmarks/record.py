"""What a benchmark measured: numbers with the machine, versions, commit and command, and the table that shows them.

`--output benchmarks/results/NAME.json` keeps a record; `python benchmarks/tables.py` puts its tables into the docs.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from stabn.tracking import git_commit

PACKAGES = ("torch", "numpy", "av", "simplejpeg", "boto3")


class Table(NamedTuple):
    """Rows of numbers and words.

    Attributes:
        title: what was measured, shown above.
        columns: their headings, with units.
        formats: of each column's numbers, as for `format`; empty: as they are.
        rows: one value per column; None: nothing.
        note: shown below.
    """

    title: str
    columns: Sequence[str]
    formats: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""

    def __str__(self) -> str:
        rows = [self.columns, *map(self._cells, self.rows)]
        lines = ["|" + "".join(f" {cell} |" if cell else " |" for cell in row) for row in rows]
        lines.insert(1, "|" + "---|" * len(self.columns))
        return "\n\n".join(part for part in (self.title, "\n".join(lines), self.note) if part)

    def _cells(self, row: Sequence[Any]) -> list[str]:
        return [
            "" if value is None else value if isinstance(value, str) else format(value, how)
            for value, how in zip(row, self.formats, strict=True)
        ]


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of a benchmark's command line."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--output", type=Path, metavar="FILE", help="JSON file that keeps the measurements")
    return made


def report(tables: Sequence[Table], output: Path | None) -> None:
    """Print what was measured, and keep it if a file is given."""
    print("\n\n".join(map(str, tables)), flush=True)
    if output:
        keep(tables, output)


def keep(tables: Sequence[Table], output: Path, **more: Any) -> None:
    """Write the record of what was measured, whole or not at all; `more` are further facts."""
    record = {
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
        "commit": git_commit(),
        "machine": machine(),
        "versions": versions(),
        **more,
        "tables": [table._asdict() for table in tables],
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f"{output.name}.partial")
    partial.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    partial.replace(output)


def machine() -> dict[str, Any]:
    """Return what this machine is."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    found = {"processor": (names or [platform.processor()])[0], "cores": os.cpu_count(), "system": platform.system()}
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        found["gpu"] = sys.modules["torch"].cuda.get_device_name()
    return found


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages whose speed is measured."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):  # no benchmark needs all of them
            found[name] = importlib.metadata.version(name)
    return found


def load(path: Path) -> list[Table]:
    """Return the tables of a record."""
    return [Table(**table) for table in json.loads(path.read_text())["tables"]]
