"""Run the pipelines on this machine with KFP's own local runner: no cluster, the same components."""

import contextlib
import hashlib
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from kfp import local
from kfp.dsl.base_component import BaseComponent
from kfp.local import subprocess_task_handler

from stabn.errors import StabnError
from stabn.forms import parse_form

SOURCES = Path(__file__).resolve().parent.parent
PACKAGES = ("stabn", "components", "pipelines")
STARTS = '"$program_path/ephemeral_component.py"'  # in the script that starts a task, as KFP compiles it


def code_fingerprint() -> str:
    """Return 16 hexadecimal digits that name the source code: results of other code are not reused."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((SOURCES / package).rglob("*.py")):
            digest.update(f"{path.relative_to(SOURCES)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _own_interpreter() -> Iterator[None]:
    """Let KFP's local runner put this interpreter into the script that starts a task, and nowhere else.

    Left to itself it replaces the word python3 in paths and values too, and breaks at an interpreter whose path has a
    space.
    """

    def replaced(command: list[str], interpreter: str) -> list[str]:
        return [word.replace("python3", shlex.quote(interpreter)) if STARTS in word else word for word in command]

    with mock.patch.object(subprocess_task_handler, "replace_python_executable", replaced):
        yield


def run_local(pipeline: BaseComponent, arguments: Mapping[str, Any], folder: Path) -> None:
    """Run a pipeline's tasks one after another as processes of this machine.

    Tasks that already ran with the same inputs and the same code in this folder are not run again.

    Args:
        pipeline: one of the product's pipelines.
        arguments: values of its parameters.
        folder: gets the tasks' artifacts and KFP's cache.

    Raises:
        StabnError: a task failed; its own message is in the output above.
    """
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(folder / "artifacts"),
        enable_caching=True,
        cache_root=str(folder / "cache" / code_fingerprint()),
    )
    try:
        with _own_interpreter():
            pipeline(**arguments)
    except RuntimeError as error:
        raise StabnError(f"{error} The task's own message is above; run the same command again to go on.") from error


def parse_parameters(pipeline: BaseComponent, texts: Mapping[str, str]) -> dict[str, Any]:
    """Convert `name=value` texts to the values of the pipeline's parameters; see `parse_form`."""
    return parse_form(str(pipeline.name).removeprefix("st-abn-"), texts)
