"""People who edit one round through two editor servers that are killed, paused, misled by clocks and storage.

All that they are told is kept, to be checked by `editor_history`.
"""

import asyncio
import contextlib
import json
import os
import random
import re
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2 as httpx
from editor_history import Done, History
from faulty_server import FAULTS, Faults

from stabn.attention.edits import read_learnt
from stabn.attention.rounds import Round
from stabn.storage import ObjectNotFound

LEASE_SECONDS = 10.0
TIMEOUT_SECONDS = 8.0  # after which a person gives up waiting for an answer
SERVER = """
import sys, time
real, path = time.time, sys.argv.pop(1)
time.time = lambda: real() + float(open(path).read())
from stabn.cli import main
sys.exit(main())
"""


class Replica:
    """An editor server that can be killed and started again at its address; its clock is the file's seconds off."""

    def __init__(self, item: Round, folder: Path, number: int, environment: dict[str, str]) -> None:
        self.item, self.environment, self.port = item, environment, 0
        self.clock, self.log = folder / f"clock{number}", folder / f"log{number}"
        self.set_clock(0.0)
        self.start()

    def set_clock(self, off: float) -> None:
        new = self.clock.with_suffix(".new")
        new.write_text(str(off))
        new.replace(self.clock)

    def start(self) -> None:
        command = [sys.executable, "-c", SERVER, str(self.clock), "editor", "--round", self.item.uri]
        command += ["--editor.auth", "open", "--editor.what_if", "false", "--editor.port", str(self.port)]
        command += ["--editor.lease_seconds", str(LEASE_SECONDS), "--editor.refresh_seconds", "1"]
        command += ["--editor.shared_share", "0"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=self.environment, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        assert self.process.stdout is not None
        match = re.search(r"http://127.0.0.1:(\d+)", self.process.stdout.readline())
        assert match, self.log.read_text()
        self.port = int(match[1])

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=20)


class Crowd:
    """The people, what disturbs them, and what they were told."""

    def __init__(
        self,
        item: Round,
        folder: Path,
        faults: Faults,
        size: int,
        people: int,
        seed: int,
        pause: float = LEASE_SECONDS + 1,
    ) -> None:
        self.item, self.faults, self.size, self.people = item, faults, size, people
        self.random, self.history, self.asked = random.Random(seed), History(LEASE_SECONDS), 0
        self.pause = pause  # seconds for which a server stands still at most
        self.happened: Counter[str] = Counter()
        secret = secrets.token_hex(32)
        environment = {**os.environ, "STABN_EDITOR_SECRET": secret, "AWS_ENDPOINT_URL": faults.endpoint}
        self.replicas = [Replica(item, folder, number, environment) for number in range(2)]

    def run(self) -> History:
        """Let everybody work until so many requests were sent, then finish the round and read what there is."""
        try:
            asyncio.run(self._run())
        finally:
            for replica in self.replicas:
                replica.send(signal.SIGCONT)
                replica.kill()
        edits = read_learnt(self.item)
        storage = self.item.storage
        for key in storage.list("edits/"):
            content = json.loads(storage.read(key))
            self.history.saved[content["video_id"], content["revision"]] = content["note"]
        with contextlib.suppress(ObjectNotFound):
            self.history.finished = _record(json.loads(storage.read("editor/finished.json")))
        self.history.learnt = {video_id: edit.revision for video_id, edit in edits.items()}
        return self.history

    async def _run(self) -> None:
        nemesis = asyncio.create_task(self._disturb())
        try:
            await asyncio.gather(*(self._person(f"person{number}") for number in range(self.people)))
        finally:
            nemesis.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await nemesis
        assert not nemesis.done() or nemesis.cancelled()

    async def _disturb(self) -> None:
        draw = self.random
        while True:
            await asyncio.sleep(draw.uniform(0.2, 2.0))
            replica, kind = draw.choice(self.replicas), draw.choice(("kill", "pause", "storage", "clock"))
            self.happened[kind] += 1
            if kind == "kill":
                replica.kill()
                await asyncio.sleep(draw.uniform(0, 1))
                await asyncio.to_thread(replica.start)
            elif kind == "pause":  # long enough, now and then, for a lease to end meanwhile
                replica.send(signal.SIGSTOP)
                await asyncio.sleep(draw.choice((0.1, 0.2, 1.0)) * self.pause)
                replica.send(signal.SIGCONT)
            elif kind == "clock":
                replica.set_clock(draw.choice((0.0, 1.0, -1.0, 3600.0, -3600.0, draw.uniform(-1e5, 1e5))))
            else:
                share = draw.choice((0.02, 0.2, 1.0))
                self.faults.kind, self.faults.matches = (
                    draw.choice(FAULTS),
                    lambda *_, share=share: draw.random() < share,
                )
                self.faults.count = self.faults.happened + 10**9
                await asyncio.sleep(draw.uniform(0.5, 3))
                self.faults.count = 0

    async def _person(self, name: str) -> None:
        draw = random.Random(f"{name} {self.random.random()}")
        async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS) as client:
            person = Person(self, client, name, draw)
            while not await person.sign_in():
                await asyncio.sleep(0.5)
            while self.asked < self.size:
                await person.work()
            await person.finish()


