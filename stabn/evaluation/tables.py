"""Tables 1 to 3 in the paper's columns, beside the paper's own numbers (percent, one decimal)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from stabn.evaluation.crossed import Interval, crossed_bootstrap
from stabn.evaluation.metrics import group_accuracy, topk_accuracy, topk_hits
from stabn.evaluation.prediction_table import MetricsError, Predictions, align
from stabn.evaluation.significance import Difference, paired_bootstrap, points

PAIRS = (("before", "after"), ("before", "control"), ("control", "after"))  # whose difference tables show
PAPER_RUN = "ST-ABN, 3D ResNet-50, 32 frames, Something-Something v.2"

# Model, backbone, frames, top-1, top-5 (None: not in our notes of the paper).
PAPER_TABLE_1: tuple[tuple[str, str, str, float, float | None], ...] = (
    ("TSN", "", "", 27.8, None),
    ("TRN multiscale", "", "", 48.8, None),
    ("TRN two-stream", "", "", 55.5, None),
    ("CPNet", "", "", 57.7, None),
    ("TSM", "", "8", 59.1, None),
    ("TSM", "", "16", 63.4, None),
    ("STM", "", "", 62.3, None),
    ("STM", "", "", 64.2, None),
    ("GST", "", "", 62.6, None),
    ("ABM", "", "", 61.3, None),
    ("DFB-Net", "", "", 57.7, None),
    ("bLVNet-TAM", "", "", 65.2, None),
    ("SmallBig", "", "", 64.5, None),
    ("PEM", "", "", 65.0, None),
    ("Zhou et al.", "", "", 62.9, None),
    ("3D ResNet-50 (baseline)", "", "32", 51.4, 80.1),
    ("ST-ABN", "3D ResNet-50", "32", 58.6, 85.5),
    ("3D ResNet-50 (baseline)", "", "32x2", 63.8, 89.2),
    ("ST-ABN", "3D ResNet-50", "32x2", 64.1, 89.6),
    ("3D ResNet-101 (baseline)", "", "32", 57.7, 82.8),
    ("ST-ABN", "3D ResNet-101", "32", 58.0, 83.2),
    ("3D ResNet-101 (baseline)", "", "32x2", 65.3, 90.1),
    ("ST-ABN", "3D ResNet-101", "32x2", 65.8, 90.4),
)
# Top-1 of 8 modified actions, 166 others, all.
PAPER_TABLE_2 = {"before": (20.5, 59.8, 58.6), "after": (26.3, 61.7, 60.7)}
# Top-1 and top-5 as is, inverted, drop; as printed.
PAPER_TABLE_3 = {"before": (58.6, 85.5, 27.1, 52.7, 31.5, 32.8), "after": (60.7, 86.9, 20.1, 43.4, 40.6, 43.6)}


@dataclass(frozen=True)
class Comparison:
    """The prediction tables of one report, all of the same videos in the same order.

    Attributes:
        before: the network before fine-tuning, attention as is.
        after: the network fine-tuned with edited attention (gamma > 0), or trained anew with it.
        control: the network made alike without the edits' influence (gamma = 0), or None.
        before_inverted: `before` with its spatial attention inverted (eq. 7).
        after_inverted: `after` with its spatial attention inverted.
        selected: class indices of the modified actions, worst first.
        control_inverted: `control` with its spatial attention inverted, or None.
    """

    before: Predictions
    after: Predictions
    control: Predictions | None
    before_inverted: Predictions
    after_inverted: Predictions
    selected: tuple[int, ...]
    control_inverted: Predictions | None = None

    @property
    def is_retrained(self) -> bool:
        """Whether the network after was trained anew with the edits, from the first step on, and not fine-tuned."""
        return str(self.after.metadata.get("made_by", "finetune")).startswith("retrain")

    @property
    def networks(self) -> dict[str, Predictions]:
        """The networks compared as is, by their name in the tables."""
        networks = {"before": self.before, "after": self.after}
        return networks | {"control": self.control} if self.control is not None else networks

    @property
    def inverted(self) -> dict[str, tuple[Predictions, Predictions]]:
        """Those networks whose spatial attention was inverted too, as is and inverted, by their name in the tables."""
        pairs = {"before": (self.before, self.before_inverted), "after": (self.after, self.after_inverted)}
        if self.control is None or self.control_inverted is None:
            return pairs
        return pairs | {"control": (self.control, self.control_inverted)}


def compare(
    before: Predictions,
    after: Predictions,
    control: Predictions | None,
    before_inverted: Predictions,
    after_inverted: Predictions,
    selected: Sequence[int],
    control_inverted: Predictions | None = None,
) -> Comparison:
    """Check that the prediction tables belong together and bring their videos into one order.

    Raises:
        MetricsError: other videos, classes or split, or an inverted table of another network.
    """
    for name, table, attention in (
        ("before", before, "as_is"),
        ("after", after, "as_is"),
        ("control", control, "as_is"),
        ("before, inverted", before_inverted, "spatial_inverted"),
        ("after, inverted", after_inverted, "spatial_inverted"),
        ("control, inverted", control_inverted, "spatial_inverted"),
    ):
        if table is not None and table.attention != attention:
            raise MetricsError(f"predictions {name}: attention is {table.attention!r}, needed is {attention!r}")
        if table is not None and table.split != before.split:
            raise MetricsError(f"predictions {name}: split {table.split!r}, the others are of {before.split!r}")
    if control is None and control_inverted is not None:
        raise MetricsError("predictions control, inverted: there are none of it as it is; give both or neither")
    pairs = [("before", before, before_inverted), ("after", after, after_inverted)]
    if control is not None and control_inverted is not None:
        pairs.append(("control", control, control_inverted))
    for name, as_is, inverted in pairs:
        of = [table.metadata.get("checkpoint_fingerprint") for table in (as_is, inverted)]
        if of[0] != of[1]:
            raise MetricsError(f"predictions {name}: as is from checkpoint {of[0]}, inverted from {of[1]}")
    return Comparison(
        before=before,
        after=align(before, after),
        control=None if control is None else align(before, control),
        before_inverted=align(before, before_inverted),
        after_inverted=align(before, after_inverted),
        selected=tuple(selected),
        control_inverted=None if control_inverted is None else align(before, control_inverted),
    )


def beside(comparison: Comparison, baseline: Predictions) -> Predictions:
    """Return the 3D ResNet's predictions in the order of the comparison's videos.

    Raises:
        MetricsError: other videos, classes or split, or a network with an attention branch.
    """
    if baseline.split != comparison.before.split:
        raise MetricsError(
            f"predictions baseline: split {baseline.split!r}, the others are of {comparison.before.split!r}"
        )
    if baseline.attention_top5 is not None:
        raise MetricsError("predictions baseline: of a network with attention; give those of the 3D ResNet")
    return align(comparison.before, baseline)


def table_1(comparison: Comparison, baseline: Predictions | None) -> list[tuple[str, str, str, float, float]]:
    """Return this run's rows of table 1: model, backbone, frames, top-1, top-5 in percent; the baseline first."""
    labels = {
        "before": "ST-ABN, this run, without the edits",
        "after": "ST-ABN, this run, with the edits",
        "control": "ST-ABN, this run, control (γ = 0)",
    }
    tables = [(labels[name], table, "backbone") for name, table in comparison.networks.items()]
    if baseline is not None:
        name = str(baseline.metadata.get("backbone", "3D ResNet"))
        tables.insert(0, (f"{name} (baseline), this run", baseline, ""))
    return [
        (
            label,
            str(table.metadata.get(backbone, "")),
            str(table.metadata.get("frames", "")),
            100 * topk_accuracy(table, 1),
            100 * topk_accuracy(table, 5),
        )
        for label, table, backbone in tables
    ]


