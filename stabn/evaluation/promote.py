"""Stage promote: the better network becomes the champion of MLflow's model registry."""

from dataclasses import dataclass
from pathlib import Path

from stabn.evaluation.metrics import Predictions, wins
from stabn.evaluation.predict import summarize
from stabn.tracking import register_if_better, stage_run


@dataclass(frozen=True)
class Promotion:
    """Whether the alias `champion` moved, and why."""

    promoted: bool
    reason: str


def promote(
    before_path: str | Path, after_path: str | Path, checkpoint_uri: str, model_name: str, max_class_drop: float = 0.2
) -> Promotion:
    """Register the fine-tuned network, and move the alias `champion` to it only when it wins.

    It wins when its validation top-1 is higher by more than noise (paired bootstrap over videos) and no class falls
    by more than a limit.

    Args:
        before_path: validation predictions before fine-tuning.
        after_path: validation predictions after.
        checkpoint_uri: the fine-tuned network; the registry keeps this URI.
        model_name: name in the registry; empty: register nothing.
        max_class_drop: largest fall of a class's top-1, 0 to 1.
    """
    before, after = Predictions.load(before_path), Predictions.load(after_path)
    won, reason = wins(before, after, max_class_drop=max_class_drop)
    inputs = {"checkpoint": after.metadata["checkpoint_fingerprint"], "dataset": after.metadata["manifest_fingerprint"]}
    with stage_run("promote", settings={"max_class_drop": max_class_drop}, inputs=inputs) as run:
        promoted = False
        if model_name:
            registered = register_if_better(
                model_name, checkpoint_uri, summarize(before), summarize(after), won, reason, run.run_id
            )
            promoted = registered.moved
        run.set_tags({"promoted": str(promoted), "reason": reason})
    print(f"promote: {'champion moved' if promoted else 'champion not moved'}. {reason}", flush=True)
    return Promotion(promoted, reason)
