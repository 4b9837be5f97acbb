"""The first step of every pipeline: the whole form is checked before anything is computed."""

from collections.abc import Callable

from kfp.dsl import PipelineTask

from pipelines.cluster import on_nodes
from pipelines.form import Form
from pipelines.resources import configure


def check(component: Callable[..., PipelineTask], form: Form, stage: str) -> PipelineTask:
    """Add the check of a form to the pipeline being defined; what it looks at may change, so it is never cached."""
    checked = configure(on_nodes(component, **form.of(stage)), "plan")
    return checked.set_display_name("check the form").set_caching_options(False)
