"""The list of what an environment is made of."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

PROGRAM = Path(__file__).parent.parent / "images" / "sbom.py"


def test_every_package_is_listed_with_its_version() -> None:
    """The same each time, and read from standard input, as in an image that has no such file."""
    runs = [
        subprocess.run(
            [sys.executable, "-", "stabn"], input=PROGRAM.read_text(), capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    found = json.loads(runs[0])
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.5")
    versions = {item["name"]: item["version"] for item in found["components"]}
    assert versions["numpy"] == metadata.version("numpy") and len(versions) == len(found["components"])
    assert all(item["purl"].startswith(f"pkg:pypi/{item['name']}@") for item in found["components"])
