"""Frames by index, from the packed objects of the manifest: a video is read once and kept for a while."""

import io
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stabn.attention.rounds import MANIFEST_FILE, Round, RoundError
from stabn.data.manifest import Manifest
from stabn.data.presence import check_frames
from stabn.storage import check_id, open_storage


@dataclass(frozen=True)
class Packed:
    """Where a video's frames are: object and end of each JPEG in it, int64 (num_frames,)."""

    key: str
    ends: np.ndarray


class FrameStore:
    """The stored JPEG frames of a round's videos; threads may use it."""

    def __init__(self, item: Round, cache_mb: int) -> None:
        self.round = item
        manifest = Manifest.load(item.storage.locate(MANIFEST_FILE))
        if manifest.fingerprint != item.manifest_fingerprint:
            raise RoundError(f"{item.uri}/{MANIFEST_FILE}: not the round's manifest; export the round again")
        self.storage = open_storage(manifest.storage_uri)
        check_frames(manifest, [manifest.index_of(video.video_id) for video in item.videos])
        self._packed: dict[str, Packed] = {}
        for video in item.videos:
            row = manifest.video(manifest.index_of(video.video_id))
            self._packed[video.video_id] = Packed(row.object_key, np.cumsum(row.frame_sizes, dtype=np.int64))
        self._cache: OrderedDict[str, bytes] = OrderedDict()
        self._room = cache_mb * 2**20
        self._lock = threading.Lock()
        self._reading: dict[str, threading.Lock] = {}

    def cached(self, video_id: str, index: int) -> bytes | None:
        """Return a frame's JPEG if the video is in memory."""
        with self._lock:
            data = self._cache.get(video_id)
            if data is None:
                return None
            self._cache.move_to_end(video_id)
        return self._cut(video_id, data, index)

    def jpeg(self, video_id: str, index: int) -> bytes:
        """Return a frame's JPEG.

        Raises:
            RoundError: no such video or frame.
        """
        return self._cut(video_id, self._bytes(video_id), index)

    def num_frames(self, video_id: str) -> int:
        """Return how many frames a video has."""
        return len(self._find(video_id).ends)

    def frames(self, video_id: str, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return some frames, uint8 (len(indices), H, W, 3) RGB."""
        from stabn.data.dataset import decode_jpeg  # brings PyTorch, which the page does without

        data = self._bytes(video_id)
        return np.stack([decode_jpeg(self._cut(video_id, data, int(i)), video_id, int(i)) for i in indices])

    def spatial(self, video_id: str) -> np.ndarray:
        """Return the network's spatial attention, uint8 (num_frames, h, w)."""
        self._find(video_id)
        data = self.round.storage.read(f"videos/{check_id(video_id, 'video id')}/spatial.npz")
        return np.load(io.BytesIO(data), allow_pickle=False)["spatial_attention"]

    def _find(self, video_id: str) -> Packed:
        if video_id not in self._packed:
            raise RoundError(f"video {video_id!r:.140} is not in this round")
        return self._packed[video_id]

    def _cut(self, video_id: str, data: bytes, index: int) -> bytes:
        ends = self._find(video_id).ends
        if not 0 <= index < len(ends):
            raise RoundError(f"video {video_id} has frames 0 to {len(ends) - 1}; asked for {index}")
        return data[int(ends[index - 1]) if index else 0 : int(ends[index])]

    def _bytes(self, video_id: str) -> bytes:
        packed = self._find(video_id)
        with self._lock:
            if video_id in self._cache:
                self._cache.move_to_end(video_id)
                return self._cache[video_id]
            reading = self._reading.setdefault(video_id, threading.Lock())
        with reading:  # many requests for frames of one video come at once; one of them reads it
            with self._lock:
                if video_id in self._cache:
                    return self._cache[video_id]
            data = self.storage.read_range(packed.key, 0, int(packed.ends[-1]))
            with self._lock:
                self._cache[video_id] = data
                while sum(map(len, self._cache.values())) > self._room and len(self._cache) > 1:
                    self._cache.popitem(last=False)
                self._reading.pop(video_id, None)
        return data
