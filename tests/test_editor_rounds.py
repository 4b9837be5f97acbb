"""All rounds of a storage in one editor: the list, links, accounts and leases over rounds, and who waits for them."""

import dataclasses
import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from editor_pages import Enter, press, ready, running
from playwright.sync_api import Browser, expect
from round_factory import LENGTHS, copy_round
from starlette.testclient import TestClient
from test_editor import OPEN, ORIGIN, Person, Receiver, receiver  # noqa: F401 (a fixture)

from stabn.attention.automatic import collect_edits
from stabn.attention.edits import read_edits
from stabn.attention.rounds import Round, load_round
from stabn.attention.waiting import FOLDER, read_waiting
from stabn.cli import main
from stabn.config import EditorConfig
from stabn.editor import rounds as rounds_module
from stabn.editor.app import create_rounds_app
from stabn.editor.rounds import Rounds
from stabn.editor.tally import per_hour
from stabn.errors import RetryableError
from stabn.storage import open_storage


def another(item: Round, storage_uri: str, created_at: str) -> Round:
    """Copy a round into a storage as another one."""
    round_id = uuid.uuid4().hex[:16]
    made = copy_round(item, f"{storage_uri}/rounds/{round_id}")
    content = json.loads(made.storage.read("round.json")) | {"round_id": round_id, "created_at": created_at}
    made.storage.write("round.json", json.dumps(content).encode())
    return load_round(made.uri)


@pytest.fixture
def three(_exported_round: Round, s3_uri: str) -> list[Round]:
    """Return three rounds of one storage, the newest last."""
    return [another(_exported_round, s3_uri, f"2026-0{month}-01T00:00:00+00:00") for month in (1, 2, 3)]


def storage_of(item: Round) -> str:
    return item.uri.rpartition("/rounds/")[0]


@contextmanager
def serving(item: Round, config: EditorConfig = OPEN) -> Iterator[Any]:
    """Yield a function that signs a person in to the server of a round's storage."""
    rounds = Rounds(storage_of(item), config)
    with ExitStack() as stack:
        app = create_rounds_app(rounds, config)
        stack.enter_context(TestClient(app, base_url=ORIGIN))

        def person(name: str, where: str = "") -> Person:
            client = Person(app, base_url=f"{ORIGIN}{where}", headers={"Origin": ORIGIN}, client=("127.0.0.1", 1))
            assert client.post("/api/sign-in", json={"name": name, "password": ""}).status_code == 200
            client.headers["X-CSRF-Token"] = client.get("/api/session").json()["csrf"]
            return client

        person.rounds = rounds  # type: ignore[attr-defined]
        yield person


def row(client: Person, item: Round) -> dict[str, Any]:
    (found,) = (row for row in client.get("/api/rounds").json()["rounds"] if row["round_id"] == item.round_id)
    return found


def inside(client: Person, item: Round) -> Person:
    """Return the same person's browser at a round's page."""
    there = Person(client.app, base_url=f"{ORIGIN}/rounds/{item.round_id}", client=("127.0.0.1", 1))
    there.headers.update({"Origin": ORIGIN, "X-CSRF-Token": client.headers["X-CSRF-Token"]})
    there.cookies = client.cookies
    return there


def test_one_server_has_all_rounds_with_one_sign_in_and_leases_of_each(three: list[Round]) -> None:
    first, second, third = three
    with serving(first) as person:
        ann, bob = person("ann"), person("bob")
        assert [found["round_id"] for found in ann.get("/api/rounds").json()["rounds"]] == [
            item.round_id for item in reversed(three)
        ]
        for item in (first, second):
            assert inside(ann, item).open("10").json()["lease"]["mine"], "the same video in two rounds"
        assert inside(bob, first).open("10").json()["lease"] == {"holder": "ann", "mine": False}
        assert inside(bob, third).open("10").json()["lease"]["mine"]
        assert inside(ann, first).save("10", [1.0] * 12).status_code == 200
        assert inside(ann, first).save("11", [1.0] * 24, status="draft").status_code == 200
        person.rounds.refresh()
        found = row(ann, first)
        assert (found["state"], found["done"], found["begun"], found["total"]) == ("open", 1, 1, len(LENGTHS))
        assert found["mine"] == 1 and found["people"] == [{"name": "ann", "done": 1}] and row(bob, first)["mine"] == 0
        assert row(ann, second)["state"] == "waiting" and row(ann, second)["done"] == 0
        assert read_edits(first)["10"].editor == "ann" and not read_edits(second)
        assert ann.get("/api/round").status_code == 404, "which one has to be said"


def test_links_open_rounds_also_new_ones_and_no_others(three: list[Round], editor_round: Round) -> None:
    with serving(three[0]) as person:
        ann, stranger = person("ann"), TestClient(person("bob").app, base_url=ORIGIN)
        new = another(editor_round, storage_of(three[0]), "2026-04-01T00:00:00+00:00")
        page = f"/rounds/{new.round_id}"
        answer = stranger.get(page, follow_redirects=False)
        assert answer.status_code == 307 and answer.headers["location"] == f"{new.round_id}/"
        assert "Attention editor" in stranger.get(f"{page}/").text
        assert stranger.get(f"{page}/static/app.js").status_code == 200
        assert stranger.get(f"{page}/api/round").status_code == 401
        assert ann.get(f"{page}/api/round").json()["round_id"] == new.round_id, "exported since the start"
        assert new.round_id in {found["round_id"] for found in ann.get("/api/rounds?look=1").json()["rounds"]}
        for name in ("0123456789abcdef", "..", "%2e%2e%2fframes", "a b"):
            answer = ann.get(f"/rounds/{name}/api/round")
            assert answer.status_code == 404, name
        assert "there is no round '0123" in ann.get("/rounds/0123456789abcdef/api/round").json()["error"]


