"""One owner per output: a run that writes an output says so in it, and no other writes there meanwhile.

    <output>/owner.<number>.json    who writes here; the highest number counts

A new number is taken by a conditional write, so of several runs one gets it. The owner writes its object again every
few seconds. Whether it still does is watched, not computed from times: the clocks of two machines may differ. An owner
that is silent has died, and its output may be taken over; should it come back, it finds the higher number and stops.
"""

import contextlib
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Self

import psutil

from stabn.errors import StabnError
from stabn.machine import process_space
from stabn.storage.interface import ObjectExists, ObjectNotFound, Storage, StorageError
from stabn.text import parse_json

PREFIX = "owner."
BEAT_SECONDS = 10.0  # between two signs of life
SILENT_SECONDS = 45.0  # without one an owner has died
LOOK_SECONDS = 1.0
LISTINGS = 20  # that may name an owner which has gone when it is read
SETTLE_SECONDS = 2.0  # where writes are not conditional: after which the last of several that came at once has won

_KEY = re.compile(re.escape(PREFIX) + r"(\d{6})\.json")


class OutputTaken(StorageError):
    """Another run writes this output."""


class ClaimLost(StorageError):
    """Another run has taken the output over, as this one seemed dead."""


class Claim:
    """The right to write an output, held while the block runs.

    Args:
        storage: the output.
        name: what writes there, such as `train`.
        settings: JSON values that decide on what is written. A run with the same ones waits until a living owner ends,
            and goes on from what it left; one with others is refused.
        conditional: whether the store honours conditional writes, see `check_promises`.
        say: shows a line.
        shared_never: why nobody may wait for a living owner either; empty: see `settings`.
    """

    def __init__(
        self,
        storage: Storage,
        name: str,
        settings: Mapping[str, Any],
        conditional: bool = True,
        say: Callable[[str], None] = print,
        shared_never: str = "",
    ) -> None:
        self.storage, self.conditional, self._say, self._shared_never = storage, conditional, say, shared_never
        self._number = 0
        self._record = {
            "name": name,
            "settings": json.loads(json.dumps(dict(settings))),
            "run": os.environ.get("STABN_RUN_ID") or os.environ.get("MLFLOW_RUN_ID") or "",
            "host": socket.gethostname(),
            "processes": process_space(),
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "id": uuid.uuid4().hex,
            "beat": 0,
        }
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if not self.conditional:
            self._say(
                f"{self.storage.uri}: the store ignores If-None-Match, so two runs that begin here within "
                f"{SETTLE_SECONDS:.0f} seconds are told apart by who wrote last"
            )
        while not self._take():
            pass
        self._thread = threading.Thread(target=self._beat, name="stabn-claim", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(StabnError):  # what is left tells of a process that is gone
            number, there = self._newest()
            if number > self._number or (there or {}).get("id") == self._record["id"]:
                self._delete_up_to(self._number)

    def confirm(self) -> None:
        """Return if the output is still this run's; to be asked before each write.

        Raises:
            ClaimLost: another run has taken it over.
        """
        if not self._is_ours():
            _, there = self._newest()
            raise ClaimLost(
                f"{self.storage.uri}: {_described(there)} has taken this output over, as this process was silent for "
                f"{SILENT_SECONDS:.0f} seconds; nothing more is written here"
            )

    def _take(self) -> bool:
        number, there = self._newest()
        if there is not None and not self._has_ended(there):
            number = self._wait(number, there)
        key = _key(number + 1)
        try:
            self._write(key, if_absent=self.conditional)
        except ObjectExists:
            return False
        if not self.conditional:
            time.sleep(SETTLE_SECONDS)
            try:
                if self._read(key).get("id") != self._record["id"]:
                    return False
            except ObjectNotFound:  # another has a higher number
                return False
        self._number = number + 1
        self._delete_up_to(number)
        return True

    def _has_ended(self, there: Mapping[str, Any]) -> bool:
        """Tell whether an owner need not be watched: its process is gone, or it was this run's own former try."""
        if self._is_near(there):
            return not _is_running(there)
        same_run = bool(there.get("run")) and there.get("run") == self._record["run"]
        return same_run and there.get("settings") == self._record["settings"]

    def _is_near(self, there: Mapping[str, Any]) -> bool:
        """Tell whether an owner's process can be looked at from here."""
        return there.get("processes") == self._record["processes"]

    def _wait(self, number: int, there: dict[str, Any]) -> int:
        """Return the number of an owner that has died; 0: it has ended by itself.

        Raises:
            OutputTaken: it lives, and writes something else than this run would.
        """
        alive, told, heard = self._is_near(there), False, time.monotonic()
        while True:
            others = differences(there.get("settings") or {}, self._record["settings"]) or self._shared_never
            if others and alive:
                raise OutputTaken(
                    f"{self.storage.uri}: {_described(there)} writes this output ({others}); give another output, or "
                    "wait until it ends"
                )
            if not told:
                told = True
                self._say(
                    f"{self.storage.uri}: {_described(there)} writes this output: waiting "
                    + ("to see whether it is alive" if others else "until it ends, to go on from what it leaves")
                )
            time.sleep(LOOK_SECONDS)
            number, now = self._newest()
            if now is None:
                return number
            if (now.get("id"), now.get("beat")) != (there.get("id"), there.get("beat")):
                there, heard, alive = now, time.monotonic(), True
            if self._is_near(there):
                if not _is_running(there):
                    return number
            elif time.monotonic() - heard > SILENT_SECONDS:
                return number

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with contextlib.suppress(StabnError):  # the store is away: the next beat may arrive
                if not self._is_ours():
                    return
                self._record["beat"] += 1
                self._write(_key(self._number))

    def _is_ours(self) -> bool:
        number, there = self._newest()
        return number <= self._number and (there is None or there.get("id") == self._record["id"])

    def _newest(self) -> tuple[int, dict[str, Any] | None]:
        """Return the owner that counts and its number; 0 and None: there is none."""
        for _ in range(LISTINGS):
            numbers = [int(match[1]) for key in self.storage.list(PREFIX) if (match := _KEY.fullmatch(key))]
            if not numbers:
                return 0, None
            with contextlib.suppress(ObjectNotFound):  # gone since: its number may be somebody else's by now
                return max(numbers), self._read(_key(max(numbers))) or None
        return max(numbers), None

    def _read(self, key: str) -> dict[str, Any]:
        """Return an owner's record; one that is unreadable is empty."""
        try:
            found = parse_json(self.storage.read(key))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, key: str, if_absent: bool = False) -> None:
        self.storage.write(key, json.dumps(self._record).encode(), if_absent=if_absent)

    def _delete_up_to(self, number: int) -> None:
        for key in list(self.storage.list(PREFIX)):
            match = _KEY.fullmatch(key)
            if match and int(match[1]) <= number:
                self.storage.delete(key)


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Return in one line what differs between two runs' settings; empty: nothing."""
    return "; ".join(
        f"{name}: {there.get(name)!r} there, {here.get(name)!r} here"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
    )


def _key(number: int) -> str:
    return f"{PREFIX}{number:06d}.json"


def _described(there: Mapping[str, Any] | None) -> str:
    there = there or {}
    return (
        f"{there.get('name', 'another run')} on host {there.get('host', '?')} (process {there.get('pid', '?')}, since "
        f"{there.get('since', '?')})"
    )


def _is_running(there: Mapping[str, Any]) -> bool:
    """Tell whether an owner near this process still runs; another process may have its number by now."""
    try:
        process = psutil.Process(int(there["pid"]))
        is_same = abs(process.create_time() - float(there["started"])) < 1
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False
