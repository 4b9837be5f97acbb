"""Component evaluate: predictions, per-class accuracy and confusion of one checkpoint on one split."""

from kfp import dsl

from components.images import TRAINER_IMAGE


@dsl.component(base_image=TRAINER_IMAGE, install_kfp_package=False)
def evaluate(
    checkpoint: dsl.Input[dsl.Model],
    manifest: dsl.Input[dsl.Dataset],
    split: str,
    attention: str,
    name: str,
    storage_uri: str,
    preset: str,
    overrides: str,
    num_nodes: int,
    procs_per_node: int,
    accelerator: str,
    predictions: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
):
    """Recognise every video of a split, each counted once.

    Args:
        checkpoint: The network.
        manifest: The videos.
        split: train or validation.
        attention: as_is, spatial_inverted (eq. 7) or temporal_inverted.
        name: Which network this is, such as before or after; part of the run's name in MLflow.
        storage_uri: Folder or s3:// prefix that keeps what the nodes of a job read and write.
        preset: Named settings.
        overrides: Settings that differ from the preset, section.name=value.
        num_nodes: Nodes that share the work; more than one, or one with an accelerator, is a TrainJob.
        procs_per_node: Processes of each node.
        accelerator: Resource that each process gets one of, such as nvidia.com/gpu; empty: none.
        predictions: One row per video: true class, five best classes with scores, both branches.
        metrics: Top-1, top-5 and loss.
        confusion: Confusion matrix, of the most confused classes where there are many.
    """
    import json

    from components.stages import Placement, ending_with_one_line, evaluate
    from stabn.evaluation.predict import confusion_for_display
    from stabn.presets import resolve

    with ending_with_one_line("evaluate"):
        result = evaluate(
            checkpoint.path,
            manifest.path,
            split,
            attention,
            predictions.path,
            resolve(preset, overrides),
            name,
            storage_uri,
            Placement(num_nodes, procs_per_node, accelerator),
            checkpoint_uri=checkpoint.metadata.get("uri", ""),
        )
    for key, value in result.metrics.items():
        metrics.log_metric(key, value)
    with open(metrics.path, "w") as file:  # KFP's cache takes an output without a file for a lost one
        json.dump(result.metrics, file)
    names, counts = confusion_for_display(result.predictions)
    confusion.log_confusion_matrix(names, counts)
    with open(confusion.path, "w") as file:
        json.dump({"classes": names, "counts": counts}, file)
