"""Pipeline full: baseline, corrections, fine-tuning."""

from kfp import dsl

from components.edits import edits, import_edits
from pipelines.baseline import export, train_and_select
from pipelines.finetune import finetune_and_report
from pipelines.resources import configure
from pipelines.settings import default, describe


def define_full(
    videos_uri: str = "",
    labels_uri: str = "",
    storage_uri: str = "",
    preset: str = "ssv2_r50_32",
    overrides: str = "",
    dataset_version: str = "",
    extract_parts: int = 1,
    select_threshold: float = default("select.threshold"),
    select_max_classes: int = default("select.max_classes"),
    edit_source: str = "people",
    edit_segments_uri: str = "",
    edit_min_share: float = 1.0,
    edit_timeout_hours: float = 168.0,
    finetune_gamma: float = default("finetune.gamma"),
    model_name: str = "st-abn",
    promote_metric: str = default("promote.metric"),
    promote_max_class_drop: float = default("promote.max_class_drop"),
    num_nodes: int = 1,
    procs_per_node: int = 1,
    accelerator: str = "",
):
    """Train ST-ABN, have its attention corrected, fine-tune it with the corrections, and report before and after."""
    placement = {"num_nodes": num_nodes, "procs_per_node": procs_per_node, "accelerator": accelerator}
    tasks = train_and_select(
        videos_uri,
        labels_uri,
        dataset_version,
        extract_parts,
        storage_uri,
        preset,
        overrides,
        select_threshold,
        select_max_classes,
        placement,
    )
    with dsl.If(tasks.select.outputs["Output"] == "selected", name="actions selected"):
        exported = export(tasks, storage_uri, preset, overrides)
        edited = edits(
            round_uri=exported.outputs["round_uri"],
            source=edit_source,
            segments_uri=edit_segments_uri,
            min_share=edit_min_share,
            timeout_hours=edit_timeout_hours,
        )
        configure(edited, "edits").set_display_name("wait for edits").set_caching_options(False)
        imported = import_edits(
            round_uri=edited.outputs["edited_round_uri"], edits_fingerprint=edited.outputs["edits_fingerprint"]
        )
        configure(imported, "import").set_display_name("import edits")
        promotion = {"metric": promote_metric, "max_class_drop": promote_max_class_drop}
        finetune_and_report(imported, storage_uri, preset, overrides, finetune_gamma, model_name, promotion, placement)


full = dsl.pipeline(name="st-abn-full", display_name="ST-ABN, the whole job")(describe(define_full))
