"""What is relied on in a store, tried before anything is entrusted to it.

A store must give back what was written, whole and in part, and list it, at once. Most also refuse to replace an object
when asked to (If-None-Match); those that ignore it, or do not know it, can be used with one writer at a time.
"""

import contextlib
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from stabn.endpoint import CHECKSUMS
from stabn.errors import StabnError
from stabn.storage.claims import Claim
from stabn.storage.interface import NotSupported, ObjectExists, ObjectNotFound, Storage, StorageError

PREFIX = "probe-"
CONTENT = bytes(range(256)) * 4
CODING = (b"chunk-signature=", b"x-amz-checksum-", b"x-amz-trailer")  # of a transfer, not of an object


def check_promises(storage: Storage) -> bool:
    """Write, read, list and delete a small object.

    Returns:
        Whether the store refuses to replace an object that is to be new.

    Raises:
        StorageError: the store cannot be relied on; says what it does and what to change.
        RetryableError: it does not answer.
    """
    key = PREFIX + uuid.uuid4().hex
    try:
        is_conditional = _try_object(storage, key)
    except StabnError:
        with contextlib.suppress(StabnError):  # what was wrong says more
            storage.delete(key)
        raise
    storage.delete(key)
    return is_conditional


def _try_object(storage: Storage, key: str) -> bool:
    """Do all but the deleting of `check_promises`."""
    try:
        storage.write(key, CONTENT, if_absent=True)
        is_conditional = not storage.is_kept_apart
    except NotSupported:
        storage.write(key, CONTENT)
        is_conditional = False
    _check_reading(storage, key)
    if is_conditional:
        try:
            storage.write(key, CONTENT, if_absent=True)
            is_conditional = False
        except ObjectExists:
            pass
    if key not in list(storage.list(PREFIX)):
        raise StorageError(
            f"{storage.uri}: an object just written is not listed; allow these keys to list the bucket, and use a "
            "store that lists at once"
        )
    return is_conditional


@contextlib.contextmanager
def owned(storage: Storage, name: str, settings: Mapping[str, Any]) -> Iterator[None]:
    """Own an output while the block runs, of which several files belong together.

    Args:
        storage: the output, tried first.
        name: what writes there.
        settings: what decides on the files: another run with the same waits, one with others is refused.

    Raises:
        OutputTaken: another run writes there.
        StorageError: the store cannot be relied on.
    """
    with Claim(storage, name, settings, check_promises(storage)):
        yield


def sole_writer(storage: Storage, name: str) -> Claim | None:
    """Claim a place for this process, where the store would let two processes write the same new object.

    Args:
        storage: the place, tried first.
        name: what writes there.

    Returns:
        The claim, to be left at the end; None: the store keeps new objects apart itself.

    Raises:
        OutputTaken: another process has the place.
        StorageError: the store cannot be relied on.
    """
    if check_promises(storage):
        return None
    storage.keep_new_writes_apart()
    reason = "the store ignores If-None-Match, so only one process at a time may write there"
    print(f"{storage.uri}: {reason}; this one, {name}, takes it for itself", flush=True)
    return Claim(storage, name, {}, conditional=False, shared_never=reason).__enter__()


def _check_reading(storage: Storage, key: str) -> None:
    uri = storage.locate(key)
    try:
        found = storage.read(key)
    except ObjectNotFound:
        raise StorageError(
            f"{uri}: just written, and not there; use a store that reads at once what was written"
        ) from None
    if found != CONTENT:
        if any(sign in found for sign in CODING):
            raise StorageError(
                f"{uri}: the store keeps the transfer's checksums inside the object; set {CHECKSUMS[0]}=when_required, "
                "or use a newer store"
            )
        raise StorageError(
            f"{uri}: {len(CONTENT)} bytes were written and {len(found)} others read back; is AWS_ENDPOINT_URL the "
            "store's S3 API, and not a cache or a web page?"
        )
    if storage.read_range(key, 100, 56) != CONTENT[100:156]:
        raise StorageError(f"{uri}: a ranged GET returned other bytes; use a store that supports Range")
