"""Objects as files below a folder."""

import contextlib
import errno
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from stabn.errors import RetryableError
from stabn.storage.interface import (
    CHUNK_BYTES,
    PARTIAL,
    ObjectExists,
    ObjectInfo,
    ObjectNotFound,
    Storage,
    StorageError,
    check_key,
    check_length,
    check_range,
    open_local,
)

LOOK_SECONDS = 0.02
LEFT_SECONDS = 10.0  # after which who was about to give a name has died: it takes milliseconds

_NO_LINKS_ERRNO = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
_RETRYABLE_ERRNO = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR, errno.EAGAIN, errno.EBUSY}


class FolderStorage(Storage):
    """Objects as files below a folder, which is made with the first write."""

    def __init__(self, folder: str | os.PathLike[str]):
        self.uri = os.path.abspath(os.fspath(folder))

    def read(self, key: str) -> bytes:
        with self._errors(key), open(self._path(key), "rb") as file:
            return file.read()

    def read_range(self, key: str, start: int, length: int) -> bytes:
        check_range(self.locate(key), start, length)
        with self._errors(key), open(self._path(key), "rb", buffering=0) as file:
            data = os.pread(file.fileno(), length, start)
            while len(data) < length and (more := os.pread(file.fileno(), length - len(data), start + len(data))):
                data += more
        return check_length(self.locate(key), data, start, length)

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        with self._errors(key):
            write_file(self._path(key), lambda file: file.write(data), if_absent=if_absent)

    def exists(self, key: str) -> bool:
        with self._errors(key):
            return self._path(key).is_file()

    def scan(self, prefix: str = "") -> Iterator[ObjectInfo]:
        folder, _, beginning = prefix.rpartition("/")
        if folder:
            check_key(folder, self.uri, "prefix")
        found, top = [], os.path.join(self.uri, folder)
        for parent, folders, names in os.walk(top):
            if parent == top:
                folders[:] = [name for name in folders if name.startswith(beginning)]
            relative = os.path.relpath(parent, self.uri)
            for name in names:
                key = os.path.normpath(os.path.join(relative, name))
                if key.startswith(prefix) and not name.startswith(PARTIAL):
                    with contextlib.suppress(FileNotFoundError):  # gone since
                        status = os.stat(os.path.join(parent, name))
                        found.append(ObjectInfo(key, status.st_size, f"{status.st_mtime_ns} {status.st_ino}"))
        yield from sorted(found)

    def folders(self, prefix: str = "") -> tuple[str, ...]:
        folder = prefix.removesuffix("/")
        if folder:
            check_key(folder, self.uri, "prefix")
        try:
            with os.scandir(os.path.join(self.uri, folder)) as entries:
                return tuple(sorted(entry.name for entry in entries if entry.is_dir()))
        except (FileNotFoundError, NotADirectoryError):
            return ()

    def delete(self, key: str) -> None:
        with self._errors(key):
            self._path(key).unlink(missing_ok=True)

    def download(self, key: str, path: str | os.PathLike[str]) -> None:
        with self._errors(key), open(self._path(key), "rb") as source:
            write_file(Path(path), lambda file: shutil.copyfileobj(source, file, CHUNK_BYTES))

    def upload(self, path: str | os.PathLike[str], key: str) -> None:
        with open_local(path) as source, self._errors(key):
            write_file(self._path(key), lambda file: shutil.copyfileobj(source, file, CHUNK_BYTES))

    def keep_new_writes_apart(self) -> None:
        """Do nothing: file systems keep this promise."""

    def _path(self, key: str) -> Path:
        return Path(self.locate(key))

    @contextlib.contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        uri = self.locate(key)
        try:
            yield
        except FileExistsError:
            raise ObjectExists(f"{uri}: exists already") from None
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            if os.path.isdir(uri) or not os.path.exists(uri):
                raise ObjectNotFound(f"{uri}: no such file") from None
            raise StorageError(f"{uri}: {error}") from error
        except OSError as error:
            kind = RetryableError if error.errno in _RETRYABLE_ERRNO else StorageError
            raise kind(f"{uri}: {error.strerror or error}; check the folder's rights and free space") from error


def write_file(path: Path, fill: Callable[[IO[bytes]], Any], *, if_absent: bool = False) -> None:
    """Make a file appear whole: fill a neighbour, flush it to the disk, give it the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f"{PARTIAL}{uuid.uuid4().hex}"
    try:
        with open(partial, "xb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        if if_absent:
            _give_new_name(partial, path)
        else:
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _give_new_name(partial: Path, path: Path) -> None:
    """Give a file a name that no file has; FileExistsError if one has it."""
    try:
        os.link(partial, path)
    except OSError as error:
        if error.errno not in _NO_LINKS_ERRNO:
            raise
        with _token(path):  # mounted buckets and memory cards have no links
            if path.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
            os.replace(partial, path)


@contextlib.contextmanager
def _token(path: Path) -> Iterator[None]:
    """Hold the file that says that somebody gives a name; one that a killed process has left is taken away."""
    token, seen, since = path.with_name(f"{PARTIAL}new-{path.name}"), 0, time.monotonic()
    while True:
        try:
            os.close(os.open(token, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            break
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):  # given back meanwhile
                now = token.stat().st_mtime_ns  # compared with itself: the clock of the disk may be another
                if now != seen:
                    seen, since = now, time.monotonic()
                elif time.monotonic() - since > LEFT_SECONDS:
                    os.replace(token, left := path.with_name(f"{PARTIAL}{uuid.uuid4().hex}"))  # of several, by one
                    left.unlink()
            time.sleep(LOOK_SECONDS)
    try:
        yield
    finally:
        token.unlink(missing_ok=True)
