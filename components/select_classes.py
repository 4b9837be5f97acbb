"""Component select-classes: the actions recognised badly on both splits."""

from components.component import Step, component
from components.images import DATA_IMAGE


def run(step: Step) -> str:
    """Choose the actions below the threshold on both splits, and their misclassified videos.

    Returns:
        selected, or nothing when no action qualifies. (KFP's local runner evaluates conditions on an output that has no
        name of its own, so this one has none.)
    """
    from stabn.evaluation.select_classes import select_classes

    result = select_classes(
        step.train_predictions.path, step.validation_predictions.path, step.config.select, step.selection.path
    )
    return result.outcome


select_classes = component("select-classes", run, DATA_IMAGE)
