"""Component report: the before/after page."""

from components.component import Step, component, write_metrics
from components.images import TRAINER_IMAGE

MADE_BY = {"before_checkpoint": "export", "after_checkpoint": "finetune", "control_checkpoint": "finetune"}


def run(step: Step) -> None:
    """Write tables 2 and 3 in the paper's columns, curves, per-class accuracy, confusion and pictures."""
    from components.networks import network_uri
    from stabn.evaluation.report import ReportInputs, tables_text, write_report

    files = {
        item.name: network_uri(getattr(step, item.name), MADE_BY[item.name])
        if item.kind == "Model"
        else getattr(step, item.name).path
        for item in step.declared.reads
    }
    inputs = ReportInputs(**files, truth=step.truth_uri, baseline=step.baseline_uri)
    result = write_report(
        inputs, step.page.path, step.figures.path, promotion=step.config.promote, model_name=step.model_name
    )
    with open(step.tables.path, "w") as file:
        file.write(f"```\n{tables_text(result)}\n```\n")
    write_metrics(step.metrics, result.metrics)


report = component("report", run, TRAINER_IMAGE)
