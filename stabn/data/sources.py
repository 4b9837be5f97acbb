"""Where the source videos are: a folder or prefix of files, or the dataset's own archive, read without unpacking it."""

import gzip
import io
import re
import tarfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from stabn.config import fingerprint
from stabn.errors import StabnError
from stabn.storage import ObjectInfo, Storage, open_storage

SUFFIXES = (
    ".webm",
    ".mp4",
    ".m4v",
    ".mov",
    ".3gp",
    ".mkv",
    ".avi",
    ".ts",
    ".mts",
    ".m2ts",
    ".flv",
    ".ogv",
)  # in any case
MAX_HEADER_BYTES = 1 << 20  # of a file's name and attributes in an archive
HEADERS = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
)  # fmt: skip
BLOCK_BYTES = 8 << 20  # of an archive, fetched at once

_PART = re.compile(r"(?P<stem>[^/]+)-(?P<number>\d\d)")  # 20bn-something-something-v2-00
_SINGLE = re.compile(r"[^/]+\.(tar|tar\.gz|tgz)")


class SourceError(StabnError):
    """There are no videos at a place, or its archive is incomplete."""


class SourceVideo(NamedTuple):
    """One video of a source.

    Attributes:
        video_id: see `file_id`; not yet checked. Several files may have one.
        path: below the source's place, with its suffix; `read` takes it.
        size: bytes.
        stamp: changes when the file does; equal stamps need no second look at the content.
        data: its bytes, if the source had them in hand (archives); else None: ask `read`.
    """

    video_id: str
    path: str
    size: int
    stamp: str
    data: bytes | None


class VideoSource(ABC):
    """Video files. Can be pickled."""

    uri: str

    @abstractmethod
    def videos(self, wanted: Callable[[str, str, int], bool]) -> Iterator[SourceVideo]:
        """Yield every file once; `wanted(video_id, stamp, size)` tells whether its bytes are needed."""

    @abstractmethod
    def read(self, path: str) -> bytes:
        """Return the bytes of a file that came without them."""


def is_video(path: str) -> bool:
    """Return whether a path below a source is a video's: not what macOS and Windows leave beside (`._1.webm`)."""
    parts = path.split("/")
    return path.lower().endswith(SUFFIXES) and "__MACOSX" not in parts and not any(p.startswith(".") for p in parts)


def file_id(path: str) -> str:
    """Return the id of a video whose labels are by id: the file's name without its folder and suffix."""
    return path.rpartition("/")[2].rpartition(".")[0]


def open_source(uri: str, id_of: Callable[[str], str] = file_id) -> VideoSource:
    """Look at what is in a folder or prefix: video files, also in folders below, or an archive, whole or in parts.

    Args:
        uri: the folder or prefix.
        id_of: gives the id of the video at a path; can be pickled.

    Raises:
        SourceError: neither, or parts of the archive are missing.
    """
    storage = open_storage(uri)
    found = list(storage.scan())
    if files := [info for info in found if is_video(info.key)]:
        return FileSource(storage, files, id_of)
    if parts := _archive_parts(uri, found):
        return ArchiveSource(storage, parts, id_of)
    raise SourceError(
        f"{uri}: no videos ({', '.join(SUFFIXES)}) and no archive (20bn-something-something-v2-00, …) in it; "
        "check the place"
    )


def dataset_fingerprint(videos_uri: str, labels_uri: str, version: str = "") -> str:
    """Return 16 hexadecimal digits that change when a video or a label file does, from the listings alone.

    Args:
        videos_uri: folder or prefix of the videos or their archive.
        labels_uri: folder or prefix of the label files.
        version: anything that tells datasets apart whose listings look alike.

    Raises:
        SourceError: nothing is at one of the places.
    """
    contents: list[Any] = [version]
    for name, uri in (("data_videos_uri", videos_uri), ("data_labels_uri", labels_uri)):
        if not uri:
            raise SourceError(f"{name} is empty: give a folder or an s3:// prefix")
        found = [list(info) for info in open_storage(uri).scan()]
        if not found:
            raise SourceError(f"{name} = {uri!r}: nothing is there; check the place and the credentials")
        contents.append([uri, found])
    return fingerprint(*contents)