def table_2(comparison: Comparison) -> pd.DataFrame:
    """Return top-1 in percent of the modified actions, the others and all: a row per network."""
    rows = {name: group_accuracy(table, comparison.selected) for name, table in comparison.networks.items()}
    counts = rows["before"]
    columns = [
        f"{counts.num_selected_classes} modified actions", f"{counts.num_other_classes} others", "all"
    ]  # fmt: skip
    values = [[100 * row.selected, 100 * row.others, 100 * row.all] for row in rows.values()]
    return pd.DataFrame(values, index=pd.Index(rows, name="top-1"), columns=columns)


def table_3(comparison: Comparison) -> pd.DataFrame:
    """Return top-1 and top-5 in percent as is, with inverted spatial attention, and the drop (eq. 7)."""
    rows = {}
    for name, (as_is, inverted) in comparison.inverted.items():
        top = [[100 * topk_accuracy(table, k) for k in (1, 5)] for table in (as_is, inverted)]
        rows[name] = [*top[0], *top[1], top[0][0] - top[1][0], top[0][1] - top[1][1]]
    groups = ("as is", "inverted", "drop")
    columns = pd.MultiIndex.from_product([groups, ("top-1", "top-5")])
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def drops(comparison: Comparison) -> dict[str, tuple[Difference, Difference]]:
    """Return by how much top-1 and top-5 fall when the spatial attention is inverted, with intervals, by network."""
    return {
        name: (paired_bootstrap(inverted, as_is, k=1), paired_bootstrap(inverted, as_is, k=5))
        for name, (as_is, inverted) in comparison.inverted.items()
    }


