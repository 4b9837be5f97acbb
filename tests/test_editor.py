"""The editor's server: who may do what, leases, saving, agreement, exchange, what-if, finishing a round."""

import asyncio
import dataclasses
import hashlib
import hmac
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
import torch
from round_factory import CLASSES, DATA, LENGTHS, copy_round, moving_square, network
from starlette.testclient import TestClient

from stabn.attention.automatic import collect_edits
from stabn.attention.edit_document import parse_edit
from stabn.attention.edits import EditError, import_edits, read_edits
from stabn.attention.rounds import Round, RoundError, model_attention
from stabn.cli import main
from stabn.config import ConfigError, EditorConfig
from stabn.data.edit_table import load_edit_table
from stabn.data.sampling import evaluation_sample
from stabn.data.transforms import crop_clip, evaluation_crop, to_input
from stabn.editor import auth
from stabn.editor.accounts import AccountError, add_accounts, load_accounts, remove_accounts
from stabn.editor.agreement import agreement
from stabn.editor.app import create_app
from stabn.editor.auth import AuthError
from stabn.editor.cache import Cache
from stabn.editor.finish import FinishError
from stabn.editor.frames import FrameStore
from stabn.editor.leases import LeaseHeld, Leases
from stabn.editor.services import Services
from stabn.editor.whatif import CachedClips

OPEN = EditorConfig(auth="open", shared_share=0.0, refresh_seconds=3600, what_if=False)
ORIGIN = "http://127.0.0.1"


def wait(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)


class Person(TestClient):
    """A signed-in browser."""

    def save(self, video_id: str, curve: list[float | None], **changes: Any) -> Any:
        body = {"slot": 1, "based_on": 0, "edited_attention": curve, "status": "edited", "skip_reason": None}
        return self.put(f"/api/videos/{video_id}/edit", json={**body, "note": "", "seconds": 12.0, **changes})

    def next(self, **changes: Any) -> str | None:
        return self.post("/api/next", json={"passed": [], "action": None, **changes}).json()["video_id"]

    def open(self, video_id: str, **changes: Any) -> Any:
        return self.post(f"/api/videos/{video_id}/open", json={"take_over": False, "slot": None, **changes})


@contextmanager
def server(item: Round, config: EditorConfig = OPEN) -> Iterator[Any]:
    """Yield a function that signs a person in to a server of a round, and the server's services as its attribute."""
    services = Services(item.uri, config)
    app = create_app(services, config)
    with ExitStack() as stack:
        stack.enter_context(TestClient(app, base_url=ORIGIN))  # runs the server's background tasks

        def person(name: str, password: str = "", **headers: str) -> Person:
            client = Person(app, base_url=ORIGIN, headers={"Origin": ORIGIN, **headers}, client=("127.0.0.1", 1))
            if config.auth != "proxy":
                answer = client.post("/api/sign-in", json={"name": name, "password": password})
                assert answer.status_code == 200, answer.text
            client.headers["X-CSRF-Token"] = client.get("/api/session").json()["csrf"]
            return client

        person.services, person.app = services, app  # type: ignore[attr-defined]
        yield person


# Who may do what


@pytest.fixture
def accounts(tmp_path: Path) -> str:
    uri = str(tmp_path / "accounts.json")
    add_accounts(uri, ["ann", "bob"], "annotator", ["correct horse", "battery staple"])
    add_accounts(uri, ["lea"], "lead", ["lead the round"])
    return uri


def test_accounts_sign_in_with_a_signed_cookie_and_end_when_they_change(
    editor_round: Round, accounts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stabn.editor.accounts.RELOAD_SECONDS", 0.0)
    config = dataclasses.replace(OPEN, auth="accounts", accounts_uri=accounts)
    with server(editor_round, config) as person:
        stranger = TestClient(person.app, base_url=ORIGIN)
        assert stranger.get("/api/round").status_code == 401
        for name, password in (("ann", "wrong"), ("eve", "correct horse")):
            answer = stranger.post("/api/sign-in", json={"name": name, "password": password})
            assert answer.status_code == 401 and "do not belong together" in answer.json()["error"]
        answer = stranger.post("/api/sign-in", json={"name": "ann", "password": "correct horse"})
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=lax" in cookie and "secure" not in cookie
        assert stranger.get("/api/session").json()["role"] == "annotator"
        forged = {"Cookie": f"stabn_session={stranger.cookies['stabn_session'][:-2]}xx"}
        assert TestClient(person.app, base_url=ORIGIN).get("/api/session", headers=forged).status_code == 401
        ann, bob = person("ann", "correct horse"), person("bob", "battery staple")
        add_accounts(accounts, ["ann"], "annotator", ["another password"])
        remove_accounts(accounts, ["bob"])
        assert ann.get("/api/round").status_code == bob.get("/api/round").status_code == 401
        lea = person("lea", "lead the round")
        assert lea.post("/api/sign-out").status_code == 200 and lea.get("/api/round").status_code == 401
    assert all(account.password_hash.startswith("$argon2id$") for account in load_accounts(accounts).values())
    https = dataclasses.replace(config, public_url="https://edit.example.org")
    with server(editor_round, https) as person:
        answer = Person(person.app, base_url=ORIGIN).post(
            "/api/sign-in", json={"name": "lea", "password": "lead the round"}
        )
        assert "secure" in answer.headers["set-cookie"].lower()
        assert "strict-transport-security" in answer.headers
        foreign = TestClient(person.app, base_url="http://elsewhere.example")
        assert foreign.get("/api/round").json()["code"] == "host"


def test_an_account_with_the_longest_name_signs_in(editor_round: Round, tmp_path: Path) -> None:
    uri, name = str(tmp_path / "accounts.json"), "n" * 128
    add_accounts(uri, [name], "annotator", ["correct horse"])
    with server(editor_round, dataclasses.replace(OPEN, auth="accounts", accounts_uri=uri)) as person:
        assert person(name, "correct horse").get("/api/session").json()["name"] == name


def test_guessing_passwords_has_to_wait(editor_round: Round, accounts: str) -> None:
    config = dataclasses.replace(OPEN, auth="accounts", accounts_uri=accounts, login_attempts=2)
    with server(editor_round, config) as person:
        guesser = TestClient(person.app, base_url=ORIGIN)
        for _ in range(2):
            assert guesser.post("/api/sign-in", json={"name": "ann", "password": "no"}).status_code == 401
        blocked = guesser.post("/api/sign-in", json={"name": "ann", "password": "correct horse"})
        assert blocked.status_code == 429 and 0 < int(blocked.headers["retry-after"]) <= 301
        person("bob", "battery staple")
    limit = auth.RateLimit(2, 0.05)
    limit.add("a"), limit.add("a")
    assert limit.wait("a") and not limit.wait("b")
    time.sleep(0.06)
    assert not limit.wait("a")


def test_guesses_that_are_sent_at_once_count_as_well(editor_round: Round, accounts: str) -> None:
    config = dataclasses.replace(OPEN, auth="accounts", accounts_uri=accounts, login_attempts=2)

    async def guess(app: Any) -> list[int]:
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url=ORIGIN, headers={"Origin": ORIGIN}) as client:
            guesses = (client.post("/api/sign-in", json={"name": "ann", "password": f"{i}"}) for i in range(8))
            return [answer.status_code for answer in await asyncio.gather(*guesses)]

    with server(editor_round, config) as person:
        codes = asyncio.run(guess(person.app))
    assert codes.count(401) == 2 and codes.count(429) == 6


def test_another_sites_page_changes_nothing(editor_round: Round) -> None:
    with server(editor_round) as person:
        ann = person("ann")
        ways = [
            {"headers": {"X-CSRF-Token": ""}},
            {"headers": {"X-CSRF-Token": person("bob").headers["X-CSRF-Token"]}},
            {"headers": {"Origin": "https://evil.example"}},
            {"headers": {"Origin": "null"}},
            {"headers": {"Origin": "http://["}},
            {"headers": {"Sec-Fetch-Site": "cross-site"}},
        ]
        for way in ways:
            assert ann.post("/api/next", json={"passed": [], "action": None}, **way).status_code == 403, way
        form = {"content": '{"name": "eve", "password": ""}', "headers": {"Content-Type": "text/plain"}}
        assert ann.post("/api/sign-in", **form).status_code == 415
        assert not list(editor_round.storage.list("leases/"))
        rebound = TestClient(person.app, base_url="http://attacker.example")
        assert rebound.get("/api/session").json()["code"] == "host"
        assert ann.get("/api/session", headers={"Host": "["}).json()["code"] == "host"


