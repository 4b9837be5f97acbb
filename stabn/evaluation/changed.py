"""The attention of videos that one network recognises and another does not: curves, or pictures with the networks."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from stabn.config import ConfigError
from stabn.data.manifest import Manifest
from stabn.evaluation.charts import Series, data_uri, line_chart
from stabn.evaluation.examples import FigureMaker, by_hash
from stabn.evaluation.figures import make_figure_maker
from stabn.evaluation.prediction_table import MetricsError, Predictions
from stabn.training.checkpoint import describe, read_checkpoint

NAMES = ("A", "B")
TONES = ("before", "after")  # of the networks' curves


def shown_videos(
    tables: tuple[Predictions, Predictions], ids: Sequence[str], limit: int, maker: FigureMaker | None = None
) -> list[dict[str, Any]]:
    """Return what is shown of some videos, at most `limit`, by a hash of their ids.

    Args:
        tables: predictions of A and of B, of the same videos in the same order.
        ids: the videos to choose from.
        limit: how many.
        maker: draws a video with both networks; None: curves alone, from the tables.

    Returns:
        By video: id, true and predicted actions with scores in percent; `attention`: by network the temporal attention
        and its source frames; `curve`: a chart of both, empty beside pictures; `pictures`: caption and data URI.
    """
    rows = {name: row for row, name in enumerate(tables[0].video_ids)}
    shown = []
    for name in sorted(ids, key=by_hash)[:limit]:
        row = rows[name]
        first, second = tables
        pictures = maker(name).pictures if maker else ()
        attention = {who: _attention(table, row) for who, table in zip(NAMES, tables) if table.temporal is not None}
        shown.append(
            {
                "video_id": name,
                "true": first.classes[first.class_index[row]],
                "before": first.classes[first.predicted[row]],
                "before_score": 100 * float(first.scores[row, 0]),
                "after": second.classes[second.predicted[row]],
                "after_score": 100 * float(second.scores[row, 0]),
                "attention": attention,
                "curve": Markup("") if pictures else _chart(attention),  # the pictures have them
                "pictures": [(caption, data_uri(picture)) for caption, picture in pictures],
            }
        )
    return shown


def _attention(table: Predictions, row: int) -> dict[str, list[float]]:
    """Return a video's source frames, counted from 1 and in order, and the temporal attention there."""
    assert table.temporal is not None and table.frames is not None
    order = np.argsort(table.frames[row], kind="stable")
    values = [round(float(value), 4) for value in table.temporal[row][order]]
    return {"frame": (table.frames[row][order] + 1).tolist(), "attention": values}


def _chart(attention: dict[str, dict[str, list[float]]]) -> Markup:
    lines = [
        Series(name, attention[name]["frame"], attention[name]["attention"], tone)
        for name, tone in zip(NAMES, TONES)
        if name in attention
    ]
    if not lines:
        return Markup("")
    return line_chart("Temporal attention per frame", lines, x_label="source frame", unit=True)


def picture_maker(checkpoints: str, manifest_uri: str, tables: tuple[Predictions, Predictions]) -> FigureMaker | None:
    """Return what draws a video with the two networks; None where no checkpoints are given.

    Args:
        checkpoints: of A and of B, parted by a comma; empty: none.
        manifest_uri: the videos.
        tables: their predictions.

    Raises:
        ConfigError: not two checkpoints, or no manifest.
        MetricsError: a checkpoint is not the network that made the table, or the manifest has other videos.
    """
    if not checkpoints:
        return None
    places = checkpoints.split(",")
    if len(places) != 2 or not manifest_uri:
        raise ConfigError(f"checkpoints {checkpoints!r} with manifest {manifest_uri!r}: give two, A,B, and a manifest")
    wanted = tables[0].metadata.get("manifest_fingerprint")
    if (found := Manifest.load(manifest_uri).fingerprint) != wanted:
        raise MetricsError(f"{manifest_uri}: fingerprint {found}, the predictions are of {wanted}; give that manifest")
    for name, place, table in zip(NAMES, places, tables):
        made_by, given = table.metadata.get("checkpoint_fingerprint"), describe(read_checkpoint(place)).fingerprint
        if made_by != given:
            raise MetricsError(f"{place}: network {given}, the predictions of {name} are of {made_by}; give its own")
    return make_figure_maker(os.fspath(manifest_uri), places[0], places[1], {}, NAMES)
