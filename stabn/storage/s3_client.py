"""This process' S3 clients: one for the present environment variables, with time limits and checksums that suit it.

The newer boto3 sends a checksum behind each object, in a coding (aws-chunked) that older stores keep inside the
object. So a store that is not AWS's own gets checksums only where its API requires them, unless
AWS_REQUEST_CHECKSUM_CALCULATION or AWS_RESPONSE_CHECKSUM_VALIDATION, or the same in the AWS configuration file, say
otherwise.
"""

import contextlib
import email.utils
import os
import threading
import time
from typing import Any

import boto3.session
from botocore.config import Config
from botocore.exceptions import ClientError

from stabn.endpoint import CHECKSUMS, is_aws, own_endpoint
from stabn.storage.interface import StorageError

CONNECT_TIMEOUT_SECONDS = 10
READ_TIMEOUT_SECONDS = 60
MAX_ATTEMPTS = 6  # of one request, over all retries; AWS_MAX_ATTEMPTS overrides it
MAX_CONNECTIONS = 64  # per process
CLOCK_SECONDS = 3.0  # that two clocks may differ by: answers tell whole seconds, and take their time

_VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_CA_BUNDLE",
    "AWS_DEFAULT_REGION",
    "AWS_MAX_ATTEMPTS",
    *CHECKSUMS,
)

_offset = 0.0
_clients: dict[tuple[str | None, ...], Any] = {}
_clients_lock = threading.Lock()


def forget_clients() -> None:
    """Have later requests make new clients, which read the credentials anew."""
    global _clients_lock
    _clients_lock = threading.Lock()
    _clients.clear()


os.register_at_fork(after_in_child=forget_clients)  # connections must not be shared with the parent process


def client() -> Any:
    """Return this process's S3 client, which threads may share, for the present environment variables.

    Raises:
        StorageError: a variable cannot be used.
    """
    identity = tuple(os.environ.get(name) for name in _VARIABLES)
    with _clients_lock:
        if identity not in _clients:
            _clients[identity] = _make_client()
        return _clients[identity]


def _make_client() -> Any:
    attempts = os.environ.get("AWS_MAX_ATTEMPTS") or str(MAX_ATTEMPTS)
    if not attempts.isdigit() or int(attempts) < 1:
        raise StorageError(f"AWS_MAX_ATTEMPTS = {attempts!r}: give a whole number of at least 1")
    for name in CHECKSUMS:
        if (given := os.environ.get(name)) and given.lower() not in ("when_supported", "when_required"):
            raise StorageError(f"{name} = {given!r}: when_supported or when_required; with an older store the latter")
    endpoint, session = own_endpoint(), boto3.session.Session()
    config = Config(
        retries={"mode": "standard", "total_max_attempts": int(attempts)},
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        read_timeout=READ_TIMEOUT_SECONDS,
        max_pool_connections=MAX_CONNECTIONS,
        tcp_keepalive=True,
        s3={"addressing_style": "path"} if endpoint else {},
        **({} if is_aws(endpoint) else _checksum_modes(session)),
    )
    try:
        made = session.client("s3", config=config)
        if not endpoint and not is_aws(made.meta.endpoint_url):  # the AWS configuration file names one
            made = session.client("s3", config=config.merge(Config(**_checksum_modes(session))))
    except ValueError as error:
        raise StorageError(f"AWS_ENDPOINT_URL = {endpoint!r}: {error}") from None
    made.meta.events.register_last("after-call.s3", _learn_clock)
    if not is_aws(made.meta.endpoint_url):
        made.meta.events.register_first("needs-retry.s3", _refuse_redirect)
    return made


def clock_offset() -> float:
    """Return the seconds that the store's clock was ahead of this machine's at its last answer; 0: they agree."""
    return _offset


def _learn_clock(parsed: Any, **others: Any) -> None:
    global _offset
    headers = parsed.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    with contextlib.suppress(KeyError, TypeError, ValueError):
        offset = email.utils.parsedate_to_datetime(headers["date"]).timestamp() - time.time()
        _offset = offset if abs(offset) > CLOCK_SECONDS else 0.0


def _refuse_redirect(response: Any, operation: Any, **others: Any) -> None:
    """End a request that another store than AWS redirects: botocore would ask it for the region again and again."""
    if response is None:
        return
    answer, parsed = response
    if 300 <= answer.status_code < 400 and "x-amz-bucket-region" not in answer.headers:
        raise ClientError(parsed, operation.name)


def _checksum_modes(session: Any) -> dict[str, str]:
    """Return the options that nobody has set, for a store that is not AWS's."""
    written = session._session.get_scoped_config()
    names = [name.removeprefix("AWS_").lower() for name in CHECKSUMS if not os.environ.get(name)]
    return {name: "when_required" for name in names if name not in written}