def drop_differences(comparison: Comparison) -> dict[str, tuple[Interval, Interval]]:
    """Return by how much more one network's top-1 and top-5 fall than another's, on the same videos, with intervals."""
    falls = {
        name: [topk_hits(as_is, k).astype(float) - topk_hits(inverted, k) for k in (1, 5)]
        for name, (as_is, inverted) in comparison.inverted.items()
    }
    found = {}
    for first, second in PAIRS:
        if {first, second} <= set(falls):
            one, five = (crossed_bootstrap((new - old)[None]) for old, new in zip(falls[first], falls[second]))
            found[f"{second} − {first}"] = (one, five)
    return found


def frames_table(comparison: Comparison, mode_names: Mapping[str, str]) -> pd.DataFrame:
    """Return top-1 in percent as is, and the change under other temporal attention with its interval, as text.

    Args:
        comparison: the predictions; networks whose other attention was not evaluated are left out.
        mode_names: what each of FRAME_MODES is called.
    """
    rows = {}
    for name, table in comparison.networks.items():
        if set(mode_names) <= set(table.under):
            cells = [percent(100 * topk_accuracy(table, 1))]
            for mode in mode_names:
                right = table.under[mode] == table.class_index
                change = crossed_bootstrap((right.astype(float) - table.correct)[None])
                cells.append(f"{points(change.mean)} ({points(change.low)} to {points(change.high)})")
            rows[name] = cells
    return pd.DataFrame.from_dict(rows, orient="index", columns=["as is", *mode_names.values()])


def percent(value: float | None) -> str:
    """Return a percentage with one decimal as the paper prints it, a dash where there is none."""
    return "–" if value is None or pd.isna(value) else f"{value:.1f}".replace("-", "−")


def plain_text(table2: pd.DataFrame, table3: pd.DataFrame) -> str:
    """Return both result tables as aligned text, the paper's rows marked as such."""
    head = ["Table 2: top-1, %", *map(str, table2.columns)]
    lines = [
        head,
        *([str(name), *map(percent, row)] for name, row in zip(table2.index, table2.to_numpy(), strict=True)),
    ]
    lines += [[f"paper, {name}", *map(percent, row)] for name, row in PAPER_TABLE_2.items()]
    notes = {"before": "before", "after": "after", "control": "control (gamma = 0)"}
    lines[1:] = [[notes.get(line[0], line[0]), *line[1:]] for line in lines[1:]]
    second = [["Table 3: top-1 / top-5, %", "as is", "inverted", "drop"]]
    for prefix, rows in (("", zip(table3.index, table3.to_numpy(), strict=True)), ("paper, ", PAPER_TABLE_3.items())):
        for name, row in rows:
            pairs = [f"{percent(row[i])} / {percent(row[i + 1])}" for i in (0, 2, 4)]
            second.append([f"{prefix}{notes[str(name)]}", *pairs])
    note = f"paper: {PAPER_RUN}; 8 modified actions, 166 others"
    return "\n".join([*_aligned(lines), "", *_aligned(second), "", note])


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
