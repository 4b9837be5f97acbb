"""What the report says of where the attention lies: agreement with known frames, before, after and of the control."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from stabn.evaluation.crossed import crossed_bootstrap
from stabn.evaluation.prediction_table import MetricsError, Predictions
from stabn.evaluation.tables import PAIRS, Comparison
from stabn.training.agreement import Agreement, Known, agreement

NUMBERS = {"ap": "AP", "auc": "AUC", "iou": "IoU", "pointing": "pointing game"}  # of Agreement, as they are called
Numbers = npt.NDArray[np.float64]


def agreement_by_video(table: Predictions, known: Known) -> Numbers:
    """Return float64 (N, 6), the numbers of Agreement of each video, at the frames that the network saw; NaN: none.

    Raises:
        MetricsError: the table has no temporal attention, or a video has fewer frames than were seen.
    """
    if table.temporal is None or table.frames is None:
        raise MetricsError("predictions without temporal attention: evaluate the network, ST-ABN as it is, again")
    found = np.full((len(table), len(Agreement._fields)), np.nan)
    for row, name in enumerate(table.video_ids):
        if name in known:
            frames, inside = table.frames[row], known[name]
            if frames.max() >= len(inside):
                raise MetricsError(
                    f"video {name} of {len(inside)} frames: frame {frames.max()} was recognised; evaluate again"
                )
            if numbers := agreement(table.temporal[row], inside[frames]):
                found[row] = numbers
    return found


def agreement_section(comparison: Comparison, known: Known) -> dict[str, Any] | None:
    """Return the numbers of the section, and as `metrics` what the run logs; None where nothing can be compared.

    Args:
        comparison: the predictions.
        known: which frames matter, by video; see `known_frames`.
    """
    tables = comparison.networks
    found = {name: agreement_by_video(table, known) for name, table in tables.items()}
    counted = np.asarray(np.isfinite(found["before"]).all(axis=1))  # the frames decide: for all networks
    if not counted.any():
        return None
    means = {name: dict(zip(Agreement._fields, values[counted].mean(0))) for name, values in found.items()}
    rows = [(name, [f"{means[name][number]:.3f}" for number in NUMBERS]) for name in tables]
    chance = means["before"]
    rows.append(("by chance", [f"{chance['ap_by_chance']:.3f}", "0.500", "–", f"{chance['chance']:.3f}"]))
    changes = [
        (f"{second} − {first}", [_change(found[first], found[second], counted, number) for number in NUMBERS])
        for first, second in PAIRS
        if {first, second} <= set(tables)
    ]
    metrics = {f"{name}_agreement_{number}": float(means[name][number]) for name in tables for number in NUMBERS}
    return {
        "num_known": sum(name in known for name in comparison.before.video_ids),
        "num_counted": int(counted.sum()),
        "names": list(NUMBERS.values()),
        "networks": list(tables),
        "rows": rows,
        "changes": changes,
        "actions": _by_action(comparison.before, found, counted),
        "metrics": metrics | {"agreement_videos": float(counted.sum()), "agreement_chance": float(chance["chance"])},
    }


def _change(first: Numbers, second: Numbers, counted: npt.NDArray[np.bool_], number: str) -> tuple[str, str]:
    """Return the change of a number and its 95% interval over videos, as text."""
    column = Agreement._fields.index(number)
    change = crossed_bootstrap((second - first)[None, :, column][:, counted])
    return signed(change.mean), f"{signed(change.low)} to {signed(change.high)}"


def _by_action(
    table: Predictions, found: Mapping[str, Numbers], counted: npt.NDArray[np.bool_]
) -> list[tuple[str, int, list[str]]]:
    """Return name, videos and the numbers of each action, each number of one network after the other's."""
    rows = []
    for index in np.unique(table.class_index[counted]):
        videos = counted & (table.class_index == index)
        cells = [
            f"{values[videos, Agreement._fields.index(number)].mean():.2f}"
            for number in NUMBERS
            for values in found.values()
        ]
        rows.append((table.classes[index], int(videos.sum()), cells))
    return rows


def signed(value: float) -> str:
    """Return a number with its sign and three decimals, `+0.120` or `−0.004`."""
    rounded = round(value, 3)
    return f"{rounded:+.3f}".replace("-", "−") if rounded else "0.000"
