"""The edit table: a round's corrected temporal attention as one Parquet file, as import-edits writes it."""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from stabn.errors import StabnError
from stabn.identity import check_unique
from stabn.parquet import parse_header, parse_table, table_bytes
from stabn.storage import ObjectNotFound, read_uri, write_uri

FORMAT = 1
EDIT_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("edited_attention", pa.list_(pa.float32())),
        ("editor", pa.string()),
        ("revision", pa.int32()),
        ("status", pa.string()),
    ]
)


class EditError(StabnError):
    """An edit does not fit its round, or a table of edits is unusable."""


class EditTable(dict[str, np.ndarray]):
    """Edited curves by video id: float32 (num_source,) in [0, 1], NaN where there is no opinion.

    Attributes:
        fingerprint: names the content.
        round_id: the round that was edited.
    """

    fingerprint: str
    round_id: str


def save_edit_table(path: str | os.PathLike[str], rows: list[dict[str, Any]], header: Mapping[str, str]) -> None:
    """Write a table, whole or not at all.

    Args:
        path: Parquet file to write.
        rows: one per video that has an edit, with the columns of EDIT_SCHEMA.
        header: `fingerprint`, which names the content, `round_id`, and what else says where the edits are from.

    Raises:
        EditError: a video comes twice.
    """
    _check_ids(rows, path)
    stamp = {b"stabn": json.dumps({"format": FORMAT, **header}).encode()}
    write_uri(path, table_bytes(pa.Table.from_pylist(rows, schema=EDIT_SCHEMA.with_metadata(stamp))))


def load_edit_table(path: str | os.PathLike[str]) -> EditTable:
    """Read the edited videos of an edit table, a path or URI; the others are there for the record.

    Raises:
        EditError: the file is no such table, or a video comes twice.
    """
    try:
        table = parse_table(read_uri(path))
        header = parse_header(table)
        rows = table.cast(EDIT_SCHEMA).select(["video_id", "edited_attention", "status"]).to_pylist()
        _check_ids(rows, path)
        result = EditTable(
            {
                row["video_id"]: np.array(row["edited_attention"], np.float32)
                for row in rows
                if row["status"] == "edited"
            }
        )
        result.fingerprint, result.round_id = str(header["fingerprint"]), str(header["round_id"])
        _check_curves(result)
    except (pa.ArrowException, ObjectNotFound, OSError, KeyError, ValueError) as error:
        raise EditError(f"{path}: not an edit table of import-edits ({error}); import the round again") from None
    return result


def _check_curves(edits: EditTable) -> None:
    """Refuse a curve without values, or with one outside [0, 1] that is not NaN."""
    for video_id, curve in edits.items():
        known = curve[~np.isnan(curve)]
        if curve.ndim != 1 or not len(known) or known.min() < 0 or known.max() > 1:
            raise ValueError(f"the curve of video {video_id} is empty, or has values outside 0 to 1")


def _check_ids(rows: list[dict[str, Any]], path: str | os.PathLike[str]) -> None:
    check_unique([row["video_id"] for row in rows], "video", f"edit table {path}", "import the round again", EditError)
