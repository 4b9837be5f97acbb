"""Component evaluate: predictions, per-class accuracy and confusion of one checkpoint on one split."""

import json

from components.component import Step, component, write_metrics
from components.images import TRAINER_IMAGE


def run(step: Step) -> None:
    """Recognise every video of a split, each counted once."""
    from components.networks import network_uri
    from components.nodes import evaluate
    from stabn.evaluation.predict import confusion_for_display

    result = evaluate(
        network_uri(step.checkpoint, "finetune" if step.name in ("after", "control") else "train"),
        step.manifest.path,
        step.split,
        step.attention,
        step.predictions.path,
        step.config,
        step.name,
        step.storage_uri,
        step.placement,
        segments_uri=step.segments_uri,
    )
    write_metrics(step.metrics, result.metrics)
    names, counts = confusion_for_display(result.predictions)
    step.confusion.log_confusion_matrix(names, counts)
    with open(step.confusion.path, "w") as file:  # as in write_metrics
        json.dump({"classes": names, "counts": counts}, file)


evaluate = component("evaluate", run, TRAINER_IMAGE)
