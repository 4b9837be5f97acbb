"""Frames by index, from the packed objects of the manifest: what is read of a video is kept for a while."""

import io
import threading
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stabn.attention.rounds import MANIFEST_FILE, Round, RoundError
from stabn.data.manifest import Manifest
from stabn.data.presence import check_frames
from stabn.editor.cache import Cache, Key
from stabn.storage import check_id, open_storage

BLOCK = 64  # frames that are read at once: a common video is one block, a long one is read where it is looked at
MAX_MAP_BYTES = 1 << 16  # of a frame's spatial attention, and a header
MAX_PIECE = 64  # frames of one answer


@dataclass(frozen=True)
class Packed:
    """Where a video's frames are: object and end of each JPEG in it, int64 (num_frames,)."""

    key: str
    ends: np.ndarray

    def start(self, index: int) -> int:
        """Return where a frame begins; of the frame after the last one: where the object ends."""
        return int(self.ends[index - 1]) if index else 0


class FrameStore:
    """The stored JPEG frames of a round's videos; threads may use it."""

    def __init__(self, item: Round, cache: Cache[bytes]) -> None:
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
        self._cache = cache
        self._lock = threading.Lock()
        self._reading: dict[Key, threading.Lock] = {}

    def cached(self, video_id: str, first: int, last: int) -> list[bytes] | None:
        """Return the JPEGs of frames first to last (both inclusive) if all of them are in memory."""
        packed = self._find(video_id)
        _check(video_id, packed, first, last)
        numbers = range(first // BLOCK, last // BLOCK + 1)
        found = self._cache.get(*(self._key(video_id, block) for block in numbers))
        if found is None:
            return None
        blocks = dict(zip(numbers, found, strict=True))
        return [_cut(packed, blocks[index // BLOCK], index) for index in range(first, last + 1)]

    def piece(self, video_id: str, first: int, last: int) -> list[bytes]:
        """Return the JPEGs of frames first to last (both inclusive).

        Raises:
            RoundError: no such video or frames.
        """
        packed = self._find(video_id)
        _check(video_id, packed, first, last)
        blocks = {block: self._block(video_id, block) for block in range(first // BLOCK, last // BLOCK + 1)}
        return [_cut(packed, blocks[index // BLOCK], index) for index in range(first, last + 1)]

    def jpeg(self, video_id: str, index: int) -> bytes:
        """Return a frame's JPEG.

        Raises:
            RoundError: no such video or frame.
        """
        return self.piece(video_id, index, index)[0]

    def num_frames(self, video_id: str) -> int:
        """Return how many frames a video has."""
        return len(self._find(video_id).ends)

    def frames(self, video_id: str, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return some frames, uint8 (len(indices), H, W, 3) RGB."""
        from stabn.data.dataset import decode_jpeg  # brings PyTorch, which the page does without

        return np.stack([decode_jpeg(self.jpeg(video_id, int(i)), video_id, int(i)) for i in indices])

    def spatial(self, video_id: str) -> np.ndarray:
        """Return the network's spatial attention, uint8 (num_frames, h, w)."""
        self._find(video_id)
        key = f"videos/{check_id(video_id, 'video id')}/spatial.npz"
        try:
            with zipfile.ZipFile(io.BytesIO(self.round.storage.read(key))) as archive:
                name = "spatial_attention.npy"
                if archive.getinfo(name).file_size > self.num_frames(video_id) * MAX_MAP_BYTES:
                    raise ValueError("too large")
                maps = np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)
            if maps.dtype != np.uint8 or maps.ndim != 3 or len(maps) != self.num_frames(video_id):
                raise ValueError(f"{maps.dtype} of shape {maps.shape}")
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            where = self.round.storage.locate(key)
            raise RoundError(f"{where}: unreadable ({error}); export the round again") from None
        return maps

    def _find(self, video_id: str) -> Packed:
        if video_id not in self._packed:
            raise RoundError(f"video {video_id!r:.140} is not in this round")
        return self._packed[video_id]

    def _key(self, video_id: str, block: int) -> Key:
        return self.round.uri, video_id, str(block)

    def _block(self, video_id: str, block: int) -> bytes:
        key = self._key(video_id, block)
        if found := self._cache.get(key):
            return found[0]
        with self._lock:
            reading = self._reading.setdefault(key, threading.Lock())
        with reading:  # many requests for frames of one block come at once; one of them reads it
            if found := self._cache.get(key):
                return found[0]
            packed = self._packed[video_id]
            start = packed.start(block * BLOCK)
            end = packed.start(min((block + 1) * BLOCK, len(packed.ends)))
            data = self.storage.read_range(packed.key, start, end - start)
            self._cache.put(key, data, len(data))
            with self._lock:
                self._reading.pop(key, None)
        return data


def _check(video_id: str, packed: Packed, first: int, last: int) -> None:
    if not 0 <= first <= last < len(packed.ends):
        asked = first if first == last else f"{first} to {last}"
        raise RoundError(f"video {video_id} has frames 0 to {len(packed.ends) - 1}; asked for {asked}")


def _cut(packed: Packed, data: bytes, index: int) -> bytes:
    base = packed.start(index - index % BLOCK)
    return data[packed.start(index) - base : packed.start(index + 1) - base]
