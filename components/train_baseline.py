"""Component train-baseline: the 3D ResNet that table 1 puts beside ST-ABN, trained alike and evaluated."""

from components.component import Step, component
from components.images import TRAINER_IMAGE


def run(step: Step) -> str:
    """Train the 3D ResNet without attention, with the same settings, and evaluate it, if that is wanted.

    Returns:
        URI of its predictions; empty if it is not wanted.
    """
    from components.nodes import evaluate, without_attention
    from components.nodes import train as train_on_nodes
    from stabn.config import fingerprint
    from stabn.storage import open_storage

    if step.train_baseline == "no":
        return ""
    config = without_attention(step.config)
    trained = train_on_nodes(step.manifest.path, config, step.storage_uri, step.placement, name="train-baseline")
    key = fingerprint(trained.best_uri, trained.metrics, step.split)
    output = open_storage(step.storage_uri).locate(f"evaluations/{key}/predictions.parquet")
    evaluate(
        trained.best_uri,
        step.manifest.path,
        step.split,
        "as_is",
        output,
        config,
        "baseline",
        step.storage_uri,
        step.placement,
    )
    return output


train_baseline = component("train-baseline", run, TRAINER_IMAGE)
