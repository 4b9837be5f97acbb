"""Run the pipelines on this machine with KFP's own local runner: no cluster, the same components."""

import hashlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kfp import local
from kfp.dsl.base_component import BaseComponent

from pipelines.settings import NEEDED
from stabn.errors import StabnError

SOURCES = Path(__file__).resolve().parent.parent
PACKAGES = ("stabn", "components", "pipelines")


def code_fingerprint() -> str:
    """Return 16 hexadecimal digits that name the source code: results of other code are not reused."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((SOURCES / package).rglob("*.py")):
            digest.update(f"{path.relative_to(SOURCES)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


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
        pipeline(**arguments)
    except RuntimeError as error:
        raise StabnError(f"{error} The task's own message is above; run the same command again to go on.") from error


def parse_parameters(pipeline: BaseComponent, texts: Mapping[str, str]) -> dict[str, Any]:
    """Convert `name=value` texts to the types of the pipeline's parameters.

    Raises:
        StabnError: an unknown or missing parameter, or a value of the wrong type.
    """
    inputs = pipeline.component_spec.inputs or {}
    unknown = set(texts) - set(inputs)
    if unknown:
        raise StabnError(f"{pipeline.name}: no parameter {', '.join(sorted(unknown))}; it has {', '.join(inputs)}")
    missing = [name for name in inputs if name in NEEDED and not texts.get(name)]
    if missing:
        raise StabnError(f"{pipeline.name}: give --param {'=… --param '.join(missing)}=…")
    kinds = {"NUMBER_INTEGER": int, "NUMBER_DOUBLE": float, "Integer": int, "Float": float}
    values: dict[str, Any] = {}
    for name, text in texts.items():
        try:
            values[name] = kinds.get(str(inputs[name].type), str)(text)
        except ValueError:
            raise StabnError(f"{name} = {text!r}: expected a number") from None
    return values


def description(pipeline: BaseComponent) -> str:
    """Return the first line of a pipeline's docstring."""
    return inspect.cleandoc(pipeline.description or "").split("\n")[0]
