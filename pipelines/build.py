"""The factory: each pipeline, made with settings for what KFP fixes when compiling."""

from pathlib import Path

from kfp import compiler, dsl
from kfp.dsl.base_component import BaseComponent

from pipelines.baseline import define_baseline
from pipelines.finetune import define_finetune
from pipelines.full import define_full
from pipelines.resources import CompileSettings, compiled_with
from stabn.config import ConfigError

DEFINITIONS = {
    "baseline": (define_baseline, "ST-ABN baseline"),
    "finetune": (define_finetune, "ST-ABN fine-tuning"),
    "full": (define_full, "ST-ABN, the whole job"),
}


def build(name: str, settings: CompileSettings) -> BaseComponent:
    """Return the pipeline `name` for a cluster."""
    define, title = DEFINITIONS[name]
    with compiled_with(name, settings):
        return dsl.pipeline(name=f"st-abn-{name}", display_name=title)(define)


def compile_pipeline(name: str, settings: CompileSettings, path: Path) -> None:
    """Write the YAML of a pipeline, whose form shows the settings' own defaults.

    Raises:
        ConfigError: a default of the wrong type.
    """
    pipeline = build(name, settings)
    inputs = pipeline.component_spec.inputs or {}
    defaults = {key: value for key, value in settings.parameters.items() if key in inputs}
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        compiler.Compiler().compile(pipeline, str(path), pipeline_parameters=defaults)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"parameters {defaults}: {error}") from None


def compile_all(folder: Path, settings: CompileSettings) -> list[Path]:
    """Write one YAML per pipeline, ready to upload in the KFP UI.

    Raises:
        ConfigError: a default for a parameter that no pipeline has.
    """
    known = {key for name in DEFINITIONS for key in build(name, settings).component_spec.inputs or {}}
    if unknown := sorted(set(settings.parameters) - known):
        raise ConfigError(f"parameters: no pipeline has {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    paths = []
    for name in DEFINITIONS:
        paths.append(folder / f"{name}.yaml")
        compile_pipeline(name, settings, paths[-1])
    return paths