def test_a_proxy_is_believed_only_from_its_own_address(editor_round: Round) -> None:
    config = dataclasses.replace(OPEN, auth="proxy", trusted_proxies=("10.1.0.0/16",), leads=("lea@example.org",))
    with server(editor_round, config) as person:

        def ask(peer: str, **headers: str) -> Any:
            return TestClient(person.app, base_url=ORIGIN, client=(peer, 1)).get("/api/session", headers=headers)

        assert ask("10.1.2.3", **{"X-Forwarded-User": "lea@example.org"}).json()["role"] == "lead"
        assert ask("10.1.2.3", **{"X-Forwarded-User": "ann@example.org"}).json()["role"] == "annotator"
        assert ask("10.1.2.3").status_code == 401
        spoofed = ask("10.2.0.1", **{"X-Forwarded-User": "lea@example.org", "X-Forwarded-For": "10.1.2.3"})
        assert spoofed.status_code == 403 and "10.2.0.1" in spoofed.json()["error"]
        forged = TestClient(person.app, base_url=ORIGIN, client=("10.1.2.3", 1)).post(
            "/api/next", json={"passed": [], "action": None}, headers={"X-Forwarded-User": "ann@example.org"}
        )
        assert forged.json()["code"] == "csrf", "the proxy's cookie alone is not enough"


def test_settings_that_would_let_anybody_in_are_refused(editor_round: Round, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="trusted_proxies"):
        EditorConfig(auth="proxy")
    with pytest.raises(ConfigError, match=r"10\.0\.0\.300"):
        EditorConfig(auth="proxy", trusted_proxies=("10.0.0.300",))
    services = Services(editor_round.uri, OPEN)
    with pytest.raises(AuthError, match=r"open .*0\.0\.0\.0"):
        create_app(services, dataclasses.replace(OPEN, host="0.0.0.0"))
    with pytest.raises(AccountError, match="accounts_uri is empty"):
        create_app(services, EditorConfig())
    monkeypatch.setenv(auth.SECRET_VARIABLE, "short")
    with pytest.raises(AuthError, match="5 characters"):
        create_app(services, OPEN)
    with pytest.raises(FinishError, match="STABN_WEBHOOK_SECRET"):
        Services(editor_round.uri, dataclasses.replace(OPEN, webhook_url="https://hooks.example.org"))


def test_annotators_are_not_leads(editor_round: Round, accounts: str) -> None:
    config = dataclasses.replace(OPEN, auth="accounts", accounts_uri=accounts)
    with server(editor_round, config) as person:
        ann, lea = person("ann", "correct horse"), person("lea", "lead the round")
        for method, path in (
            ("GET", "overview"),
            ("GET", "edits.jsonl"),
            ("POST", "edits.jsonl"),
            ("GET", "videos/10"),
            ("POST", "videos/10/review"),
            ("PUT", "settings"),
            ("POST", "arrays/10"),
            ("POST", "finish"),
        ):
            answer = ann.request(method, f"/api/lead/{path}")
            assert answer.status_code == 403 and answer.json()["code"] == "lead", path
        assert lea.get("/api/lead/overview").status_code == 200


def test_nothing_foreign_gets_into_the_page(editor_round: Round) -> None:
    static = files("stabn.editor").joinpath("static")
    for path in static.iterdir():
        text = path.read_text()
        urls = set(re.findall(r"https?://[^\s\"']+", text)) - {"http://www.w3.org/2000/svg"}
        assert not urls, f"{path.name} asks elsewhere: {urls}"
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), path.name
    page = static.joinpath("index.html").read_text()
    assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*\ssrc=)", page)
    with server(editor_round) as person:
        for path in ("/", "/static/app.js", "/api/session", "/api/round", "/static/none.js", "/healthz"):
            headers = person("ann").get(path).headers
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy, path
            assert headers["x-content-type-options"] == "nosniff"


PATHS = ["99", "..", "%2e%2e%2fround.json", "..%2f..%2fdata", "10%00", "10%2f..%2f11", "a" * 300]


@pytest.mark.parametrize("name", PATHS, ids=range(len(PATHS)))
def test_no_path_from_a_request_reaches_the_storage(editor_round: Round, name: str) -> None:
    with server(editor_round) as person:
        ann = person("ann")
        for path in (f"/frames/{editor_round.round_id}/{name}/0.jpg", f"/api/videos/{name}/spatial"):
            answer = ann.get(path)
            assert answer.status_code == 404 and b"\xff\xd8" not in answer.content, path
        assert ann.get(f"/api/lead/videos/{name}").status_code in (400, 404)
        assert ann.post(f"/api/lead/arrays/{name}", content=b"").status_code in (400, 404, 405)
        if name != "..":  # which the client itself takes away
            assert ann.get(f"/static/{name}").status_code == 404


def test_requests_that_make_no_sense_are_named(editor_round: Round) -> None:
    with server(editor_round) as person:
        ann = person("ann")
        ann.open("10")
        wrong = {
            "edited_attention": [1.5] * 12,
            "status": "finished",
            "skip_reason": "boring",
            "based_on": -1,
            "seconds": "long",
            "slot": 0,
            "note": "x" * 2001,
        }
        for name, value in wrong.items():
            changes = {"curve": [0.5] * 12, "curve" if name == "edited_attention" else name: value}
            answer = ann.save("10", **changes)  # type: ignore[arg-type]
            assert answer.status_code in (400, 409), (name, answer.text)
        assert ann.save("10", [0.5] * 11).status_code == 400
        assert ann.save("10", [float(2**60)] * 12).status_code == 400
        assert ann.save("10", ["1"] * 12).status_code == 400  # type: ignore[list-item]
        assert ann.save("10", [0.5] * 12, extra=1).status_code == 400
        assert (
            ann.post("/api/next", content=b"{" * 300_000, headers={"Content-Type": "application/json"}).status_code
            == 413
        )
        assert ann.post("/api/next", content=b"[]", headers={"Content-Type": "application/json"}).status_code == 400
        assert not read_edits(editor_round)


# The queue and leases


def test_two_people_never_get_the_same_video_and_the_worst_come_first(editor_round: Round) -> None:
    with server(editor_round) as person, server(editor_round) as other:
        order = [video.video_id for video in person.services.queue.order]
        ann, bob = person("ann"), other("bob")
        assert ann.next() == order[0]
        assert bob.next() == order[1], "the other server learns of the lease from storage"
        assert ann.open(order[0]).json()["lease"]["mine"]
        assert bob.open(order[0]).json()["lease"] == {"holder": "ann", "mine": False}
        rows = bob.get("/api/videos").json()
        assert rows["total"] == len(LENGTHS) and [row["video_id"] for row in rows["videos"]] == order
        assert rows["videos"][0]["busy"] == "ann"
        taken = {person(f"p{i}").next() for i in range(len(order) - 2)}
        assert len(taken) == len(order) - 2 and not taken & set(order[:2])
        assert person("late").next() is None
        action = person.services.board.videos[order[0]].class_index
        wanted = ann.get("/api/videos", params={"action": action, "state": "todo"}).json()
        assert {row["class_index"] for row in wanted["videos"]} == {action}
        assert ann.get("/api/videos", params={"text": order[0]}).json()["total"] == 1


def test_a_lease_expires_is_prolonged_and_can_be_taken_over(editor_round: Round) -> None:
    config = dataclasses.replace(OPEN, lease_seconds=1.0)
    with server(editor_round, config) as person:
        ann, bob = person("ann"), person("bob")
        assert ann.open("10").json()["lease"]["mine"]
        time.sleep(0.6)
        assert ann.post("/api/videos/10/lease", json={"slot": 1}).json()["mine"]
        time.sleep(0.6)
        assert not bob.open("10").json()["lease"]["mine"], "it was prolonged"
        refused = bob.save("10", [0.5] * 12)
        assert refused.status_code == 409 and (refused.json()["code"], refused.json()["holder"]) == ("lease", "ann")
        assert bob.open("10", take_over=True).json()["lease"]["mine"]
        assert ann.post("/api/videos/10/lease", json={"slot": 1}).json() == {"holder": "bob", "mine": False}
        time.sleep(1.1)
        assert ann.open("10").json()["lease"]["mine"], "bob's lease expired"
        assert ann.request("DELETE", "/api/videos/10/lease", json={"slot": 1}).status_code == 200
        assert bob.open("10").json()["lease"]["mine"], "ann gave it back"


