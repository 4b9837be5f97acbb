"""Work that failed for good is not done again by the next try of its step.

KFP tries every failed step again, whatever its exit code. So a failure that would come back leaves a note in the
storage, and the next try of the same work in the same run ends with the same message at once.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator

from stabn.config import fingerprint
from stabn.errors import RetryableError, StabnError
from stabn.failures import as_error
from stabn.memory import memory_limit, shared_memory
from stabn.storage import open_storage
from stabn.text import parse_json

REMEMBERED_SECONDS = 3600.0  # longer than KFP waits between two tries of a step


@contextlib.contextmanager
def tried_once(storage_uri: str, name: str, kind: type[StabnError] = StabnError) -> Iterator[None]:
    """Do the block's work unless it has failed for good within the last hour.

    Args:
        storage_uri: gets the note.
        name: of the work, the same only for work that would fail in the same way.
        kind: errors that are remembered; those that may pass never are.

    Raises:
        StabnError: of that kind, with the former reason.
    """
    storage, key = open_storage(storage_uri), f"failed/{name}.json"
    if storage.exists(key):
        failure = parse_json(storage.read(key))
        if time.time() - failure["time"] < REMEMBERED_SECONDS:
            uri = storage.locate(key)
            raise kind(f"{failure['reason']} (in the try before this one; to have it tried again, delete {uri})")
    try:
        yield
    except Exception as error:
        known = as_error(error)
        if isinstance(known, kind) and not isinstance(known, RetryableError):
            with contextlib.suppress(StabnError):  # the store may be the reason
                storage.write(key, json.dumps({"reason": str(known), "time": time.time()}).encode())
        raise


@contextlib.contextmanager
def tried_once_here(storage_uri: str, stage: str, *work: object) -> Iterator[None]:
    """Do the same for work in the step itself: on a cluster, and as long as its pod has no more memory than before."""
    if not (run_id := os.environ.get("STABN_RUN_ID")) or not os.environ.get("KUBERNETES_SERVICE_HOST"):
        yield  # on one's own machine nothing tries again by itself: who does has changed something
        return
    name = f"{stage}-{fingerprint(run_id, list(map(str, work)), memory_limit(), shared_memory())}"
    with tried_once(storage_uri, name):
        yield
