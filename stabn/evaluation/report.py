"""Stage report: one HTML page that says what fine-tuning with edited attention did, in the paper's own tables."""

import dataclasses
import datetime
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

import stabn
from stabn.attention.selection import Selection, load_selection
from stabn.config import PromoteConfig
from stabn.data.edit_table import load_edit_table
from stabn.data.manifest import Manifest
from stabn.errors import StabnError
from stabn.evaluation import charts
from stabn.evaluation.attention_section import agreement_section
from stabn.evaluation.examples import (
    LISTED_VIDEOS,
    FigureMaker,
    VideoFigure,
    by_hash,
    changed_videos,
    choose_examples,
    shown,
)
from stabn.evaluation.faithfulness_numbers import FaithfulnessError, load_faithfulness
from stabn.evaluation.faithfulness_section import faithfulness_section
from stabn.evaluation.figures import make_figure_maker
from stabn.evaluation.headline import lead, metric_values, tiles
from stabn.evaluation.pages import load_template
from stabn.evaluation.prediction_table import Predictions
from stabn.evaluation.sections import JSON_LINES, ReportError, class_changes, confusion, curves, read_history
from stabn.evaluation.significance import describe_looks, paired_bootstrap, points, wins
from stabn.evaluation.tables import (
    PAPER_RUN,
    PAPER_TABLE_1,
    PAPER_TABLE_2,
    PAPER_TABLE_3,
    Comparison,
    beside,
    compare,
    drop_differences,
    drops,
    frames_table,
    percent,
    plain_text,
    table_1,
    table_2,
    table_3,
)
from stabn.evaluation.verdict import SAMPLES, Verdict, judge, measure_effects
from stabn.masking import masked
from stabn.storage import write_uri
from stabn.tracking import next_look, stage_run
from stabn.training.agreement import known_frames

HTML_FILE, METRICS_FILE, FIGURES_DIR = "report.html", "metrics.json", "figures"

OTHER_ATTENTION = {
    "temporal_mean": "its mean over the video",
    "temporal_reversed": "reversed in time",
    "temporal_other": "another video’s",
}

Location = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class ReportInputs:
    """Paths (or URIs) of what a report is made from; what may be absent is None or empty.

    Attributes:
        before: predictions before fine-tuning on the split that is reported, attention as is.
        after: predictions after fine-tuning with the edits.
        before_inverted: predictions before fine-tuning, spatial attention inverted.
        after_inverted: predictions after fine-tuning, spatial attention inverted.
        selection: JSON of select-classes.
        control: predictions after the same fine-tuning with gamma = 0, if there was a control run.
        before_checkpoint: the network before, or JSON lines of its training (one dict per epoch).
        after_checkpoint: the network after, or JSON lines of its fine-tuning.
        control_inverted: predictions of the control run, spatial attention inverted.
        control_checkpoint: the network of the control run, or JSON lines of its fine-tuning.
        manifest: the dataset's manifest.
        edits: edit table of import-edits; edited videos are drawn beside the edit.
        baseline: predictions of the 3D ResNet without attention on the same videos, for table 1.
        truth: frames that are known to matter in the reported videos, with which the attention is compared: see
            `known_frames`; needs the manifest.
        faithfulness: faithfulness.json of `stabn faithfulness`, of the networks before, after or control; several are
            parted by commas.
    """

    before: Location
    after: Location
    before_inverted: Location
    after_inverted: Location
    selection: Location
    control: Location | None = None
    control_inverted: Location | None = None
    before_checkpoint: Location | None = None
    after_checkpoint: Location | None = None
    control_checkpoint: Location | None = None
    manifest: Location | None = None
    edits: Location | None = None
    baseline: Location | None = None
    truth: Location | None = None
    faithfulness: Location | None = None