def test_of_many_who_take_a_lease_at_once_one_gets_it(editor_round: Round) -> None:
    def take(name: str) -> bool:
        try:
            return bool(Leases(editor_round.storage, 60).take("10", 1, name))
        except LeaseHeld:
            return False

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(take, [f"p{i}" for i in range(16)])) == 1


def test_the_next_video_is_what_was_sent_back_then_begun_then_asked_for(editor_round: Round) -> None:
    with server(editor_round) as person:
        ann, bob = person("ann"), person("bob")
        order = [video.video_id for video in person.services.queue.order]
        back, begun, asked = order[5], order[6], order[7]
        curve = {video_id: [0.5] * length for video_id, length in LENGTHS.items()}
        ann.save(back, curve[back])
        verdict = {"slot": 1, "revision": 1, "verdict": "sent_back", "note": "too <i>early</i>"}
        assert bob.post(f"/api/lead/videos/{back}/review", json=verdict).status_code == 200
        ann.save(begun, curve[begun], status="draft")
        ann.request("DELETE", f"/api/videos/{begun}/lease", json={"slot": 1})
        bob.save(asked, curve[asked], status="second_opinion", note="?")
        assert [ann.next(), ann.next(passed=[back]), ann.next(passed=[back, begun])] == [back, begun, asked]
        assert ann.open(back).json()["edit"]["review"] == {
            "verdict": "sent_back",
            "reviewer": "bob",
            "reviewed_at": ann.open(back).json()["edit"]["review"]["reviewed_at"],
            "note": "too <i>early</i>",
        }
        assert bob.next() == order[0], "neither his own question nor what others were sent back"
        ann.save(asked, curve[asked], based_on=1)
        assert read_edits(editor_round)[asked].status == "edited"


# Saving


def test_a_save_is_a_document_that_fine_tuning_reads(editor_round: Round, tmp_path: Path) -> None:
    with server(editor_round) as person:
        ann = person("ann")
        curve = [0.0, 0.25, None, 1.0] * 3
        answer = ann.save("10", curve, note="<script>alert(1)</script>", seconds=42.5)
        assert answer.status_code == 200 and answer.json()["edit"]["revision"] == 1
        assert ann.save("11", [0.5] * 24, status="skipped", skip_reason="wrong_label").status_code == 200
        edit = read_edits(editor_round)["10"]
        assert (edit.editor, edit.seconds, edit.note) == ("ann", 42.5, "<script>alert(1)</script>")
        assert edit.model_attention == tuple(model_attention(editor_round, "10"))
        summary = import_edits(editor_round.uri, tmp_path / "edits.parquet")
        assert (summary.edited, summary.skipped) == (("10",), ("11",))
        np.testing.assert_array_equal(
            load_edit_table(tmp_path / "edits.parquet")["10"], np.float32([0, 0.25, np.nan, 1] * 3)
        )
        progress = ann.get("/api/round").json()
        assert (progress["counts"]["edited"], progress["mine"]["done"]) == (1, 2)


def test_a_stale_save_gets_both_versions_and_nothing_is_overwritten(editor_round: Round) -> None:
    with server(editor_round) as person, server(editor_round) as other:
        ann, bob = person("ann"), other("bob")
        ann.open("10")
        assert ann.save("10", [1.0] * 12).status_code == 200
        stale = bob.save("10", [0.0] * 12)
        assert stale.status_code == 409 and stale.json()["code"] == "conflict"
        theirs = stale.json()["theirs"]
        assert (theirs["editor"], theirs["revision"], theirs["edited_attention"]) == ("ann", 1, [1.0] * 12)
        assert bob.save("10", [0.0] * 12, based_on=1).json()["edit"]["revision"] == 2
        assert len(list(editor_round.storage.list("edits/10/"))) == 2
        assert ann.save("10", [0.3] * 12, based_on=1).json()["theirs"]["editor"] == "bob"
        bob.open("10", take_over=True)
        assert bob.save("10", [0.0] * 12, based_on=7).status_code == 400, "revision 7 was never there"


def test_a_save_whose_answer_got_lost_may_be_repeated(editor_round: Round) -> None:
    with server(editor_round) as person:
        ann = person("ann")
        first, again = ann.save("10", [1.0] * 12), ann.save("10", [1.0] * 12)
        assert again.status_code == 200 and again.json()["edit"]["revision"] == 1
        assert first.json() == again.json()


def test_many_saves_at_once_leave_one_winner_per_revision(editor_round: Round) -> None:
    with server(editor_round) as person, server(editor_round) as other:
        people = [person(f"a{i}") if i % 2 else other(f"a{i}") for i in range(6)]
        for client in people:
            client.open("10", take_over=True)

        def save(place: tuple[int, Person]) -> int:
            return place[1].save("10", [place[0] / 10] * 12).status_code

        with ThreadPoolExecutor(6) as pool:
            codes = list(pool.map(save, enumerate(people)))
        assert codes.count(200) == 1 and set(codes) <= {200, 409}


def test_automatic_edits_wait_for_a_person(editor_round: Round, tmp_path: Path) -> None:
    from stabn.attention.automatic import automatic_edits

    segments = tmp_path / "segments.json"
    segments.write_text(json.dumps({"10": [3, 6]}))
    automatic_edits(editor_round, str(segments))
    with server(editor_round) as person:
        ann = person("ann")
        assert ann.get("/api/round").json()["counts"]["automatic"] == len(LENGTHS)
        opened = ann.open("10").json()
        assert opened["state"] == "automatic" and opened["edit"]["revision"] == 1
        assert ann.save("10", [1.0] * 12, based_on=1).status_code == 200
        assert ann.get("/api/round").json()["counts"]["edited"] == 1


def test_a_document_that_cannot_be_used_stops_nothing(editor_round: Round) -> None:
    editor_round.storage.write("edits/10/0001.json", b'{"format": 1}')
    with server(editor_round) as person:
        ann = person("ann")
        problems = ann.get("/api/lead/overview").json()["problems"]
        assert len(problems) == 1 and "edits/10/0001.json" in problems[0]
        assert ann.save("11", [0.5] * 24).status_code == 200
        editor_round.storage.delete("videos/12/attention.json")
        given = set()
        while (video_id := ann.next()) is not None:
            assert ann.open(video_id).status_code == 200, "what cannot be shown is not handed out"
            assert ann.save(video_id, [0.5] * LENGTHS[video_id]).status_code == 200
            given.add(video_id)
        assert given == set(LENGTHS) - {"10", "11", "12"}
        assert len(ann.get("/api/lead/overview").json()["problems"]) == 3, "both, and the video that has one"


def test_past_revisions_are_shown_to_whom_the_curve_is_shown(editor_round: Round, accounts: str) -> None:
    config = dataclasses.replace(OPEN, auth="accounts", accounts_uri=accounts)
    with server(editor_round, config) as person:
        ann, bob, lea = person("ann", "correct horse"), person("bob", "battery staple"), person("lea", "lead the round")
        for revision in range(3):
            ann.save("10", [revision / 4] * 12, based_on=revision, status="draft")
        found = ann.get("/api/videos/10/revisions?slot=1").json()
        assert [edit["revision"] for edit in found["revisions"]] == [3, 2, 1] and found["left_out"] == 0
        assert found["revisions"][1]["edited_attention"][0] == 0.25 and found["revisions"][1]["state"] == "draft"
        assert ann.get("/api/videos/11/revisions").json() == {"revisions": [], "left_out": 0}
    with server(editor_round, dataclasses.replace(config, shared_share=1.0)) as person:
        assert len(lea.get("/api/videos/10/revisions").json()["revisions"]) == 3
        bob = person("bob", "battery staple")
        assert bob.get("/api/videos/10/revisions?slot=1").status_code == 409, "each on their own"
        assert bob.get("/api/videos/10/revisions?slot=2").json()["revisions"] == []


