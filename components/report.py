"""Component report: the before/after page."""

from kfp import dsl

from components.images import TRAINER_IMAGE


@dsl.component(base_image=TRAINER_IMAGE, install_kfp_package=False)
def report(
    before: dsl.Input[dsl.Dataset],
    before_inverted: dsl.Input[dsl.Dataset],
    after: dsl.Input[dsl.Dataset],
    after_inverted: dsl.Input[dsl.Dataset],
    control: dsl.Input[dsl.Dataset],
    before_checkpoint: dsl.Input[dsl.Model],
    after_checkpoint: dsl.Input[dsl.Model],
    control_checkpoint: dsl.Input[dsl.Model],
    manifest: dsl.Input[dsl.Dataset],
    selection: dsl.Input[dsl.Dataset],
    edits: dsl.Input[dsl.Dataset],
    page: dsl.Output[dsl.HTML],
    tables: dsl.Output[dsl.Markdown],
    figures: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
):
    """Write tables 2 and 3 in the paper's columns, curves, per-class accuracy, confusion and pictures.

    Args:
        before: Validation predictions before fine-tuning.
        before_inverted: The same with inverted spatial attention.
        after: Validation predictions after fine-tuning.
        after_inverted: The same with inverted spatial attention.
        control: Validation predictions after fine-tuning with gamma 0.
        before_checkpoint: The trained network.
        after_checkpoint: The fine-tuned network.
        control_checkpoint: The network of the control run.
        manifest: The videos.
        selection: The chosen actions and videos.
        edits: The edit table.
        page: One self-contained HTML page.
        tables: Tables 2 and 3 alone.
        figures: The pictures of the page as PNG files.
        metrics: The numbers of the tables.
    """
    import json

    from stabn.evaluation.report import ReportInputs, tables_text, write_report

    result = write_report(
        ReportInputs(
            before=before.path,
            before_inverted=before_inverted.path,
            after=after.path,
            after_inverted=after_inverted.path,
            control=control.path,
            before_checkpoint=before_checkpoint.path,
            after_checkpoint=after_checkpoint.path,
            control_checkpoint=control_checkpoint.path,
            manifest=manifest.path,
            selection=selection.path,
            edits=edits.path,
        ),
        page.path,
        figures.path,
    )
    with open(tables.path, "w") as file:
        file.write(f"```\n{tables_text(result)}\n```\n")
    for name, value in result.metrics.items():
        metrics.log_metric(name, value)
    with open(metrics.path, "w") as file:  # KFP's cache takes an output without a file for a lost one
        json.dump(result.metrics, file)
