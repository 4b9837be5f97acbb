"""Component promote: register the fine-tuned network, and make it the champion if it wins."""

from typing import NamedTuple

from kfp import dsl

from components.images import TRAINER_IMAGE


@dsl.component(base_image=TRAINER_IMAGE, install_kfp_package=False)
def promote(
    before: dsl.Input[dsl.Dataset],
    after: dsl.Input[dsl.Dataset],
    checkpoint: dsl.Input[dsl.Model],
    manifest: dsl.Input[dsl.Dataset],
    model_name: str,
    metric: str,
    max_class_drop: float,
    storage_uri: str,
    preset: str,
    overrides: str,
    num_nodes: int,
    procs_per_node: int,
    accelerator: str,
    decision: dsl.Output[dsl.Markdown],
) -> NamedTuple("Outputs", [("promoted", bool), ("reason", str)]):
    """Move the alias champion only when the fine-tuned network beats the champion by more than noise.

    Args:
        before: Validation predictions before fine-tuning.
        after: Validation predictions after fine-tuning.
        checkpoint: The fine-tuned network.
        manifest: The videos, for a champion that has not been evaluated on them.
        model_name: Name of the model in MLflow's registry; empty: register nothing.
        metric: What must rise, top1 or top5.
        max_class_drop: How far a class's top-1 may fall, 0 to 1.
        storage_uri: Folder or s3:// prefix that keeps what the nodes of a job read and write.
        preset: Named settings.
        overrides: Settings that differ from the preset, section.name=value.
        num_nodes: Nodes that evaluate the champion, if it has to be; see evaluate.
        procs_per_node: Processes of each node.
        accelerator: Resource that each process gets one of, such as nvidia.com/gpu; empty: none.
        decision: Whether the alias moved, why, and the numbers.

    Returns:
        promoted: Whether the alias moved.
        reason: Why, in one sentence.
    """
    from components.stages import Placement, ending_with_one_line, evaluate
    from stabn.evaluation.promote import promote
    from stabn.presets import resolve
    from stabn.storage import fetch

    config = resolve(preset, overrides, promote__metric=metric, promote__max_class_drop=max_class_drop)

    def evaluate_champion(uri, path):
        local = f"{path}.checkpoint"
        fetch(uri, local)
        evaluate(
            local,
            manifest.path,
            "validation",
            "as_is",
            str(path),
            config,
            "champion",
            storage_uri,
            Placement(num_nodes, procs_per_node, accelerator),
            checkpoint_uri=uri,
        )

    with ending_with_one_line("promote"):
        result = promote(
            before.path, after.path, checkpoint.metadata["uri"], model_name, config.promote, evaluate_champion
        )
    with open(decision.path, "w") as file:
        file.write(f"**{'Champion moved' if result.promoted else 'Champion not moved'}.** {result.reason}\n\n")
        file.write(result.table)
    return (result.promoted, result.reason)
