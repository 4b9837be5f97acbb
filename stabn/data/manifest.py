"""The manifest: one row per video, saying where its frames are and what they show."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stabn.errors import StabnError
from stabn.identity import check_unique
from stabn.parquet import parse_header, parse_table, table_bytes
from stabn.storage import read_uri, write_uri
from stabn.tracking import Dataset

FORMAT = 2
SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("split", pa.string()),
        ("class_index", pa.int32()),
        ("label", pa.string()),
        ("object_key", pa.string()),
        ("frame_sizes", pa.list_(pa.int32())),
        ("num_frames", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("source_sha256", pa.string()),
    ]
)
TEXTS = ("video_id", "split", "label", "object_key", "source_sha256")
NUMBERS = ("class_index", "num_frames", "width", "height")


class ManifestError(StabnError):
    """A manifest cannot be read, or does not hold what was asked of it."""


@dataclass(frozen=True)
class ManifestVideo:
    """One row of the manifest.

    Attributes:
        class_index: index into the manifest's classes, -1 in the test split.
        object_key: the video's object under the manifest's storage: its JPEG frames laid end to end.
        frame_sizes: int32 (num_frames,), bytes of each JPEG.
        num_frames: frames as decoded; the truth for everything that follows.
        width, height: size of the stored frames, in pixels.
        source_sha256: of the video file that the frames were made of.
    """

    video_id: str
    split: str
    class_index: int
    label: str
    object_key: str
    frame_sizes: np.ndarray
    num_frames: int
    width: int
    height: int
    source_sha256: str


class Manifest:
    """All videos of a dataset, each id once.

    Rows are read from a few arrays that hold all of them, so that a process needs no memory per video it has seen, and
    processes that are forked share them.
    """

    def __init__(self, table: pa.Table, classes: Iterable[str], storage_uri: str, settings: Mapping[str, Any]) -> None:
        self.table = table.combine_chunks()
        self.classes = tuple(classes)
        _check_ids(self.table, storage_uri)  # when made, when read, and so when written
        _check_rows(self.table, storage_uri, len(self.classes))
        self.storage_uri = storage_uri
        self.settings = dict(settings)
        self._numbers = {name: _array(self.table, name) for name in NUMBERS}
        self._texts = {name: _chunk(self.table, name) for name in TEXTS}
        self._sizes = _chunk(self.table, "frame_sizes").flatten().to_numpy(zero_copy_only=False)
        self._ends = np.cumsum(self._numbers["num_frames"], dtype=np.int64)
        self._order: np.ndarray | None = None
        self.fingerprint = self._fingerprint()

    def __len__(self) -> int:
        return len(self.table)

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("table", "classes", "storage_uri", "settings")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def video(self, index: int) -> ManifestVideo:
        """Return the row at an index, 0 to len - 1."""
        if not 0 <= index < len(self):
            raise ManifestError(f"row {index} of a manifest of {len(self)} videos")
        end, count = int(self._ends[index]), int(self._numbers["num_frames"][index])
        texts: dict[str, Any] = {name: column[index].as_py() for name, column in self._texts.items()}
        numbers: dict[str, Any] = {name: int(column[index]) for name, column in self._numbers.items()}
        return ManifestVideo(frame_sizes=self._sizes[end - count : end], **texts, **numbers)

    def video_id(self, index: int) -> str:
        """Return the id of the video at an index."""
        name: str = self._texts["video_id"][int(index)].as_py()
        return name

    def index_of(self, video_id: str) -> int:
        """Return the row of a video.

        Raises:
            ManifestError: the manifest has no such video.
        """
        ids = self._texts["video_id"]
        if self._order is None:
            self._order = pc.sort_indices(ids).to_numpy()
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if ids[int(self._order[middle])].as_py() < video_id:
                low = middle + 1
            else:
                high = middle
        if low == len(self) or ids[int(self._order[low])].as_py() != video_id:
            raise ManifestError(f"video {video_id!r} is not in the manifest (of {len(self)} videos); was it rejected?")
        return int(self._order[low])

    def indices(self, split: str) -> np.ndarray:
        """Return int64 rows of a split, in the order of the manifest.

        Raises:
            ManifestError: the split has no video.
        """
        rows = np.flatnonzero(pc.equal(self.table["split"], split).to_numpy(zero_copy_only=False))
        if len(rows) == 0:
            present = pc.unique(self.table["split"]).to_pylist()
            raise ManifestError(f"split {split!r} has no videos in the manifest; it has {', '.join(sorted(present))}")
        return rows

    @property
    def reported_split(self) -> str:
        """The split that results are reported on: held_out, on which nothing was chosen, or without one validation."""
        return "held_out" if pc.any(pc.equal(self.table["split"], "held_out")).as_py() else "validation"

    @property
    def dataset(self) -> Dataset:
        """The manifest as MLflow shows it: fingerprint, where the frames are, videos by split."""
        counts = pc.value_counts(self.table["split"]).to_pylist()
        videos = {item["values"]: item["counts"] for item in counts}
        return Dataset(self.fingerprint, self.storage_uri, {"videos": videos, "classes": len(self.classes)})

    def _fingerprint(self) -> str:
        """Hash what a network can see: ids, splits, classes, source bytes, and the stored frames' sizes."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for name in ("video_id", "split", "source_sha256"):
            digest.update("\n".join(self._texts[name].to_pylist()).encode())
        for numbers in (*self._numbers.values(), self._sizes):
            digest.update(np.ascontiguousarray(numbers, dtype="<i4").tobytes())
        return digest.hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """Write the manifest as Parquet, whole or not at all; the same content gives the same bytes."""
        header = {
            "format": FORMAT,
            "classes": self.classes,
            "storage_uri": self.storage_uri,
            "settings": self.settings,
            "fingerprint": self.fingerprint,
        }
        table = self.table.replace_schema_metadata({b"stabn": json.dumps(header, sort_keys=True).encode()})
        write_uri(path, table_bytes(table, compression="zstd"))

    @classmethod
    def load(cls, uri: str | Path) -> "Manifest":
        """Read a manifest from a path or URI.

        Raises:
            ManifestError: the file is not a manifest, an id comes twice, or the rows are not those of its fingerprint.
        """
        try:
            table = parse_table(read_uri(str(uri)))
            header = _checked(parse_header(table))
            table = table.replace_schema_metadata(None).cast(SCHEMA)
            manifest = cls(table, header["classes"], header["storage_uri"], header["settings"])
        except ManifestError as error:
            raise ManifestError(f"{uri}: {error}") from None
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise ManifestError(f"{uri}: not a manifest of extract-frames ({error}); run the stage again") from None
        if manifest.fingerprint != header["fingerprint"]:
            raise ManifestError(f"{uri}: the rows do not match the fingerprint {header['fingerprint']}; extract again")
        return manifest


