"""In a real browser: what the page says of a video's state, past revisions, long texts, and small windows."""

import dataclasses
import json
from pathlib import Path

import pytest
from editor_pages import Enter, drag, lanes, newest, open_video, press, ready, reopened, running, saved, shows, value
from playwright.sync_api import Browser, Page, expect
from round_factory import copy_round

from stabn.attention.automatic import collect_edits
from stabn.attention.edit_document import Edit, Review
from stabn.attention.edits import read_edits, save_edit
from stabn.attention.rounds import Round, load_round, model_attention
from stabn.editor.accounts import add_accounts

WORD = "Bundesausbildungsförderungsgesetzesänderungsantrag" * 4


def correct(item: Round, video_id: str, editor: str, **changes: object) -> Edit:
    """Save a curve as a person's next revision."""
    before = read_edits(item).get(video_id)
    length = item.video(video_id).num_frames
    edit = Edit(
        round_id=item.round_id, video_id=video_id, revision=before.revision + 1 if before else 1, num_frames=length,
        model_attention=tuple(model_attention(item, video_id)), edited_attention=(1.0,) * length, status="edited",
        editor=editor, edited_at="2026-01-01T10:00:00+00:00",
    )  # fmt: skip
    save_edit(item, dataclasses.replace(edit, **changes))  # type: ignore[arg-type]
    return read_edits(item)[video_id]


@pytest.fixture
def accounts(tmp_path: Path) -> list[str]:
    """Return the flags of a server whose only account is ann's, an annotator."""
    uri = str(tmp_path / "accounts.json")
    add_accounts(uri, ["ann"], "annotator", ["correct horse"])
    return ["--editor.auth", "accounts", "--editor.accounts_uri", uri, "--editor.what_if", "false"]


def test_a_past_revision_is_looked_at_and_restored(editor_round: Round, browser: Browser, enter: Enter) -> None:
    with running(editor_round, "--editor.what_if", "false") as address:
        page = enter(address, hash="#/video/14")
        ready(page, "14")
        for keys in ("Home 1", "3", "5"):
            press(page, f"{keys} Control+s")
            saved(page)
        page.reload()
        ready(page, "14")
        assert page.get_by_role("button", name="Undo").is_disabled(), "undo ends with the page"
        press(page, "p")
        dialog = page.get_by_role("dialog")
        rows = dialog.locator(".revisions li")
        expect(rows).to_have_count(3)
        expect(rows.first).to_contain_text("3 · ann")
        assert rows.first.get_by_role("button").count() == 0 and rows.locator("svg").count() == 3
        dialog.get_by_role("button", name="Restore revision 2").click()
        shows(page, "mine 50%")
        saved(page)
        edit = newest(editor_round, "14")
        assert (edit.revision, edit.edited_attention[0], edit.status) == (4, 0.5, "draft"), "a new one"
        press(page, "z")
        assert "mine 100%" in value(page), "which can be undone"


def test_an_automatic_correction_is_called_so_until_somebody_changed_it(
    editor_round: Round, tmp_path: Path, browser: Browser, enter: Enter
) -> None:
    segments = tmp_path / "segments.json"
    segments.write_text(json.dumps({"14": [2, 6]}))
    collect_edits(editor_round.uri, "segments", str(segments), 0.0, 1.0)
    with running(editor_round, "--editor.what_if", "false") as address:
        page = enter(address, hash="#/video/14")
        ready(page, "14")
        expect(page.get_by_text("nobody has looked at it yet")).to_be_visible()
        press(page, "Home 5")
        saved(page)
        expect(page.get_by_text("nobody has looked at it yet")).to_have_count(0)
        expect(page.locator(".video-head .chip")).to_have_text("begun")


def test_an_accepted_video_says_so_and_lets_go_of_local_work(
    editor_round: Round, accounts: list[str], browser: Browser, enter: Enter
) -> None:
    with running(editor_round, *accounts) as address:
        page = enter(address, "ann", "#/video/14", password="correct horse")
        ready(page, "14")
        press(page, "Home 5")
        saved(page)
        page.context.set_offline(True)
        press(page, "1")
        expect(page.locator("#status")).to_contain_text("No connection")
        review = Review(verdict="accepted", reviewer="lea", reviewed_at="2026-01-01T11:00:00+00:00", note="well done")
        correct(editor_round, "14", "ann", review=review)
        page.context.set_offline(False)
        expect(page.get_by_text("What you changed cannot be saved")).to_be_visible(timeout=20_000)
        assert "No connection" not in page.locator("#status").inner_text()
        again = reopened(page, enter, address, "ann", password="correct horse")
        expect(again.get_by_text("Not saved yet, kept on this computer")).to_be_visible()
        again.get_by_role("link", name="video 14", exact=True).click()
        ready(again, "14")
        expect(again.locator(".banner").get_by_text("lea accepted this curve")).to_be_visible()
        expect(again.locator(".banner q")).to_have_text("well done")
        expect(again.get_by_text("Only a lead can change it now")).to_be_visible()
        press(again, "e Home 3")
        assert "mine 100%" in value(again), "as it was accepted"
        with again.expect_download() as download:
            again.get_by_role("button", name="Keep a copy").click()
        kept = json.loads(Path(download.value.path()).read_text())
        assert kept["edited_attention"][0] == 0 and download.value.suggested_filename == "video-14-not-saved.json"
        again.get_by_role("button", name="discard it").click()
        expect(again.get_by_text("What you changed cannot be saved")).to_have_count(0)
        press(again, "Escape")
        again.locator(".hero").wait_for()
        expect(again.get_by_text("Not saved yet")).to_have_count(0)