def test_what_a_lead_said_stays_until_the_video_is_done(editor_round: Round, accounts: str) -> None:
    config = dataclasses.replace(OPEN, auth="accounts", accounts_uri=accounts)
    with server(editor_round, config) as person:
        ann, lea = person("ann", "correct horse"), person("lea", "lead the round")
        ann.save("10", [1.0] * 12)
        verdict = {"slot": 1, "revision": 1, "verdict": "sent_back", "note": "too early"}
        assert lea.post("/api/lead/videos/10/review", json=verdict).status_code == 200
        assert ann.save("10", [0.5] * 12, based_on=2, status="draft").json()["edit"]["review"]["note"] == "too early"
        assert ann.open("10").json()["state"] == "sent_back"
        assert ann.save("10", [0.5] * 12, based_on=3).json()["edit"]["review"] is None
        verdict |= {"revision": 4, "verdict": "accepted"}
        assert lea.post("/api/lead/videos/10/review", json=verdict).status_code == 200
        refused = ann.save("10", [0.0] * 12, based_on=5, status="draft")
        assert refused.status_code == 409 and "lea has accepted this curve" in refused.json()["error"]
        assert lea.save("10", [0.0] * 12, based_on=5).status_code == 200


# Several people, agreement, leads


def test_agreement_is_difference_and_overlap() -> None:
    found = agreement([1, 1, 0, 0, None, 0.5], [1, 0, 0, 0.4, 1, None])
    assert found is not None
    assert found.difference == pytest.approx((0 + 1 + 0 + 0.4) / 4) and found.overlap == pytest.approx(1 / 2)
    assert agreement([None, 1], [1, None]) is None
    none = agreement([0, 0.1], [0.2, 0])
    assert none is not None and none.overlap == 1.0, "both say that there is no action"


def test_shared_videos_are_corrected_independently_and_compared(editor_round: Round, accounts: str) -> None:
    config = dataclasses.replace(OPEN, auth="accounts", accounts_uri=accounts, shared_share=1.0)
    with server(editor_round, config) as person:
        ann, bob, lea = person("ann", "correct horse"), person("bob", "battery staple"), person("lea", "lead the round")
        video_id = ann.next()
        assert video_id is not None
        length = LENGTHS[video_id]
        half = length // 2
        ann.save(video_id, [1.0] * half + [0.0] * (length - half))
        assert bob.next() == video_id, "shared: the same video, but"
        opened = bob.open(video_id, slot=1).json()
        assert (opened["slot"], opened["edit"], opened["blind"]) == (2, None, True), "he does not see her curve"
        assert bob.save(video_id, [0.5] * length, based_on=1).json()["code"] == "slot", "nor may he write to it"
        assert bob.save(video_id, [0.5] * length, slot=2).status_code == 200
        assert ann.open(video_id).json()["slot"] == 1
        compared = lea.get(f"/api/lead/videos/{video_id}").json()
        assert [edit["editor"] for edit in compared["edits"]] == ["ann", "bob"]
        assert compared["agreement"] == [{"slots": [1, 2], "difference": 0.5, "overlap": half / length}]
        overview = lea.get("/api/lead/overview").json()
        assert overview["agreement"] == {"difference": 0.5, "overlap": half / length, "interval": None, "pairs": 1}
        row = next(row for row in overview["people"] if row["name"] == "bob")
        assert (row["edited"], row["median_seconds"], row["difference"]) == (1, 12.0, 0.5)
        assert set(read_edits(editor_round)) == {video_id}, "fine-tuning reads the first curve only"
        accept = {"slot": 2, "revision": 1, "verdict": "accepted", "note": ""}
        assert lea.post(f"/api/lead/videos/{video_id}/review", json=accept).status_code == 200
        main_edit = read_edits(editor_round)[video_id]
        assert (main_edit.editor, main_edit.revision, set(main_edit.edited_attention)) == ("bob", 2, {0.5})
        assert main_edit.review is not None and main_edit.review.reviewer == "lea"
        judged = lea.get("/api/lead/overview").json()
        assert judged["agreement"] == overview["agreement"], "to judge a disagreement does not end it"
        assert [(row["name"], row["done"], row["accepted"]) for row in judged["people"]] == [
            ("ann", 1, 0),
            ("bob", 1, 1),
        ]
        stale = {"slot": 1, "revision": 1, "verdict": "sent_back", "note": ""}
        assert lea.post(f"/api/lead/videos/{video_id}/review", json=stale).status_code == 409


def test_nobody_gets_at_the_independent_curves_of_others(editor_round: Round, tmp_path: Path) -> None:
    names = ["ann", "bob", "eve", "kai"]
    uri = str(tmp_path / "accounts.json")
    add_accounts(uri, names, "annotator", ["correct horse"] * 4)
    add_accounts(uri, ["lea"], "lead", ["correct horse"])
    config = dataclasses.replace(OPEN, auth="accounts", accounts_uri=uri, shared_share=1.0, lease_seconds=10.0)
    with server(editor_round, config) as person, server(editor_round, config) as other:
        ann, bob, eve, kai = (person(name, "correct horse") for name in names)
        assert ann.save("10", [1.0] * 12).status_code == bob.save("10", [0.5] * 12, slot=2).status_code == 200
        for client in (eve, other("eve", "correct horse")):
            opened = client.open("10", take_over=True)
            assert (opened.status_code, opened.json()["code"]) == (409, "slot") and "edit" not in opened.json()
            for slot, status in ((1, "edited"), (2, "draft"), (3, "draft")):  # saving, autosaving, restoring
                refused = client.save("10", [0.1] * 12, slot=slot, based_on=1, status=status)
                assert refused.json()["code"] == "slot" and "theirs" not in refused.json()
                assert client.post("/api/videos/10/lease", json={"slot": slot}).status_code == 409
            assert client.get("/api/next").json()["video_id"] not in ("10", None)
        assert (ann.open("10").json()["slot"], bob.open("10").json()["slot"]) == (1, 2)
        lea = person("lea", "correct horse")
        assert lea.open("10", slot=2).json()["edit"]["editor"] == "bob", "leads look at every curve"
        assert lea.open("10").json()["edit"]["editor"] == "ann"
        # Begun by one and given to another, but not saved: neither is the first one's draft shown
        assert ann.save("11", [1.0] * 24, status="draft").status_code == 200 and bob.open("11").json()["slot"] == 2
        assert eve.open("11").json()["code"] == other("eve", "correct horse").open("11").json()["code"] == "slot"
        # A draft that its editor left stays theirs, and a second opinion is asked for when all have given theirs
        person.services.leases._known.clear()
        assert eve.open("11").json()["code"] == "slot"
        assert ann.save("13", [1.0] * LENGTHS["13"], status="second_opinion").status_code == 200
        assert bob.open("13").json()["edit"] is None, "first his own"
        assert bob.save("13", [0.5] * LENGTHS["13"], slot=2).status_code == 200
        assert eve.open("13").json()["edit"]["editor"] == "ann"
        # With a lease from before the video was given to several, nothing of others is overwritten or told
        assert kai.open("14").json()["slot"] == 1
        assert other.services.leases.take("14", 1, "ann", force=True).holder == "ann"
        assert other("ann", "correct horse").save("14", [1.0] * LENGTHS["14"]).status_code == 200
        for based_on in (0, 1):
            refused = kai.save("14", [0.0] * LENGTHS["14"], based_on=based_on).json()
            assert refused["code"] == "slot" and "theirs" not in refused
        # What a lead changed or accepted is still of those who began
        assert lea.open("10", slot=1, take_over=True).json()["lease"]["mine"]
        assert lea.save("10", [0.75] * 12, based_on=1).status_code == 200
        assert ann.open("10").json()["edit"]["editor"] == "lea"
        accept = {"slot": 2, "revision": 1, "verdict": "accepted", "note": ""}
        assert lea.post("/api/lead/videos/10/review", json=accept).status_code == 200
        assert ann.open("10").json()["code"] == "slot"
        assert bob.open("10").json()["edit"]["review"]["verdict"] == "accepted"
    assert read_edits(editor_round)["14"].editor == "ann"


