"""The report in short: what came of the edits in two sentences, in the tiles below them, and as metrics."""

import math
from typing import Any

import pandas as pd

from stabn.evaluation.metrics import in_classes, topk_accuracy
from stabn.evaluation.prediction_table import Predictions
from stabn.evaluation.significance import points
from stabn.evaluation.tables import Comparison, percent, table_2
from stabn.evaluation.verdict import CONTROL, EDITED, OF_EDITS, Effects, plural


def lead(comparison: Comparison, num_edits: int) -> str:
    """Say what was done and what came of it, in two sentences."""
    table2 = table_2(comparison)
    modified = str(table2.columns[0])
    edits = f"the corrected temporal attention of {plural(num_edits, 'video')}" if num_edits else "corrected attention"
    count = plural(len(comparison.selected), "action")
    made = "trained anew" if comparison.is_retrained else "fine-tuned"
    first = f"The network was {made} with {edits}, taken from the {count} that it recognised worst."
    before, after = _row(table2, "before"), _row(table2, "after")
    second = (
        f"On {plural(len(comparison.before), f'{comparison.before.split} video')} top-1 went from "
        f"{percent(before['all'])}% to {percent(after['all'])}%"
    )
    if not math.isnan(before[modified]):
        second += f", and on the {modified} from {percent(before[modified])}% to {percent(after[modified])}%"
    if comparison.control is not None:
        second += f"; the control run without the edits’ influence reached {percent(_row(table2, 'control')['all'])}%"
    return f"{first} {second}."


def _row(table: pd.DataFrame, name: str) -> dict[str, float]:
    """Return a table's row as plain numbers by column."""
    return {str(column): float(value) for column, value in table.to_dict("index")[name].items()}


def tiles(table2: pd.DataFrame, table3: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the numbers at the top of the page."""
    result: list[dict[str, Any]] = []
    rows = {str(name): _row(table2, str(name)) for name in table2.index}
    modified, others, every = map(str, table2.columns)
    for column in (every, modified, others):
        numbers = {name: row[column] for name, row in rows.items()}
        if not math.isnan(numbers["before"]):
            change = points((numbers["after"] - numbers["before"]) / 100)
            result.append({"name": f"{column}, top-1", "control": None, **numbers, "change": change})
    drop = table3["drop"]["top-1"]
    change = points((drop["after"] - drop["before"]) / 100)
    result.append(
        {"name": "drop when the spatial attention is inverted", "before": drop["before"], "after": drop["after"],
         "change": change, "control": drop.get("control")}
    )  # fmt: skip
    return result


def metric_values(
    comparison: Comparison, effects: Effects, table3: pd.DataFrame, baseline: Predictions | None = None
) -> dict[str, float]:
    """Return the numbers of the page by the names that the run logs; shares, 0 to 1."""
    metrics: dict[str, float] = {}
    tables = comparison.networks | {f"{name}_inverted": pair[1] for name, pair in comparison.inverted.items()}
    if baseline is not None:
        metrics |= {"baseline_top1": topk_accuracy(baseline, 1), "baseline_top5": topk_accuracy(baseline, 5)}
    chosen = in_classes(comparison.before, comparison.selected)
    for name, table in tables.items():
        metrics |= {f"{name}_top1": topk_accuracy(table, 1), f"{name}_top5": topk_accuracy(table, 5)}
        for group, mask in (("modified", chosen), ("others", ~chosen)):
            if mask.any() and not name.endswith("inverted"):
                metrics[f"{name}_{group}_top1"] = float(table.correct[mask].mean())
    for top, drops in table3["drop"].to_dict().items():
        metrics |= {f"{name}_drop_{str(top).replace('-', '')}": drop / 100 for name, drop in drops.items()}
    names = {EDITED: "gain", CONTROL: "control_gain", OF_EDITS: "edits_effect"}
    for group, rows in zip(("", "modified_", "others_"), effects.values(), strict=False):
        for label, difference in rows.items():
            for part, value in difference._asdict().items():
                suffix = "" if part == "mean" else f"_{part}"
                metrics[f"{group}{names[label]}{suffix}"] = float(value)
    return metrics
