"""Pipeline finetune: from a corrected round to the before/after report."""

from collections.abc import Mapping
from typing import Any

from kfp import dsl
from kfp.dsl import PipelineTask

from components.edits import import_edits
from components.evaluate import evaluate
from components.finetune import finetune as finetune_component
from components.promote import promote
from components.report import report
from pipelines.cluster import on_nodes
from pipelines.resources import configure
from pipelines.settings import default, describe


def finetune_and_report(
    imported: PipelineTask,
    storage_uri: str,
    preset: str,
    overrides: str,
    gamma: float,
    model_name: str,
    promotion: Mapping[str, Any],
    placement: Mapping[str, Any],
) -> PipelineTask:
    """Add the stages that follow import-edits to the pipeline being defined."""
    settings = {"preset": preset, "overrides": overrides}
    manifest, checkpoints = imported.outputs["manifest"], {"before": imported.outputs["checkpoint"]}
    for name, weight in (("after", gamma), ("control", 0.0)):
        tuned = on_nodes(
            finetune_component,
            placement,
            checkpoint=checkpoints["before"],
            manifest=manifest,
            edits=imported.outputs["edits"],
            storage_uri=storage_uri,
            gamma=weight,
            name="finetune" if name == "after" else "finetune-control",
            **settings,
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
    ):
        evaluated = on_nodes(
            evaluate,
            placement,
            checkpoint=checkpoints[name],
            manifest=manifest,
            split="validation",
            attention=attention,
            name=name,
            storage_uri=storage_uri,
            **settings,
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
    )
    configure(reported, "report").set_display_name("report")
    promoted = on_nodes(
        promote,
        placement,
        before=predictions["before"],
        after=predictions["after"],
        checkpoint=checkpoints["after"],
        manifest=manifest,
        model_name=model_name,
        metric=promotion["metric"],
        max_class_drop=promotion["max_class_drop"],
        storage_uri=storage_uri,
        **settings,
    )
    configure(promoted, "promote").set_display_name("promote").set_caching_options(False)
    return reported


def define_finetune(
    round_uri: str = "",
    storage_uri: str = "",
    preset: str = "ssv2_r50_32",
    overrides: str = "",
    finetune_gamma: float = default("finetune.gamma"),
    model_name: str = "st-abn",
    promote_metric: str = default("promote.metric"),
    promote_max_class_drop: float = default("promote.max_class_drop"),
    num_nodes: int = 1,
    procs_per_node: int = 1,
    accelerator: str = "",
):
    """Fine-tune ST-ABN with a round's corrections and compare it with itself before, and with a control run."""
    imported = import_edits(round_uri=round_uri, edits_fingerprint="")
    configure(imported, "import").set_display_name("import edits").set_caching_options(False)
    promotion = {"metric": promote_metric, "max_class_drop": promote_max_class_drop}
    placement = {"num_nodes": num_nodes, "procs_per_node": procs_per_node, "accelerator": accelerator}
    finetune_and_report(imported, storage_uri, preset, overrides, finetune_gamma, model_name, promotion, placement)


finetune = dsl.pipeline(name="st-abn-finetune", display_name="ST-ABN fine-tuning")(describe(define_finetune))
