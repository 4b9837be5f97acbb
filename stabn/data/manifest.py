"""The manifest: one row per video, saying where its frames are and what they show."""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stabn.errors import StabnError
from stabn.storage import read_uri

FORMAT = 1
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


class Manifest:
    """All videos of a dataset as an Arrow table, so that worker processes share it at no cost per video."""

    def __init__(self, table: pa.Table, classes: Iterable[str], storage_uri: str, settings: Mapping[str, Any]) -> None:
        self.table = table
        self.classes = tuple(classes)
        self.storage_uri = storage_uri
        self.settings = dict(settings)
        self.fingerprint = _fingerprint(table, self.classes)
        self._positions: dict[str, int] | None = None

    def __len__(self) -> int:
        return len(self.table)

    def video(self, index: int) -> ManifestVideo:
        """Return the row at an index."""
        row = {name: self.table[name][index] for name in SCHEMA.names}
        sizes = row.pop("frame_sizes").values.to_numpy()
        row.pop("source_sha256")
        return ManifestVideo(frame_sizes=sizes, **{name: value.as_py() for name, value in row.items()})

    def index_of(self, video_id: str) -> int:
        """Return the row of a video.

        Raises:
            ManifestError: the manifest has no such video.
        """
        if self._positions is None:
            self._positions = {name: i for i, name in enumerate(self.table["video_id"].to_pylist())}
        if video_id not in self._positions:
            raise ManifestError(f"video {video_id!r} is not in the manifest (of {len(self)} videos); was it rejected?")
        return self._positions[video_id]

    def indices(self, split: str) -> np.ndarray:
        """Return int64 rows of a split, in the order of the manifest.

        Raises:
            ManifestError: the split has no video.
        """
        rows = np.flatnonzero(pc.equal(self.table["split"], split).to_numpy(zero_copy_only=False))
        if len(rows) == 0:
            present = sorted(set(self.table["split"].to_pylist()))
            raise ManifestError(f"split {split!r} has no videos in the manifest; it has {', '.join(present)}")
        return rows

    def save(self, path: str | Path) -> None:
        """Write the manifest as Parquet; the same content gives the same bytes."""
        header = {
            "format": FORMAT,
            "classes": self.classes,
            "storage_uri": self.storage_uri,
            "settings": self.settings,
            "fingerprint": self.fingerprint,
        }
        table = self.table.replace_schema_metadata({b"stabn": json.dumps(header, sort_keys=True).encode()})
        pq.write_table(table, path, compression="zstd")

    @classmethod
    def load(cls, uri: str | Path) -> "Manifest":
        """Read a manifest from a path or URI.

        Raises:
            ManifestError: the file is not a manifest, or its rows are not those its fingerprint names.
        """
        try:
            table = pq.read_table(io.BytesIO(read_uri(str(uri))))
            header = json.loads((table.schema.metadata or {})[b"stabn"])
            if header["format"] != FORMAT:
                raise ManifestError(f"{uri}: manifest format {header['format']}, this version reads {FORMAT}")
            table = table.replace_schema_metadata(None).cast(SCHEMA)
            manifest = cls(table, header["classes"], header["storage_uri"], header["settings"])
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise ManifestError(f"{uri}: not a manifest of extract-frames ({error}); run the stage again") from None
        if manifest.fingerprint != header["fingerprint"]:
            raise ManifestError(f"{uri}: the rows do not match the fingerprint {header['fingerprint']}; extract again")
        return manifest


def build_manifest(
    rows: Iterable[Mapping[str, Any]], classes: Iterable[str], storage_uri: str, settings: Mapping[str, Any]
) -> Manifest:
    """Make a manifest from rows in any order; they are sorted by split and id, so the result does not depend on it."""
    ordered = sorted(rows, key=lambda row: (row["split"], len(row["video_id"]), row["video_id"]))
    return Manifest(pa.Table.from_pylist(ordered, schema=SCHEMA), classes, storage_uri, settings)


def _fingerprint(table: pa.Table, classes: tuple[str, ...]) -> str:
    """Hash what a network can see: ids, splits, classes, source bytes, and the stored frames' sizes."""
    digest = hashlib.sha256(json.dumps(classes).encode())
    for name in ("video_id", "split", "class_index", "source_sha256", "num_frames", "width", "height"):
        digest.update("\n".join(map(str, table[name].to_pylist())).encode())
    if len(table):
        digest.update(np.ascontiguousarray(table["frame_sizes"].combine_chunks().flatten().to_numpy()).tobytes())
    return digest.hexdigest()[:16]