@dataclass(frozen=True)
class ReportResult:
    """A finished report.

    Attributes:
        html_path: the page, one file.
        figures: PNG files of the attention figures, also inside the page.
        table2: Table 2, percent.
        table3: Table 3, percent.
        verdict: what the differences allow to be said.
        metrics: what the page says as numbers; accuracies and differences are shares, 0 to 1.
        wins: whether the fine-tuned network may replace the one before.
        reason: why, in one sentence.
    """

    html_path: Path
    figures: list[Path]
    table2: pd.DataFrame
    table3: pd.DataFrame
    verdict: Verdict
    metrics: dict[str, float]
    wins: bool
    reason: str


def make_report(inputs: ReportInputs, output_dir: Location, **options: Any) -> ReportResult:
    """Write `report.html`, `metrics.json` and the folder `figures` into a folder; see `write_report`."""
    result = write_report(inputs, Path(output_dir) / HTML_FILE, Path(output_dir) / FIGURES_DIR, **options)
    document = {"format": 1, "wins": result.wins, "reason": result.reason, "metrics": result.metrics}
    write_uri(Path(output_dir) / METRICS_FILE, json.dumps(document, indent=1).encode())
    return result


def write_report(
    inputs: ReportInputs,
    html_path: Location,
    figures_dir: Location,
    *,
    figure_maker: FigureMaker | None = None,
    settings: Mapping[str, Any] | None = None,
    created_at: datetime.datetime | None = None,
    promotion: PromoteConfig | None = None,
    model_name: str = "",
) -> ReportResult:
    """Write the page as one HTML file, and its attention figures as PNG files too.

    Args:
        inputs: what is compared.
        html_path: the page.
        figures_dir: folder of the figures.
        figure_maker: draws one video, by its id; None: with the checkpoints and the manifest, if they are given.
        settings: settings of the run by section, shown at the end.
        created_at: when the report was made, as shown; None: now.
        promotion: what winning means, as for promote; None: the defaults.
        model_name: name in the registry, whose count of networks measured on these videos is shown; empty: none.

    Raises:
        MetricsError: the prediction tables are not of the same videos and classes, or of the wrong networks.
        ReportError: a history is unreadable.
    """
    selection = load_selection(inputs.selection)
    comparison = compare(
        Predictions.load(inputs.before),
        Predictions.load(inputs.after),
        Predictions.load(inputs.control) if inputs.control else None,
        Predictions.load(inputs.before_inverted),
        Predictions.load(inputs.after_inverted),
        selection.class_indices,
        Predictions.load(inputs.control_inverted) if inputs.control_inverted else None,
    )
    baseline = beside(comparison, Predictions.load(inputs.baseline)) if inputs.baseline else None
    fingerprints = {name: table.fingerprint for name, table in comparison.networks.items()}
    fingerprints |= {
        "selection": selection.fingerprint,
        "dataset": comparison.before.metadata.get("manifest_fingerprint", ""),
    }
    with stage_run("report", settings={}, inputs=fingerprints) as run:
        table2, table3 = table_2(comparison), table_3(comparison)
        effects = measure_effects(comparison)
        verdict = judge(effects, comparison.is_retrained)
        promotion = promotion or PromoteConfig()
        won, reason = wins(comparison.before, comparison.after, **dataclasses.asdict(promotion))
        looks = _looks(comparison.after, model_name)
        agreed = _agreement(inputs, comparison)
        metrics = metric_values(comparison, effects, table3, baseline) | {"wins": float(won)}
        metrics |= agreed["metrics"] if agreed else {}
        metrics |= {"looks": float(looks)} if looks else {}
        edited = _edited_curves(inputs)
        figures = _figures(figure_maker or _figure_maker(inputs, edited), comparison, edited)
        histories = {name: read_history(path) for name, path in _checkpoints(inputs).items()}
        page = load_template("report.html.jinja").render(
            title=f"{'Training' if comparison.is_retrained else 'Fine-tuning'} with corrected temporal attention",
            lead=lead(comparison, len(edited)),
            verdict=verdict,
            promotion=reason,
            looks=describe_looks(looks, comparison.after.split, len(comparison.after), promotion.confidence)
            if looks
            else "",
            tiles=tiles(table2, table3),
            comparison=comparison,
            effects=charts.intervals([(name, list(rows.items())) for name, rows in effects.items()]),
            samples=SAMPLES,
            table1=table_1(comparison, baseline),
            baseline_change=None if baseline is None else paired_bootstrap(baseline, comparison.before),
            table2=table2,
            table3=table3,
            drops=drops(comparison),
            drop_differences=drop_differences(comparison),
            frames=frames_table(comparison, OTHER_ATTENTION),
            agreed=agreed,
            faithful=_faithfulness(inputs, comparison),
            paper_table1=PAPER_TABLE_1,
            paper_table2=PAPER_TABLE_2,
            paper_table3=PAPER_TABLE_3,
            paper_run=PAPER_RUN,
            selection=selection,
            **class_changes(comparison),
            **curves(histories),
            **confusion(comparison),
            changes=changed_videos(comparison),
            listed=LISTED_VIDEOS,
            figures=[shown(figure, item) for figure, item in figures],
            provenance=_provenance(inputs, comparison, selection, created_at or datetime.datetime.now(datetime.UTC)),
            settings=_flat(settings or {}),
            percent=percent,
            points=points,
        )
        write_uri(html_path, masked(page).encode())
        paths = []
        for figure, item in figures:
            for number, (_, picture) in enumerate(figure.pictures):
                paths.append(Path(figures_dir) / f"{item['video_id']}-{number}.png")
                write_uri(paths[-1], picture)
        run.log_metrics(metrics)
        run.log_artifact(html_path)
    return ReportResult(Path(html_path), paths, table2, table3, verdict, metrics, won, reason)


