"""What every storage can do, and its errors, which name the object."""

import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import IO, NamedTuple, Self

from stabn.errors import StabnError

CHUNK_BYTES = 1 << 20
PARTIAL = ".part-"  # how the names of unfinished files in a folder begin; no key may use it

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class StorageError(StabnError):
    """An object cannot be read or written, and trying again will not help."""


class ObjectNotFound(StorageError):
    """No object has that name."""


class ObjectExists(StorageError):
    """An object has that name already, and the write asked for a new one."""


class NotSupported(StorageError):
    """The store does not know such a request."""


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
    def __init__(self, uri: str) -> None:
        """Nothing is contacted yet; StorageError if the URI is malformed."""

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
    def folders(self, prefix: str = "") -> tuple[str, ...]:
        """Return the names of what lies one level below a prefix that is empty or ends with a slash, sorted."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; it is no error if there is none."""

    @abstractmethod
    def download(self, key: str, path: str | os.PathLike[str]) -> None:
        """Copy an object into a local file, whole or not at all, without holding it in memory."""

    @abstractmethod
    def upload(self, path: str | os.PathLike[str], key: str) -> None:
        """Copy a local file into an object, whole or not at all, without holding it in memory."""

    def now(self) -> float:
        """Return the time in seconds since 1970, by a clock that all who use this storage have in common."""
        return time.time()

    @property
    def is_kept_apart(self) -> bool:
        """Whether `keep_new_writes_apart` was asked for."""
        return False

    @abstractmethod
    def keep_new_writes_apart(self) -> None:
        """Let this process itself refuse to replace an object with `if_absent`, for a store that would do it.

        For all objects of the store, and among the threads of this process alone: no other may write there meanwhile.
        """

    def child(self, prefix: str) -> Self:
        """Return the storage of the keys below `prefix/`."""
        return type(self)(self.locate(prefix.removesuffix("/")))

    def locate(self, key: str) -> str:
        """Return the URI of an object."""
        return f"{self.uri}/{check_key(key, self.uri)}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.uri == self.uri  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash(self.uri)


def check_key(key: str, uri: str, what: str = "key") -> str:
    """Return the key if it stays below its storage on every kind of storage, else raise StorageError."""
    segments = key.split("/")
    if any(part in ("", ".", "..") or part.startswith(PARTIAL) for part in segments) or re.search(
        r"[\\\x00-\x1f]", key
    ):
        raise StorageError(f"{uri}: {what} {key!r}: use names separated by single '/', none of them empty, '.' or '..'")
    return key


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


def open_local(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a local file that is to be uploaded; StorageError if it cannot be read."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise StorageError(f"{os.fspath(path)}: cannot be uploaded: {error.strerror}") from None
