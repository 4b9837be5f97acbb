"""Leases: who is editing which video, so that two people do not do so unknowingly. They expire by themselves.

A lease is `leases/<video id>/<slot>/<generation>.json`. The highest generation counts; a new one is made by a
conditional write, to prolong a lease too, so that of several people or servers exactly one gets it, however long one of
them stands still between looking and writing. A lease is written to again only to end it. Times are the store's: the
clocks of two servers may differ.
"""

import contextlib
import json
import re
import threading
from dataclasses import asdict, dataclass, replace

from stabn.storage import ObjectExists, ObjectNotFound, Storage, StorageError, check_id
from stabn.text import parse_json

_KEY = re.compile(r"leases/(?P<name>[^/]+)/(?P<slot>\d)/(?P<generation>\d{6})\.json")
ATTEMPTS = 5


@dataclass(frozen=True)
class Lease:
    """Who edits a slot of a video, until when (seconds since 1970)."""

    name: str
    slot: int
    generation: int
    holder: str
    expires_at: float

    @property
    def key(self) -> str:
        """The document's key in its round."""
        return f"{_folder(self.name, self.slot)}{self.generation:06d}.json"


class LeaseHeld(StorageError):
    """Somebody else edits this video."""

    def __init__(self, lease: Lease) -> None:
        super().__init__(f"video {lease.name} is being edited by {lease.holder}")
        self.lease = lease


class Leases:
    """The leases of a round, in its storage; what is known of them is kept in memory."""

    def __init__(self, storage: Storage, seconds: float) -> None:
        self.storage, self.seconds = storage, seconds
        self._known: dict[tuple[str, int], Lease] = {}
        self._lock = threading.Lock()

    def active(self, name: str, slot: int) -> Lease | None:
        """Return the lease that holds now, as far as this server knows; nothing is read."""
        lease = self._known.get((name, slot))
        return lease if lease and lease.expires_at > self.storage.now() else None

    def look(self, name: str, slot: int) -> Lease | None:
        """Return the lease that holds now, as it is in storage."""
        self._newest(name, slot, "")
        return self.active(name, slot)

    def is_fresh(self, name: str, slot: int, holder: str) -> bool:
        """Tell whether a person holds a lease that need not be prolonged yet."""
        lease = self.active(name, slot)
        return (
            lease is not None
            and lease.holder == holder
            and lease.expires_at - self.storage.now() > self.seconds * 2 / 3
        )

    def take(self, name: str, slot: int, holder: str, force: bool = False) -> Lease:
        """Take or prolong a lease.

        Args:
            name: the video id.
            slot: which of the video's curves.
            holder: who takes it.
            force: take it from whoever holds it.

        Raises:
            LeaseHeld: somebody else holds it.
        """
        for _ in range(ATTEMPTS):
            newest = self._newest(name, slot, holder)
            now = self.storage.now()
            if newest is not None and newest.expires_at > now and newest.holder != holder and not force:
                raise LeaseHeld(newest)
            lease = Lease(name, slot, newest.generation + 1 if newest else 1, holder, now + self.seconds)
            try:
                self._write(lease, if_absent=True)
            except ObjectExists:
                with self._lock:
                    self._known.pop((name, slot), None)
                continue
            if newest is not None:
                with contextlib.suppress(StorageError):
                    self.storage.delete(newest.key)
            return lease
        raise StorageError(f"leases/{name}: {ATTEMPTS} others took it at the same moment; try again")

    def release(self, name: str, slot: int, holder: str) -> None:
        """End a lease if this person still holds it."""
        lease = self._newest(name, slot, holder)
        if lease is not None and lease.holder == holder and lease.expires_at > self.storage.now():
            self._write(replace(lease, expires_at=0.0))

    def refresh(self) -> None:
        """Learn what other servers wrote."""
        found: dict[tuple[str, int], int] = {}
        for key in self.storage.list("leases/"):
            if match := _KEY.fullmatch(key):
                place = match["name"], int(match["slot"])
                found[place] = max(found.get(place, 0), int(match["generation"]))
        now = self.storage.now()
        for place, generation in found.items():
            known = self._known.get(place)
            ended = known is not None and known.expires_at == 0.0
            if known is None or generation > known.generation or (not ended and known.expires_at < now):
                self._read(*place, generation)

    def _newest(self, name: str, slot: int, holder: str) -> Lease | None:
        """Return the lease that counts, from storage; one's own was last written by this server."""
        lease = None
        for _ in range(ATTEMPTS):
            keys = [match for key in self.storage.list(_folder(name, slot)) if (match := _KEY.fullmatch(key))]
            if not keys:
                return None
            generation = max(int(match["generation"]) for match in keys)
            known = self.active(name, slot)
            if known is not None and known.generation == generation and known.holder == holder:
                return known
            lease, is_there = self._read(name, slot, generation)
            if is_there:
                break  # else there is a newer one by now
        return lease

    def _read(self, name: str, slot: int, generation: int) -> tuple[Lease, bool]:
        """Return a lease, of nobody if it is unreadable or gone, and whether it is there."""
        lease, is_there = Lease(name, slot, generation, "", 0.0), True
        try:
            lease = Lease(**parse_json(self.storage.read(lease.key)))
        except ObjectNotFound:
            is_there = False
        except (ValueError, TypeError):
            pass
        with self._lock:
            known = self._known.get((name, slot))
            if is_there or known is None or known.generation < generation:
                self._known[name, slot] = lease
        return lease, is_there

    def _write(self, lease: Lease, if_absent: bool = False) -> Lease:
        self.storage.write(lease.key, json.dumps(asdict(lease)).encode(), if_absent=if_absent)
        with self._lock:
            self._known[lease.name, lease.slot] = lease
        return lease


def _folder(name: str, slot: int) -> str:
    return f"leases/{check_id(name, 'lease name')}/{slot}/"
