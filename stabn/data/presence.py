"""Whether what a manifest points to is still there: it may outlive the frames, in KFP's cache above all."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from stabn.data.manifest import Manifest, ManifestVideo
from stabn.errors import StabnError
from stabn.storage import ObjectNotFound, Storage, StorageError, open_storage

SAMPLE = 16  # videos looked at
JPEG_END = b"\xff\xd9"
REMEDY = (
    "run extract-frames again with the same options, it decodes what is missing; on a KFP server add "
    "`--no-cache extract --no-cache merge` to `python -m pipelines submit`"
)


class FramesGone(StabnError):
    """The frames that a manifest names are not in the storage any more, or are others."""


def frames_gone(storage: Storage, video: ManifestVideo, others: str = "") -> FramesGone:
    """Return the error for a video whose object is gone."""
    return FramesGone(
        f"{storage.locate(video.object_key)}: the frames of video {video.video_id}{others} are gone, which the "
        f"manifest of extract-frames names; {REMEDY}"
    )


def check_frames(manifest: Manifest, rows: Sequence[int] | np.ndarray | None = None) -> None:
    """Look at the ends of some videos' objects, spread over the rows: a few ranged reads at once.

    Args:
        manifest: names the objects.
        rows: of the videos that will be needed; None: all.

    Raises:
        FramesGone: an object is missing or another than the manifest describes.
        RetryableError: the storage does not answer.
    """
    rows = np.arange(len(manifest)) if rows is None else np.asarray(rows)
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, SAMPLE).astype(np.int64))] if len(rows) else rows
    storage = open_storage(manifest.storage_uri)

    def is_there(row: int) -> bool:
        video = manifest.video(int(row))
        size = int(video.frame_sizes.sum(dtype=np.int64))
        try:
            return storage.read_range(video.object_key, size - 2, 2) == JPEG_END
        except ObjectNotFound:
            return False
        except StorageError as error:
            if not storage.exists(video.object_key):
                return False
            raise FramesGone(f"{error}; {REMEDY}") from None

    with ThreadPoolExecutor(8, thread_name_prefix="stabn-presence") as readers:
        found = list(readers.map(is_there, chosen))
    missing = [int(row) for row, there in zip(chosen, found, strict=True) if not there]
    if missing:
        raise frames_gone(
            storage, manifest.video(missing[0]), f" (and of {len(missing)} of the {len(chosen)} videos looked at)"
        )
