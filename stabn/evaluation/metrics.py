"""The prediction table of one network on one split, and every number computed from it."""

import hashlib
import io
import json
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from stabn.errors import StabnError
from stabn.parquet import parse_table
from stabn.storage import ObjectNotFound, read_uri, write_uri

METADATA_KEY = b"stabn"
ATTENTION_MODES = ("as_is", "spatial_inverted", "temporal_inverted")
TOP = 5

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
        if (self.attention_top5 is None) != (self.attention_scores is None):
            raise MetricsError("predictions: attention_top5 and attention_scores go together; give both or neither")
        if self.attention_top5 is not None:
            object.__setattr__(self, "attention_top5", np.asarray(self.attention_top5, dtype=np.int32))
            object.__setattr__(self, "attention_scores", np.asarray(self.attention_scores, dtype=np.float32))
        self._check()

    def _check(self) -> None:
        num_videos, num_classes = len(self.video_ids), len(self.classes)
        wide = (num_videos, min(TOP, num_classes))
        shapes = {"class_index": (num_videos,), "loss": (num_videos,), "top5": wide, "scores": wide}
        if self.attention_top5 is not None:
            shapes |= {"attention_top5": wide, "attention_scores": wide}
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
        if len(set(self.video_ids)) != num_videos:
            names, counts = np.unique(self.video_ids, return_counts=True)
            raise MetricsError(f"predictions: video {names[counts.argmax()]} appears {counts.max()} times")

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

    def take(self, rows: npt.ArrayLike) -> "Predictions":
        """Return the videos at these rows, in this order."""
        rows = np.asarray(rows, dtype=np.int64)
        has_attention = self.attention_top5 is not None and self.attention_scores is not None
        return Predictions(
            video_ids=tuple(self.video_ids[i] for i in rows),
            class_index=self.class_index[rows],
            top5=self.top5[rows],
            scores=self.scores[rows],
            loss=self.loss[rows],
            attention_top5=self.attention_top5[rows] if has_attention else None,  # type: ignore[index]
            attention_scores=self.attention_scores[rows] if has_attention else None,  # type: ignore[index]
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
        if self.attention_top5 is not None and self.attention_scores is not None:
            columns |= {
                "attention_top5": _lists(self.attention_top5),
                "attention_scores": _lists(self.attention_scores),
            }
        columns["loss"] = pa.array(self.loss)
        table = pa.table(columns).replace_schema_metadata({METADATA_KEY: json.dumps(self.metadata).encode()})
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
        metadata = (table.schema.metadata or {}).get(METADATA_KEY)
        needed = {"video_id", "class_index", "top5", "scores", "loss"}
        if metadata is None or not needed <= set(table.column_names):
            raise MetricsError(f"{path}: not a prediction table (columns {', '.join(table.column_names)})")
        if not table.num_rows:
            raise MetricsError(
                f"{path}: a prediction table without videos; run the evaluation on a split that has some"
            )
        has_attention = "attention_top5" in table.column_names
        try:
            return cls(
                video_ids=tuple(table["video_id"].to_pylist()),
                class_index=table["class_index"].to_numpy(),
                top5=_matrix(table["top5"]),
                scores=_matrix(table["scores"]),
                loss=table["loss"].to_numpy(),
                attention_top5=_matrix(table["attention_top5"]) if has_attention else None,
                attention_scores=_matrix(table["attention_scores"]) if has_attention else None,
                metadata=json.loads(metadata),
            )
        except (MetricsError, ValueError) as error:
            raise MetricsError(f"{path}: {error}") from None


def _lists(values: npt.NDArray[Any]) -> pa.Array:
    """Turn (N, k) into N lists of k values."""
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.ascontiguousarray(values).reshape(-1)))