class Person:
    """A page, as far as the server sees it: it opens, saves again what was not answered, prolongs, leaves."""

    def __init__(self, crowd: Crowd, client: Any, name: str, draw: random.Random) -> None:
        self.crowd, self.client, self.name, self.draw = crowd, client, name, draw
        self.marks = 0

    async def sign_in(self) -> bool:
        status, content = await self.ask("POST", "/api/sign-in", {"name": self.name, "password": ""})
        self.client.headers["X-CSRF-Token"] = content.get("csrf", "")
        return status == 200

    async def ask(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Send a request to either server; return the answer's status and content, 0 without one."""
        address = self.draw.choice(self.crowd.replicas).address
        self.crowd.asked += 1
        try:
            answer = await self.client.request(method, address + path, json=body, headers={"Origin": address})
            return answer.status_code, answer.json()
        except (httpx.HTTPError, ValueError):
            await asyncio.sleep(0.1)
            return 0, {}

    async def do(self, kind: str, video_id: str, method: str, path: str, body: dict[str, Any]) -> Done:
        """Send a request of a video and keep what was told."""
        began = time.monotonic()
        status, content = await self.ask(method, f"/api/videos/{video_id}/{path}" if video_id else path, body)
        one = Done(self.name, kind, video_id, began, time.monotonic(), status)
        edit = content.get("edit") or {}
        one.revision, one.mark = edit.get("revision", 0), body.get("note", "")
        self.content = content
        self.crowd.history.done.append(one)
        return one

    async def opened(self, video_id: str) -> bool:
        one = await self.do("read", video_id, "POST", "open", {"take_over": False, "slot": None})
        self.revision = one.revision
        mine = bool(self.content.get("lease", {}).get("mine"))
        held = Done(self.name, "lease", video_id, one.began, one.ended, one.status if mine else 409)
        self.crowd.history.done.append(held)
        return one.status == 200 and mine

    async def work(self) -> None:
        """Work on one video for a while."""
        draw = self.draw
        video = draw.choice(self.crowd.item.videos)
        if not await self.opened(video.video_id):
            return await asyncio.sleep(draw.uniform(0, 0.2))
        for _ in range(draw.randint(1, 6)):
            await asyncio.sleep(draw.choice((0, 0.05, 0.5)))
            if draw.random() < 0.3:
                one = await self.do("lease", video.video_id, "POST", "lease", {"slot": 1})
                if one.status == 200 and not self.content["mine"]:
                    one.status = 409
                if one.status == 409:
                    return None
            if not await self.saved(video, "edited" if draw.random() < 0.2 else "draft"):
                return None
        if draw.random() < 0.7:
            await self.do("release", video.video_id, "DELETE", "lease", {"slot": 1})
        return None

    async def saved(self, video: Any, status: str) -> bool:
        self.marks += 1
        body = {
            "slot": 1, "based_on": self.revision, "status": status, "skip_reason": None, "seconds": 1.0,
            "edited_attention": [round(self.draw.random(), 3)] * video.num_frames, "note": f"{self.name} {self.marks}",
        }  # fmt: skip
        for _ in range(4):  # a page sends again what was not answered
            one = await self.do("save", video.video_id, "PUT", "edit", body)
            if one.status == 200:
                self.revision = one.revision
                return status == "draft"
            if one.status not in (0, 503):
                return False
            await asyncio.sleep(self.draw.uniform(0.1, 1))
        return False

    async def finish(self) -> None:
        """Finish the round, as all do at once in the end, and go on a little."""
        one = await self.do("finish", "", "POST", "/api/lead/finish", {"anyway": True})
        one.mark = _record(self.content if one.status == 200 else self.content.get("finished") or {})
        if one.status == 409 and self.content.get("code") == "finished":
            one.status = 200
        for _ in range(3):
            await self.work()


def _record(content: dict[str, Any]) -> str:
    return json.dumps([content.get("by"), content.get("at"), content.get("edits_fingerprint")])