def tables_text(result: ReportResult) -> str:
    """Return the verdict, and Tables 2 and 3 with the control run and the paper's rows, as text for a terminal."""
    verdict = "\n".join([f"{result.verdict.title}.", *result.verdict.sentences])
    return f"{verdict}\n\n{plain_text(result.table2, result.table3)}"


def _figures(
    maker: FigureMaker | None, comparison: Comparison, edited: Mapping[str, npt.NDArray[np.float64]]
) -> list[tuple[VideoFigure, dict[str, Any]]]:
    """Draw a few reported videos of the modified actions, then a few edited training videos beside their edit."""
    if maker is None:
        return []
    items = choose_examples(comparison, {"won": 3, "lost": 2, "still wrong": 1})
    items += [{"video_id": video_id, "kind": "edited"} for video_id in sorted(edited, key=by_hash)[:3]]
    figures = []
    for item in items:
        figures.append((maker(item["video_id"]), item))
    return figures


def _figure_maker(inputs: ReportInputs, edited: Mapping[str, npt.NDArray[np.float64]]) -> FigureMaker | None:
    """Return what draws videos with the networks before and after; None when one of them or the manifest is absent."""
    paths = [str(path or "") for path in (inputs.manifest, inputs.before_checkpoint, inputs.after_checkpoint)]
    if not all(paths) or any(path.endswith(JSON_LINES) for path in paths):
        return None
    return make_figure_maker(paths[0], paths[1], paths[2], edited)


def _looks(after: Predictions, model_name: str) -> int | None:
    """Return how many networks were measured on these videos for promotion, with this one; None: it is not known."""
    if not model_name:
        return None
    try:
        return next_look(model_name, after.videos_fingerprint, str(after.metadata.get("checkpoint_fingerprint", "")))
    except StabnError as error:  # a report is worth having without it
        print(f"report: looks at these videos are not counted: {error}", flush=True)
        return None


def _agreement(inputs: ReportInputs, comparison: Comparison) -> dict[str, Any] | None:
    """Compare the attention with what is known of the reported videos; None: nothing is known, or too little.

    Raises:
        ReportError: there is no manifest to say how long the videos are.
    """
    if not inputs.truth:
        return None
    if not inputs.manifest:
        raise ReportError(f"truth {inputs.truth} without a manifest: give --manifest, which says how long videos are")
    manifest = Manifest.load(os.fspath(inputs.manifest))
    rows = [manifest.index_of(name) for name in comparison.before.video_ids]
    agreed = agreement_section(comparison, known_frames(manifest, rows, os.fspath(inputs.truth)))
    if agreed is None:
        split = comparison.before.split
        print(f"report: {inputs.truth}: nothing to compare the attention of the {split} videos with", flush=True)
    return agreed