def test_no_connection_is_said_only_without_one(editor_round: Round, browser: Browser, enter: Enter) -> None:
    with running(editor_round, "--editor.what_if", "false") as address:
        page = enter(address, hash="#/video/14")
        ready(page, "14")
        answer = {"status": 503, "content_type": "application/json"}
        body = '{"error": "the object storage does not answer; trying again helps", "code": "storage"}'
        page.route("**/edit", lambda route: route.fulfill(**answer, body=body))
        press(page, "Home 5")
        expect(page.locator("#status")).to_contain_text("the object storage does not answer")
        expect(page.locator("#status")).to_contain_text("kept on this computer")
        assert "No connection" not in page.locator("#status").inner_text()
        page.unroute("**/edit")
        saved(page)


def test_what_no_page_can_send_is_discarded_in_the_queue(editor_round: Round, browser: Browser, enter: Enter) -> None:
    with running(editor_round, "--editor.what_if", "false") as address:
        page = enter(address)
        key = ":".join(["stabn%2Funsaved", editor_round.round_id, "ann", "gone", "1"])
        page.evaluate("key => localStorage.setItem(key, '{}')", key)
        page.reload()
        page.get_by_role("button", name="Discard video gone").click()
        page.get_by_role("dialog").get_by_role("button", name="Discard").click()
        expect(page.get_by_text("Not saved yet")).to_have_count(0)
        assert page.evaluate("key => localStorage.getItem(key)", key) is None


@pytest.fixture
def wordy(_exported_round: Round, s3_uri: str) -> Round:
    """Return a round whose classes have very long names, and a person with one, too."""
    item = copy_round(_exported_round, s3_uri)
    content = json.loads(item.storage.read("round.json"))
    content["classes"] = [WORD, "A label of many words " * 10, *content["classes"][2:]]
    item.storage.write("round.json", json.dumps(content).encode())
    item = load_round(item.uri)
    correct(item, "10", "n" * 70, note=WORD)
    correct(item, "11", "bob", skip_reason="unsure", status="skipped")
    return item


def wide(page: Page) -> list[str]:
    """Return what is wider than the window."""
    return page.evaluate(
        "document.documentElement.scrollWidth <= innerWidth ? [] : [...document.querySelectorAll('main *, header *')]"
        ".filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 120))"
    )


def test_long_texts_and_small_windows_need_no_sideways_scroll(wordy: Round, browser: Browser, enter: Enter) -> None:
    with running(wordy, "--editor.what_if", "false", "--editor.shared_share", "1") as address:
        page = enter(address, "l" * 70)
        for width, height in ((1280, 720), (960, 640), (853, 533)):  # the last is 1280 x 800 at a zoom of 150%
            page.set_viewport_size({"width": width, "height": height})
            for view in ("#/", "#/video/10/1", "#/video/14", "#/overview", "#/compare/10"):
                page.goto(f"{address}/{view}")
                page.locator(".page, .editor[data-ready]").first.wait_for()
                page.wait_for_timeout(60)
                assert not wide(page), (width, view, wide(page)[:5])
        for odd in ("#/video/%", "#/video/%E0%A4%A/x", "#/video/", "#//", "#/nothing/of/this", "#/compare/%2e%2e"):
            page.goto(f"{address}/{odd}")
            page.locator(".page, .message").first.wait_for()
            assert "undefined" not in page.locator("main").inner_text()


def test_nothing_is_called_null(editor_round: Round, browser: Browser, enter: Enter) -> None:
    correct(editor_round, "10", "bob")
    with running(editor_round, "--editor.what_if", "false") as address:
        page = enter(address, "lea", "#/compare/10")
        page.get_by_role("button", name="Accept").click()
        assert "null" not in page.get_by_role("dialog").inner_text()
        press(page, "Escape")
        for view in ("#/", "#/overview", "#/video/10"):
            page.goto(f"{address}/{view}")
            page.locator(".page, .editor[data-ready]").first.wait_for()
            assert "null" not in page.locator("body").inner_text(), view


def test_a_drag_over_an_accepted_video_changes_nothing(
    editor_round: Round, accounts: list[str], browser: Browser, enter: Enter
) -> None:
    review = Review(verdict="accepted", reviewer="lea", reviewed_at="2026-01-01T11:00:00+00:00")
    correct(editor_round, "14", "ann", review=review)
    with running(editor_round, *accounts) as address:
        page = enter(address, "ann", password="correct horse")
        open_video(page, "14")
        drag(page, (0.2, lanes(page)["curve"]), (0.6, lanes(page)["curve"]))
        assert "frame 25 of" in value(page) and newest(editor_round, "14").revision == 1
        assert page.get_by_role("button", name="Smooth").is_disabled()
