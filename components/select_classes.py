"""Component select-classes: the actions recognised badly on both splits."""

from kfp import dsl

from components.images import DATA_IMAGE


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
def select_classes(
    train_predictions: dsl.Input[dsl.Dataset],
    validation_predictions: dsl.Input[dsl.Dataset],
    preset: str,
    overrides: str,
    threshold: float,
    max_classes: int,
    selection: dsl.Output[dsl.Dataset],
) -> str:
    """Choose the actions below the threshold on both splits, and their misclassified videos.

    Args:
        train_predictions: Predictions on the training split.
        validation_predictions: Predictions on the validation split.
        preset: Named settings.
        overrides: Settings that differ from the preset, section.name=value.
        threshold: Accuracy, 0 to 1, an action must stay below on both splits.
        max_classes: Actions chosen at most, worst first.
        selection: The chosen actions and videos, as JSON.

    Returns:
        selected, or nothing when no action qualifies. (KFP's local runner evaluates conditions on an output that has no
        name of its own, so this one has none.)
    """
    from stabn.evaluation.selection import select_classes
    from stabn.presets import resolve

    config = resolve(preset, overrides, select__threshold=threshold, select__max_classes=max_classes)
    result = select_classes(train_predictions.path, validation_predictions.path, config.select, selection.path)
    return result.outcome
