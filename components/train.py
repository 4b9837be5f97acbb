"""Component train: ST-ABN or its baseline on the training split."""

from components.component import Step, component, write_metrics
from components.images import TRAINER_IMAGE


def run(step: Step) -> None:
    """Train a network; an interrupted run goes on from its last checkpoint."""
    from components.networks import leave_network
    from components.nodes import train

    result = train(step.manifest.path, step.config, step.storage_uri, step.placement, step.truth_uri)
    leave_network(step.checkpoint, result.best_uri, result.fingerprint)
    write_metrics(step.metrics, result.metrics)


train = component("train", run, TRAINER_IMAGE)
