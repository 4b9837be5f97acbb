"""Objects in a folder or in S3, behind one interface: whole writes, ranged reads, errors that name the object.

This module has the interface, folders and the conveniences on single objects; S3 is in s3.py.
"""

import contextlib
import errno
import os
import re
import shutil
import urllib.parse
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from stabn.errors import RetryableError, StabnError

CHUNK_BYTES = 1 << 20
PARTIAL = ".part-"  # how the names of unfinished files in a folder begin; no key may use it

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_RETRYABLE_ERRNO = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR, errno.EAGAIN, errno.EBUSY}


class StorageError(StabnError):
    """An object cannot be read or written, and trying again will not help."""


class ObjectNotFound(StorageError):
    """No object has that name."""


class ObjectExists(StorageError):
    """An object has that name already, and the write asked for a new one."""


def check_id(name: str, what: str) -> str:
    """Return the name if it is safe as a part of a key or file name.

    Args:
        name: a video id, class id or round id from a file or a request.
        what: what it names, for the message, like "video id".

    Raises:
        StorageError: anything but 1 to 128 letters, digits, `.`, `_` and `-`, the first a letter or digit.
    """
    if not isinstance(name, str) or not _ID.fullmatch(name):
        raise StorageError(
            f"{what} {name!r}: use 1 to 128 letters, digits, '.', '_' or '-', beginning with a letter or digit"
        )
    return name


class ObjectInfo(NamedTuple):
    """What a listing tells of an object: its key, its bytes, and a stamp that changes with its content."""

    key: str
    size: int
    stamp: str


class Storage(ABC):
    """A folder or S3 prefix holding objects under keys like `videos/74225.mjpeg`.

    Instances hold only strings: they can be pickled, used from threads and used after a fork.

    Attributes:
        uri: where it is, `s3://bucket/prefix` or an absolute folder path, without a slash at the end.
    """

    uri: str

    @abstractmethod
    def read(self, key: str) -> bytes:
        """Return an object's bytes.

        Raises:
            ObjectNotFound: there is no such object.
            RetryableError: the storage did not answer in spite of several attempts.
        """

    @abstractmethod
    def read_range(self, key: str, start: int, length: int) -> bytes:
        """Return exactly `length` bytes of an object from the byte `start` on.

        Raises:
            ObjectNotFound: there is no such object.
            StorageError: the object ends before `start + length`.
        """

    @abstractmethod
    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        """Store an object whole or not at all; an interrupted write leaves the former object.

        Args:
            key: the object's name.
            data: its bytes.
            if_absent: refuse to replace an object; of several simultaneous writers exactly one succeeds.

        Raises:
            ObjectExists: `if_absent`, and there is such an object.
        """

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Tell whether there is such an object."""

    @abstractmethod
    def scan(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose keys begin with the prefix, sorted by key."""

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys that begin with the prefix, sorted."""
        for info in self.scan(prefix):
            yield info.key

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; it is no error if there is none."""

    @abstractmethod
    def download(self, key: str, path: str | os.PathLike[str]) -> None:
        """Copy an object into a local file, whole or not at all, without holding it in memory."""

    @abstractmethod
    def upload(self, path: str | os.PathLike[str], key: str) -> None:
        """Copy a local file into an object, whole or not at all, without holding it in memory."""

    def child(self, prefix: str) -> "Storage":
        """Return the storage of the keys below `prefix/`."""
        return open_storage(self.locate(prefix.removesuffix("/")))

    def locate(self, key: str) -> str:
        """Return the URI of an object."""
        return f"{self.uri}/{check_key(key, self.uri)}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.uri == self.uri  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash(self.uri)


def open_storage(uri: str | os.PathLike[str]) -> Storage:
    """Return the storage at `s3://bucket/prefix`, `file:///folder` or a folder path; nothing is contacted yet.

    Raises:
        StorageError: another scheme, an empty URI or a malformed prefix.
    """
    text = os.fspath(uri)
    scheme, separator, rest = text.partition("://")
    if not separator:
        if not text:
            raise StorageError("'': give a folder or s3://bucket/prefix")
        return FolderStorage(text)
    if scheme == "s3":
        from stabn.s3 import S3Storage  # brings boto3, which folders do not need

        return S3Storage(text)
    if scheme == "file" and rest.startswith("/"):
        return FolderStorage(urllib.parse.unquote(rest))
    raise StorageError(f"{text}: unknown kind of storage; use s3://bucket/prefix, file:///folder or a folder path")


