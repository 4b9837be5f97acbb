"""Component finetune: both branches with the edited temporal attention."""

from components.component import Step, component, ending_with_one_line, write_metrics
from components.images import TRAINER_IMAGE


def run(step: Step) -> None:
    """Learn from the edits with eq. 5 and 6; an interrupted run goes on from its last checkpoint."""
    from components.networks import leave_network, network_uri
    from components.nodes import finetune

    with ending_with_one_line(step.name):
        result = finetune(
            network_uri(step.checkpoint, "export"),
            step.manifest.path,
            step.edits.path,
            step.config,
            step.storage_uri,
            step.name,
            step.placement,
            route=step.route,
            truth_uri=step.truth_uri,
        )
    leave_network(step.finetuned, result.best_uri, result.fingerprint)
    write_metrics(step.metrics, result.metrics)


finetune = component("finetune", run, TRAINER_IMAGE)
