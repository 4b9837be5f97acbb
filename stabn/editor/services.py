"""What the handlers share: the round's state, its frames and its network, kept up to date while the server runs."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from stabn.attention.rounds import check_round, load_round
from stabn.config import EditorConfig
from stabn.editor.board import Board
from stabn.editor.cache import Cache
from stabn.editor.finish import FINAL_STATES, Finish, shown_finish
from stabn.editor.frames import FrameStore
from stabn.editor.http import ApiError
from stabn.editor.leases import Leases
from stabn.editor.queue import Queue
from stabn.editor.whatif import CachedClips, WhatIf
from stabn.errors import StabnError
from stabn.storage import ClaimLost, sole_writer

log = logging.getLogger(__name__)

MAX_WAITING = 64  # recognitions that wait for the network; a page asks again after each edit anyway
MAX_WARMING = 8  # videos whose network waits to be run before somebody asks; more would be left before their turn
STALE_SECONDS = 60.0  # without a look at the storage for so long, the server says that it is not ready


class Shared:
    """What the rounds of one server share: memory for frames and features, and the threads of their networks.

    A network uses all its cores for one video, so they run one at a time; but the seconds that one takes of a video
    that was just opened are no reason to let everybody else wait who changes a curve.
    """

    def __init__(self, config: EditorConfig) -> None:
        self.frames: Cache[bytes] = Cache(config.frame_cache_mb * 2**20)
        self.features: Cache[CachedClips] = Cache(config.feature_cache_mb * 2**20)
        self.network = ThreadPoolExecutor(1, "network")  # edits of videos that are known
        self.opening = ThreadPoolExecutor(1, "opening")  # networks that are loaded, and run once for a video

    def close(self) -> None:
        """Stop the networks' threads."""
        for executor in (self.network, self.opening):
            executor.shutdown(wait=False, cancel_futures=True)


class Services:
    """Everything of one round."""

    def __init__(self, round_uri: str, config: EditorConfig, shared: Shared | None = None) -> None:
        item = load_round(round_uri)
        check_round(item)
        self.config = config
        self.alone = sole_writer(item.storage, "an editor server")
        self.board = Board(item, config)
        self.leases = Leases(item.storage, config.lease_seconds)
        self.queue = Queue(self.board, self.leases)
        self.shared = shared or Shared(config)
        self.frames = FrameStore(item, self.shared.frames)
        self.finish = Finish(self.board, config)
        self.finished: dict[str, Any] | None = None
        self.run_state = ""  # of the run that finishing the round started, in KFP's words
        self.what_if = WhatIf(
            item, self.frames, enabled=config.what_if, device=config.device, cache=self.shared.features
        )
        self._owns_shared = shared is None
        self._waiting = 0
        self._warming: set[str] = set()
        self._newest: dict[tuple[str, str], object] = {}
        self._refreshed_at = 0.0
        self._tasks: set[asyncio.Future] = set()
        self.refresh()

    @property
    def is_ready(self) -> bool:
        """Whether the storage answered lately."""
        return time.monotonic() - self._refreshed_at < STALE_SECONDS + self.config.refresh_seconds

    def refresh(self) -> None:
        """Look at what other servers and programs wrote."""
        self.board.refresh()
        self.leases.refresh()
        self.finished = self.finish.record()
        self._refreshed_at = time.monotonic()

    def watch(self) -> None:
        """Look how the run is that finishing the round started, until it ended; a change goes to the log."""
        if self.run_state in FINAL_STATES:
            return
        state = self.finish.state(self.finished)
        if state and state != self.run_state and self.finished:
            print(f"editor: run {self.finished['started']}: {state.lower()}", flush=True)
        self.run_state = state or self.run_state

    def shown_finish(self) -> dict[str, Any] | None:
        """Return what pages show of a finished round; None: it is open."""
        return shown_finish(self.config, self.finished, self.run_state)

    async def run(self) -> None:
        """Load the network and then refresh again and again, until cancelled."""
        loop = asyncio.get_running_loop()
        self._keep(loop.run_in_executor(self.shared.opening, self.what_if.load))
        while True:
            await asyncio.sleep(self.config.refresh_seconds)
            try:
                await loop.run_in_executor(None, self.refresh)
                await loop.run_in_executor(None, self.watch)
            except StabnError as error:
                log.warning("refresh: %s; trying again", error)
            except Exception:  # whatever it is, the next look may succeed; readiness tells if none does
                log.exception("refresh: trying again")

    def close(self) -> None:
        """Let another server have the round, and give back the memory that it takes."""
        if self.alone is not None:
            self.alone.__exit__()
        for cache in (self.shared.frames, self.shared.features):
            cache.forget(self.board.round.uri)
        if self._owns_shared:
            self.shared.close()

    async def recognise(
        self, user: str, video_id: str, curve: Sequence[float | None], own: Sequence[float]
    ) -> dict[str, Any]:
        """Return what the network says of a video under a person's curve; arguments and errors as `WhatIf.recognise`.

        Who asked first is answered first. Of the curves that one person has waiting for a video, the newest is.

        Raises:
            ApiError: too many wait, or the person asked again meanwhile.
        """
        if self._waiting >= MAX_WAITING:
            raise ApiError(503, "busy", "many people ask the network at once; the next edit asks again")
        key, mine = (user, video_id), object()
        self._newest[key] = mine
        self._waiting += 1

        def turn(function: Callable[..., Any], *arguments: Any) -> Any:
            if self._newest.get(key) is not mine:
                raise ApiError(503, "superseded", "a later curve of yours is being recognised")
            return function(video_id, *arguments)

        loop = asyncio.get_running_loop()
        try:
            if self.what_if.state == "ready" and not self.what_if.is_warm(video_id):
                await loop.run_in_executor(self.shared.opening, turn, self.what_if.warm)
            return await loop.run_in_executor(self.shared.network, turn, self.what_if.recognise, curve, own)
        finally:
            self._waiting -= 1
            if self._newest.get(key) is mine:
                del self._newest[key]

    def warm(self, video_id: str, slot: int) -> None:
        """Run the network once for a video that was opened, in the background."""
        if self.what_if.state != "ready" or len(self._warming) >= MAX_WARMING or video_id in self._warming:
            return
        self._warming.add(video_id)
        self._keep(asyncio.get_running_loop().run_in_executor(self.shared.opening, self._warm, video_id, slot))

    def _warm(self, video_id: str, slot: int) -> None:
        try:
            if self.leases.active(video_id, slot) is not None:  # else it was left before its turn came
                self.what_if.warm(video_id)
        except StabnError as error:
            log.warning("video %s: %s", video_id, error)
        finally:
            self._warming.discard(video_id)

    def confirm(self) -> None:
        """Return if this server may write to the round; to be asked before each change.

        Raises:
            ApiError: where the round can have one server only, another has it by now.
        """
        try:
            if self.alone is not None:
                self.alone.confirm()
        except ClaimLost as error:
            log.error("%s", error)
            raise ApiError(503, "taken_over", "another server has this round now; reload the page") from None

    def _keep(self, future: asyncio.Future) -> None:
        self._tasks.add(future)
        future.add_done_callback(self._tasks.discard)
