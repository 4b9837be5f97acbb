"""The lead's hour: what waits for a word, numbers that agree, agreement with intervals, and the page of it."""

import dataclasses
import re

from editor_pages import Enter, newest, press, running
from playwright.sync_api import Browser, expect
from round_factory import LENGTHS
from test_editor import OPEN, Person, server
from test_editor_states_browser import correct

from stabn.attention.rounds import Round
from stabn.editor.agreement import Agreement, interval, needs_training


def test_a_person_who_agrees_less_than_others_do_is_named() -> None:
    good, bad = [Agreement(0.1, 0.8 + index / 100) for index in range(8)], [Agreement(0.4, 0.3)] * 6
    low, high = interval([value.overlap for value in good]) or (0.0, 0.0)
    assert 0.8 < low < high < 0.88 and interval([1.0] * 4) is None, "four say nothing of how sure the mean is"
    assert needs_training(bad, good) and not needs_training(good, bad) and not needs_training(good, good)
    assert not needs_training(bad[:4], good), "too few to say"


def review(client: Person, video_id: str, verdict: str, revision: int = 1, slot: int = 1) -> None:
    body = {"slot": slot, "revision": revision, "verdict": verdict, "note": ""}
    assert client.post(f"/api/lead/videos/{video_id}/review", json=body).status_code == 200


def test_a_lead_is_given_what_waits_for_a_word(editor_round: Round) -> None:
    with server(editor_round) as person:
        ann, bob, lea = person("ann"), person("bob"), person("lea")

        def waiting(query: str = "") -> tuple[str | None, int]:
            found = lea.get(f"/api/lead/review?{query}").json()
            return found["video_id"], found["waiting"]

        assert waiting() == (None, 0)
        for client, video_id, status in ((ann, "10", "edited"), (ann, "11", "draft"), (bob, "13", "skipped")):
            changes = {"status": status, "skip_reason": "unsure" if status == "skipped" else None}
            assert client.save(video_id, [1.0] * LENGTHS[video_id], **changes).status_code == 200
        first, number = waiting()
        assert number == 2 and first in ("10", "13"), "what is done, skipped or not"
        other = ({"10", "13"} - {first}).pop()
        assert waiting(f"passed={first}") == (other, 2) and waiting("person=bob") == ("13", 1)
        review(lea, "10", "accepted")
        assert waiting() == ("13", 1)
        review(lea, "13", "sent_back")
        assert waiting() == (None, 0), "it waits for bob"

        def listed(query: str) -> set[str]:
            return {row["video_id"] for row in lea.get(f"/api/videos?{query}").json()["videos"]}

        assert listed("state=accepted") == {"10"} == listed("state=done") == listed("person=ann&state=accepted")
        assert listed("person=ann") == {"10", "11"} and listed("person=bob&state=sent_back") == {"13"}
        overview = lea.get("/api/lead/overview").json()
        states = ("todo", "draft", "sent_back", "accepted", "edited", "done")
        for state in states:
            assert overview["counts"][state] == len(listed(f"state={state}")), state
        for row in overview["people"]:
            for state in states[1:]:
                assert row[state] == len(listed(f"person={row['name']}&state={state}")), (row["name"], state)
        assert sum(action["done"] for action in overview["actions"]) == overview["counts"]["done"] == 1
        assert overview["to_review"] == 0


def test_the_numbers_of_shared_videos_agree_too(editor_round: Round) -> None:
    with server(editor_round, dataclasses.replace(OPEN, shared_share=1.0)) as person:
        ann, bob, lea = person("ann"), person("bob"), person("lea")
        ann.save("10", [1.0] * 12)
        assert lea.get("/api/lead/review").json()["video_id"] == "10"
        bob.open("10")
        bob.save("10", [0.0] * 11 + [1.0], slot=2, status="draft")
        assert lea.get("/api/lead/review").json()["waiting"] == 0, "the second person is not done"
        bob.save("10", [0.0] * 11 + [1.0], slot=2, based_on=1)
        ann.open("11")
        ann.save("11", [1.0] * 24)
        assert lea.get("/api/lead/review").json() == {"video_id": "10", "waiting": 2}, "people differ on it"
        review(lea, "10", "accepted", revision=2, slot=2)
        for name, accepted in (("ann", 0), ("bob", 1)):
            found = lea.get(f"/api/videos?person={name}&state=accepted").json()["total"]
            (row,) = (row for row in lea.get("/api/lead/overview").json()["people"] if row["name"] == name)
            assert row["accepted"] == found == accepted, name
        assert ann.get("/api/videos?person=bob").json()["total"] == lea.get("/api/videos?person=bob").json()["total"]


def test_the_next_done_curve_is_one_key_away(editor_round: Round, browser: Browser, enter: Enter) -> None:
    for video_id, name in (("10", "ann"), ("11", "ann"), ("13", "bob")):
        correct(editor_round, video_id, name)
    with running(editor_round, "--editor.what_if", "false") as address:
        page = enter(address, "lea", "#/overview")
        expect(page.get_by_role("row", name=re.compile("^ann 2 0"))).to_be_visible()
        page.get_by_role("link", name="Review 3 videos").click()
        expect(page.get_by_text("3 videos wait for review")).to_be_visible()
        first = re.findall(r"Video (\d+)", page.locator(".page-head").inner_text())[0]
        press(page, "Enter")
        expect(page.get_by_text("2 videos wait for review")).to_be_visible()
        assert newest(editor_round, first).review.verdict == "accepted"  # type: ignore[union-attr]
        second = re.findall(r"Video (\d+)", page.locator(".page-head").inner_text())[0]
        press(page, "n")
        expect(page.get_by_text(f"Video {second} ")).to_have_count(0)
        third = re.findall(r"Video (\d+)", page.locator(".page-head").inner_text())[0]
        press(page, "b")
        page.get_by_role("textbox", name="Note").fill("too early")
        page.get_by_role("dialog").get_by_role("button", name="Send back").click()
        expect(page.get_by_text("1 video waits for review")).to_be_visible()
        expect(page.get_by_text(f"Video {second} ")).to_be_visible()
        assert newest(editor_round, third).review.note == "too early"  # type: ignore[union-attr]
        press(page, "Enter")
        expect(page.get_by_role("heading", name="Nothing waits for review")).to_be_visible()
        page.get_by_role("link", name="To the overview").click()
        sender = "bob" if third == "13" else "ann"
        page.get_by_role("link", name=sender).click()
        expect(page.locator(".count")).to_have_text("1 video" if sender == "bob" else "2 videos")
        page.get_by_label("Status").select_option("sent_back")
        expect(page.locator(".video")).to_have_count(1)
        page.get_by_role("button", name=f"Of everybody, not only {sender}").click()
        page.get_by_label("Status").select_option("accepted")
        expect(page.locator(".video .chip.accepted")).to_have_count(2)
