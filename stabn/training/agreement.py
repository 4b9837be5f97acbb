"""Whether the temporal attention lies where people, or known segments, say that the action is: numbers per video."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stabn.data.edit_table import EditError, load_edit_table
from stabn.data.manifest import Manifest
from stabn.data.segments import check_segment, load_segments

INSIDE = 0.5  # from this value on, a corrected curve says that the frame belongs to the action
Known = dict[str, npt.NDArray[np.float32]]


class Agreement(NamedTuple):
    """How well a curve tells the frames of the action from the others, each 0 to 1, 1 best.

    Attributes:
        ap: average precision; by chance `ap_by_chance`.
        auc: area under the ROC curve; by chance 0.5.
        iou: of the frames inside and those above the middle of the curve's range.
        pointing: 1 if the highest frame is inside (the pointing game); by chance the share of frames inside.
        chance: the share of frames inside.
        ap_by_chance: the mean average precision over all orders of the frames; with few frames well above `chance`.
    """

    ap: float
    auc: float
    iou: float
    pointing: float
    chance: float
    ap_by_chance: float


def agreement(curve: npt.ArrayLike, known: npt.ArrayLike) -> Agreement | None:
    """Compare a curve with the frames that belong to the action.

    Args:
        curve: float (n,), the temporal attention of n frames.
        known: (n,), 1 or true inside the action, 0 or false outside, NaN where nobody says; such frames do not count.

    Returns:
        None if all frames are inside or none is: then there is nothing to tell apart.
    """
    values, says = np.asarray(curve, dtype=float), np.asarray(known, dtype=float)
    counted = ~np.isnan(says)
    values, inside = values[counted], says[counted] > 0
    if inside.all() or not inside.any():
        return None
    from sklearn.metrics import average_precision_score, roc_auc_score  # a second, which no other stage should wait

    above = values >= (values.min() + values.max()) / 2
    return Agreement(
        ap=float(average_precision_score(inside, values)),
        auc=float(roc_auc_score(inside, values)),
        iou=float((above & inside).sum() / (above | inside).sum()),
        pointing=float(inside[int(values.argmax())]),
        chance=float(inside.mean()),
        ap_by_chance=_ap_by_chance(len(inside), int(inside.sum())),
    )


def _ap_by_chance(num_frames: int, num_inside: int) -> float:
    """Return the expected average precision of a random order.

    At rank i the expected precision of a frame inside is (1 + (i - 1) (k - 1) / (n - 1)) / i; its rank is any of n.
    """
    ranks = np.arange(1, num_frames + 1)
    return float(((1 + (ranks - 1) * (num_inside - 1) / (num_frames - 1)) / ranks).mean())


def known_frames(manifest: Manifest, rows: Iterable[int], truth_uri: str) -> Known:
    """Return which source frames belong to the action, of those videos of which it is known.

    Args:
        manifest: the videos.
        rows: of the manifest, the videos that count, such as those of a split.
        truth_uri: JSON of video id to [first, last) frame; or an edit table (Parquet), people's corrections.

    Returns:
        By video id float32 (num_source,): 1 inside, 0 outside, NaN where a person has no opinion.

    Raises:
        SegmentsError, EditError: the file is no such file, or does not fit a video.
    """
    videos = [manifest.video(int(row)) for row in rows]
    known: Known = {}
    if truth_uri.endswith(".json"):
        segments = load_segments(truth_uri)
        for video in videos:
            if (segment := segments.get(video.video_id)) is not None:
                check_segment(truth_uri, video.video_id, segment, video.num_frames)
                frames = np.arange(video.num_frames)
                known[video.video_id] = ((frames >= segment[0]) & (frames < segment[1])).astype(np.float32)
        return known
    curves = load_edit_table(truth_uri)
    for video in videos:
        if (curve := curves.get(video.video_id)) is not None:
            if len(curve) != video.num_frames:
                raise EditError(
                    f"{truth_uri}: {len(curve)} values for video {video.video_id} of {video.num_frames} frames; the "
                    "frames were extracted again since, leave the video out or correct it again"
                )
            known[video.video_id] = np.where(np.isnan(curve), np.nan, curve >= INSIDE).astype(np.float32)
    return known