def check_key(key: str, uri: str, what: str = "key") -> str:
    """Return the key if it stays below its storage on every kind of storage, else raise StorageError."""
    segments = key.split("/")
    if any(part in ("", ".", "..") or part.startswith(PARTIAL) for part in segments) or re.search(
        r"[\\\x00-\x1f]", key
    ):
        raise StorageError(f"{uri}: {what} {key!r}: use names separated by single '/', none of them empty, '.' or '..'")
    return key


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
        folder = prefix.rpartition("/")[0]
        if folder:
            check_key(folder, self.uri, "prefix")
        found = []
        for parent, _, names in os.walk(os.path.join(self.uri, folder)):
            relative = os.path.relpath(parent, self.uri)
            for name in names:
                key = os.path.normpath(os.path.join(relative, name))
                if key.startswith(prefix) and not name.startswith(PARTIAL):
                    with contextlib.suppress(FileNotFoundError):  # gone since
                        status = os.stat(os.path.join(parent, name))
                        found.append(ObjectInfo(key, status.st_size, f"{status.st_mtime_ns} {status.st_ino}"))
        yield from sorted(found)

    def delete(self, key: str) -> None:
        with self._errors(key):
            self._path(key).unlink(missing_ok=True)

    def download(self, key: str, path: str | os.PathLike[str]) -> None:
        with self._errors(key), open(self._path(key), "rb") as source:
            write_file(Path(path), lambda file: shutil.copyfileobj(source, file, CHUNK_BYTES))

    def upload(self, path: str | os.PathLike[str], key: str) -> None:
        with open_local(path) as source, self._errors(key):
            write_file(self._path(key), lambda file: shutil.copyfileobj(source, file, CHUNK_BYTES))

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
            os.link(partial, path)
        else:
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def open_local(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a local file that is to be uploaded; StorageError if it cannot be read."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise StorageError(f"{os.fspath(path)}: cannot be uploaded: {error.strerror}") from None


def check_range(uri: str, start: int, length: int) -> None:
    """Raise StorageError unless start and length can be a range of bytes."""
    if start < 0 or length < 0:
        raise StorageError(f"{uri}: bytes {start} to {start + length} asked for; start and length must not be negative")


def check_length(uri: str, data: bytes, start: int, length: int) -> bytes:
    """Return the bytes of a range if all arrived, else raise StorageError."""
    if len(data) != length:
        raise StorageError(
            f"{uri}: ends at byte {start + len(data)}, but bytes {start} to {start + length} were asked for; "
            "the object is not the one its index describes: write it again"
        )
    return data


def read_uri(uri: str | os.PathLike[str]) -> bytes:
    """Return the bytes of one object, file or URI."""
    storage, key = _split(uri)
    return storage.read(key)


def write_uri(uri: str | os.PathLike[str], data: bytes) -> None:
    """Store one object whole or not at all."""
    storage, key = _split(uri)
    storage.write(key, data)


def fetch(uri: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Copy one object into a local file, whole or not at all."""
    storage, key = _split(uri)
    storage.download(key, path)


def uri_exists(uri: str | os.PathLike[str]) -> bool:
    """Tell whether there is such an object or file."""
    storage, key = _split(uri)
    return storage.exists(key)


def _split(uri: str | os.PathLike[str]) -> tuple[Storage, str]:
    """Return the storage that holds a single object, and the object's key in it."""
    text = os.fspath(uri)
    if "://" not in text:
        text = os.path.abspath(text) if text and not text.endswith("/") else text
    parent, _, name = text.rpartition("/")
    if not name or parent in ("s3:/", "file:/"):
        raise StorageError(f"{text!r}: names no object; write s3://bucket/key or the path of a file")
    storage = open_storage(parent if parent.strip("/") and parent != "file://" else f"{parent}/")
    return storage, urllib.parse.unquote(name) if text.startswith("file://") else name
