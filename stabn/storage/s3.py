"""Objects in S3: AWS, SeaweedFS, MinIO or Ceph.

Credentials and endpoint come from the standard environment variables (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_SESSION_TOKEN, AWS_ENDPOINT_URL, AWS_DEFAULT_REGION, AWS_MAX_ATTEMPTS), read at each use; see `s3_client.py`.
"""

import contextlib
import os
import random
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import botocore.exceptions as aws

from stabn.endpoint import own_endpoint
from stabn.errors import RetryableError, StabnError
from stabn.storage.interface import (
    CHUNK_BYTES,
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
from stabn.storage.local import write_file
from stabn.storage.s3_client import MAX_ATTEMPTS, clock_offset, forget_clients
from stabn.storage.s3_client import client as _client
from stabn.storage.s3_errors import AnswerCut, ExpiredCredentials, s3_errors, status_of

Result = TypeVar("Result")

OWN_ATTEMPTS = 3  # where botocore repeats nothing: a download broken off in its body, credentials that have expired
BACKOFF_SECONDS = 0.3  # before a second attempt, doubled before each further one

_kept_apart: set[tuple[str, str]] = set()  # endpoint and bucket, see `keep_new_writes_apart`
_writing_new = threading.Lock()


class S3Storage(Storage):
    """Objects below a prefix of an S3 bucket."""

    def __init__(self, uri: str):
        self.bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        prefix = prefix.removesuffix("/")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]+", self.bucket):
            raise StorageError(f"{uri}: bucket {self.bucket!r}; write s3://bucket/prefix")
        if prefix:
            check_key(prefix, f"s3://{self.bucket}", "prefix")
        self.prefix = prefix + "/" if prefix else ""
        self.uri = f"s3://{self.bucket}/{prefix}".removesuffix("/")

    def read(self, key: str) -> bytes:
        return b"".join(self._chunks(key))

    def read_range(self, key: str, start: int, length: int) -> bytes:
        uri = self.locate(key)
        check_range(uri, start, length)
        if length == 0:
            return b""
        data = b"".join(self._chunks(key, Range=f"bytes={start}-{start + length - 1}"))
        return check_length(uri, data, start, length)

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        request = self._request(key)

        def put() -> None:
            _client().put_object(**request, Body=data)

        if not if_absent:
            _call(self.locate(key), put)
        elif not self.is_kept_apart:
            _call(self.locate(key), lambda: self._write_new(request, data))
        else:
            with _writing_new:
                if self.exists(key):
                    raise ObjectExists(f"{self.locate(key)}: exists already")
                _call(self.locate(key), put)

    def now(self) -> float:
        """Return the time by the store's clock, as its last answer told it."""
        return time.time() + clock_offset()

    @property
    def is_kept_apart(self) -> bool:
        return (own_endpoint(), self.bucket) in _kept_apart

    def keep_new_writes_apart(self) -> None:
        _kept_apart.add((own_endpoint(), self.bucket))

    def _write_new(self, request: dict[str, str], data: bytes) -> None:
        writer = uuid.uuid4().hex
        for attempt in range(MAX_ATTEMPTS):
            try:
                _client().put_object(**request, Body=data, IfNoneMatch="*", Metadata={"writer": writer})
                return
            except aws.ClientError as error:
                if status_of(error) == 409 and attempt + 1 < MAX_ATTEMPTS:  # AWS: another conditional write in progress
                    time.sleep(0.1 * 2**attempt)
                    continue
                if status_of(error) != 412:
                    raise
                # A repeated request may meet the object that its own first attempt wrote.
                repeated = attempt > 0 or error.response["ResponseMetadata"].get("RetryAttempts", 0) > 0
                if repeated and _client().head_object(**request)["Metadata"].get("writer") == writer:
                    return
                raise ObjectExists(f"s3://{request['Bucket']}/{request['Key']}: exists already") from None

    def exists(self, key: str) -> bool:
        try:
            _call(self.locate(key), lambda: _client().head_object(**self._request(key)))
        except ObjectNotFound:
            return False
        return True

    def scan(self, prefix: str = "") -> Iterator[ObjectInfo]:
        folder = prefix.rpartition("/")[0]
        if folder:
            check_key(folder, self.uri, "prefix")

        def collect() -> list[ObjectInfo]:
            pages = _client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix + prefix)
            return [
                ObjectInfo(item["Key"].removeprefix(self.prefix), item["Size"], item["ETag"])
                for page in pages
                for item in page.get("Contents", ())
            ]

        found = _call(f"{self.uri}/{prefix}", collect, reads=True)
        # SeaweedFS lists by folder, AWS by bytes
        yield from sorted(info for info in found if not info.key.endswith("/"))

    def folders(self, prefix: str = "") -> tuple[str, ...]:
        if prefix:
            check_key(prefix.removesuffix("/"), self.uri, "prefix")
        place = self.prefix + prefix

        def collect() -> list[str]:
            pages = _client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=place, Delimiter="/")
            return [item["Prefix"] for page in pages for item in page.get("CommonPrefixes", ())]

        found = _call(f"{self.uri}/{prefix}", collect, reads=True)
        return tuple(sorted(name.removeprefix(place).removesuffix("/") for name in found))

    def delete(self, key: str) -> None:
        with contextlib.suppress(ObjectNotFound):
            _call(self.locate(key), lambda: _client().delete_object(**self._request(key)))

    def download(self, key: str, path: str | os.PathLike[str]) -> None:
        def fill(file: IO[bytes]) -> None:
            for chunk in self._chunks(key, restart=lambda: (file.seek(0), file.truncate())):
                file.write(chunk)

        self.locate(key)
        with _local_errors(path):
            write_file(Path(path), fill)

    def upload(self, path: str | os.PathLike[str], key: str) -> None:
        request = self._request(key)

        def send() -> None:
            with open_local(path) as file:
                _client().upload_fileobj(file, request["Bucket"], request["Key"])  # multipart when large

        _call(self.locate(key), send)

    def _request(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.prefix + check_key(key, self.uri)}

    def _chunks(self, key: str, restart: Callable[[], Any] | None = None, **request: str) -> Iterator[bytes]:
        """Yield an object's bytes; a download broken off is repeated from the start after `restart`."""
        for attempt in range(OWN_ATTEMPTS):
            collected: list[bytes] = []
            answered = False
            try:
                with s3_errors(self.locate(key)):
                    body = _client().get_object(**self._request(key), **request)["Body"]
                    answered = True
                    try:
                        for chunk in body.iter_chunks(CHUNK_BYTES):
                            if restart is None:
                                collected.append(chunk)
                            else:
                                yield chunk
                    finally:
                        body.close()
                yield from collected
                return
            except (RetryableError, ExpiredCredentials) as error:
                if not answered and isinstance(error, RetryableError):  # botocore has asked often enough
                    raise
                _prepare_again(error, attempt)
                if restart is not None:
                    restart()


def _call(uri: str, operation: Callable[[], Result], *, reads: bool = False) -> Result:
    """Run an operation on the client; with expired credentials again, with those that are there by then.

    What only reads is also run again if its answer was cut off.
    """
    for attempt in range(OWN_ATTEMPTS):
        try:
            with s3_errors(uri):
                return operation()
        except (ExpiredCredentials, AnswerCut) as error:
            if isinstance(error, AnswerCut) and not reads:
                raise
            _prepare_again(error, attempt)
    raise AssertionError("unreachable")


def _prepare_again(error: StabnError, attempt: int) -> None:
    """Wait before the next attempt, or raise the error if there is none."""
    if attempt + 1 == OWN_ATTEMPTS:
        raise error
    if isinstance(error, ExpiredCredentials):
        forget_clients()  # a new client reads the credentials anew
    time.sleep(BACKOFF_SECONDS * 2**attempt * random.uniform(0.5, 1))


@contextlib.contextmanager
def _local_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{os.fspath(path)}: cannot be written: {error.strerror or error}") from error
