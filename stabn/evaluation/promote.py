"""Stage promote: the better network becomes the champion of MLflow's model registry."""

import dataclasses
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from stabn.attention.serving import save_served_model
from stabn.config import PromoteConfig
from stabn.errors import StabnError
from stabn.evaluation.approval import wait_for_approval
from stabn.evaluation.metrics import topk_accuracy
from stabn.evaluation.predict import summarize
from stabn.evaluation.prediction_table import Predictions
from stabn.evaluation.significance import describe_looks, wins
from stabn.tracking import (
    Champion,
    ChampionChanged,
    Dataset,
    count_look,
    fetch_artifact,
    find_champion,
    find_checkpoint,
    register_if_better,
    stage_run,
)

CHECKPOINT_TAG, MANIFEST_TAG = "stabn.checkpoint_fingerprint", "stabn.manifest_fingerprint"
PREDICTIONS = "predictions.parquet"
Evaluate = Callable[[str, Path], object]


class PromoteError(StabnError):
    """The champion cannot be compared with the fine-tuned network."""


@dataclass(frozen=True)
class Promotion:
    """Whether the alias `champion` points at the fine-tuned network now, and why."""

    promoted: bool
    reason: str
    table: str


class _Rival(NamedTuple):
    """The network that must be beaten: what it is called, and what it predicts on the same videos."""

    name: str
    predictions: Predictions


def promote(
    before_path: str | Path,
    after_path: str | Path,
    checkpoint_uri: str,
    model_name: str,
    config: PromoteConfig | None = None,
    evaluate_champion: Evaluate | None = None,
    approval_hours: float = 0.0,
) -> Promotion:
    """Register the fine-tuned network, and move the alias `champion` to it only when it wins.

    It has to beat the champion of today, which need not be the network that it was fine-tuned from. It wins when its
    metric is higher by more than noise (paired bootstrap over videos) and no class falls by more than a limit. If
    another run changes the champion meanwhile, it is compared again. How many networks were measured on these videos is
    counted in the registry, and said with the reason.

    Args:
        before_path: predictions before fine-tuning, best of videos on which nothing was chosen.
        after_path: predictions after, of the same videos.
        checkpoint_uri: the fine-tuned network; the registry keeps this URI.
        model_name: name in the registry; empty: register nothing.
        config: what winning means; None: the defaults.
        evaluate_champion: called with the champion's URI and a path to write its predictions on these videos to, when
            no former ones fit; None: that is an error.
        approval_hours: hours to wait for a person's yes before the alias moves; 0: nobody is asked. A yes or no that
            was given before, after a wait that was too short, counts.

    Raises:
        PromoteError: the champion was never evaluated on these videos, and cannot be here.
    """
    config, checkpoint_uri = config or PromoteConfig(), find_checkpoint(checkpoint_uri)
    before, after = Predictions.load(before_path), Predictions.load(after_path)
    inputs = {"checkpoint": after.metadata["checkpoint_fingerprint"], "dataset": after.metadata["manifest_fingerprint"]}
    with stage_run("promote", settings=dataclasses.asdict(config), inputs=inputs) as run:
        if model_name:
            with tempfile.TemporaryDirectory() as folder:
                shutil.copyfile(after_path, Path(folder) / PREDICTIONS)
                run.log_artifact(Path(folder) / PREDICTIONS)
        registered = None
        while registered is None:
            champion = find_champion(model_name) if model_name else None
            if champion and champion.tags.get(CHECKPOINT_TAG) == inputs["checkpoint"]:
                rival = _Rival("before", before)
                won, reason = True, f"It is the champion already, version {champion.version}."
            else:
                rival = _rival(champion, before, after, evaluate_champion)
                looks = count_look(model_name, after.videos_fingerprint, inputs["checkpoint"]) if model_name else None
                won, reason = wins(rival.predictions, after, **dataclasses.asdict(config))
                reason = f"Compared with {rival.name}. {reason}"
                if looks:
                    reason += " " + describe_looks(looks, after.split, len(after), config.confidence)
                    run.log_metrics({"looks": looks})
            if not model_name:
                break
            register = partial(
                register_if_better,
                model_name,
                checkpoint_uri,
                summarize(rival.predictions),
                summarize(after),
                run_id=run.run_id,
                tags={CHECKPOINT_TAG: inputs["checkpoint"], MANIFEST_TAG: inputs["dataset"]},
                rival=champion.version if champion else "",
                save=partial(save_served_model, checkpoint_uri=checkpoint_uri, fingerprint=inputs["checkpoint"]),
                dataset=Dataset(inputs["dataset"]),
            )
            is_champion = champion is not None and champion.tags.get(CHECKPOINT_TAG) == inputs["checkpoint"]
            try:
                if won and approval_hours and not is_champion:
                    version = register(wins=False, reason=f"{reason} It waits for a person's approval.").version
                    if version:
                        won, words = wait_for_approval(model_name, version, approval_hours * 3600)
                        reason = f"{reason} {words}"
                registered = register(wins=won, reason=reason)
            except ChampionChanged as error:  # another run was faster
                print(f"promote: {error}", flush=True)
        promoted = registered is not None and registered.moved
        table = _table(before, after, rival)
        run.set_tags({"promoted": str(promoted), "reason": reason, "rival": rival.name})
        run.log_text(table, "before-after.md")
    print(f"promote: {'champion moved' if promoted else 'champion not moved'}. {reason}", flush=True)
    return Promotion(promoted, reason, table)


def _rival(champion: Champion | None, before: Predictions, after: Predictions, evaluate: Evaluate | None) -> _Rival:
    """Return what the network has to beat: the champion, or without one the network that it comes from.

    The champion's predictions are those of `before` if it is that network, else those stored when it was registered
    if they are of the same videos, else new ones.
    """
    if champion is None:
        return _Rival("the network before fine-tuning, as there is no champion", before)
    name = f"the champion, version {champion.version}"
    if champion.tags.get(CHECKPOINT_TAG) == before.metadata["checkpoint_fingerprint"]:
        return _Rival(name, before)
    wanted = after.metadata["manifest_fingerprint"]
    with tempfile.TemporaryDirectory() as folder:
        if champion.run_id and champion.tags.get(MANIFEST_TAG) == wanted:
            stored = fetch_artifact(champion.run_id, PREDICTIONS, folder)
            if stored is not None and (predictions := Predictions.load(stored)).split == after.split:
                return _Rival(name, predictions)
        if evaluate is None:
            raise PromoteError(
                f"{name}, {champion.source}: no predictions of it on these videos (manifest {wanted}); "
                "give --manifest so that it is evaluated on them"
            )
        path = Path(folder) / f"champion-{PREDICTIONS}"
        evaluate(champion.source, path)
        return _Rival(name, Predictions.load(path))


def _table(before: Predictions, after: Predictions, rival: _Rival) -> str:
    """Return top-1 and top-5 of the networks as a Markdown table."""
    rows = {"before": before, "after": after}
    if rival.predictions is not before:
        rows = {rival.name.removeprefix("the "): rival.predictions, **rows}
    lines = [f"| {after.split}, {len(after):,} videos | top-1, % | top-5, % |", "|---|---|---|"]
    lines += [
        f"| {name} | {100 * topk_accuracy(item, 1):.1f} | {100 * topk_accuracy(item, 5):.1f} |"
        for name, item in rows.items()
    ]
    return "\n".join(lines) + "\n"
