"""All rounds of a storage: how far each is, kept up to date, and those that people have open."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from starlette.routing import Router

from stabn.attention.edits import READERS
from stabn.attention.rounds import ROUND_FILE, RoundError
from stabn.config import EditorConfig
from stabn.editor.finish import check_finish, run_link, shown_finish
from stabn.editor.http import ApiError, run_in_threadpool
from stabn.editor.services import STALE_SECONDS, Services, Shared
from stabn.editor.tally import Tally
from stabn.errors import StabnError
from stabn.storage import StorageError, check_id, open_storage

log = logging.getLogger(__name__)

FOLDER = "rounds/"
IDLE_SECONDS = 1800.0  # a round that nobody asked for so long gives its memory back; asking opens it again
STATE_ORDER = ("open", "waiting", "finished")


@dataclass
class Opened:
    """A round that people have open."""

    services: Services
    router: Router
    task: asyncio.Task
    used_at: float


class Rounds:
    """The rounds of a storage."""

    def __init__(self, storage_uri: str, config: EditorConfig) -> None:
        self.storage, self.config = open_storage(storage_uri), config
        check_finish(config, f"{self.storage.uri}/{FOLDER}0")
        self.shared = Shared(config)
        self._tallies: dict[str, Tally] = {}
        self._problems: dict[str, str] = {}
        self._opened: dict[str, Opened] = {}
        self._opening: dict[str, asyncio.Lock] = {}
        self._refreshed_at = float("-inf")
        self._refreshing = threading.Lock()
        self.look()

    def __len__(self) -> int:
        return len(self._tallies)

    @property
    def is_ready(self) -> bool:
        """Whether the storage answered lately."""
        return time.monotonic() - self._refreshed_at < STALE_SECONDS + self.config.refresh_seconds

    def look(self) -> None:
        """Find the rounds, who waits for them, and which are finished; no correction is read."""
        names = [name for name in self.storage.folders(FOLDER) if name not in self._tallies]
        with ThreadPoolExecutor(READERS) as readers:
            for name, found in zip(names, readers.map(self._load, names), strict=True):
                if found is not None:
                    self._tallies[name] = found
            list(readers.map(Tally.look, list(self._tallies.values())))
        self._refreshed_at = time.monotonic()

    def refresh(self) -> None:
        """Look again, and count what was corrected since."""
        with self._refreshing:
            self.look()
            self._count(sorted(self._tallies.values(), key=lambda tally: tally.finished is not None))

    def refresh_opened(self) -> None:
        """Look again, and count in the rounds that people have open here, unless all are being counted."""
        self.look()
        if self._refreshing.acquire(blocking=False):
            try:
                self._count([tally for name, tally in self._tallies.items() if name in self._opened])
            finally:
                self._refreshing.release()

    def _count(self, tallies: Sequence[Tally]) -> None:
        with ThreadPoolExecutor(READERS) as readers:
            for tally in tallies:
                tally.count(readers)

    def _load(self, name: str) -> Tally | None:
        storage = self.storage.child(f"{FOLDER}{name}")
        try:
            if not storage.exists(ROUND_FILE):
                return None  # it is being exported
            tally = Tally(storage)
        except RoundError as error:
            self._problems[name] = str(error)
            return None
        self._problems.pop(name, None)
        return tally

    def shown(self, person: str) -> dict[str, Any]:
        """Return what the list shows to a person: what is under way first, the newest first."""
        rows = [
            tally.shown(person)
            | {
                "finished": shown_finish(self.config, tally.finished),
                "runs": [asdict(run) | {"link": run_link(self.config, run.run_id)} for run in tally.waiting],
            }
            for tally in list(self._tallies.values())
        ]
        rows.sort(key=lambda row: row["created_at"], reverse=True)
        rows.sort(key=lambda row: STATE_ORDER.index(row["state"]))
        return {"rounds": rows, "problems": [text for _, text in sorted(self._problems.items())]}

    async def enter(self, round_id: str, route: Callable[[Services], Router]) -> Router:
        """Return the routes of a round, which is opened if it is not.

        Raises:
            ApiError: there is no such round.
        """
        if round_id not in self._opened and not await run_in_threadpool(self._exists, round_id):
            raise ApiError(404, "no_round", f"there is no round {round_id!r:.80} here")
        async with self._opening.setdefault(round_id, asyncio.Lock()):
            if round_id not in self._opened:
                uri = self.storage.locate(f"{FOLDER}{round_id}")
                services = await run_in_threadpool(Services, uri, self.config, self.shared)
                task = asyncio.create_task(services.run())
                self._opened[round_id] = Opened(services, route(services), task, 0.0)
            opened = self._opened[round_id]
            opened.used_at = time.monotonic()
            return opened.router

    def _exists(self, round_id: str) -> bool:
        try:
            key = f"{FOLDER}{check_id(round_id, 'round id')}/{ROUND_FILE}"
        except StorageError:
            return False
        return self.storage.exists(key)

    async def run(self) -> None:
        """Keep the numbers up to date, and close what nobody uses, until cancelled."""
        while True:
            try:
                await run_in_threadpool(self.refresh)
            except StabnError as error:
                log.warning("refresh: %s; trying again", error)
            except Exception:  # whatever it is, the next look may succeed; readiness tells if none does
                log.exception("refresh: trying again")
            for round_id, opened in list(self._opened.items()):
                if time.monotonic() - opened.used_at > IDLE_SECONDS:
                    await self._close(round_id)
            await asyncio.sleep(self.config.refresh_seconds)

    async def _close(self, round_id: str) -> None:
        async with self._opening[round_id]:
            opened = self._opened.pop(round_id)
            opened.task.cancel()
            with contextlib.suppress(StabnError):
                await run_in_threadpool(opened.services.close)

    async def close(self) -> None:
        """Close all rounds, and let other servers have them."""
        for round_id in list(self._opened):
            await self._close(round_id)
        self.shared.close()
