"""The prediction table of one network on one split: what it says about every video, as a Parquet file."""

import hashlib
import io
import json
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from stabn.errors import StabnError
from stabn.identity import check_unique
from stabn.parquet import HEADER, parse_header, parse_table
from stabn.stages import ATTENTION_MODES
from stabn.storage import ObjectNotFound, read_uri, write_uri

UNDER = "under_"  # how the columns of other attention begin
TOP = 5
OPTIONAL = (("attention_top5", "attention_scores"), ("frames", "temporal"))  # pairs of columns, whole numbers first

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


class MetricsError(StabnError):
    """A prediction table is unusable, or two tables cannot be compared."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Hold what a network says about N videos; k is 5, or the number of classes K if that is smaller.

    Attributes:
        video_ids: N ids, each once.
        class_index: (N,) int32, the true class in [0, K), -1 where the video has no label.
        top5: (N, k) int32, classes of the perception branch, best first.
        scores: (N, k) float32, their softmax probabilities, 0 to 1.
        loss: (N,) float32, cross-entropy of the perception branch; NaN where there is no label.
        attention_top5: (N, k) int32, the same of the attention branch; None for a network without one.
        attention_scores: (N, k) float32, their probabilities; None for a network without one.
        temporal: (N, s) float32, the temporal attention at the s frames that the network saw of a video, all clips one
            after the other; None for a network without attention, and in tables of earlier versions.
        frames: (N, s) int32, which source frames those are; None like `temporal`.
        under: by name of FRAME_MODES the best class under that attention, (N,) int32; where it was asked for.
        metadata: JSON values; `classes`, `split` and `attention` (how the attention was changed) are required,
            `checkpoint_fingerprint`, `manifest_fingerprint`, `top1`, `top5` are usual.
    """

    video_ids: tuple[str, ...]
    class_index: Ints
    top5: Ints
    scores: Floats
    loss: Floats
    attention_top5: Ints | None = None
    attention_scores: Floats | None = None
    temporal: Floats | None = None
    frames: Ints | None = None
    under: dict[str, Ints] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        missing = [key for key in ("classes", "split", "attention") if key not in self.metadata]
        if missing:
            raise MetricsError(f"predictions: metadata without {', '.join(missing)}; run the evaluation again")
        if self.attention not in ATTENTION_MODES:
            raise MetricsError(f"predictions: attention = {self.attention!r}: one of {', '.join(ATTENTION_MODES)}")
        object.__setattr__(self, "video_ids", tuple(self.video_ids))
        for name, kind in (("class_index", np.int32), ("top5", np.int32), ("scores", np.float32), ("loss", np.float32)):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=kind))
        for classes, values in OPTIONAL:
            if (getattr(self, classes) is None) != (getattr(self, values) is None):
                raise MetricsError(f"predictions: {classes} and {values} go together; give both or neither")
            if getattr(self, classes) is not None:
                object.__setattr__(self, classes, np.asarray(getattr(self, classes), dtype=np.int32))
                object.__setattr__(self, values, np.asarray(getattr(self, values), dtype=np.float32))
        self._check()

    def _check(self) -> None:
        num_videos, num_classes = len(self.video_ids), len(self.classes)
        wide = (num_videos, min(TOP, num_classes))
        shapes = {"class_index": (num_videos,), "loss": (num_videos,), "top5": wide, "scores": wide}
        if self.attention_top5 is not None:
            shapes |= {"attention_top5": wide, "attention_scores": wide}
        if self.frames is not None:
            shapes |= dict.fromkeys(("frames", "temporal"), (num_videos, *self.frames.shape[1:2]))
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise MetricsError(
                    f"predictions: {name} has shape {getattr(self, name).shape}, expected {shape} for "
                    f"{num_videos} videos and {num_classes} classes"
                )
        for name, low in (("class_index", -1), ("top5", 0), ("attention_top5", 0)):
            values = getattr(self, name)
            if values is not None and values.size and not low <= values.min() <= values.max() < num_classes:
                wrong = values.min() if values.min() < low else values.max()
                raise MetricsError(f"predictions: {name} contains class {wrong}, there are {num_classes} classes")
        check_unique(self.video_ids, "video", "predictions", "run the evaluation again", MetricsError)

    def __len__(self) -> int:
        return len(self.video_ids)

    @property
    def classes(self) -> tuple[str, ...]:
        """The K class names, ordered by index."""
        return tuple(self.metadata["classes"])

    @property
    def split(self) -> str:
        """The split the videos are from: train, validation or test."""
        return str(self.metadata["split"])

    @property
    def attention(self) -> str:
        """How the attention was changed: as_is, spatial_inverted (1 - Ms, eq. 7) or temporal_inverted."""
        return str(self.metadata["attention"])

    @property
    def predicted(self) -> Ints:
        """(N,) int32, the best class of the perception branch."""
        return self.top5[:, 0]

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """(N,) bool, whether the best class is the true one; false where there is no label."""
        return self.predicted == self.class_index

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that name the content, whatever the order of the videos."""
        order = np.argsort(np.asarray(self.video_ids, dtype=str), kind="stable")
        digest = hashlib.sha256(json.dumps(self.metadata, sort_keys=True).encode())
        digest.update("\n".join(self.video_ids[i] for i in order).encode())
        for column in (self.class_index, self.top5, self.scores):
            digest.update(np.ascontiguousarray(column[order]).tobytes())
        return digest.hexdigest()[:16]

    @property
    def videos_fingerprint(self) -> str:
        """16 hexadecimal digits that name split, videos and their classes, whatever the network and the order."""
        pairs = sorted(zip(self.video_ids, self.class_index.tolist(), strict=True))
        return hashlib.sha256(json.dumps([self.split, pairs]).encode()).hexdigest()[:16]

    def take(self, rows: npt.ArrayLike) -> "Predictions":
        """Return the videos at these rows, in this order."""
        rows = np.asarray(rows, dtype=np.int64)
        optional = {name: getattr(self, name) for pair in OPTIONAL for name in pair}
        return Predictions(
            video_ids=tuple(self.video_ids[i] for i in rows),
            class_index=self.class_index[rows],
            top5=self.top5[rows],
            scores=self.scores[rows],
            loss=self.loss[rows],
            **{name: values[rows] for name, values in optional.items() if values is not None},
            under={name: best[rows] for name, best in self.under.items()},
            metadata=self.metadata,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a Parquet file to a path or URI, whole or not at all."""
        columns = {
            "video_id": pa.array(self.video_ids, pa.string()),
            "class_index": pa.array(self.class_index),
            "top5": _lists(self.top5),
            "scores": _lists(self.scores),
        }
        optional = {name: getattr(self, name) for pair in OPTIONAL for name in pair}
        columns |= {name: _lists(values) for name, values in optional.items() if values is not None}
        columns["loss"] = pa.array(self.loss)
        columns |= {f"{UNDER}{name}": pa.array(best.astype(np.int32)) for name, best in self.under.items()}
        table = pa.table(columns).replace_schema_metadata({HEADER: json.dumps(self.metadata).encode()})
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        write_uri(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Predictions":
        """Read what `save` wrote, from a path or URI.

        Raises:
            MetricsError: the file is absent, not a prediction table, or contradicts itself.
        """
        try:
            table = parse_table(read_uri(path))
        except ObjectNotFound:
            raise MetricsError(f"{path}: no such prediction table; run the evaluation first") from None
        except pa.ArrowException as error:
            raise MetricsError(f"{path}: not a readable Parquet file ({error}); run the evaluation again") from None
        needed = {"video_id", "class_index", "top5", "scores", "loss"}
        if HEADER not in (table.schema.metadata or {}) or not needed <= set(table.column_names):
            raise MetricsError(f"{path}: not a prediction table (columns {', '.join(table.column_names)})")
        if not table.num_rows:
            raise MetricsError(
                f"{path}: a prediction table without videos; run the evaluation on a split that has some"
            )
        optional = {name for pair in OPTIONAL for name in pair} & set(table.column_names)
        try:
            return cls(
                video_ids=tuple(table["video_id"].to_pylist()),
                class_index=table["class_index"].to_numpy(),
                top5=_matrix(table["top5"]),
                scores=_matrix(table["scores"]),
                loss=table["loss"].to_numpy(),
                **{name: _matrix(table[name]) for name in optional},
                under={
                    name.removeprefix(UNDER): table[name].to_numpy()
                    for name in table.column_names
                    if name.startswith(UNDER)
                },
                metadata=parse_header(table),
            )
        except (MetricsError, pa.ArrowException, ValueError, TypeError) as error:
            raise MetricsError(f"{path}: {error}") from None


def align(before: Predictions, after: Predictions) -> Predictions:
    """Return `after` in the order of `before`'s videos.

    Raises:
        MetricsError: the class lists, the videos or their true classes differ.
    """
    if before.classes != after.classes:
        first = next(
            (f"class {i} is {a!r} and {b!r}" for i, (a, b) in enumerate(zip(before.classes, after.classes)) if a != b),
            f"{len(before.classes)} and {len(after.classes)} classes",
        )
        raise MetricsError(f"the class lists differ ({first}): evaluate both checkpoints with the same manifest")
    rows = {video_id: row for row, video_id in enumerate(after.video_ids)}
    alone = set(before.video_ids) ^ set(rows)
    if alone:
        raise MetricsError(
            f"{len(alone)} videos are in only one of the tables (for example {min(alone)}): "
            "evaluate both checkpoints on the same split of the same manifest"
        )
    aligned = after.take([rows[video_id] for video_id in before.video_ids])
    differing = np.flatnonzero(aligned.class_index != before.class_index)
    if len(differing):
        row = int(differing[0])
        raise MetricsError(
            f"video {before.video_ids[row]}: true class {before.class_index[row]} in one table and "
            f"{aligned.class_index[row]} in the other; evaluate both with the same manifest"
        )
    return aligned


def _lists(values: npt.NDArray[Any]) -> pa.Array:
    """Turn (N, k) into N lists of k values."""
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.ascontiguousarray(values).reshape(-1)))


def _matrix(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Turn N > 0 lists of k values into (N, k)."""
    values = column.combine_chunks()
    return values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), -1)