def test_an_import_leaves_the_independent_curves_of_others(editor_round: Round, s3_uri: str) -> None:
    copy, config = copy_round(editor_round, f"{s3_uri}-copy"), dataclasses.replace(OPEN, shared_share=1.0)
    with server(copy, config) as person:
        person("ann").save("10", [1.0] * 12)
        person("bob").save("10", [0.5] * 12, slot=2)
    with server(editor_round, config) as person:
        time.sleep(1.1)
        person("eve").save("10", [0.0] * 12)
        person("bob").save("10", [0.25] * 12, slot=2)
        lines = person("lea").get("/api/lead/edits.jsonl").content
    with server(copy, config) as person:
        result = person("lea").post("/api/lead/edits.jsonl", content=lines).json()
        assert (result["imported"], result["others"], result["errors"]) == (["10"], ["10"], [])
        curves = person("lea").get("/api/lead/videos/10").json()["edits"]
    assert [(edit["editor"], edit["edited_attention"][0]) for edit in curves] == [("ann", 1.0), ("bob", 0.25)]


def test_what_one_server_knows_to_be_done_another_one_does_not_give(editor_round: Round) -> None:
    with server(editor_round) as one, server(editor_round) as other:
        ann, bob = one("ann"), other("bob")
        done = ann.next()
        assert done is not None and ann.save(done, [1.0] * LENGTHS[done]).status_code == 200
        assert bob.next() not in (done, None), "no refresh in between"
    config = dataclasses.replace(OPEN, shared_share=1.0)
    with server(editor_round, config) as one, server(editor_round, config) as other:
        assert one("ann").save("14", [1.0] * LENGTHS["14"]).status_code == 200
        opened = other("bob").open("14").json()
        assert (opened["slot"], opened["blind"], opened["edit"]) == (2, True, None)


def test_what_one_server_gave_another_one_saves(editor_round: Round) -> None:
    config = dataclasses.replace(OPEN, shared_share=1.0)
    with server(editor_round, config) as one, server(editor_round, config) as other:
        assert one("ann").open("10").json()["slot"] == 1 and one("bob").open("10").json()["slot"] == 2
        assert other("bob").save("10", [0.5] * 12, slot=2).status_code == 200, "no refresh in between"
        assert other("eve").save("10", [0.1] * 12, slot=3).json()["code"] == "slot"
        assert other("eve").save("10", [0.1] * 12, slot=99).status_code == 400


def test_the_share_of_shared_videos_is_set_per_round(editor_round: Round) -> None:
    with server(editor_round) as person, server(editor_round) as other:
        ann = person("ann")
        count = lambda p: sum(p.services.queue.is_shared(video_id) for video_id in LENGTHS)  # noqa: E731
        assert count(person) == 0
        assert ann.put("/api/lead/settings", json={"shared_share": 1, "people_per_shared": 3}).status_code == 200
        other.services.refresh()
        assert count(person) == count(other) == len(LENGTHS)
        assert ann.put("/api/lead/settings", json={"shared_share": 2, "people_per_shared": 2}).status_code == 400
        assert ann.put("/api/lead/settings", json={"shared_share": True, "people_per_shared": 2}).status_code == 400


# Exchange


def test_a_round_is_exported_and_imported_as_one_file(editor_round: Round, s3_uri: str) -> None:
    copy = copy_round(editor_round, f"{s3_uri}-copy")
    with server(editor_round) as person:
        ann = person("ann")
        ann.save("10", [1.0] * 12, note="é")
        ann.save("11", [0.5] * 24, status="skipped", skip_reason="unsure")
        answer = ann.get("/api/lead/edits.jsonl")
        assert "attachment" in answer.headers["content-disposition"]
        lines = answer.content
    assert [parse_edit(line, "line").video_id for line in lines.splitlines()] == ["10", "11"]
    with server(copy) as person:
        lea = person("lea")
        bad = lines + b'{"format": 1}\n' + lines.splitlines()[0].replace(b'"10"', b'"99"') + b"\n"
        refused = lea.post("/api/lead/edits.jsonl", content=bad)
        assert refused.status_code == 400 and len(refused.json()["errors"]) == 2
        assert refused.json()["errors"][0].startswith("line 3") and not read_edits(copy)
        other = lines.splitlines()[0].replace("é".encode(), b"e")
        (error,) = lea.post("/api/lead/edits.jsonl", content=lines + other).json()["errors"]
        assert error == "line 3: another revision 1 of video 10 is in line 1; leave one of them"
        assert lea.post("/api/lead/edits.jsonl", content=lines).json()["imported"] == ["10", "11"]
        assert lea.post("/api/lead/edits.jsonl", content=lines).json()["unchanged"] == ["10", "11"]
        time.sleep(1.1)
        lea.save("10", [0.25] * 12, based_on=1)
        assert lea.post("/api/lead/edits.jsonl", content=lines).json()["kept"] == ["10"]
        edits = read_edits(copy)
        assert (edits["10"].editor, edits["11"].editor, edits["11"].skip_reason) == ("lea", "ann", "unsure")


def test_the_export_of_an_untouched_round_is_importable(editor_round: Round) -> None:
    with server(editor_round) as person:
        lea = person("lea")
        exported = lea.get("/api/lead/edits.jsonl").content
        answer = lea.post("/api/lead/edits.jsonl", content=exported)
        assert answer.status_code == 200 and not any(answer.json().values())


def test_arrays_of_the_desktop_tool_are_imported(editor_round: Round) -> None:
    def file(array: Any) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=True)
        return buffer.getvalue()

    with server(editor_round) as person:
        lea = person("lea")
        good = np.array([0, 0.5, 1, np.nan] * 3)
        assert lea.post("/api/lead/arrays/10", content=file(good)).status_code == 200
        edit = read_edits(editor_round)["10"]
        assert edit.edited_attention == (0, 0.5, 1, None) * 3 and edit.editor == "lea" and edit.status == "edited"
        again = lea.post("/api/lead/arrays/10", content=file(good.reshape(12, 1)))
        assert again.json()["edit"]["revision"] == 1, "it is the same"
        other = file(np.linspace(0, 1, 12))
        refused = lea.post("/api/lead/arrays/10", content=other)
        assert refused.status_code == 409 and refused.json()["code"] == "corrected" and "lea" in refused.json()["error"]
        assert read_edits(editor_round)["10"] == edit, "nothing changed"
        assert lea.post("/api/lead/arrays/10?replace=1", content=other).json()["edit"]["revision"] == 2
        bad = {
            "11 values for a video of 12": file(np.zeros(11)),
            "values go from 0 to 1": file(np.full(12, 2.0)),
            "must be one number per frame": file(np.zeros((3, 4))),
            "not an array": b"PK\x03\x04",
            "Object arrays": file(np.array([{}] * 12, dtype=object)),
            "without a value": file(np.full(12, np.nan)),
        }
        for message, content in bad.items():
            answer = lea.post("/api/lead/arrays/10", content=content)
            assert answer.status_code == 400 and message in answer.json()["error"], (message, answer.text)
        assert lea.post("/api/lead/arrays/99", content=file(good)).status_code == 400


