"""Pipeline full: baseline, corrections, fine-tuning."""

from kfp import dsl

from components.check_form import check_full
from components.edits import edits, import_edits
from pipelines.baseline import export, train_and_select
from pipelines.finetune import finetune_and_report
from pipelines.first import check
from pipelines.form import Form, form
from pipelines.resources import configure


@form("full")
def full(form: Form) -> None:
    """Train ST-ABN, have its attention corrected, fine-tune it with the corrections, and report before and after."""
    tasks = train_and_select(form, check(check_full, form, "check-full"))
    with dsl.If(tasks.select.outputs["Output"] == "selected", name="actions selected"):
        exported = export(tasks, form)
        edited = edits(round_uri=exported.outputs["round_uri"], **form.of("edits"))
        configure(edited, "edits").set_display_name("wait for edits").set_caching_options(False)
        imported = import_edits(
            round_uri=edited.outputs["edited_round_uri"], edits_fingerprint=edited.outputs["edits_fingerprint"]
        )
        configure(imported, "import").set_display_name("import edits")
        finetune_and_report(imported, form, tasks.baseline.output)
