"""Objects on the local disk of a node, fetched once and shared by all its processes, up to a size limit."""

import contextlib
import errno
import hashlib
import os
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

from stabn.machine import locked
from stabn.storage import Storage, StorageError

EVICT_TO = 0.9  # of the limit, so that not every new object has to make room
SCAN_SHARE = 0.02  # of the limit may be written by a process before it looks at the whole folder again


class NodeCache:
    """A folder of whole objects, safe when several processes fill it at once; can be pickled.

    A file appears whole, by renaming. The folder is looked through under a lock from time to time, and the objects
    that were not used for longest go first. A full or read-only disk switches the cache off with one warning.

    Attributes:
        folder: where the objects lie.
        limit: bytes that they may take; the limit may be exceeded by what is written between two looks (4%).
    """

    def __init__(self, folder: str | os.PathLike[str], limit: int) -> None:
        self.folder, self.limit = Path(folder), limit
        self._unchecked = self.limit  # the first write looks at what is there
        self._off = False

    def read_range(self, storage: Storage, key: str, size: int, version: str, start: int, length: int) -> bytes:
        """Return bytes of an object that has `size` bytes, from the disk if they are there.

        Args:
            storage: where the object is.
            key: its name there.
            size: its bytes; a file of another size is fetched again.
            version: changes with the object's content, such as the SHA-256 of its source.
            start, length: which bytes.

        Raises:
            StorageError: see `Storage.read_range`.
        """
        if self._off or size > self.limit * EVICT_TO:
            return storage.read_range(key, start, length)
        path = self._path(storage.locate(key), version)
        with contextlib.suppress(OSError), open(path, "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size == size:
                data = os.pread(file.fileno(), length, start)
                if len(data) == length:
                    os.utime(path)  # the time of the last use
                    return data
        data = storage.read_range(key, 0, size)
        self._keep(path, data)
        return data[start : start + length]

    def _path(self, uri: str, version: str) -> Path:
        name = hashlib.sha256(f"{uri}\n{version}".encode()).hexdigest()
        return self.folder / name[:2] / name[2:]

    def _keep(self, path: Path, data: bytes) -> None:
        try:
            self._unchecked += len(data)
            if self._unchecked > self.limit * SCAN_SHARE:
                self._make_room(len(data))
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".part-{uuid.uuid4().hex}")
            try:
                partial.write_bytes(data)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            self._off = True
            full = " (the disk is full)" if error.errno == errno.ENOSPC else ""
            warnings.warn(
                f"{self.folder}: the cache cannot be written: {error.strerror}{full}; frames are read from the storage",
                stacklevel=2,
            )

    def _make_room(self, needed: int) -> None:
        """Delete what was not used for longest, if the objects take more than the limit."""
        with self._lock():
            found = []
            for path in self.folder.glob("*/*"):
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    found.append((status.st_mtime_ns, status.st_size, path))
            total = sum(size for _, size, _ in found)
            if total + needed > self.limit:
                for _, size, path in sorted(found):
                    if total + needed <= self.limit * EVICT_TO:
                        break
                    path.unlink(missing_ok=True)
                    total -= size
        self._unchecked = 0

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with locked(self.folder / "lock"):
            yield


def open_cache(folder: str, limit_gb: float) -> NodeCache | None:
    """Return the cache of the settings `data.cache_dir` and `data.cache_gb`; None without a folder.

    Raises:
        StorageError: the folder is not a local one.
    """
    if not folder:
        return None
    if "://" in folder:
        raise StorageError(f"data.cache_dir = {folder!r}: give a folder on a local disk")
    return NodeCache(folder, int(limit_gb * 1e9))
