"""Component finetune: both branches with the edited temporal attention."""

from kfp import dsl

from components.images import TRAINER_IMAGE


@dsl.component(base_image=TRAINER_IMAGE, install_kfp_package=False)
def finetune(
    checkpoint: dsl.Input[dsl.Model],
    manifest: dsl.Input[dsl.Dataset],
    edits: dsl.Input[dsl.Dataset],
    storage_uri: str,
    preset: str,
    overrides: str,
    gamma: float,
    name: str,
    num_nodes: int,
    procs_per_node: int,
    accelerator: str,
    finetuned: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    """Fine-tune with eq. 5 and 6; an interrupted run goes on from its last checkpoint.

    Args:
        checkpoint: The trained network.
        manifest: The manifest it was trained on.
        edits: Edit table of import-edits.
        storage_uri: Folder or s3:// prefix that keeps the checkpoints of the run.
        preset: Named settings.
        overrides: Settings that differ from the preset, section.name=value.
        gamma: Weight of the temporal attention loss; 0 is the control run.
        name: Name of the run in MLflow.
        num_nodes: Nodes that share the work; more than one, or one with an accelerator, is a TrainJob.
        procs_per_node: Processes of each node.
        accelerator: Resource that each process gets one of, such as nvidia.com/gpu; empty: none.
        finetuned: The network with the best validation top-1, with the metrics of every epoch.
        metrics: Metrics of the best epoch.
    """
    import json

    from components.stages import Placement, ending_with_one_line, finetune
    from stabn.presets import resolve

    with ending_with_one_line(name):
        result = finetune(
            checkpoint.path,
            manifest.path,
            edits.path,
            resolve(preset, overrides, finetune__gamma=gamma),
            storage_uri,
            finetuned.path,
            name,
            Placement(num_nodes, procs_per_node, accelerator),
            checkpoint_uri=checkpoint.metadata.get("uri", ""),
        )
    finetuned.metadata["uri"] = result.best_uri
    for key, value in result.metrics.items():
        metrics.log_metric(key, value)
    with open(metrics.path, "w") as file:  # KFP's cache takes an output without a file for a lost one
        json.dump(result.metrics, file)