def test_probes_tell_life_from_readiness(editor_round: Round, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(editor_round) as person:
        probe = TestClient(person.app, base_url="http://10.1.2.3:8017")  # a kubelet asks the pod's address
        assert probe.get("/healthz").status_code == probe.get("/readyz").status_code == 200
        monkeypatch.setattr("stabn.editor.services.STALE_SECONDS", -OPEN.refresh_seconds - 1)
        assert probe.get("/readyz").status_code == 503, "the storage was not seen for long"
        assert probe.get("/healthz").status_code == 200, "a restart would not help"


def test_the_process_writes_nothing_to_its_own_disk(editor_round: Round, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    words = ["editor", "--round", editor_round.uri, "--auth", "open", "--port", "0", "--device", "cpu"]
    script = (
        "import sys\n"
        "def hook(event, args):\n"
        "    if event == 'open' and isinstance(args[0], str) and args[2] & 0o103 and not args[0].startswith('/dev/'):\n"
        "        print('wrote', args[0], flush=True)\n"
        "    if event in ('os.mkdir', 'tempfile.mkstemp', 'tempfile.mkdtemp'): print('wrote', args[0], flush=True)\n"
        "sys.addaudithook(hook)\n"
        "from stabn.cli import main\n"
        f"sys.exit(main({words!r}))\n"
    )
    environment = {**os.environ, "HOME": str(home)}
    process = subprocess.Popen(
        [sys.executable, "-B", "-c", script], stdout=subprocess.PIPE, text=True, env=environment, cwd=home
    )
    assert process.stdout is not None
    try:
        lines = [process.stdout.readline()]
        while "http://" not in lines[-1] and lines[-1]:
            lines.append(process.stdout.readline())
        address = re.search(r"http://\S+", lines[-1])
        assert address, lines
        with httpx.Client(base_url=address[0], headers={"Origin": address[0]}) as client:
            answer = client.post("/api/sign-in", json={"name": "ann", "password": ""})
            client.headers["X-CSRF-Token"] = answer.json()["csrf"]
            deadline = time.monotonic() + 30
            while client.get("/api/round").json()["what_if"]["state"] == "loading" and time.monotonic() < deadline:
                time.sleep(0.1)
            body = {"edited_attention": [0.5] * 12}
            client.post("/api/videos/10/open", json={"take_over": False, "slot": None})
            assert client.post("/api/videos/10/what-if", json=body).status_code == 200
    finally:
        process.terminate()
        rest, _ = process.communicate(timeout=30)
    assert "wrote" not in "".join(lines) + rest, "".join(lines) + rest


# Frames and what-if


def test_frames_are_served_by_index_and_kept_by_browsers(editor_round: Round) -> None:
    with server(editor_round) as person:
        ann = person("ann")
        base = f"/frames/{editor_round.round_id}/12"
        answer = ann.get(f"{base}/32.jpg")
        assert answer.headers["content-type"] == "image/jpeg" and "immutable" in answer.headers["cache-control"]
        assert "private" in answer.headers["cache-control"], "only the person's own browser keeps it"
        packed = person.services.frames.storage.read("frames/12.mjpeg")
        assert packed.endswith(answer.content) and answer.content.startswith(b"\xff\xd8")
        again = ann.get(f"{base}/32.jpg", headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304 and not again.content
        assert ann.get(f"{base}/33.jpg").status_code == 404 and ann.get(f"{base}/-1.jpg").status_code == 404
        assert ann.get("/frames/0000000000000000/12/0.jpg").status_code == 404, "of another round"
        assert TestClient(person.app, base_url=ORIGIN).get(f"{base}/32.jpg").status_code == 401
        piece = ann.get(f"{base}/30-32.mjpeg")
        sizes = [int(size) for size in piece.headers["x-frame-sizes"].split(",")]
        assert piece.content == b"".join(ann.get(f"{base}/{index}.jpg").content for index in (30, 31, 32))
        assert len(sizes) == 3 and sum(sizes) == len(piece.content) and "immutable" in piece.headers["cache-control"]
        again = ann.get(f"{base}/30-32.mjpeg", headers={"If-None-Match": piece.headers["etag"]})
        assert again.status_code == 304 and not again.content
        for wrong, status in (("30-33", 404), ("9-8", 400), ("0-64", 400), ("x-3", 404), ("-1-3", 404)):
            assert ann.get(f"{base}/{wrong}.mjpeg").status_code == status, wrong
        assert TestClient(person.app, base_url=ORIGIN).get(f"{base}/0-3.mjpeg").status_code == 401
        spatial = ann.get("/api/videos/12/spatial")
        assert len(spatial.content) == 33 * int(spatial.headers["x-height"]) * int(spatial.headers["x-width"])


def test_of_a_long_video_only_what_is_looked_at_is_read_and_kept(
    editor_round: Round, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stabn.editor.frames.BLOCK", 4)
    frames = FrameStore(editor_round, Cache(1 << 20))
    reads: list[int] = []

    def read_range(key: str, start: int, length: int) -> bytes:
        reads.append(length)
        return type(frames.storage).read_range(frames.storage, key, start, length)

    monkeypatch.setattr(frames.storage, "read_range", read_range)
    packed = frames.storage.read("frames/14.mjpeg")
    assert frames.cached("14", 39, 39) is None
    assert packed.endswith(frames.jpeg("14", 39)) and len(reads) == 1 and reads[0] < len(packed) / 8
    assert frames.cached("14", 36, 39) == frames.piece("14", 36, 39) and len(reads) == 1, "they were read with it"
    assert b"".join(frames.piece("14", 0, 39)) == packed and len(reads) == 10
    small: Cache[bytes] = Cache(3 * max(reads))
    frames = FrameStore(editor_round, small)
    assert b"".join(frames.piece("11", 0, 23)) == frames.storage.read("frames/11.mjpeg")
    assert 0 < small.size <= 3 * max(reads), "what was not used for longest is forgotten"
    small.forget(editor_round.uri)
    assert small.size == 0
    with pytest.raises(RoundError, match="frames 0 to 39; asked for 38 to 40"):
        frames.piece("14", 38, 40)


def test_what_if_is_the_whole_network_with_that_attention(editor_round: Round) -> None:
    config = dataclasses.replace(OPEN, what_if=True, device="cpu")
    with server(editor_round, config) as person:
        ann = person("ann")
        deadline = time.monotonic() + 30
        while ann.get("/api/round").json()["what_if"]["state"] == "loading" and time.monotonic() < deadline:
            time.sleep(0.05)
        model, frames = network(), np.stack(list(moving_square(33, list(LENGTHS).index("12"))))
        sample = evaluation_sample(33, 8, 1)
        stored = person.services.frames.frames("12", range(33))
        assert np.abs(stored.astype(int) - frames).mean() < 8
        clip = torch.from_numpy(crop_clip(stored[sample[0]], evaluation_crop(80, 60, DATA), 32))[None]
        own = model_attention(editor_round, "12")
        curve = np.linspace(0, 1, 33).round(4)
        for mine in (curve.tolist(), own, [None] * 33):
            kept = mine == own or mine[0] is None
            attention = None if kept else torch.tensor(curve[sample], dtype=torch.float32)
            with torch.inference_mode():
                logits = model(to_input(clip, DATA, "cpu"), temporal_attention=attention).logits
            expected = logits[0].softmax(0).numpy()
            answer = ann.post("/api/videos/12/what-if", json={"edited_attention": mine}).json()
            best = np.argsort(-expected)[:5]
            assert answer["top"][0]["class_index"] == best[0]
            for entry in answer["top"]:
                assert entry["score"] == pytest.approx(expected[entry["class_index"]], abs=0.02)
            assert answer["sampled"] == sample[0].tolist()
            truth = editor_round.video("12").class_index
            assert answer["true"]["score"] == pytest.approx(expected[truth], abs=0.02)
        assert ann.post("/api/videos/12/what-if", json={"edited_attention": [2] * 33}).status_code == 400
        assert ann.post("/api/videos/12/what-if", json={"edited_attention": [0.5] * 3}).status_code == 400


def test_the_first_what_if_is_computed_when_the_video_is_opened(
    editor_round: Round, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    make = CachedClips.__init__
    monkeypatch.setattr(CachedClips, "__init__", lambda self, *args: (made.append("once"), make(self, *args))[1])
    with server(editor_round, dataclasses.replace(OPEN, what_if=True)) as person:
        ann, services = person("ann"), person.services
        wait(lambda: services.what_if.state == "ready")
        assert ann.open("12").status_code == 200
        wait(lambda: services.shared.features.size > 0)
        for level in (0.0, 0.5, 1.0):
            assert ann.post("/api/videos/12/what-if", json={"edited_attention": [level] * 33}).status_code == 200
        assert made == ["once"], "later ones use what is kept"


def test_nobody_waits_for_a_video_that_somebody_else_opens(
    editor_round: Round, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, made, go_on = threading.Event(), CachedClips.__init__, threading.Event()

    def make(self: CachedClips, model: Any, perceivers: Any, num_frames: int, *others: Any) -> None:
        if num_frames == LENGTHS["11"]:
            opened.set()
            assert go_on.wait(30)
        made(self, model, perceivers, num_frames, *others)

    monkeypatch.setattr(CachedClips, "__init__", make)
    with server(editor_round, dataclasses.replace(OPEN, what_if=True)) as person, ThreadPoolExecutor(3) as pool:
        ann, ben, services = person("ann"), person("ben"), person.services
        wait(lambda: services.what_if.state == "ready")
        ask = {"edited_attention": [0.5] * 33}
        assert ann.open("12").status_code == ben.open("11").status_code == 200
        assert opened.wait(30), "the network runs when a video is opened"
        try:
            assert ann.post("/api/videos/12/what-if", json=ask).status_code == 200
            asked = [
                pool.submit(ben.post, "/api/videos/11/what-if", json={"edited_attention": [level] * 24})
                for level in (0.1, 0.2, 0.9)
                if time.sleep(0.2) is None
            ]
            assert ann.post("/api/videos/12/what-if", json=ask).status_code == 200
        finally:
            go_on.set()
        answers = [future.result(30) for future in asked]
        assert [answer.status_code for answer in answers] == [503, 503, 200], "only the newest curve is recognised"
        assert {answer.json().get("code") for answer in answers[:2]} == {"superseded"}
        assert services._waiting == 0 and not services._warming and not services._newest


def test_a_video_that_was_left_before_its_turn_is_not_recognised(
    editor_round: Round, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server(editor_round, dataclasses.replace(OPEN, what_if=True)) as person:
        ann, services = person("ann"), person.services
        wait(lambda: services.what_if.state == "ready")
        hold = threading.Event()
        services.shared.opening.submit(hold.wait, 30)
        assert ann.open("12").status_code == 200
        assert ann.request("DELETE", "/api/videos/12/lease", json={"slot": 1}).status_code == 200
        assert ann.open("11").status_code == 200
        hold.set()
        wait(lambda: services.what_if.is_warm("11"))
        assert not services.what_if.is_warm("12")


@pytest.mark.parametrize(("limit", "expected"), [(0.02, torch.bfloat16), (-1.0, torch.float32)])
def test_the_quick_arithmetic_is_used_where_it_says_the_same(
    editor_round: Round, monkeypatch: pytest.MonkeyPatch, limit: float, expected: torch.dtype
) -> None:
    monkeypatch.setattr("stabn.training.device.choose_precision", lambda name, device: torch.bfloat16)
    monkeypatch.setattr("stabn.editor.whatif.MAX_DIFFERENCE", limit)
    what_if = Services(editor_round.uri, dataclasses.replace(OPEN, what_if=True)).what_if
    what_if.load()
    frames, curve = what_if.frames, np.linspace(0, 1, 8, dtype=np.float32)[None]
    for video_id in LENGTHS:
        of_video = (frames.num_frames(video_id), partial(frames.frames, video_id), what_if._data)
        exact = CachedClips(what_if._model, what_if._perceivers[:1], *of_video)
        chosen = CachedClips(what_if._model, what_if._perceivers, *of_video)
        assert exact.dtype == torch.float32 and chosen.dtype == expected
        np.testing.assert_array_equal(exact.temporal, chosen.temporal)
        for temporal, tolerance in ((exact.temporal, 1e-5), (curve, 0.01)):
            np.testing.assert_allclose(
                chosen.probabilities(temporal), exact.probabilities(temporal), rtol=0, atol=tolerance
            )


def test_without_a_network_the_page_says_so_and_works(editor_round: Round) -> None:
    editor_round.storage.write("checkpoint.pt", b"nothing")
    config = dataclasses.replace(OPEN, what_if=True)
    with server(editor_round, config) as person:
        ann = person("ann")
        deadline = time.monotonic() + 30
        while ann.get("/api/round").json()["what_if"]["state"] == "loading" and time.monotonic() < deadline:
            time.sleep(0.05)
        state = ann.open("10").json()["what_if"]
        assert state == {"state": "failed", "reason": "the round's network could not be loaded"}
        answer = ann.post("/api/videos/10/what-if", json={"edited_attention": [0.5] * 12})
        assert answer.status_code == 503 and answer.json()["code"] == "no_network"
        assert ann.save("10", [0.5] * 12).status_code == 200


def test_without_pytorch_the_server_runs_and_says_so(editor_round: Round) -> None:
    script = (
        "import sys, threading; sys.modules['torch'] = None\n"
        "from stabn.config import EditorConfig\n"
        "from stabn.editor.services import Services\n"
        f"services = Services({editor_round.uri!r}, EditorConfig(auth='open'))\n"
        "services.what_if.load()\n"
        "print(services.what_if.reason, len(services.frames.jpeg('10', 0)))\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.startswith("PyTorch is not installed on the server "), result.stderr


# Finishing


class Receiver(ThreadingHTTPServer):
    """A receiver of webhooks, and as much of KFP's API as is used."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.status = 200
        self.runs: list[dict[str, Any]] = []
        self.run_state = "RUNNING"
        self.experiments: list[dict[str, Any]] = []
        self.profile = ""  # what the request for a pipeline must have in it
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append(("POST", self.path, dict(self.headers), body))
        time.sleep(0.1)
        if self.path.endswith("/experiments"):
            self.server.experiments.append({**json.loads(body), "experiment_id": "e1"})
            return self._answer(self.server.experiments[0])
        if self.path.endswith("/runs") and self.server.status == 200:
            self.server.runs.append({**json.loads(body), "run_id": f"run-{len(self.server.runs) + 1}"})
        self._answer(self.server.runs[-1] if self.server.runs else {})

    def do_GET(self) -> None:
        self.server.requests.append(("GET", self.path, dict(self.headers), b""))
        if "/experiments" in self.path:
            return self._answer({"experiments": self.server.experiments})
        if "/pipelines" in self.path:
            is_there = "st-abn-finetune" in self.path and self.server.profile in self.path
            return self._answer({"pipelines": [{"pipeline_id": "p1"}]} if is_there else {})
        if match := re.search(r"/runs/([^/?]+)$", self.path):
            return self._answer({"run_id": match[1], "state": self.server.run_state})
        return self._answer({"runs": self.server.runs})

    def _answer(self, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def test_a_finished_round_tells_the_webhook_once(
    editor_round: Round, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "a secret of the receiver"
    monkeypatch.setenv("STABN_WEBHOOK_SECRET", secret)
    config = dataclasses.replace(OPEN, webhook_url=f"{receiver.url}/hook")
    with server(editor_round, config) as person, server(editor_round, config) as other:
        lea, max_ = person("lea"), other("max")
        assert lea.post("/api/lead/finish", json={"anyway": True}).json()["code"] == "nothing"
        lea.save("10", [1.0] * 12)
        undone = lea.post("/api/lead/finish", json={"anyway": False})
        assert undone.status_code == 409 and undone.json()["undone"] == len(LENGTHS) - 1
        receiver.status = 500
        assert lea.post("/api/lead/finish", json={"anyway": True}).status_code == 502
        receiver.status = 200
        receiver.requests.clear()
        with ThreadPoolExecutor(6) as pool:
            answers = list(
                pool.map(lambda c: c.post("/api/lead/finish", json={"anyway": True}).status_code, [lea, max_] * 3)
            )
        assert answers.count(200) == 1 and set(answers) == {200, 409}
        assert len(receiver.requests) == 1, "exactly once"
        _, path, headers, body = receiver.requests[0]
        content = json.loads(body)
        assert path == "/hook" and content["round_uri"] == editor_round.uri and content["counts"]["edited"] == 1
        stamp, signature = re.fullmatch(r"t=(\d+),v1=([0-9a-f]{64})", headers["X-Stabn-Signature"]).groups()  # type: ignore[union-attr]
        expected = hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
        assert signature == expected and abs(int(stamp) - time.time()) < 60
        page = (Path(__file__).parents[1] / "docs" / "editor.md").read_text()
        receivers: dict[str, Any] = {}
        exec(re.search(r"```python\n(.*?)```", page, re.S)[1], receivers)  # type: ignore[index]
        assert receivers["is_genuine"](body, headers["X-Stabn-Signature"]), "as the documentation says"
        assert not receivers["is_genuine"](body + b" ", headers["X-Stabn-Signature"])
        again = max_.post("/api/lead/finish", json={"anyway": True})
        assert again.json()["code"] == "finished" and again.json()["finished"]["started"] == headers["X-Stabn-Delivery"]
        other.services.refresh()
        assert max_.get("/api/round").json()["finished"]["by"] in ("lea", "max")


def test_what_is_saved_after_finishing_is_not_learnt_from(editor_round: Round, tmp_path: Path) -> None:
    with server(editor_round) as person:
        lea = person("lea")
        assert lea.save("12", [0.5] * 33).status_code == 200
        assert lea.post("/api/lead/finish", json={"anyway": True}).status_code == 200
        record = json.loads(editor_round.storage.read("editor/finished.json"))
        assert record["revisions"] == {"12": 1}
        assert lea.save("12", [0.9] * 33, based_on=1).status_code == 200, "the page says that it is not learnt from"
        assert lea.save("10", [0.9] * 12).status_code == 200
    summary = import_edits(editor_round.uri, tmp_path / "edits.parquet")
    assert summary.fingerprint == record["edits_fingerprint"] and summary.edited == ("12",)
    assert read_edits(editor_round)["12"].revision == 2, "for whoever looks at the newest"
    editor_round.storage.write("editor/finished.json", json.dumps({**record, "revisions": {"12": 3}}).encode())
    with pytest.raises(EditError, match="edits/12: revision 3 of 3 is missing"):
        import_edits(editor_round.uri, tmp_path / "edits.parquet")


def test_a_finished_round_starts_the_pipeline_once(editor_round: Round, receiver: Receiver) -> None:
    config = dataclasses.replace(
        OPEN, kfp_host=receiver.url, kfp_parameters="data_storage_uri=s3://data preset=mini overrides=finetune.epochs=3"
    )
    with server(editor_round, config) as person:
        lea = person("lea")
        lea.save("10", [1.0] * 12)
        record = lea.post("/api/lead/finish", json={"anyway": True}).json()
        assert record["started"] == "run-1" and len(receiver.runs) == 1
        run = receiver.runs[0]
        assert run["pipeline_version_reference"] == {"pipeline_id": "p1"}
        assert run["runtime_config"]["parameters"] == {
            "data_round_uri": editor_round.uri,
            "data_storage_uri": "s3://data",
            "preset": "mini",
            "overrides": "finetune.epochs=3",
        }
        editor_round.storage.delete("editor/finished.json")  # as if the server had died before it wrote this
        assert lea.post("/api/lead/finish", json={"anyway": True}).json()["started"] == "run-1"
        assert len(receiver.runs) == 1, "the run of this name is there already"
        editor_round.storage.delete("editor/finished.json")
        missing = dataclasses.replace(config, kfp_pipeline="other")
        receiver.runs.clear()
    with server(editor_round, missing) as person:
        answer = person("lea").post("/api/lead/finish", json={"anyway": True})
        assert answer.status_code == 502 and "no pipeline 'other'" in answer.json()["error"]


def test_the_run_that_finishing_started_is_linked_and_followed(
    editor_round: Round, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dataclasses.replace(OPEN, kfp_host=receiver.url, kfp_parameters="data_storage_uri=s3://data")
    config = dataclasses.replace(config, kfp_public_url="https://me:secret@kfp.example.org/pipeline/")
    with server(editor_round, config) as person:
        lea, ann = person("lea"), person("ann")
        assert ann.get("/api/round").json()["finished"] is None
        lea.save("10", [1.0] * 12)
        lea.post("/api/lead/finish", json={"anyway": True})
        link = "https://kfp.example.org/pipeline/#/runs/details/run-1"
        for shown in (ann.get("/api/round").json()["finished"], lea.get("/api/lead/overview").json()["finished"]):
            assert (shown["by"], shown["started"], shown["link"], shown["state"]) == ("lea", "run-1", link, "RUNNING")
        services = person.services
        receiver.status = 500
        services.watch()
        assert ann.get("/api/round").json()["finished"]["state"] == "RUNNING", "as far as is known"
        receiver.status, receiver.run_state = 200, "<b>"
        services.watch()
        assert services.run_state == "RUNNING", "no state that KFP has"
        receiver.run_state = "FAILED"
        services.watch()
        assert ann.get("/api/round").json()["finished"]["state"] == "FAILED"
        asked = len(receiver.requests)
        services.watch()
        assert len(receiver.requests) == asked, "it is over"
    said = capsys.readouterr().out
    assert f"lea finished round {editor_round.round_id}" in said and link in said and "secret" not in said
    assert said.index("run run-1: running") < said.index("run run-1: failed")
    with pytest.raises(ConfigError, match=r"kfp_public_url = 'kfp\.example\.org'"):
        EditorConfig(kfp_public_url="kfp.example.org")


def test_the_pipeline_links_to_the_round_in_the_editor(
    editor_round: Round, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tags: dict[str, Any] = {}
    monkeypatch.setattr("stabn.tracking.StageRun.set_tags", lambda self, given: tags.update(given))
    segments = tmp_path / "segments.json"
    segments.write_text(json.dumps({video_id: [2, 6] for video_id in LENGTHS}))
    collect_edits(editor_round.uri, "segments", str(segments), 1.0, 1.0)
    assert "in the editor" not in capsys.readouterr().out and "stabn.editor" not in tags
    monkeypatch.setenv("STABN_EDITOR_PUBLIC_URL", "https://edit.example.org/")
    collect_edits(editor_round.uri, "segments", str(segments), 1.0, 1.0)
    link = f"https://edit.example.org/rounds/{editor_round.round_id}/"
    assert link in capsys.readouterr().out
    assert tags["stabn.editor"] == link and tags["stabn.round"] == editor_round.round_id


def test_the_run_belongs_to_an_experiment_of_the_profile(editor_round: Round, receiver: Receiver) -> None:
    receiver.profile = "namespace=team-a"
    config = dataclasses.replace(
        OPEN,
        kfp_host=receiver.url,
        kfp_experiment="corrections",
        kfp_namespace="team-a",
        kfp_parameters="data_storage_uri=s3://data",
    )
    with server(editor_round, config) as person:
        lea = person("lea")
        lea.save("10", [1.0] * 12)
        assert lea.post("/api/lead/finish", json={"anyway": True}).json()["started"] == "run-1"
    assert receiver.experiments == [{"display_name": "corrections", "namespace": "team-a", "experiment_id": "e1"}]
    assert receiver.runs[0]["experiment_id"] == "e1"
    asked = [path for method, path, *_ in receiver.requests if method == "GET"]
    assert "namespace=team-a" in asked[0] and "experiment_id=e1" in asked[1]


# The commands


def test_accounts_are_made_by_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = str(tmp_path / "accounts.json")
    main(["editor-accounts", "add", "ann", "bob", "--accounts", uri, "--generate"])
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert set(printed) == {"ann", "bob"} and all(len(password) >= 20 for password in printed.values())
    main(["editor-accounts", "add", "ann", "--accounts", uri, "--role", "lead", "--generate"])
    main(["editor-accounts", "remove", "bob", "--accounts", uri])
    capsys.readouterr()
    main(["editor-accounts", "list", "--accounts", uri])
    assert capsys.readouterr().out.split() == ["lead", "ann"]
    for words, said in (
        (["remove", "eve"], "no account 'eve'"),
        (["add", "../x", "--generate"], "account name '../x'"),
        (["add"], "name at least one account"),
        (["add", "a", "b"], "--generate"),
    ):
        with pytest.raises(SystemExit):
            main(["editor-accounts", *words, "--accounts", uri])
        assert said in capsys.readouterr().err
    assert Path(uri).stat().st_mode & 0o777 == 0o600, "nobody else reads the hashes"
    with pytest.raises(AccountError, match="5 characters"):
        add_accounts(uri, ["ann"], "lead", ["short"])


def test_the_server_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["editor", "--round", str(tmp_path / "none")])
    assert stopped.value.code == 2 and "no round.json there" in capsys.readouterr().err


def test_labels_are_data(editor_round: Round) -> None:
    """A class name with markup reaches the page as text; the browser test looks at what the page makes of it."""
    with server(editor_round) as person:
        assert CLASSES[-1] in person("ann").get("/api/round").json()["classes"]