def build_manifest(
    rows: pa.Table | Iterable[Mapping[str, Any]], classes: Iterable[str], storage_uri: str, settings: Mapping[str, Any]
) -> Manifest:
    """Make a manifest from rows in any order; they are sorted by split and id, so the result does not depend on it."""
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows), schema=SCHEMA)
    table = table.select(SCHEMA.names).cast(SCHEMA)
    keys = table.select(["split", "video_id"]).append_column("length", pc.utf8_length(table["video_id"]))
    order = pc.sort_indices(keys, [("split", "ascending"), ("length", "ascending"), ("video_id", "ascending")])
    return Manifest(table.take(order), classes, storage_uri, settings)


def _check_ids(table: pa.Table, storage_uri: str) -> None:
    if pc.count_distinct(table["video_id"], mode="all").as_py() < len(table):
        remedy = "one object cannot be two videos: run extract-frames again"
        check_unique(table["video_id"].to_pylist(), "video", f"manifest of {storage_uri}", remedy, ManifestError)


def _check_rows(table: pa.Table, storage_uri: str, num_classes: int) -> None:
    """Refuse what no extraction writes: gaps, frames without bytes, numbers that are out of their range."""
    sizes = _chunk(table, "frame_sizes")
    wrong = [name for name in SCHEMA.names if table[name].null_count]
    if not wrong:
        lengths, frames, classes = pc.list_value_length(sizes), table["num_frames"], table["class_index"]
        bounds = pc.min_max(classes).as_py()
        right = {
            "num_frames": pc.all(pc.equal(lengths, frames)).as_py() in (True, None),
            "frame_sizes": not sizes.flatten().null_count and (pc.min(sizes.flatten()).as_py() or 0) >= 0,
            "class_index": not len(table) or -1 <= bounds["min"] <= bounds["max"] < num_classes,
        }
        wrong = [name for name, is_right in right.items() if not is_right]
    if wrong:
        raise ManifestError(
            f"{storage_uri}: {wrong[0]} does not fit the other columns, or has gaps; run extract-frames again"
        )


def _checked(header: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest's header if it is of this format."""
    if header["format"] != FORMAT:
        raise ManifestError(f"manifest format {header['format']}, this version reads {FORMAT}")
    classes = header["classes"]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("its classes are no list of names")
    if not isinstance(header["storage_uri"], str) or not isinstance(header["settings"], dict):
        raise ValueError("its storage_uri is no text, or its settings are none")
    if not isinstance(header["fingerprint"], str):
        raise ValueError("its fingerprint is no text")
    return header


def _chunk(table: pa.Table, name: str) -> pa.Array:
    column = table[name]
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def _array(table: pa.Table, name: str) -> np.ndarray:
    numbers: np.ndarray = _chunk(table, name).to_numpy(zero_copy_only=False)
    return numbers
