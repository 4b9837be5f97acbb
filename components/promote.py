"""Component promote: register the fine-tuned network, and make it the champion if it wins."""

from typing import NamedTuple

from kfp import dsl

from components.images import TRAINER_IMAGE


@dsl.component(base_image=TRAINER_IMAGE, install_kfp_package=False)
def promote(
    before: dsl.Input[dsl.Dataset],
    after: dsl.Input[dsl.Dataset],
    checkpoint: dsl.Input[dsl.Model],
    model_name: str,
) -> NamedTuple("Outputs", [("promoted", bool), ("reason", str)]):
    """Move the alias champion only when the fine-tuned network wins by more than noise.

    Args:
        before: Validation predictions before fine-tuning.
        after: Validation predictions after fine-tuning.
        checkpoint: The fine-tuned network.
        model_name: Name of the model in MLflow's registry; empty: register nothing.

    Returns:
        promoted: Whether the alias moved.
        reason: Why, in one sentence.
    """
    from stabn.evaluation.promote import promote

    result = promote(before.path, after.path, checkpoint.metadata["uri"], model_name)
    return (result.promoted, result.reason)
