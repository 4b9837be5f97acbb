"""The forms of the pipelines: parameters of their stages, as stabn.stages declares them."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from kfp import dsl

from components.component import as_sentence
from components.end_run import end_run
from pipelines.cluster import on_nodes
from pipelines.resources import configure
from stabn.stages import FORMS, REQUIRED, STAGES


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


def form(name: str) -> Callable[[Callable[[Form], Any]], Callable[..., Any]]:
    """Give the definition of a pipeline its form, in the way that KFP reads it: signature and docstring.

    What has no default has none there either, so that KFP's page and its API refuse a run without it. And a last task,
    which runs however the others end.
    """
    parameters = FORMS[name]

    def decorate(define: Callable[[Form], Any]) -> Callable[..., Any]:
        def pipeline(*values: Any) -> None:
            ending = configure(on_nodes(end_run), "plan").set_display_name("end the run").set_caching_options(False)
            with dsl.ExitHandler(ending, name="run"):
                define(Form(dict(zip((item.form_name for item in parameters), values))))

        signature = [
            inspect.Parameter(
                item.form_name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=inspect.Parameter.empty if item.default is REQUIRED else item.default,
                annotation=item.kind,
            )
            for item in parameters
        ]
        pipeline.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
        lines = [f"    {item.form_name}: {as_sentence(item.help)}" for item in parameters]
        pipeline.__doc__ = f"{define.__doc__}\n\nArgs:\n" + "\n".join(lines) + "\n"
        return pipeline

    return decorate
