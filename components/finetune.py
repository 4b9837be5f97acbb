"""Component finetune: both branches with the edited temporal attention."""

from components.component import Step, component, ending_with_one_line, write_metrics
from components.images import TRAINER_IMAGE


def run(step: Step) -> None:
    """Learn from the edits with eq. 5 and 6; an interrupted run goes on from its last checkpoint."""
    from components.nodes import finetune

    with ending_with_one_line(step.name):
        result = finetune(
            step.checkpoint.path,
            step.manifest.path,
            step.edits.path,
            step.config,
            step.storage_uri,
            step.finetuned.path,
            step.name,
            step.placement,
            route=step.route,
            checkpoint_uri=step.checkpoint.metadata.get("uri", ""),
            truth_uri=step.truth_uri,
        )
    step.finetuned.metadata["uri"] = result.best_uri
    write_metrics(step.metrics, result.metrics)


finetune = component("finetune", run, TRAINER_IMAGE)
