"""Stage compare: two networks on the same videos, or several seeds of each, and how certain the difference is."""

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from stabn.config.settings import check_value
from stabn.evaluation.changed import picture_maker, shown_videos
from stabn.evaluation.crossed import Interval, crossed_bootstrap
from stabn.evaluation.pages import MAP_NOTE, load_template
from stabn.evaluation.prediction_table import MetricsError, Predictions, align
from stabn.evaluation.significance import class_differences, exact_mcnemar, points
from stabn.evaluation.tables import percent
from stabn.storage import open_storage, owned
from stabn.tracking import fetch_artifact, stage_run

RUN = "runs:/"  # how MLflow names a run
LISTED = 20  # classes printed


@dataclass(frozen=True)
class Compared:
    """What two networks differ in.

    Attributes:
        first, second: top-1 of each, 0 to 1, mean over seeds.
        change: second minus first; over one seed its interval is over videos alone.
        won, lost: videos that became right and wrong, summed over seeds.
        p: of the exact McNemar test; None with several seeds, whose videos are the same.
        classes: see `class_differences`; with several seeds only the means, with an interval.
        videos: ids of the videos that changed with one seed: won, then lost.
    """

    num_seeds: int
    num_videos: int
    split: str
    first: float
    second: float
    change: Interval
    won: int
    lost: int
    p: float | None
    classes: pd.DataFrame
    videos: tuple[tuple[str, ...], tuple[str, ...]]


def compare_networks(first: Sequence[Predictions], second: Sequence[Predictions], confidence: float = 0.95) -> Compared:
    """Compare two networks video by video; with several seeds the n-th of one is paired with the n-th of the other.

    Raises:
        MetricsError: not as many seeds of each, or tables of other videos, classes or splits.
    """
    if len(first) != len(second) or not first:
        raise MetricsError(f"{len(first)} and {len(second)} tables: give as many seeds of one network as of the other")
    split = first[0].split
    for table in (*first, *second):
        if table.split != split:
            raise MetricsError(f"predictions of split {table.split!r} beside {split!r}: compare on one split")
    before = [align(first[0], table) for table in first]
    after = [align(first[0], table) for table in second]
    rights = [np.array([table.correct for table in tables], dtype=float) for tables in (before, after)]
    change = crossed_bootstrap(rights[1] - rights[0], confidence=confidence)
    won, lost = ((rights[1] > rights[0]), (rights[1] < rights[0]))
    single = len(first) == 1
    ids = np.array(before[0].video_ids)
    return Compared(
        num_seeds=len(first),
        num_videos=len(ids),
        split=split,
        first=float(rights[0].mean()),
        second=float(rights[1].mean()),
        change=change,
        won=int(won.sum()),
        lost=int(lost.sum()),
        p=exact_mcnemar(int(won.sum()), int(lost.sum())) if single else None,
        classes=class_differences(before[0], after[0])
        if single
        else _over_seeds(before[0], rights[0], rights[1], confidence),
        videos=(tuple(ids[won[0]]), tuple(ids[lost[0]])) if single else ((), ()),
    )


def _over_seeds(table: Predictions, first: np.ndarray, second: np.ndarray, confidence: float) -> pd.DataFrame:
    """Return name, support, before, after, change and its interval of each class that has videos."""
    rows = []
    for index in np.unique(table.class_index):
        videos = table.class_index == index
        change = crossed_bootstrap(second - first, videos, confidence=confidence)
        means = (first[:, videos].mean(), second[:, videos].mean())
        rows.append((table.classes[index], int(videos.sum()), *means, change.mean, change.low, change.high))
    return pd.DataFrame(rows, columns=["name", "support", "before", "after", "change", "low", "high"])


def describe_difference(found: Compared, names: tuple[str, str] = ("A", "B")) -> str:
    """Return the comparison as text for a terminal."""
    seeds = f", {found.num_seeds} seeds of each" if found.num_seeds > 1 else ""
    sure = "no difference beyond noise" if found.change.low <= 0 <= found.change.high else "a difference beyond noise"
    lines = [
        f"{found.num_videos:,} videos of split {found.split}{seeds}: {sure}",
        f"  top-1  {names[0]} {found.first:.1%}  {names[1]} {found.second:.1%}  change {points(found.change.mean)} "
        f"points (95% interval {points(found.change.low)} to {points(found.change.high)})",
        f"  became right {found.won}, became wrong {found.lost}"
        + (f", exact McNemar p = {found.p:.2g}" if found.p is not None else ""),
    ]
    column = "q" if "q" in found.classes else "low"
    shown = found.classes.reindex(found.classes["change"].abs().sort_values(ascending=False).index).head(LISTED)
    lines += ["", f"  {'change':>7}  {'videos':>6}  {'q' if column == 'q' else 'interval':>14}  action"]
    for row in shown.to_dict("records"):
        sureness = f"{row['q']:.2g}" if column == "q" else f"{points(row['low'])} to {points(row['high'])}"
        lines.append(f"  {points(row['change']):>7}  {row['support']:>6}  {sureness:>14}  {row['name']}")
    return "\n".join(lines)


