"""Run the pipelines on this machine with KFP's own local runner: no cluster, the same components."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kfp import local
from kfp.dsl.base_component import BaseComponent

from stabn.errors import StabnError
from stabn.forms import parse_form

SOURCES = Path(__file__).resolve().parent.parent
PACKAGES = ("stabn", "components", "pipelines")


def code_fingerprint() -> str:
    """Return 16 hexadecimal digits that name the source code: results of other code are not reused."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((SOURCES / package).rglob("*.py")):
            digest.update(f"{path.relative_to(SOURCES)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def check_words(texts: Iterable[str]) -> None:
    """Refuse paths and values that KFP's local runner would change: it puts the interpreter in place of a word.

    Raises:
        StabnError: one holds the word.
    """
    for text in texts:
        if "python3" in text:
            raise StabnError(
                f"{text}: KFP's local runner puts the interpreter in place of the word python3; choose a name without"
            )


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
    check_words([str(folder.absolute()), *map(str, arguments.values())])
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(folder / "artifacts"),
        enable_caching=True,
        cache_root=str(folder / "cache" / code_fingerprint()),
    )
    try:
        pipeline(**arguments)
    except RuntimeError as error:
        raise StabnError(f"{error} The task's own message is above; run the same command again to go on.") from error


def parse_parameters(pipeline: BaseComponent, texts: Mapping[str, str]) -> dict[str, Any]:
    """Convert `name=value` texts to the values of the pipeline's parameters; see `parse_form`."""
    return parse_form(str(pipeline.name).removeprefix("st-abn-"), texts)
