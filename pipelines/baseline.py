"""Pipeline baseline: from videos to an editing round."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import PipelineTask

from components.check_form import check_baseline
from components.evaluate import evaluate
from components.export_attention import export_attention
from components.extract_frames import extract_frames, look_at_dataset, merge_frames, plan_parts
from components.select_classes import select_classes
from components.train import train
from components.train_baseline import train_baseline
from pipelines.cluster import on_nodes
from pipelines.first import check
from pipelines.form import Form, form
from pipelines.resources import configure


class TrainedTasks(NamedTuple):
    """The tasks that later ones take their inputs from."""

    extract: PipelineTask
    train: PipelineTask
    select: PipelineTask
    baseline: PipelineTask


def train_and_select(form: Form, checked: PipelineTask) -> TrainedTasks:
    """Add the stages from extract-frames to select-classes to the pipeline being defined, after its first step."""
    seen = configure(look_at_dataset(**form.of("look-at-dataset")), "plan").after(checked)
    seen.set_display_name("look at the dataset").set_caching_options(False)
    # A task of its own: in KFP's local runner a loop over one output of a task hides the task's other outputs.
    planned = configure(plan_parts(**form.of("plan-parts")), "plan").after(checked).set_display_name("plan parts")
    dataset = {**form.of("extract-frames"), "dataset_version": seen.output}
    with dsl.ParallelFor(planned.output, name="parts") as part:
        done = configure(extract_frames(part=part, **dataset), "extract").set_display_name("extract frames")
    extracted = configure(merge_frames(parts=dsl.Collected(done.output), **dataset), "merge")
    extracted.set_display_name("merge into one manifest")
    manifest = extracted.outputs["manifest"]
    trained = configure(on_nodes(train, manifest=manifest, **form.of("train")), "train").set_display_name("train")
    beside = configure(on_nodes(train_baseline, manifest=manifest, **form.of("train-baseline")), "train")
    beside.set_display_name("train 3D ResNet beside, if wanted")
    predictions = {}
    for split in ("train", "validation"):
        evaluated = on_nodes(
            evaluate,
            checkpoint=trained.outputs["checkpoint"],
            manifest=manifest,
            attention="as_is",
            name="baseline",
            segments_uri="",
            **{**form.of("evaluate"), "split": split},
        )
        configure(evaluated, "evaluate").set_display_name(f"evaluate on {split}")
        predictions[f"{split}_predictions"] = evaluated.outputs["predictions"]
    selected = configure(select_classes(**form.of("select-classes"), **predictions), "select")
    selected.set_display_name("select classes")
    return TrainedTasks(extracted, trained, selected, beside)


def export(tasks: TrainedTasks, form: Form) -> PipelineTask:
    """Add export-attention of the selected videos to the pipeline being defined."""
    exported = export_attention(
        checkpoint=tasks.train.outputs["checkpoint"],
        manifest=tasks.extract.outputs["manifest"],
        selection=tasks.select.outputs["selection"],
        **form.of("export-attention"),
    )
    return configure(exported, "export").set_display_name("export attention")


@form("baseline")
def baseline(form: Form) -> None:
    """Train ST-ABN, find the actions it recognises badly, and export their attention for editing."""
    tasks = train_and_select(form, check(check_baseline, form, "check-baseline"))
    with dsl.If(tasks.select.outputs["Output"] == "selected", name="actions selected"):
        export(tasks, form)