def _faithfulness(inputs: ReportInputs, comparison: Comparison) -> list[tuple[str, dict[str, Any]]]:
    """Return name and section of each network of which it was measured, in the order of the tables.

    Raises:
        FaithfulnessError: a file is none, or of a network that this report does not compare.
    """
    names = {str(table.metadata.get("checkpoint_fingerprint")): n for n, table in comparison.networks.items()}
    sections = {}
    for place in filter(None, os.fspath(inputs.faithfulness or "").split(",")):
        found = load_faithfulness(place)
        if found.checkpoint_fingerprint not in names:
            known = ", ".join(f"{name} {fingerprint}" for fingerprint, name in names.items())
            raise FaithfulnessError(
                f"{place}: of network {found.checkpoint_fingerprint}, which this report does not compare ({known}); "
                "run `stabn faithfulness` with one of their checkpoints"
            )
        sections[names[found.checkpoint_fingerprint]] = faithfulness_section(found)
    return [(name, sections[name]) for name in comparison.networks if name in sections]


def _edited_curves(inputs: ReportInputs) -> dict[str, npt.NDArray[np.float64]]:
    """Return the edited attention per source frame, by video."""
    if not inputs.edits:
        return {}
    return {video_id: np.asarray(curve, dtype=float) for video_id, curve in load_edit_table(inputs.edits).items()}


def _provenance(
    inputs: ReportInputs, comparison: Comparison, selection: Selection, created: datetime.datetime
) -> list[tuple[str, str, str]]:
    """Return what the report was made from: role, fingerprint, place."""
    rows = [("made", created.strftime("%Y-%m-%d %H:%M UTC"), f"stabn {stabn.__version__}")]
    rows.append(
        ("dataset", str(comparison.before.metadata.get("manifest_fingerprint", "")), str(inputs.manifest or ""))
    )
    tables: list[tuple[str, Predictions, Any]] = [
        ("before", comparison.before, inputs.before),
        ("after", comparison.after, inputs.after),
        ("before, spatial attention inverted", comparison.before_inverted, inputs.before_inverted),
        ("after, spatial attention inverted", comparison.after_inverted, inputs.after_inverted),
    ]
    if comparison.control is not None:
        tables.insert(2, ("control", comparison.control, inputs.control))
    if comparison.control_inverted is not None:
        tables.append(("control, spatial attention inverted", comparison.control_inverted, inputs.control_inverted))
    for name, table, place in tables:
        if table.attention == "as_is":
            rows.append((f"network {name}", str(table.metadata.get("checkpoint_fingerprint", "")), ""))
        rows.append((f"predictions {name}", table.fingerprint, str(place)))
    if inputs.baseline:
        rows.append(
            ("predictions of the 3D ResNet", Predictions.load(inputs.baseline).fingerprint, str(inputs.baseline))
        )
    rows.append(("selection", selection.fingerprint, str(inputs.selection)))
    if inputs.edits:
        rows.append(("edits", load_edit_table(inputs.edits).fingerprint, str(inputs.edits)))
    if inputs.truth:
        rows.append(("known frames", "", str(inputs.truth)))
    if inputs.faithfulness:
        rows.append(("faithfulness", "", str(inputs.faithfulness)))
    return rows


def _checkpoints(inputs: ReportInputs) -> dict[str, Location]:
    places = {
        "before": inputs.before_checkpoint,
        "after": inputs.after_checkpoint,
        "control": inputs.control_checkpoint,
    }
    return {name: place for name, place in places.items() if place}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append(
                (f"{prefix}{key}", json.dumps(value, ensure_ascii=False) if isinstance(value, list) else str(value))
            )
    return rows
