"""Pipeline baseline: from videos to an editing round."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import PipelineTask

from components.evaluate import evaluate
from components.export_attention import export_attention
from components.extract_frames import extract_frames, look_at_dataset, merge_frames, plan_parts
from components.select_classes import select_classes
from components.train import train
from pipelines.cluster import on_nodes
from pipelines.resources import configure
from pipelines.settings import default, describe


class TrainedTasks(NamedTuple):
    """The tasks that later ones take their inputs from."""

    extract: PipelineTask
    train: PipelineTask
    select: PipelineTask


def train_and_select(
    videos_uri: str,
    labels_uri: str,
    dataset_version: str,
    extract_parts: int,
    storage_uri: str,
    preset: str,
    overrides: str,
    select_threshold: float,
    select_max_classes: int,
    placement: Mapping[str, Any],
) -> TrainedTasks:
    """Add the stages from extract-frames to select-classes to the pipeline being defined."""
    settings = {"preset": preset, "overrides": overrides}
    dataset = {
        "videos_uri": videos_uri,
        "labels_uri": labels_uri,
        "storage_uri": storage_uri,
    }
    seen = configure(
        look_at_dataset(videos_uri=videos_uri, labels_uri=labels_uri, dataset_version=dataset_version), "plan"
    )
    seen.set_display_name("look at the dataset").set_caching_options(False)
    dataset["dataset_version"] = seen.output
    # A task of its own: in KFP's local runner a loop over one output of a task hides the task's other outputs.
    planned = configure(plan_parts(num_parts=extract_parts), "plan").set_display_name("plan parts")
    with dsl.ParallelFor(planned.output, name="parts") as part:
        done = configure(extract_frames(part=part, **dataset, **settings), "extract")
        done.set_display_name("extract frames")
    extracted = configure(merge_frames(parts=dsl.Collected(done.output), **dataset, **settings), "merge")
    extracted.set_display_name("merge into one manifest")
    manifest = extracted.outputs["manifest"]
    trained = configure(
        on_nodes(train, placement, manifest=manifest, storage_uri=storage_uri, **settings), "train"
    ).set_display_name("train")
    predictions = {}
    for split in ("train", "validation"):
        evaluated = on_nodes(
            evaluate,
            placement,
            checkpoint=trained.outputs["checkpoint"],
            manifest=manifest,
            split=split,
            attention="as_is",
            name="baseline",
            storage_uri=storage_uri,
            **settings,
        )
        configure(evaluated, "evaluate").set_display_name(f"evaluate on {split}")
        predictions[f"{split}_predictions"] = evaluated.outputs["predictions"]
    selected = select_classes(threshold=select_threshold, max_classes=select_max_classes, **settings, **predictions)
    configure(selected, "select").set_display_name("select classes")
    return TrainedTasks(extracted, trained, selected)


def export(tasks: TrainedTasks, storage_uri: str, preset: str, overrides: str) -> PipelineTask:
    """Add export-attention of the selected videos to the pipeline being defined."""
    exported = export_attention(
        checkpoint=tasks.train.outputs["checkpoint"],
        manifest=tasks.extract.outputs["manifest"],
        selection=tasks.select.outputs["selection"],
        storage_uri=storage_uri,
        preset=preset,
        overrides=overrides,
    )
    return configure(exported, "export").set_display_name("export attention")


def define_baseline(
    videos_uri: str = "",
    labels_uri: str = "",
    storage_uri: str = "",
    preset: str = "ssv2_r50_32",
    overrides: str = "",
    dataset_version: str = "",
    extract_parts: int = 1,
    select_threshold: float = default("select.threshold"),
    select_max_classes: int = default("select.max_classes"),
    num_nodes: int = 1,
    procs_per_node: int = 1,
    accelerator: str = "",
):
    """Train ST-ABN, find the actions it recognises badly, and export their attention for editing."""
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
        {"num_nodes": num_nodes, "procs_per_node": procs_per_node, "accelerator": accelerator},
    )
    with dsl.If(tasks.select.outputs["Output"] == "selected", name="actions selected"):
        export(tasks, storage_uri, preset, overrides)


baseline = dsl.pipeline(name="st-abn-baseline", display_name="ST-ABN baseline")(describe(define_baseline))
