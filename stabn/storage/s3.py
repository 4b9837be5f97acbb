"""Objects in S3: AWS, SeaweedFS, MinIO or Ceph.

Credentials and endpoint come from the standard environment variables (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_SESSION_TOKEN, AWS_ENDPOINT_URL, AWS_DEFAULT_REGION, AWS_MAX_ATTEMPTS), read at each use.
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

import boto3.session
import botocore.exceptions as aws
from botocore.config import Config

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

Result = TypeVar("Result")

CONNECT_TIMEOUT_SECONDS = 10
READ_TIMEOUT_SECONDS = 60
MAX_ATTEMPTS = 6  # of one request, over all retries; AWS_MAX_ATTEMPTS overrides it
OWN_ATTEMPTS = 3  # where botocore repeats nothing: a download broken off in its body, credentials that have expired
MAX_CONNECTIONS = 64  # per process
BACKOFF_SECONDS = 0.3  # before a second attempt, doubled before each further one


class ExpiredCredentials(StorageError):
    """The credentials are no longer valid; new ones may be there at the next attempt."""


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
        if if_absent:
            _call(self.locate(key), lambda: self._write_new(request, data))
        else:
            _call(self.locate(key), lambda: _client().put_object(**request, Body=data))

    def _write_new(self, request: dict[str, str], data: bytes) -> None:
        writer = uuid.uuid4().hex
        for attempt in range(MAX_ATTEMPTS):
            try:
                _client().put_object(**request, Body=data, IfNoneMatch="*", Metadata={"writer": writer})
                return
            except aws.ClientError as error:
                if _status(error) == 409 and attempt + 1 < MAX_ATTEMPTS:  # AWS: another conditional write in progress
                    time.sleep(0.1 * 2**attempt)
                    continue
                if _status(error) != 412:
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

        found = _call(f"{self.uri}/{prefix}", collect)
        # SeaweedFS lists by folder, AWS by bytes
        yield from sorted(info for info in found if not info.key.endswith("/"))

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
            try:
                with _s3_errors(self.locate(key)):
                    body = _client().get_object(**self._request(key), **request)["Body"]
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
                _prepare_again(error, attempt)
                if restart is not None:
                    restart()


def _call(uri: str, operation: Callable[[], Result]) -> Result:
    """Run an operation on the client; with expired credentials again, with those that are there by then."""
    for attempt in range(OWN_ATTEMPTS):
        try:
            with _s3_errors(uri):
                return operation()
        except ExpiredCredentials as error:
            _prepare_again(error, attempt)
    raise AssertionError("unreachable")


def _prepare_again(error: StabnError, attempt: int) -> None:
    """Wait before the next attempt, or raise the error if there is none."""
    if attempt + 1 == OWN_ATTEMPTS:
        raise error
    if isinstance(error, ExpiredCredentials):
        _forget_clients()  # a new client reads the credentials anew
    time.sleep(BACKOFF_SECONDS * 2**attempt * random.uniform(0.5, 1))


_clients: dict[tuple[str | None, ...], Any] = {}
_clients_lock = threading.Lock()


def _forget_clients() -> None:
    global _clients_lock
    _clients_lock = threading.Lock()
    _clients.clear()


os.register_at_fork(after_in_child=_forget_clients)  # connections must not be shared with the parent process

_CLIENT_VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_DEFAULT_REGION",
    "AWS_MAX_ATTEMPTS",
)


def _client() -> Any:
    """Return this process's S3 client, which threads may share, for the present environment variables."""
    identity = tuple(os.environ.get(name) for name in _CLIENT_VARIABLES)
    with _clients_lock:
        if identity not in _clients:
            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            attempts = os.environ.get("AWS_MAX_ATTEMPTS") or str(MAX_ATTEMPTS)
            if not attempts.isdigit() or int(attempts) < 1:
                raise StorageError(f"AWS_MAX_ATTEMPTS = {attempts!r}: give a whole number of at least 1")
            config = Config(
                retries={"mode": "standard", "total_max_attempts": int(attempts)},
                connect_timeout=CONNECT_TIMEOUT_SECONDS,
                read_timeout=READ_TIMEOUT_SECONDS,
                max_pool_connections=MAX_CONNECTIONS,
                tcp_keepalive=True,
                s3={"addressing_style": "path"} if endpoint else {},
            )
            try:
                _clients[identity] = boto3.session.Session().client("s3", config=config)
            except ValueError as error:
                raise StorageError(f"AWS_ENDPOINT_URL = {endpoint!r}: {error}") from None
        return _clients[identity]


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


@contextlib.contextmanager
def _s3_errors(uri: str) -> Iterator[None]:
    """Turn what boto3 raises into an error that names the object and what to check."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "unset, so AWS itself"
    try:
        yield
    except aws.ClientError as error:
        raise _client_error(uri, endpoint, error) from error
    except (aws.NoCredentialsError, aws.PartialCredentialsError) as error:
        raise StorageError(f"{uri}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
    except aws.SSLError as error:
        raise StorageError(
            f"{uri}: {error}; check that AWS_ENDPOINT_URL ({endpoint}) begins with the right http:// or https://, "
            "and AWS_CA_BUNDLE"
        ) from error
    except (aws.ConnectionError, aws.HTTPClientError, aws.IncompleteReadError, aws.FlexibleChecksumError) as error:
        raise RetryableError(
            f"{uri}: {error}; is AWS_ENDPOINT_URL ({endpoint}) right and the store running?"
        ) from error
    except aws.BotoCoreError as error:
        raise StorageError(f"{uri}: {error}") from error


def _client_error(uri: str, endpoint: str, error: Any) -> StabnError:
    code, status = error.response.get("Error", {}).get("Code", ""), _status(error)
    said = f"{uri}: the store answered {status} {code}"
    if code == "NoSuchBucket":
        return StorageError(f"{said}; check the bucket's name and AWS_ENDPOINT_URL ({endpoint})")
    if code == "NoSuchKey" or (status == 404 and code in ("404", "NotFound")):
        return ObjectNotFound(f"{uri}: no such object")
    if status == 416:
        return StorageError(f"{uri}: ends before the bytes asked for; the object is not the one its index describes")
    if code in ("RequestTimeout", "SlowDown", "Throttling", "ThrottlingException") or status == 429 or status >= 500:
        return RetryableError(f"{said}; it is overloaded or restarting, try again")
    if code in ("ExpiredToken", "ExpiredTokenException", "InvalidToken", "RequestExpired"):
        return ExpiredCredentials(f"{said}; renew AWS_SESSION_TOKEN and the keys that belong to it")
    if status in (401, 403):
        return StorageError(
            f"{said}; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL ({endpoint}) "
            "and what these keys may do with the bucket"
        )
    return StorageError(f"{said}: {error.response.get('Error', {}).get('Message', '')}")


@contextlib.contextmanager
def _local_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{os.fspath(path)}: cannot be written: {error.strerror or error}") from error
