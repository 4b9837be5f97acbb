"""What the pages show of `stabn faithfulness`: verdicts, tables, curves, and the attention beside Grad-CAM."""

from typing import Any

from markupsafe import Markup

from stabn.attention.perturbation import FILLS, KINDS
from stabn.evaluation import charts
from stabn.evaluation.charts import Series
from stabn.evaluation.crossed import Interval
from stabn.evaluation.faithfulness_numbers import (
    DELETION,
    GAP,
    INSERTION,
    LABELS,
    OVER,
    OWN,
    Faithfulness,
    label,
    randomised_table,
    signed,
    table,
    verdict,
)
from stabn.evaluation.pages import load_template

UNITS = {"temporal": "frames", "spatial": "cells of each frame"}
TONES = {"attention": "after", "grad_cam": "edit", "motion": "control", "centre": "before", "random": "muted"}


def faithfulness_section(found: Faithfulness) -> dict[str, Any]:
    """Return what the section shows of one network."""
    return {
        "num_videos": len(found.video_ids),
        "split": found.split,
        "kinds": [_kind(found, kind) for kind in KINDS],
        "randomised": [
            (part, [(signed(cell.mean, 2), _range(cell, 2)) for cell in row.values()])
            for part, row in randomised_table(found).items()
        ],
        "randomised_videos": len(next(iter(next(iter(found.randomised.values())).values()))),
        "alike": [
            (OWN[kind], [(signed(values.mean(), 2), LABELS[name]) for name, values in found.alike[kind].items()])
            for kind in KINDS
        ],
        "pictures": [(video_id, f"data:image/png;base64,{png}") for video_id, png in found.pictures.items()],
    }


def faithfulness_page(found: Faithfulness) -> str:
    """Return a page of its own."""
    return load_template("faithfulness.html.jinja").render(
        title="Does the answer depend on the attention?", networks=[("", faithfulness_section(found))]
    )


def _kind(found: Faithfulness, kind: str) -> dict[str, Any]:
    tone, line, sentence = verdict(found, kind)
    return {
        "name": kind,
        "own": OWN[kind],
        "tone": tone,
        "line": line,
        "sentence": sentence,
        "fills": list(FILLS[kind]),
        "rows": [
            (name, [_cell(column, cell) for column, cell in row.items() if (name, column) != (OWN[kind], OVER)])
            for name, row in table(found, kind).items()
        ],
        "charts": [
            _chart(found, kind, fill, direction, number)
            for direction, number in (("deleted", DELETION), ("inserted", INSERTION))
            for fill in FILLS[kind]
        ],
    }


def _chart(found: Faithfulness, kind: str, fill: str, direction: str, number: int) -> Markup:
    """Draw the mean curves of one fill and direction; `uniform` is left out, it is as random as random."""
    lines = [
        Series(
            label(kind, name),
            [float(100 * share) for share in found.shares[kind]],
            found.curves[kind][fill][name][:, number].mean(0).tolist(),
            tone,
            dashed=name == "random",
        )
        for name, tone in TONES.items()
    ]
    units = UNITS[kind]
    return charts.line_chart(f"{direction}, {fill}", lines, x_label=f"% of the {units} {direction}")


def _cell(column: str, cell: Interval) -> tuple[str, str]:
    """Return a mean and its interval; of differences with their signs."""
    if column in (GAP, OVER):
        return signed(cell.mean), _range(cell)
    return f"{cell.mean:.3f}", f"{cell.low:.3f} to {cell.high:.3f}"


def _range(cell: Interval, digits: int = 3) -> str:
    return f"{signed(cell.low, digits)} to {signed(cell.high, digits)}"
