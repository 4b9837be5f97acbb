"""Who waits for a round's corrections: runs of the pipeline, which say so in the round as long as they do.

A record is `waiting/<run>.json`, written again now and then; one that was not for STALE_SECONDS is of a run that died.
"""

import json
import os
import time
from dataclasses import asdict, dataclass

from stabn.storage import ObjectNotFound, Storage
from stabn.text import parse_json

FOLDER = "waiting/"
TELL_SECONDS = 120.0
STALE_SECONDS = 900.0
BY_HAND = "by-hand"


@dataclass(frozen=True)
class Waiting:
    """A run that waits.

    Attributes:
        run_id: the pipeline's run; empty: a stage that somebody started by hand.
        since, seen_at, until: when it began, was last seen, and gives up, in seconds since 1970 by the
            storage's clock, since those of the run and of the editor may differ.
        needed: videos that have to be done before it goes on.
    """

    run_id: str
    since: float
    seen_at: float
    until: float
    needed: int


class WaitingRecord:
    """The record of this process: `tell` it again and again, `remove` it at the end."""

    def __init__(self, storage: Storage, needed: int, timeout_seconds: float) -> None:
        self.storage, self.needed = storage, needed
        self.run_id = os.environ.get("STABN_RUN_ID", "")
        self.since = storage.now()
        self.until = self.since + timeout_seconds
        self._told_at = float("-inf")

    @property
    def key(self) -> str:
        """The record's key in its round."""
        return f"{FOLDER}{self.run_id or BY_HAND}.json"

    def tell(self) -> None:
        """Write the record unless that was done a moment ago."""
        if time.monotonic() - self._told_at < TELL_SECONDS:
            return
        record = Waiting(self.run_id, self.since, self.storage.now(), self.until, self.needed)
        self.storage.write(self.key, json.dumps(asdict(record)).encode())
        self._told_at = time.monotonic()

    def remove(self) -> None:
        """Remove the record if it was written."""
        if self._told_at > float("-inf"):
            self.storage.delete(self.key)


def read_waiting(storage: Storage) -> list[Waiting]:
    """Return the runs that wait for a round, the longest waiting first."""
    found = []
    for key in storage.list(FOLDER):
        try:
            record = Waiting(**parse_json(storage.read(key)))
        except (ObjectNotFound, ValueError, TypeError):
            continue  # it ended just now, or is no record
        if storage.now() - record.seen_at < STALE_SECONDS:
            found.append(record)
    return sorted(found, key=lambda record: record.since)
