"""The factory: each pipeline, made with settings for what KFP fixes when compiling."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from google.protobuf.struct_pb2 import Value
from kfp import compiler, dsl
from kfp.dsl.base_component import BaseComponent

from pipelines.baseline import baseline
from pipelines.finetune import finetune
from pipelines.full import full
from pipelines.resources import CompileSettings, compiled_with
from stabn.config import ConfigError
from stabn.forms import offered
from stabn.stages import FORMS

DEFINITIONS = {
    "baseline": (baseline, "ST-ABN baseline"),
    "finetune": (finetune, "ST-ABN fine-tuning"),
    "full": (full, "ST-ABN, the whole job"),
}


def build(name: str, settings: CompileSettings | None = None) -> BaseComponent:
    """Return the pipeline `name` for a cluster, or without settings for this machine."""
    define, title = DEFINITIONS[name]
    limits = settings.run_limits() if settings else None
    with compiled_with(name, settings) if settings else nullcontext():
        return dsl.pipeline(name=f"st-abn-{name}", display_name=title, pipeline_config=limits)(define)


def compile_pipeline(pipeline: BaseComponent, settings: CompileSettings, path: Path) -> None:
    """Write the YAML of a pipeline that was built with the settings; its form shows their defaults.

    Raises:
        ConfigError: a default of the wrong type, or one that no stage could use.
    """
    inputs = pipeline.component_spec.inputs or {}
    name = str(pipeline.name).removeprefix("st-abn-")
    form = {item.form_name: item for item in FORMS[name]}
    defaults = {key: value for key, value in settings.parameters.items() if key in inputs}
    for key, value in defaults.items():
        form[key].check(value)
    if settings.dropdowns:
        _write_choices(pipeline, {key: offered(name, key) for key in form})
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        compiler.Compiler().compile(pipeline, str(path), pipeline_parameters=defaults)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"parameters {defaults}: {error}") from None


def _write_choices(pipeline: Any, choices: Mapping[str, Sequence[str]]) -> None:
    """Put the choices of parameters into the pipeline's own specification: KFP's compiler takes no `Literal` yet."""
    described = pipeline.pipeline_spec.root.input_definitions.parameters
    for name, values in choices.items():
        if values and not described[name].literals:
            described[name].literals.extend(Value(string_value=value) for value in values)


def compile_all(folder: Path, settings: CompileSettings) -> list[Path]:
    """Write one YAML per pipeline, ready to upload in the KFP UI.

    Raises:
        ConfigError: a default for a parameter that no pipeline has.
    """
    pipelines = {name: build(name, settings) for name in DEFINITIONS}
    known = {key for pipeline in pipelines.values() for key in pipeline.component_spec.inputs or {}}
    if unknown := sorted(set(settings.parameters) - known):
        raise ConfigError(f"parameters: no pipeline has {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    for name, pipeline in pipelines.items():
        compile_pipeline(pipeline, settings, folder / f"{name}.yaml")
    return [folder / f"{name}.yaml" for name in pipelines]
