"""Which settings may change when a run goes on, and which make it another run: the one table."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from stabn.config import LOADING, RUNNING, TESTING, DataConfig, FitConfig, ModelConfig, to_dict
from stabn.config.model import FORMER_BASELINE

# Besides where it runs, how fast it loads, what it saves and shows, how it is tested (RUNNING, LOADING, TESTING).
MAY_CHANGE = (
    "clip_norm",
    "early_stop",
    "epochs",
    "learning_rate",
    "max_skipped_steps",
    "min_learning_rate",
    "plateau_factor",
    "plateau_patience",
    "validate_every",
)
FOLLOWS_EPOCHS = ("one_cycle", "cosine")  # schedules whose rate at any time depends on the number of epochs
ABSENT = "its default"  # of a setting that came later than the state, see `setting`
WHY_NOT = {
    "seed": "it decides the first weights, the order and the augmentation",
    "epochs": "the rate of this schedule has followed the former number; only schedule = plateau takes more or fewer",
    "dataset": "other videos, or other frames of them",
    "manifest": "other videos, or other frames of them",
    "edits": "other corrections",
    "parent": "another network to start from",
}


@dataclass(frozen=True)
class Comparison:
    """How a run's settings differ from those of its saved state.

    Attributes:
        changed: former and present value of the settings that may change.
        refused: one phrase for each setting that may not.
    """

    changed: dict[str, tuple[Any, Any]]
    refused: list[str]

    def __str__(self) -> str:
        return ", ".join(f"{name} = {now!r} instead of {former!r}" for name, (former, now) in self.changed.items())


def run_identity(settings: FitConfig, data: DataConfig, model: ModelConfig, **inputs: str) -> dict[str, Any]:
    """Return what decides a run's result, by setting; where it runs and how fast it loads do not count."""
    neutral = {*LOADING, *RUNNING, *TESTING}
    sections = {"": settings, "data.": data, "model.": model}
    values = {
        prefix + item.name: value
        for prefix, section in sections.items()
        for item, value in zip(fields(section), to_dict(section).values(), strict=True)
        if item.name not in neutral and not (item.metadata["later"] and getattr(section, item.name) == item.default)
    }
    if values.get("init_weights") == "random":
        values["init_weights"] = ""  # its former name
    if values["model.name"] == "baseline":
        values["model.name"] = FORMER_BASELINE
    return {**values, **inputs}


def compare(there: Mapping[str, Any], here: Mapping[str, Any]) -> Comparison:
    """Compare the identity of a saved state with that of the run that would go on from it."""
    changed, refused = {}, []
    may_change = set(MAY_CHANGE) - ({"epochs"} if here.get("schedule") in FOLLOWS_EPOCHS else set())
    for name in sorted({*there, *here}):
        former, now = there.get(name, ABSENT), here.get(name, ABSENT)
        if former == now:
            continue
        if name in may_change:
            changed[name] = (former, now)
        else:
            why = f" ({WHY_NOT[name]})" if name in WHY_NOT else ""
            refused.append(f"{name}: {former!r} there, {now!r} here{why}")
    return Comparison(changed, refused)
