"""Clocks that are hours off: leases, sessions, signatures and logs hold all the same, or the cause is named."""

import base64
import datetime
import email.utils
import json
import queue
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from old_store import OldStore, old_store
from round_factory import make_round
from test_editor import server

from components.cluster.logs import CLOCKS_DIFFER_SECONDS, LogFollower
from components.cluster.pods import Pod
from pipelines import github_identity
from stabn.attention.rounds import Round
from stabn.editor import auth
from stabn.editor.leases import Lease, LeaseHeld, Leases
from stabn.storage import StorageError, open_storage, s3_client

HOURS = 7200.0


class Clock:
    """This machine's clock, which is off."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.off, real = 0.0, time.time
        monkeypatch.setattr(time, "time", lambda: real() + self.off)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[OldStore]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setattr(s3_client, "_offset", 0.0)
    with old_store() as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        yield store


@pytest.mark.parametrize("off", [HOURS, -HOURS])
def test_a_lease_holds_for_a_server_whose_clock_is_off(store: OldStore, clock: Clock, off: float) -> None:
    storage = open_storage("s3://data/round")
    Leases(storage, 60).take("10", 1, "ann")
    clock.off = off
    other = Leases(storage, 60)
    with pytest.raises(LeaseHeld, match="by ann"):
        other.take("10", 1, "bob")
    assert other.take("10", 1, "bob", force=True).holder == "bob"
    clock.off = 0.0
    there = Leases(storage, 60).look("10", 1)
    assert there is not None and there.holder == "bob" and there.expires_at < time.time() + 70


def test_a_head_request_refused_for_its_time_says_so(store: OldStore) -> None:
    store.answer = (403, {"Date": email.utils.formatdate(time.time() - HOURS, usegmt=True)}, b"")
    with pytest.raises(StorageError, match="120 minutes ahead of the store's: set this machine's clock"):
        open_storage("s3://data/x").exists("y")
    store.answer = (403, {"Date": email.utils.formatdate(usegmt=True)}, b"")
    with pytest.raises(StorageError, match="check AWS_ACCESS_KEY_ID"):
        open_storage("s3://data/x").exists("y")


def test_a_session_of_a_server_whose_clock_is_ahead_is_believed(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(auth.SECRET_VARIABLE, "s" * 32)
    item: Round = make_round(tmp_path, str(tmp_path / "store"))
    with server(item) as person:
        clock.off = 5.0
        ann = person("ann")
        clock.off = 0.0
        assert ann.get("/api/session").status_code == 200
        clock.off = 400 * 24 * 3600.0
        assert ann.get("/api/session").status_code == 401


def test_a_log_is_read_on_from_where_it_broke_off_with_a_clock_behind(clock: Clock) -> None:
    follower = LogFollower(SimpleNamespace(), Pod("u", "p", 0), queue.SimpleQueue(), 0.01)  # type: ignore[arg-type]
    follower._take(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%S.%f}Z a line", 0)
    for off in (-HOURS, 0.0):
        clock.off = off
        assert (follower._since_seconds() or 0) >= CLOCKS_DIFFER_SECONDS


def test_an_identity_is_renewed_in_time_with_a_clock_behind(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    claims = base64.urlsafe_b64encode(json.dumps({"iat": now, "exp": now + 300}).encode()).decode()
    monkeypatch.setattr(github_identity.GitHubIdentity, "_ask", lambda self: asked.append(1) or f"a.{claims}.c")
    asked: list[int] = []
    identity, config = github_identity.GitHubIdentity("kfp"), SimpleNamespace(api_key={})
    clock.off, passed = -HOURS, 0.0
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + passed)
    identity.refresh_api_key_hook(config)
    identity.refresh_api_key_hook(config)
    assert len(asked) == 1
    passed = 280.0
    identity.refresh_api_key_hook(config)
    assert len(asked) == 2


@pytest.mark.parametrize("ended", [False, True])
def test_a_lease_is_not_prolonged_where_another_has_it_by_then(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    """A server that stands still between looking and writing tells nobody that they hold what another was given."""
    storage = open_storage(str(tmp_path))
    server, other = Leases(storage, 60), Leases(storage, 60)
    server.take("10", 1, "ann")
    write = server._write

    def stand_still(lease: Lease, **options: Any) -> Lease:
        monkeypatch.setattr(server, "_write", write)
        clock.off = 61.0
        if ended:
            assert other.take("10", 1, "bob").holder == "bob"
        else:  # but was prolonged through the other server
            other.take("10", 1, "ann")
        return write(lease, **options)

    monkeypatch.setattr(server, "_write", stand_still)
    if ended:
        with pytest.raises(LeaseHeld, match="by bob"):
            server.take("10", 1, "ann")
    else:
        assert server.take("10", 1, "ann").expires_at > time.time() + 50
    found = Leases(storage, 60).look("10", 1)
    assert found is not None and found.holder == ("bob" if ended else "ann")
    assert len(list(storage.list("leases/"))) == 1
