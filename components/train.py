"""Component train: ST-ABN or its baseline on the training split."""

from kfp import dsl

from components.images import TRAINER_IMAGE


@dsl.component(base_image=TRAINER_IMAGE, install_kfp_package=False)
def train(
    manifest: dsl.Input[dsl.Dataset],
    storage_uri: str,
    preset: str,
    overrides: str,
    num_nodes: int,
    procs_per_node: int,
    accelerator: str,
    checkpoint: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    """Train a network; an interrupted run goes on from its last checkpoint.

    Args:
        manifest: Manifest of extract-frames.
        storage_uri: Folder or s3:// prefix that keeps the checkpoints of the run.
        preset: Named settings.
        overrides: Settings that differ from the preset, section.name=value.
        num_nodes: Nodes that share the work; more than one, or one with an accelerator, is a TrainJob.
        procs_per_node: Processes of each node.
        accelerator: Resource that each process gets one of, such as nvidia.com/gpu; empty: none.
        checkpoint: The network with the best validation top-1, with the metrics of every epoch.
        metrics: Metrics of the best epoch.
    """
    import json

    from components.stages import Placement, ending_with_one_line, train
    from stabn.presets import resolve

    with ending_with_one_line("train"):
        placement = Placement(num_nodes, procs_per_node, accelerator)
        result = train(manifest.path, resolve(preset, overrides), storage_uri, checkpoint.path, placement)
    checkpoint.metadata["uri"] = result.best_uri
    for name, value in result.metrics.items():
        metrics.log_metric(name, value)
    with open(metrics.path, "w") as file:  # KFP's cache takes an output without a file for a lost one
        json.dump(result.metrics, file)
