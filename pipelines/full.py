"""Pipeline full: baseline, corrections, fine-tuning."""

from kfp import dsl

from components.edits import edits, import_edits
from pipelines.baseline import export, train_and_select
from pipelines.finetune import finetune_and_report
from pipelines.form import Form, form
from pipelines.resources import configure
from stabn.stages import (
    CHOICE,
    CORRECTION,
    DATASET,
    DATASET_VERSION,
    GAMMA,
    NODES,
    NUM_PARTS,
    PROMOTION,
    ROUTE,
    SETTINGS,
    SPLIT,
    STORAGE_URI,
    TRUTH,
)


@form(
    *DATASET,
    STORAGE_URI,
    *SETTINGS,
    DATASET_VERSION,
    NUM_PARTS,
    *CHOICE,
    *CORRECTION,
    TRUTH,
    ROUTE,
    GAMMA,
    SPLIT,
    *PROMOTION,
    *NODES,
)
def full(form: Form) -> None:
    """Train ST-ABN, have its attention corrected, fine-tune it with the corrections, and report before and after."""
    tasks = train_and_select(form)
    with dsl.If(tasks.select.outputs["Output"] == "selected", name="actions selected"):
        exported = export(tasks, form)
        edited = edits(round_uri=exported.outputs["round_uri"], **form.of("edits"))
        configure(edited, "edits").set_display_name("wait for edits").set_caching_options(False)
        imported = import_edits(
            round_uri=edited.outputs["edited_round_uri"], edits_fingerprint=edited.outputs["edits_fingerprint"]
        )
        configure(imported, "import").set_display_name("import edits")
        finetune_and_report(imported, form)
