"""Pipeline finetune: from a corrected round to the before/after report."""

from typing import Any

from kfp.dsl import PipelineTask

from components.check_form import check_finetune
from components.edits import import_edits
from components.evaluate import evaluate
from components.finetune import finetune as finetune_component
from components.promote import promote
from components.report import report
from pipelines.cluster import on_nodes
from pipelines.first import check
from pipelines.form import Form, form
from pipelines.resources import configure


def finetune_and_report(imported: PipelineTask, form: Form, baseline_uri: Any) -> PipelineTask:
    """Add the stages that follow import-edits to the pipeline being defined.

    Args:
        imported: the task import-edits.
        form: what a person gave.
        baseline_uri: placeholder of where the 3D ResNet's predictions are.
    """
    manifest, checkpoints = imported.outputs["manifest"], {"before": imported.outputs["checkpoint"]}
    for name, gamma in (("after", {}), ("control", {"gamma": 0.0})):
        tuned = on_nodes(
            finetune_component,
            checkpoint=checkpoints["before"],
            manifest=manifest,
            edits=imported.outputs["edits"],
            name="finetune" if name == "after" else "finetune-control",
            **{**form.of("finetune"), **gamma},
        )
        configure(tuned, "finetune").set_display_name("finetune" if name == "after" else "finetune, control (gamma 0)")
        checkpoints[name] = tuned.outputs["finetuned"]
    predictions = {}
    for name, attention in (
        ("before", "as_is"),
        ("before", "spatial_inverted"),
        ("after", "as_is"),
        ("after", "spatial_inverted"),
        ("control", "as_is"),
        ("control", "spatial_inverted"),
    ):
        evaluated = on_nodes(
            evaluate,
            checkpoint=checkpoints[name],
            manifest=manifest,
            attention=attention,
            name=name,
            segments_uri="",
            **form.of("evaluate"),
        )
        inverted = attention != "as_is"
        configure(evaluated, "evaluate").set_display_name(
            f"evaluate {name}" + (", spatial attention inverted" if inverted else "")
        )
        predictions[f"{name}_inverted" if inverted else name] = evaluated.outputs["predictions"]
    reported = report(
        **predictions,
        **{f"{name}_checkpoint": checkpoint for name, checkpoint in checkpoints.items()},
        manifest=manifest,
        selection=imported.outputs["selection"],
        edits=imported.outputs["edits"],
        **{**form.of("report"), "baseline_uri": baseline_uri},
    )
    configure(reported, "report").set_display_name("report")
    promoted = on_nodes(
        promote,
        before=predictions["before"],
        after=predictions["after"],
        checkpoint=checkpoints["after"],
        manifest=manifest,
        **form.of("promote"),
    )
    configure(promoted, "promote").set_display_name("promote").set_caching_options(False)
    return reported


@form("finetune")
def finetune(form: Form) -> None:
    """Fine-tune ST-ABN with a round's corrections and compare it with itself before, and with a control run."""
    imported = import_edits(round_uri=form.data_round_uri, edits_fingerprint="")
    configure(imported, "import").set_display_name("import edits").set_caching_options(False)
    imported.after(check(check_finetune, form, "check-finetune"))
    finetune_and_report(imported, form, form.report_baseline_uri)