def compare(
    first: str,
    second: str,
    shown: int,
    output_dir: str | os.PathLike[str] = "",
    checkpoints: str = "",
    manifest_uri: str = "",
) -> Compared:
    """Compare two networks, print what came of it, and keep it as a page and as JSON.

    Args:
        first: prediction tables of one network: paths, URIs or `runs:/ID` of evaluations in MLflow, seeds parted by
            commas.
        second: those of the other.
        shown: videos won, and as many lost, whose attention is shown at most, with one seed of each.
        output_dir: folder for compare.html and compare.json; empty: only print.
        checkpoints: of both networks, parted by a comma, to draw those videos with; empty: the curves that the tables
            have.
        manifest_uri: with checkpoints: the videos.

    Raises:
        ConfigError: a negative number of videos, not two checkpoints, or no manifest with them.
        MetricsError: tables that do not belong together, or checkpoints that did not make them.
    """
    check_value("shown", shown, low=0)
    tables = [[_load(place) for place in places.split(",")] for places in (first, second)]
    inputs = {name: ",".join(t.fingerprint for t in ts) for name, ts in zip(("first", "second"), tables, strict=True)}
    inputs["dataset"] = tables[0][0].metadata.get("manifest_fingerprint", "")
    with stage_run("compare", settings={"first": first, "second": second}, inputs=inputs) as run:
        found = compare_networks(tables[0], tables[1])
        text = describe_difference(found)
        print(text, flush=True)
        changed: tuple[list[dict[str, Any]], ...] = ([], [])
        if found.num_seeds == 1:
            pair = (tables[0][0], align(tables[0][0], tables[1][0]))
            maker = picture_maker(checkpoints, manifest_uri, pair)
            changed = tuple(shown_videos(pair, ids, shown, maker) for ids in found.videos)
        page = _page(found, changed, (first, second))
        run.log_metrics({"change": found.change.mean, "low": found.change.low, "high": found.change.high})
        run.log_text(text, "compare.txt")
        run.log_text(page, "compare.html")
        if output_dir:
            storage = open_storage(output_dir)
            with owned(storage, "compare", inputs):
                storage.write("compare.html", page.encode())
                storage.write("compare.json", json.dumps(_document(found, changed), indent=1).encode())
    return found


def _load(place: str) -> Predictions:
    if not place.startswith(RUN):
        return Predictions.load(place)
    with tempfile.TemporaryDirectory() as folder:
        found = fetch_artifact(place.removeprefix(RUN), "", folder)
        files = sorted(found.rglob("*")) if found else []
        for path in files:
            if path.is_file():
                return Predictions.load(path)
    raise MetricsError(f"{place}: this run has stored no predictions; give the id of a run of stage evaluate")


def _document(found: Compared, changed: Sequence[list[dict[str, Any]]]) -> dict[str, Any]:
    values = {name: value for name, value in vars(found).items() if name not in ("classes", "videos", "change")}
    videos = dict(zip(("won", "lost"), map(list, found.videos), strict=True))
    classes = json.loads(found.classes.to_json(orient="records"))
    attention = {video["video_id"]: video["attention"] for videos in changed for video in videos}
    return {
        "format": 1, **values, "change": found.change._asdict(), "videos": videos, "attention": attention,
        "classes": classes,
    }  # fmt: skip


def _page(found: Compared, changed: Sequence[list[dict[str, Any]]], places: tuple[str, str]) -> str:
    seeds = f", {found.num_seeds} seeds of each" if found.num_seeds > 1 else ""
    change = found.change
    drawn = [video for videos in changed for video in videos]
    note = ""
    if any(video["pictures"] for video in drawn):
        note = f"Over each frame its temporal attention, below it the spatial attention. {MAP_NOTE}"
    elif any(video["attention"] for video in drawn):
        note = "The curves are the temporal attention at the frames that the networks saw."
    elif drawn:
        note = "The predictions hold no attention: evaluate ST-ABN again, or give --checkpoints and --manifest."
    changes = "not beyond noise" if change.low <= 0 <= change.high else "beyond noise"
    won_lost = f"{found.won:,} became right, {found.lost:,} became wrong"
    return load_template("compare.html.jinja").render(
        title="Two networks on the same videos",
        lead=f"{found.num_videos:,} videos of the split {found.split}{seeds}: top-1 is {percent(100 * found.first)}% "
        f"with A and {percent(100 * found.second)}% with B.",
        tone="good" if change.low > 0 else "bad" if change.high < 0 else "neutral",
        verdict=f"{points(change.mean)} points from A to B, {changes}",
        sentence=f"95% interval {points(change.low)} to {points(change.high)}; {won_lost}"
        + (f"; exact McNemar p = {found.p:.2g}." if found.p is not None else "."),
        places=places,
        single=found.num_seeds == 1,
        num_seeds=found.num_seeds,
        classes=found.classes.sort_values("change", ascending=False).to_dict("records"),
        groups=[
            {"name": name, "what": what, "ids": ids, "shown": videos}
            for name, what, ids, videos in zip(
                ("won", "lost"), ("wrong with A, right with B", "right with A, wrong with B"), found.videos, changed
            )
        ]
        if found.num_seeds == 1
        else [],
        attention_note=note,
        percent=percent,
        points=points,
    )
