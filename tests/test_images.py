"""The Dockerfiles are clean, and what they install is what the package names and constraints.txt pins."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROLES = ("data", "trainer", "editor", "services")


@pytest.mark.parametrize("role", ROLES)
def test_hadolint_finds_nothing(role: str) -> None:
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([linter, ROOT / "images" / f"{role}.Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("role", ROLES)
def test_a_dockerfile_keeps_the_rules(role: str) -> None:
    text = (ROOT / "images" / f"{role}.Dockerfile").read_text()
    assert re.search(r"^ARG BASE_IMAGE=\S+@sha256:[0-9a-f]{64}$", text, re.MULTILINE), "the base is not pinned"
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${BASE_IMAGE}"}
    last = text.rpartition("\nFROM ")[2]
    assert "USER 10001:0\n" in last and "HOME=/tmp" in last and "pip install" not in last
    assert last.index("USER 10001:0") < last.index("smoke.py"), "the smoke test runs as another user"
    for label in ("title", "description", "licenses", "version", "revision", "base.name"):
        assert f"org.opencontainers.image.{label}=" in last
    for line in text.replace("\\\n", " ").splitlines():
        if "pip install" in line and "--no-deps" not in line:
            assert all("-c constraints.txt" in part for part in line.split("pip install")[1:]), line


def test_the_images_take_the_requirements_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    script = [sys.executable, ROOT / "images/requirements.py", ROOT / "pyproject.toml"]
    printed = subprocess.run([*script, "base", "train"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert printed == [*project["dependencies"], *project["optional-dependencies"]["train"]]
    refused = subprocess.run([*script, "trian"], capture_output=True, text=True)
    assert refused.returncode and "no extra trian; there are base," in refused.stderr


def test_only_the_images_with_a_network_have_pytorch() -> None:
    extras = {
        role: re.search(r"requirements.py pyproject.toml ([\w ]+) >", (ROOT / f"images/{role}.Dockerfile").read_text())
        for role in ROLES
    }
    with_torch = {role for role, found in extras.items() if found and "train" in found[1].split()}
    assert all(extras.values()) and with_torch == {"trainer", "editor"}


def test_every_requirement_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = {_name(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    wanted = [
        *project["dependencies"],
        *(item for extra in project["optional-dependencies"].values() for item in extra),
    ]
    assert not {_name(item) for item in wanted} - pins


def _name(requirement: str) -> str:
    return re.split(r"[=<>;\[ ]", requirement)[0].lower().replace("_", "-").replace(".", "-")
