"""Every route of the editor with what nobody should send: it answers with a refusal, and nothing changes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile import NASTY, SIZE
from starlette.routing import Mount, Route
from test_editor import OPEN, ORIGIN, Person, server

from stabn.attention.edits import read_edits
from stabn.attention.rounds import Round
from stabn.config import EditorConfig
from stabn.editor.accounts import add_accounts

METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "X" * 40)
JUNK = ("..", "%2e%2e%2fround.json", "10%00", "%ff%fe", "a" * 5000, "%F0%9F%92%A9", "<script>", "99999999999999999999")
GUESSABLE = ("10", "0", *JUNK)
if SIZE <= 1:  # a sample of each; all of them in the drill
    METHODS, GUESSABLE = METHODS[:5], ("10", "%2e%2e%2fround.json", "99999999999999999999")
RAW = (
    b"", b"null", b"[]", b"{", b"\xff\xfe\x00", b'{"a":' * 9000, b'{"\\ud800": 1}', b"1" * 5000, b"x" * (300 << 10),
)  # fmt: skip
CURVE = {"edited_attention": [0.5] * 12}
GOOD: dict[str, dict[str, Any]] = {
    "/api/next": {"passed": [], "action": None},
    "/api/videos/{video_id}/open": {"take_over": False, "slot": None},
    "/api/videos/{video_id}/lease": {"slot": 1},
    "/api/videos/{video_id}/edit": {"slot": 1, "based_on": 0, **CURVE, "status": "edited", "skip_reason": None}
    | {"note": "", "seconds": 1},
    "/api/videos/{video_id}/what-if": CURVE,
    "/api/lead/settings": {"shared_share": 0.0, "people_per_shared": 2},
    "/api/lead/videos/{video_id}/review": {"slot": 1, "revision": 1, "verdict": "sent_back", "note": ""},
    "/api/lead/finish": {"anyway": False},
}


def bodies(path: str) -> Iterator[bytes]:
    """Yield what is no JSON object, and good requests of which one field is not."""
    yield from RAW
    for name in GOOD.get(path, {}):
        for value in NASTY if SIZE > 1 else NASTY[::3]:
            yield json.dumps({**GOOD[path], name: value}).encode("utf-8", "surrogatepass")


def routes(app: Any) -> list[Route]:
    found = [route for route in app.routes if isinstance(route, Route)]
    assert len(found) > 20 and all(isinstance(route, Route | Mount) for route in app.routes)
    return found


def addresses(route: Route) -> Iterator[str]:
    """Yield addresses of a route, each parameter guessed alike."""
    names = re.findall(r"\{(\w+)(?::\w+)?\}", route.path)
    for guess in GUESSABLE if names else ("",):
        yield re.sub(r"\{\w+(?::\w+)?\}", lambda match, guess=guess: guess, route.path)


def stored(item: Round) -> dict[str, str]:
    return {info.key: info.stamp for info in item.storage.scan() if not info.key.startswith("leases/")}


@pytest.fixture
def accounts(tmp_path: Path) -> str:
    add_accounts(str(tmp_path / "accounts.json"), ["ann"], "annotator", ["correct horse"])
    return str(tmp_path / "accounts.json")


def test_without_a_sign_in_no_route_tells_anything(editor_round: Round, accounts: str) -> None:
    """Only the page itself, its health and how one signs in are there for everybody."""
    public = {"/", "/healthz", "/readyz", "/api/sign-in"}
    config = EditorConfig(auth="accounts", accounts_uri=accounts, refresh_seconds=3600, what_if=False)
    with server(editor_round, config) as person:
        before = stored(editor_round)
        stranger = Person(person.app, base_url=ORIGIN, raise_server_exceptions=True)
        page = stranger.get("/").text  # the same at every round's address, which tells no round from another
        for route in routes(person.app):
            for address in addresses(route):
                for method in METHODS:
                    answer = stranger.request(method, address, content=b"{}")
                    reads = method in ("GET", "HEAD")
                    if reads and address.startswith("/rounds/") and answer.text in ("", page):
                        continue
                    wanted = (200,) if route.path in public and reads else (400, 401, 403, 404, 405, 415)
                    assert answer.status_code in wanted, (method, address, answer.status_code, answer.text[:200])
        assert stored(editor_round) == before


def test_no_body_and_no_address_is_more_than_refused(editor_round: Round) -> None:
    """A lead, who may do everything, sends it all: never a failure of the server, never a file of elsewhere."""
    with server(editor_round) as person:
        lead = person("lea")
        before = stored(editor_round)
        for route in routes(person.app):
            if route.path in ("/api/sign-out", "/api/sign-in"):
                continue
            for address in addresses(route):
                for method in METHODS:
                    is_real = address == route.path.replace("{video_id}", "10")
                    sends = method in (route.methods or ()) and method not in ("GET", "HEAD")
                    for body in bodies(route.path) if sends and is_real else RAW[:1]:
                        headers = {"Content-Type": "application/json"}
                        answer = lead.request(method, address, content=body, headers=headers)
                        said = (method, address[:60], body[:60], answer.status_code, answer.text[:200])
                        assert answer.status_code < 500, said
                        assert b"root:" not in answer.content and b"Traceback" not in answer.content, said
        new = set(stored(editor_round)) - set(before)
        assert {key.partition("/")[0] for key in new} <= {"editor", "edits"}, new
        read_edits(editor_round)  # whatever was saved is a document that can be read


def test_queries_that_make_no_sense_are_refused_or_left_alone(editor_round: Round) -> None:
    with server(editor_round) as person:
        lead = person("lea")
        for route in routes(person.app):
            if "GET" not in (route.methods or ()) or "{" in route.path:
                continue
            for value in NASTY if SIZE > 1 else NASTY[::6]:
                text = str(value).encode("utf-8", "replace").decode()
                query = dict.fromkeys(("offset", "action", "state", "text", "current", "replace"), text)
                assert lead.get(route.path, params=query).status_code < 500, (route.path, text)


FORGED = [
    ("X-Forwarded-For", "127.0.0.1"), ("X-Forwarded-User", "lea"), ("X-Remote-User", "lea"),
    ("Forwarded", "for=127.0.0.1;host=evil"), ("X-Forwarded-Host", "evil.example"), ("X-Original-URL", "/api/round"),
    ("X-HTTP-Method-Override", "GET"), ("X-Forwarded-Email", "lea"), ("Authorization", "Basic bGVhOmxlYQ=="),
    ("Cookie", "stabn_session=" + "A" * 4000), ("Cookie", "stabn_session=e30.e30.e30"),
]  # fmt: skip


def test_forged_headers_sign_nobody_in(editor_round: Round, accounts: str) -> None:
    config = EditorConfig(auth="accounts", accounts_uri=accounts, refresh_seconds=3600, what_if=False)
    with server(editor_round, config) as person:
        for header, value in FORGED:
            stranger = Person(person.app, base_url=ORIGIN, headers={header: value})
            assert stranger.get("/api/round").status_code == 401, header


def test_a_session_from_before_the_sign_in_is_not_kept(editor_round: Round) -> None:
    """Whoever plants a cookie does not get the session that a person then begins with it."""
    with server(editor_round, OPEN) as person:
        planted = person("mallory").cookies["stabn_session"]
        victim = Person(person.app, base_url=ORIGIN, headers={"Origin": ORIGIN}, cookies={"stabn_session": planted})
        answer = victim.post("/api/sign-in", json={"name": "ann", "password": ""})
        assert answer.status_code == 200 and answer.cookies["stabn_session"] != planted
        other = Person(person.app, base_url=ORIGIN, cookies={"stabn_session": planted})
        assert other.get("/api/session").json()["name"] == "mallory"
