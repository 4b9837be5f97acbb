"""Component promote: register the fine-tuned network, and make it the champion if it wins."""

from pathlib import Path

from components.component import Step, component
from components.images import TRAINER_IMAGE


def run(step: Step) -> tuple[bool, str]:
    """Move the alias champion only when the fine-tuned network beats the champion by more than noise."""
    from components.networks import network_uri
    from components.nodes import evaluate
    from stabn.evaluation.prediction_table import Predictions
    from stabn.evaluation.promote import promote

    uri = network_uri(step.checkpoint, "finetune")
    split = Predictions.load(step.after.path).split

    def evaluate_champion(uri: str, path: Path) -> None:
        evaluate(
            uri,
            step.manifest.path,
            split,
            "as_is",
            str(path),
            step.config,
            "champion",
            step.storage_uri,
            step.placement,
        )

    places = (step.before.path, step.after.path, uri, step.model_name)
    result = promote(*places, step.config.promote, evaluate_champion, step.approval_hours)
    with open(step.decision.path, "w") as file:
        file.write(f"**{'Champion moved' if result.promoted else 'Champion not moved'}.** {result.reason}\n\n")
        file.write(result.table)
    return (result.promoted, result.reason)


promote = component("promote", run, TRAINER_IMAGE)
