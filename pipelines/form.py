"""The forms of the pipelines: parameters of their stages, as stabn.stages declares them."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from kfp import dsl

from components.component import as_sentence
from components.end_run import end_run
from pipelines.cluster import on_nodes
from pipelines.resources import configure
from stabn.config import ConfigError
from stabn.presets import resolve
from stabn.stages import REQUIRED, STAGES, Parameter

PARAMETERS = {item.form_name: item for stage in STAGES.values() for item in stage.takes}


class Form:
    """What a person gave to a pipeline; while it is being defined, KFP's placeholders for that.

    Attributes:
        (by name): the value of a parameter.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        vars(self).update(values)

    def of(self, stage: str) -> dict[str, Any]:
        """Return the arguments of a stage's component that are in the form."""
        names = {item.name: item.form_name for item in STAGES[stage].takes}
        return {name: getattr(self, form_name) for name, form_name in names.items() if hasattr(self, form_name)}


def form(*parameters: Parameter) -> Callable[[Callable[[Form], Any]], Callable[..., Any]]:
    """Give the definition of a pipeline a form, in the way that KFP reads it: signature and docstring.

    And a last task, which runs however the others end.
    """

    def decorate(define: Callable[[Form], Any]) -> Callable[..., Any]:
        def pipeline(*values: Any) -> None:
            ending = configure(on_nodes(end_run), "plan").set_display_name("end the run").set_caching_options(False)
            with dsl.ExitHandler(ending, name="run"):
                define(Form(dict(zip((item.form_name for item in parameters), values))))

        signature = [
            inspect.Parameter(
                item.form_name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default="" if item.default is REQUIRED else item.default,
                annotation=item.kind,
            )
            for item in parameters
        ]
        pipeline.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
        lines = [f"    {item.form_name}: {as_sentence(item.help)}" for item in parameters]
        pipeline.__doc__ = f"{define.__doc__}\n\nArgs:\n" + "\n".join(lines) + "\n"
        return pipeline

    return decorate


def parse_form(pipeline: str, names: list[str], texts: Mapping[str, str]) -> dict[str, Any]:
    """Return a form's values, checked as the stages will check them.

    Args:
        pipeline: its name, for messages.
        names: of the form's parameters.
        texts: what was given, by name.

    Raises:
        ConfigError: an unknown or missing parameter, or a value that some stage could not use.
    """
    unknown = set(texts) - set(names)
    if unknown:
        raise ConfigError(f"{pipeline}: no parameter {', '.join(sorted(unknown))}; it has {', '.join(names)}")
    missing = [name for name in names if PARAMETERS[name].default is REQUIRED and not texts.get(name)]
    if missing:
        raise ConfigError(f"{pipeline}: give --param {'=… --param '.join(missing)}=…")
    values = {name: PARAMETERS[name].parse(text) for name, text in texts.items()}
    whole = {name: values.get(name, PARAMETERS[name].default) for name in names}
    settings = {PARAMETERS[name].setting.replace(".", "__"): value for name, value in whole.items()}
    settings.pop("", None)
    resolve(whole["preset"], whole["overrides"], **settings)
    return values