class FileSource(VideoSource):
    """One file or object per video."""

    def __init__(self, storage: Storage, files: Sequence[ObjectInfo], id_of: Callable[[str], str] = file_id) -> None:
        self.storage, self.uri, self.id_of = storage, storage.uri, id_of
        self._files = sorted(files)

    def videos(self, wanted: Callable[[str, str, int], bool]) -> Iterator[SourceVideo]:
        for info in self._files:
            yield SourceVideo(self.id_of(info.key), info.key, info.size, info.stamp, None)

    def read(self, path: str) -> bytes:
        return self.storage.read(path)

    def __getstate__(self) -> dict[str, object]:
        # Worker processes read by path; the listing, and what gives ids, stay where they are.
        return {**self.__dict__, "_files": [], "id_of": file_id}


class _Member(tarfile.TarInfo):
    """A file of an archive whose name does not fill the memory."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in HEADERS and self.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a name or header of {self.size} bytes")
        return super()._proc_member(archive)  # type: ignore[misc,no-any-return]


class ArchiveSource(VideoSource):
    """A tar file, compressed or not, possibly cut into numbered parts; read once from front to back.

    The parts of Something-Something v2 laid end to end are one tar.gz. Every pass reads all of it.
    """

    def __init__(self, storage: Storage, parts: Sequence[ObjectInfo], id_of: Callable[[str], str] = file_id) -> None:
        self.storage, self.uri, self.id_of = storage, storage.uri, id_of
        self._parts = list(parts)
        self._stamp = fingerprint({info.key: f"{info.size} {info.stamp}" for info in parts})

    def videos(self, wanted: Callable[[str, str, int], bool]) -> Iterator[SourceVideo]:
        raw = io.BufferedReader(_Joined(self.storage, self._parts), BLOCK_BYTES)
        stream = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw
        count = 0
        try:
            with tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 20, tarinfo=_Member) as archive:
                for member in archive:
                    archive.members = []  # type: ignore[attr-defined]  # tarfile would remember every header
                    path = member.name.removeprefix("./")
                    if not member.isfile() or not is_video(path):
                        continue
                    video_id, stamp = self.id_of(path), f"{self._stamp}/{member.size}"
                    data = None
                    if wanted(video_id, stamp, member.size):
                        file = archive.extractfile(member)
                        data = file.read() if file else b""
                    yield SourceVideo(video_id, path, member.size, stamp, data)
                    count += 1
            while stream.read(BLOCK_BYTES):  # to the end, so that a missing tail is noticed
                pass
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise SourceError(
                f"{self.uri}: the archive {self._parts[0].key} … is damaged or cut off after {count} videos ({error}); "
                "get its parts again; what is extracted is kept"
            ) from None

    def read(self, path: str) -> bytes:
        raise SourceError(f"{self.uri}: video {path} is in an archive, which can only be read from its beginning")

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "id_of": file_id}


def _archive_parts(uri: str, found: Sequence[ObjectInfo]) -> list[ObjectInfo]:
    numbered: dict[str, dict[int, ObjectInfo]] = {}
    for info in found:
        if match := _PART.fullmatch(info.key):
            numbered.setdefault(match["stem"], {})[int(match["number"])] = info
    single = [info for info in found if _SINGLE.fullmatch(info.key)]
    names = [f"{stem}-…" for stem in numbered] + [info.key for info in single]
    if len(names) > 1:
        raise SourceError(f"{uri}: several archives ({', '.join(sorted(names))}); leave one")
    for stem, parts in numbered.items():
        missing = sorted(set(range(max(parts) + 1)) - set(parts))
        if missing:
            raise SourceError(f"{uri}: the archive has no part {stem}-{missing[0]:02}; get it again")
        return [parts[number] for number in sorted(parts)]
    return single


class _Joined(io.RawIOBase):
    """Objects laid end to end as one readable stream."""

    def __init__(self, storage: Storage, parts: Sequence[ObjectInfo]) -> None:
        self.storage, self.parts = storage, list(parts)
        self.number = self.offset = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def,override]
        while self.number < len(self.parts):
            part = self.parts[self.number]
            length = min(len(buffer), part.size - self.offset)
            if length > 0:
                buffer[:length] = self.storage.read_range(part.key, self.offset, length)
                self.offset += length
                return length
            self.number, self.offset = self.number + 1, 0
        return 0
