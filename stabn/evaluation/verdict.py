"""What the top-1 differences between the networks allow to be said, and what they do not."""

from dataclasses import dataclass

import numpy as np

from stabn.evaluation.metrics import in_classes
from stabn.evaluation.significance import Difference, paired_bootstrap, points
from stabn.evaluation.tables import Comparison

SAMPLES = 2000
Effects = dict[str, dict[str, Difference]]
OTHER_SEEDS = (
    "Intervals are over these videos: they do not cover that another seed trains another network, which may differ by "
    "more; `stabn compare` takes several seeds of each."
)
EDITED, CONTROL, OF_EDITS = "after − before", "control − before", "after − control"


@dataclass(frozen=True)
class Verdict:
    """What the numbers allow to be said: `tone` is good, neutral or bad."""

    tone: str
    title: str
    sentences: tuple[str, ...]


def measure_effects(comparison: Comparison) -> Effects:
    """Return the top-1 differences between the networks with their intervals, by group of actions."""
    before, after, control = comparison.before, comparison.after, comparison.control
    chosen = in_classes(before, comparison.selected)
    count = len(comparison.selected)
    groups = {"All actions": np.ones(len(before), dtype=bool)}
    if chosen.any() and not chosen.all():
        groups |= {plural(count, "modified action"): chosen, "Other actions": ~chosen}
    pairs = {EDITED: (before, after)}
    if control is not None:
        pairs |= {CONTROL: (before, control), OF_EDITS: (control, after)}
    return {
        f"{name}, {int(mask.sum()):,} videos": {
            label: paired_bootstrap(first.take(np.flatnonzero(mask)), second.take(np.flatnonzero(mask)), 0, SAMPLES)
            for label, (first, second) in pairs.items()
        }
        for name, mask in groups.items()
    }


def judge(effects: Effects, is_retrained: bool = False) -> Verdict:
    """Say what the differences allow to be said, telling the edits' effect from that of further training.

    Args:
        effects: of `measure_effects`.
        is_retrained: whether the network after was trained anew, and not fine-tuned.
    """
    made, otherwise = ("training", "another training") if is_retrained else ("fine-tuning", "further training")
    overall = next(iter(effects.values()))
    gain, edits = overall[EDITED], overall.get(OF_EDITS)
    groups: list[str] = []
    sentences = [f"Top-1 over all actions changed by {with_range(gain)} with the edits."]
    if edits is None:
        sentences.append(
            "There was no control run (γ = 0), so this report cannot tell the effect of the edits from that of "
            f"{otherwise}."
        )
    else:
        if is_retrained and not any(overall[CONTROL][:3]):
            sentences.append("The same training with γ = 0, the control, gives the network before.")
        else:
            sentences.append(f"The same {made} with γ = 0, the control, changed it by {with_range(overall[CONTROL])}.")
        what = (
            "which is more than noise" if edits.low > 0
            else "so the edits cost accuracy" if edits.high < 0
            else f"so their effect cannot be told apart from that of {otherwise}"
        )  # fmt: skip
        sentences.append(f"The difference between the two, the effect of the edits, is {with_range(edits)}, {what}.")
        for name, rows in list(effects.items())[1:]:
            where = f"on the {name[0].lower()}{name[1:]}"
            known = "more than noise" if rows[OF_EDITS].low > 0 or rows[OF_EDITS].high < 0 else "within noise"
            groups.append(f"{where}, {with_range(rows[OF_EDITS])}, {known}")
        if groups:
            text = "; ".join(groups)
            sentences.append(f"{text[0].upper()}{text[1:]}.")
    sentences.append(OTHER_SEEDS)
    if gain.high < 0:
        return Verdict("bad", "Worse than before by more than noise", tuple(sentences))
    if gain.low <= 0:
        return Verdict("neutral", "No difference from before beyond noise", tuple(sentences))
    if edits is None:
        return Verdict("neutral", "Better than before; whether by the edits is open", tuple(sentences))
    if edits.low > 0:
        return Verdict("good", "Better than before, and the edits add to it by more than noise", tuple(sentences))
    return Verdict(
        "neutral", f"Better than before, but not shown to be better than {otherwise} alone", tuple(sentences)
    )


def with_range(difference: Difference) -> str:
    """Return a difference and its interval in points, as the report's sentences say it."""
    return f"{points(difference.mean)} points ({points(difference.low)} to {points(difference.high)})"


def plural(count: int, noun: str) -> str:
    """Return `1 video` or `1,200 videos`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