def _matrix(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Turn N > 0 lists of k values into (N, k)."""
    values = column.combine_chunks()
    return values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), -1)


def _hits(predictions: Predictions, k: int, branch: str = "perception") -> npt.NDArray[np.bool_]:
    """(N,) bool, whether the true class is among the k best.

    Raises:
        MetricsError: no videos, videos without labels, or a branch that the network does not have.
    """
    if branch not in ("perception", "attention"):
        raise MetricsError(f"branch = {branch!r}: choose perception or attention")
    top5 = predictions.top5 if branch == "perception" else predictions.attention_top5
    if top5 is None:
        raise MetricsError("the network of these predictions has no attention branch")
    if not len(predictions):
        raise MetricsError(f"no predictions for split {predictions.split}: an accuracy needs at least one video")
    if predictions.class_index.min() < 0:
        unlabelled = predictions.video_ids[int(predictions.class_index.argmin())]
        raise MetricsError(
            f"video {unlabelled} of split {predictions.split} has no label: evaluate train or validation"
        )
    if not 1 <= k <= TOP:
        raise MetricsError(f"k = {k}: the prediction table holds the {TOP} best classes")
    return (top5[:, :k] == predictions.class_index[:, None]).any(axis=1)


def topk_accuracy(predictions: Predictions, k: int, branch: str = "perception") -> float:
    """Return the share of videos whose true class is among the k best of a branch, 0 to 1."""
    return float(_hits(predictions, k, branch).mean())


def per_class_accuracy(predictions: Predictions) -> pd.DataFrame:
    """Return one row per class, by index: name, support (videos), top1 and top5 (0 to 1, NaN without videos)."""
    num_classes = len(predictions.classes)
    hits = {name: _hits(predictions, k) for name, k in (("top1", 1), ("top5", TOP))}
    support = np.bincount(predictions.class_index, minlength=num_classes)
    shares = {}
    for name, hit in hits.items():
        counts = np.bincount(predictions.class_index, weights=hit, minlength=num_classes)
        shares[name] = np.divide(counts, support, out=np.full(num_classes, np.nan), where=support > 0)
    index = pd.RangeIndex(num_classes, name="class_index")
    return pd.DataFrame({"name": predictions.classes, "support": support.astype(np.int64), **shares}, index=index)


def confusion_matrix(predictions: Predictions) -> npt.NDArray[np.int64]:
    """Return (K, K) int64: row the true class, column the predicted one, value the number of videos."""
    _hits(predictions, 1)
    num_classes = len(predictions.classes)
    cells = predictions.class_index.astype(np.int64) * num_classes + predictions.predicted
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes).astype(np.int64)


class GroupAccuracy(NamedTuple):
    """Top-1 of Table 2's columns, 0 to 1; NaN where a group has no videos."""

    selected: float
    others: float
    all: float
    num_selected_classes: int
    num_other_classes: int
    num_selected_videos: int
    num_other_videos: int


def in_classes(predictions: Predictions, classes: Collection[int]) -> npt.NDArray[np.bool_]:
    """Return (N,) bool, whether a video's true class is one of these.

    Raises:
        MetricsError: a class index that does not exist.
    """
    unknown = sorted(set(classes) - set(range(len(predictions.classes))))
    if unknown:
        raise MetricsError(f"class {unknown[0]} was selected, but there are {len(predictions.classes)} classes")
    return np.isin(predictions.class_index, list(classes))


def group_accuracy(predictions: Predictions, selected: Collection[int]) -> GroupAccuracy:
    """Return top-1 over the videos of the selected classes, of all other classes, and of all (Table 2)."""
    hits, chosen = _hits(predictions, 1), in_classes(predictions, selected)
    return GroupAccuracy(
        selected=float(hits[chosen].mean()) if chosen.any() else float("nan"),
        others=float(hits[~chosen].mean()) if (~chosen).any() else float("nan"),
        all=float(hits.mean()),
        num_selected_classes=len(set(selected)),
        num_other_classes=len(predictions.classes) - len(set(selected)),
        num_selected_videos=int(chosen.sum()),
        num_other_videos=int((~chosen).sum()),
    )


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


class Difference(NamedTuple):
    """Top-k after minus top-k before, as shares: observed, its interval, and how often a resample is not better."""

    mean: float
    low: float
    high: float
    p_not_better: float


def paired_bootstrap(
    before: Predictions,
    after: Predictions,
    seed: int = 0,
    samples: int = 2000,
    k: int = 1,
    confidence: float = 0.95,
) -> Difference:
    """Estimate how certain a difference in top-k is by resampling the videos that both networks saw.

    A resample of N videos is only three counts (became right, became wrong, unchanged), which are multinomial; drawing
    those is the same bootstrap without touching N videos per sample.

    Raises:
        MetricsError: the tables are not of the same videos and classes.
    """
    change = _hits(align(before, after), k).astype(np.int64) - _hits(before, k)
    num_videos, won, lost = len(change), int((change > 0).sum()), int((change < 0).sum())
    shares = np.array([won, lost, num_videos - won - lost]) / num_videos
    counts = np.random.default_rng(seed).multinomial(num_videos, shares, size=samples)
    differences = (counts[:, 0] - counts[:, 1]) / num_videos
    tail = 50 * (1 - confidence)
    low, high = np.percentile(differences, [tail, 100 - tail])
    return Difference((won - lost) / num_videos, float(low), float(high), float((differences <= 0).mean()))


def wins(
    before: Predictions,
    after: Predictions,
    *,
    metric: str = "top1",
    confidence: float = 0.95,
    samples: int = 2000,
    max_class_drop: float = 0.2,
    min_support: int = 10,
    seed: int = 0,
) -> tuple[bool, str]:
    """Decide whether `after` may replace `before`, and say why in one sentence.

    It must beat `before` in the metric by more than noise (the lower bound of the interval is above 0), and no class
    with at least `min_support` videos may fall by more than `max_class_drop` (0 to 1) in top-1.
    """
    gain = paired_bootstrap(before, after, seed, samples, {"top1": 1, "top5": 5}[metric], confidence)
    found = (
        f"{metric.replace('top', 'top-')} changed by {points(gain.mean)} points "
        f"({100 * confidence:g}% interval {points(gain.low)} to {points(gain.high)})"
    )
    if gain.low <= 0:
        return False, f"Not better by more than noise: {found}."
    old, new = per_class_accuracy(before), per_class_accuracy(after)
    change = (new["top1"] - old["top1"])[old["support"] >= min_support]
    # The tolerance keeps a fall of exactly the limit, such as 0.9 - 0.7, on the allowed side.
    if len(change) and change.min() < -max_class_drop - 1e-9:
        row = int(change.to_numpy().argmin())
        worst = change.index[row]
        return False, (
            f"Better overall ({found}), but {old['name'][worst]!r} fell by {-100 * change[worst]:.1f} points on "
            f"{old['support'][worst]} videos, more than the {100 * max_class_drop:.0f} allowed."
        )
    return True, f"Better by more than noise: {found}; no class fell by more than {100 * max_class_drop:.0f} points."


def points(share: float) -> str:
    """Return a difference of shares in percentage points with its sign, `+1.9` or `−0.4`."""
    value = round(100 * share, 1)
    return f"{value:+.1f}".replace("-", "−") if value else "0.0"