def test_a_round_is_finished_from_the_list_and_starts_its_run(
    three: list[Round],
    receiver: Receiver,  # noqa: F811
) -> None:
    config = dataclasses.replace(OPEN, kfp_host=receiver.url, kfp_public_url="https://kfp.example.org")
    with serving(three[0], config) as person:
        lea = person("lea")
        there = inside(lea, three[1])
        there.save("10", [1.0] * 12)
        assert there.post("/api/lead/finish", json={"anyway": True}).json()["started"] == "run-1"
        parameters = receiver.runs[0]["runtime_config"]["parameters"]
        assert parameters["data_round_uri"] == three[1].uri and parameters["data_storage_uri"] == storage_of(three[1])
        person.rounds.refresh()
        found = row(lea, three[1])
        assert found["state"] == "finished" and found["finished"]["by"] == "lea" and found["done"] == 1
        assert found["finished"]["link"] == "https://kfp.example.org/#/runs/details/run-1"
        assert row(lea, three[0])["finished"] is None


def test_the_list_says_which_run_waits(three: list[Round], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STABN_RUN_ID", "7f3a")
    monkeypatch.setattr("stabn.attention.automatic.POLL_SECONDS", 0.05)

    def wait() -> None:
        with pytest.raises(RetryableError):
            collect_edits(three[0].uri, "people", "", 0.5, 2.0)

    stage = threading.Thread(target=wait)
    config = dataclasses.replace(OPEN, kfp_public_url="https://kfp.example.org")
    with serving(three[0], config) as person:
        stage.start()
        while not read_waiting(three[0].storage):
            time.sleep(0.05)
        person.rounds.refresh()
        (run,) = row(person("ann"), three[0])["runs"]
        assert run["run_id"] == "7f3a" and run["needed"] == len(LENGTHS) / 2
        assert run["link"] == "https://kfp.example.org/#/runs/details/7f3a"
        stage.join()
        person.rounds.refresh()
        assert row(person("ann"), three[0])["runs"] == [], "it gave up, and says so"
    three[0].storage.write(f"{FOLDER}dead.json", json.dumps({**run, "seen_at": time.time() - 3600}).encode())
    three[0].storage.write(f"{FOLDER}odd.json", b"[]")
    assert read_waiting(three[0].storage) == []


def test_what_cannot_be_used_is_named_and_hides_nothing(three: list[Round]) -> None:
    three[1].storage.write("round.json", b"{}")
    three[0].storage.write("edits/10/0001.json", b"{")
    with serving(three[0]) as person:
        person.rounds.refresh()
        found = person("ann").get("/api/rounds").json()
        assert len(found["rounds"]) == 2 and "round format" not in str(found["rounds"])
        assert len(found["problems"]) == 1 and three[1].round_id in found["problems"][0]


def test_a_round_that_nobody_uses_gives_its_memory_back(three: list[Round], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds_module, "IDLE_SECONDS", 0.0)
    with serving(three[0], dataclasses.replace(OPEN, refresh_seconds=0.1)) as person:
        there = inside(person("ann"), three[0])
        assert there.open("10").status_code == 200
        deadline = time.monotonic() + 10
        while person.rounds._opened and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not person.rounds._opened
        assert there.save("10", [1.0] * 12).status_code == 200, "and is opened again when somebody asks"


def test_the_pace_counts_work_and_no_nights() -> None:
    hour = 3600.0
    assert per_hour([0, 60, 120, 180]) == 60
    assert per_hour([0, 60, 120, 20 * hour, 20 * hour + 60, 20 * hour + 120]) == 60, "a night is no work"
    assert per_hour([0, 60]) is None and per_hour([]) is None and per_hour([5, 5, 5, 5]) is None


def test_the_storage_or_one_round_has_to_be_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["editor", "--editor.auth", "open"])
    assert "--storage" in capsys.readouterr().err
    assert open_storage(tmp_path).folders("rounds/") == ()


def test_rounds_are_found_opened_and_left_in_the_page(three: list[Round], browser: Browser, enter: Enter) -> None:
    with running(storage_of(three[0]), "--editor.what_if", "false") as address:
        page = enter(address, hash=f"#/round/{three[1].round_id}")  # a link of earlier versions
        expect(page.get_by_role("heading", name="8 videos wait for you")).to_be_visible()
        assert page.url == f"{address}/rounds/{three[1].round_id}/"
        press(page, "Enter")
        page.locator(".editor[data-ready]").wait_for()
        press(page, "Home i End o")
        press(page, "Enter")
        expect(page.locator(".bar-progress")).to_contain_text("1 of 8")
        page.get_by_role("link", name="Rounds").click()
        rows = page.locator(".round-row")
        expect(rows).to_have_count(3)
        done = page.get_by_label("Under way").locator(".round-row")
        expect(done).to_contain_text("1 of 8 done")
        expect(done).to_contain_text("1 by you")
        page.get_by_label("Not begun").get_by_role("link").first.click()
        expect(page.get_by_role("heading", name="8 videos wait for you")).to_be_visible()
        assert page.url.startswith(f"{address}/rounds/{three[2].round_id}/"), "without signing in again"
        page.goto(f"{address}/rounds/{three[0].round_id}/#/video/14")
        ready(page, "14")
        page.goto(f"{address}/rounds/0123456789abcdef/")
        expect(page.get_by_text("there is no round '0123456789abcdef' here")).to_be_visible()
        page.get_by_role("link", name="All rounds").click()
        expect(rows).to_have_count(3)
