"""Storages and single objects by their URI."""

import os
import re
import urllib.parse

from stabn.storage.interface import Storage, StorageError
from stabn.storage.local import FolderStorage

_NEARLY_A_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/(?!/)|s3:(?!/)|s3//", re.IGNORECASE)  # s3:/bucket, s3//bucket


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
        _check_folder(text)
        return FolderStorage(text)
    if scheme == "s3":
        from stabn.storage.s3 import S3Storage  # brings boto3, which folders do not need

        return S3Storage(text)
    if scheme == "file" and rest.startswith("/"):
        return FolderStorage(urllib.parse.unquote(rest))
    raise StorageError(f"{text}: unknown kind of storage; use s3://bucket/prefix, file:///folder or a folder path")


def _check_folder(text: str) -> None:
    """Refuse what would make a folder of that name, and was meant for a URI."""
    if _NEARLY_A_URI.match(text):
        raise StorageError(f"{text}: write s3://bucket/prefix with two slashes after a colon, or ./{text} for a folder")


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


def check_object_uri(uri: str | os.PathLike[str]) -> None:
    """Refuse what names no object or file; nothing is contacted.

    Raises:
        StorageError: says how to write one.
    """
    _split(uri)


def _split(uri: str | os.PathLike[str]) -> tuple[Storage, str]:
    """Return the storage that holds a single object, and the object's key in it."""
    text = os.fspath(uri)
    if "://" not in text:
        _check_folder(text)
        text = os.path.abspath(text) if text and not text.endswith("/") else text
    parent, _, name = text.rpartition("/")
    if not name or parent in ("s3:/", "file:/"):
        raise StorageError(f"{text!r}: names no object; write s3://bucket/key or the path of a file")
    storage = open_storage(parent if parent.strip("/") and parent != "file://" else f"{parent}/")
    return storage, urllib.parse.unquote(name) if text.startswith("file://") else name
