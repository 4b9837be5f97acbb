"""The editor's page in a real browser, over a real server and the real S3 server."""

import re
import time
from collections.abc import Iterator
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import pytest
from editor_pages import (
    Enter,
    drag,
    kept,
    lanes,
    newest,
    open_video,
    press,
    ready,
    reopened,
    running,
    saved,
    shows,
    value,
)
from playwright.sync_api import Browser, expect
from round_factory import LENGTHS, copy_round, make_round

from stabn.attention.edit_document import parse_edit
from stabn.attention.edits import read_edits
from stabn.attention.rounds import Round, model_attention
from stabn.local_services import LocalStore


@pytest.fixture(scope="module")
def round_(_exported_round: Round, s3: LocalStore) -> Round:
    return copy_round(_exported_round, s3.uri("data", "browser"))


@pytest.fixture(scope="module")
def address(round_: Round, browser: Browser) -> Iterator[str]:
    """Run a server of one round with its network; each test takes videos of its own."""
    with running(round_) as url:
        yield url


def test_keyboard_alone_is_enough_from_sign_in_to_the_next_video(
    editor_round: Round, browser: Browser, enter: Enter
) -> None:
    with running(editor_round, "--editor.what_if", "false") as address:
        page = enter(address)
        page.keyboard.press("Enter")
        page.locator(".editor[data-ready]").wait_for()
        first = page.url.rpartition("/")[2]
        press(page, "Home ArrowRight ArrowRight i ArrowRight ArrowRight ArrowRight o")
        assert "frame 6 of" in value(page) and "mine 100%" in value(page)
        press(page, "ArrowRight ArrowRight ArrowRight")
        assert "mine 0%" in value(page)
        press(page, "z z z")
        own = model_attention(editor_round, first)
        assert f"mine {round(own[8] * 100)}%" in value(page), "undone"
        press(page, "y Home 6 Shift+ArrowRight Shift+ArrowRight 3 ArrowUp")
        saved(page)
        edit = newest(editor_round, first)
        assert edit.status == "draft" and edit.editor == "ann"
        assert edit.edited_attention[:3] == (0.6, 0.6, 0.6) and edit.edited_attention[3:6] == (1, 1, 1)
        page.reload()
        ready(page, first)
        assert "mine 60%" in value(page)
        press(page, "w")
        page.keyboard.type("x<b>y i o")
        press(page, "Escape Enter")
        expect(page.locator(".editor[data-ready]").get_by_text(f"Video {first} ")).to_have_count(0)
        edit = newest(editor_round, first)
        assert (edit.status, edit.note) == ("edited", "x<b>y i o") and edit.seconds > 0
        second = page.url.rpartition("/")[2]
        ready(page, second)
        press(page, "c Enter")
        expect(page.get_by_text(f"Video {second} ")).to_have_count(0)
        assert newest(editor_round, second).edited_attention[0] == 0.6, "copied, stretched to its own length"
        page.locator(".editor[data-ready]").wait_for()
        third = page.url.rpartition("/")[2]
        press(page, "x 2")
        expect(page.get_by_text(f"Video {third} ")).to_have_count(0)
        assert (newest(editor_round, third).status, newest(editor_round, third).skip_reason) == (
            "skipped",
            "action_not_visible",
        )
        page.locator(".editor[data-ready]").wait_for()
        press(page, "?")
        expect(page.get_by_role("dialog")).to_contain_text("ask for a second opinion")
        press(page, "Escape Escape")
        expect(page.get_by_role("heading", name="3 of 8 videos are done")).to_be_visible()


def test_the_mouse_paints_draws_and_moves_edges(editor_round: Round, browser: Browser, enter: Enter) -> None:
    with running(editor_round, "--editor.what_if", "false") as address:
        page = enter(address, hash="#/video/14")
        ready(page, "14")
        expect(page.get_by_text("The network is not at hand: switched off")).to_be_visible()

        def curve() -> tuple[float | None, ...]:
            return kept(page, editor_round, "14")

        at = lanes(page)
        drag(page, (0.201, at["track"]), (0.599, at["track"]))
        assert curve()[8:24] == (1,) * 16 and curve()[0] == curve()[30] == 0, "from here to here"
        drag(page, (0.6, at["track"]), (0.801, at["track"]))
        assert curve()[8:32] == (1,) * 24 and curve()[36] == 0, "its edge was dragged"
        page.get_by_role("button", name="Level 0.25").click()
        drag(page, (0.001, at["bars"]), (0.124, at["bars"]))
        assert curve()[:5] == (0.25,) * 5, "painted"
        drag(page, (0.51, at["curve"] - 20), (0.74, at["curve"] + 20))
        drawn = curve()[20:30]
        assert all(a >= b for a, b in pairwise(drawn)) and drawn[0] - drawn[-1] > 0.4, "drawn"  # type: ignore[operator]
        for _ in range(4):
            page.get_by_role("button", name="Undo").click()
        page.get_by_role("button", name="Redo").click()
        assert curve()[8:24] == (1,) * 16 and curve()[30] == 0
        page.get_by_role("button", name="Invert").click()
        assert curve()[8:24] == (0,) * 16
        page.get_by_role("button", name="Reset").click()
        assert curve() == tuple(model_attention(editor_round, "14"))
        page.get_by_role("button", name="Motion").click()
        moving = [frame for frame, level in enumerate(curve()) if level == 1]
        assert 10 <= moving[0] <= 14 and 25 <= moving[-1] <= 30, "the square moves from frame 12 to 28"
        page.get_by_role("button", name="Heat map").click()
        expect(page.get_by_role("button", name="Heat map")).to_have_attribute("aria-pressed", "true")
        unnamed = page.evaluate(
            "[...document.querySelectorAll('button, a, input, select, textarea')].filter("
            "e => !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).map(e => e.outerHTML)"
        )
        assert not unnamed, "everything that can be used has a name"


def test_a_drag_does_what_its_place_says_and_nothing_else_is_lost(
    editor_round: Round, browser: Browser, enter: Enter
) -> None:
    with running(editor_round, "--editor.what_if", "false") as address:
        page = enter(address, hash="#/video/14")
        ready(page, "14")

        def curve() -> tuple[float | None, ...]:
            return kept(page, editor_round, "14")

        def deed(x: float, y: float) -> str | None:
            box = page.locator(".timeline").bounding_box()
            assert box is not None
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y)
            return page.locator(".timeline").get_attribute("data-deed")

        at = lanes(page)
        for lane in ("ruler", "film"):
            drag(page, (0.1, at[lane]), (0.8, at[lane]))
            assert "frame 33 of" in value(page), "it scrubs, also from the frames"
        assert "14" not in read_edits(editor_round) and page.get_by_role("button", name="Undo").is_disabled()
        page.get_by_role("button", name="Level 0.25").click()
        drag(page, (0.001, at["bars"]), (0.999, at["bars"]))
        for first, last in ((4, 8), (20, 23), (32, 36)):
            drag(page, ((first + 0.5) / 40, at["track"]), ((last + 0.5) / 40, at["track"]))
        three = curve()
        assert [f for f in range(40) if three[f] == 1] == [*range(4, 9), *range(20, 24), *range(32, 37)], "several"
        assert three[12] == three[28] == 0.25, "and what was painted stays"
        places = {"film": 0.5, "curve": 0.5, "bars": 0.5}
        assert [deed(x, at[lane]) for lane, x in places.items()] == ["scrub", "draw", "paint"]
        found = [deed(x / 40, at["track"]) for x in (20.0, 22.0, 24.0, 28.0)]
        assert found == ["resize", "move", "resize", "add"], "the cursor tells what a drag would do"
        drag(page, (22 / 40, at["track"]), (27 / 40, at["track"]))
        moved = curve()
        assert [f for f in range(40) if moved[f] == 1] == [*range(4, 9), *range(25, 29), *range(32, 37)], "one moved"
        assert moved[12] == 0.25 and moved[20] == 0
        drag(page, (9 / 40, at["track"]), (11.9 / 40, at["track"]))
        assert [f for f in range(20) if curve()[f] == 1] == [*range(4, 12)], "resized"
        drag(page, (6 / 40, at["track"]), (39 / 40, at["track"]))
        assert [f for f in range(30) if (curve()[f] or 0) >= 0.99] == [*range(17, 29)], "up to its neighbour"
        before = curve()
        box = page.locator(".timeline").bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + at["curve"])
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + at["curve"] - 20, steps=4)
        page.keyboard.press("Escape")
        page.mouse.up()
        assert curve() == before, "Escape gives a drag up"
        for expected in (moved, three):
            presses = 2 if expected is moved else 1
            for _ in range(presses):
                page.keyboard.press("z")
            assert curve() == expected, "one step each"
        drag(page, (22 / 40, at["track"]), (22 / 40, at["track"]))
        press(page, "6")
        assert curve()[20:24] == (None,) * 4, "a click chooses a segment"


def test_what_hands_miss_is_there(editor_round: Round, browser: Browser, enter: Enter) -> None:
    """Loops, jumps to edges, frame numbers, and a level that is painted while the video plays."""
    with running(editor_round, "--editor.what_if", "false") as address:
        page = enter(address, hash="#/video/14")
        ready(page, "14")
        at = lanes(page)
        for first, last in ((5, 9), (20, 24)):
            drag(page, ((first + 0.5) / 40, at["track"]), ((last + 0.5) / 40, at["track"]))
        press(page, "t")
        page.keyboard.type("13")
        press(page, "Enter")
        assert "frame 13 of" in value(page)
        for key, frame in (("k", 21), ("k", 25), ("k", 25), ("j", 21), ("j", 10), ("j", 6), ("j", 6)):
            press(page, key)
            assert f"frame {frame} of" in value(page), (key, frame)
        press(page, "t")
        page.keyboard.type("4711")
        press(page, "Enter")
        assert "frame 40 of" in value(page)
        press(page, "t")
        page.keyboard.type("x")
        press(page, "Enter t")
        page.keyboard.type("22")
        press(page, "Enter . . l")
        seen = set()
        for _ in range(25):
            seen.add(int(page.get_by_role("slider").get_attribute("aria-valuenow") or 0))
            page.wait_for_timeout(40)
        assert len(seen) > 2 and seen <= set(range(21, 26)), "the segment in a loop"
        press(page, "Space l")
        expect(page.get_by_role("button", name="Loop")).to_have_attribute("aria-pressed", "false")
        press(page, "Space Home Space")
        page.keyboard.down("3")
        page.wait_for_function("() => Number(document.querySelector('.timeline').getAttribute('aria-valuenow')) > 4")
        page.keyboard.up("3")
        press(page, "Space Control+s")
        saved(page)
        painted = [f for f, level in enumerate(newest(editor_round, "14").edited_attention) if level == 0.5]
        assert len(painted) >= 3 and painted == [*range(painted[0], painted[-1] + 1)], "while the key was down"
        press(page, "z Control+s")
        saved(page)
        assert 0.5 not in newest(editor_round, "14").edited_attention, "in one step"


COUNTING = """(() => {
const make = createImageBitmap, close = ImageBitmap.prototype.close;
window.held = 0;
window.most = 0;
createImageBitmap = async (...args) => {
  const bitmap = await make(...args);
  window.held += bitmap.width * bitmap.height * 4;
  window.most = Math.max(window.most, window.held);
  return bitmap;
};
ImageBitmap.prototype.close = function () { window.held -= this.width * this.height * 4; close.call(this); };
})()"""


def test_a_long_video_opens_in_bounded_memory_and_every_frame_is_reached_by_mouse(
    tmp_path: Path, browser: Browser, enter: Enter
) -> None:
    length = 1000
    item = make_round(tmp_path, str(tmp_path / "store"), {"20": length}, scale=4)
    with running(item, "--editor.what_if", "false") as address:
        page = enter(address)
        page.evaluate(COUNTING)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url) if "/frames/" in request.url else None)
        open_video(page, "20")
        got = sum(len(range(int(a), int(b) + 1)) for a, b in re.findall(r"/(\d+)-(\d+)\.mjpeg", " ".join(asked)))
        assert got < length / 4, "not all frames are fetched to begin with"
        expect(page.get_by_role("button", name="Motion")).to_be_enabled(timeout=60_000)
        page.get_by_role("button", name="Motion").click()
        moving = [int(n) for n in re.findall(r"\d+", page.locator("#say").inner_text())]
        assert abs(moving[0] - 300) < 40 and abs(moving[1] - 700) < 40, "found in samples"
        box, at = page.locator(".timeline").bounding_box(), lanes(page)
        assert box is not None
        page.mouse.move(box["x"] + 2, box["y"] + at["film"])
        page.mouse.down()
        for part in range(1, 30):
            page.mouse.move(box["x"] + part * box["width"] / 30, box["y"] + at["film"])
            page.wait_for_timeout(20)
        page.mouse.up()
        page.wait_for_timeout(500)
        assert page.evaluate("most") < 110 * 2**20 < length * 320 * 240 * 4, "few of them are decoded at any time"
        for part in (0.0, 0.5, 0.999):
            press(page, "0")
            page.mouse.move(box["x"] + part * box["width"], box["y"] + at["film"])
            for _ in range(12):
                page.mouse.wheel(0, -240)
            page.wait_for_timeout(100)
            reached = set()
            for x in range(4, int(box["width"]), 40):
                page.mouse.click(box["x"] + x, box["y"] + at["film"])
                reached.add(int(page.get_by_role("slider").get_attribute("aria-valuenow") or 0))
            assert len(reached) >= 10 and reached == set(range(min(reached), max(reached) + 1)), "one after the other"
            expected = {0.0: 1, 0.999: length}.get(part)
            assert expected is None or expected in reached
        before = value(page)
        drag(page, (0.9, at["map"]), (0.2, at["map"]))
        assert value(page) == before, "panning is not scrubbing"
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + at["film"])
        assert 180 < int(page.get_by_role("slider").get_attribute("aria-valuenow") or 0) < 220
        page.wait_for_timeout(500)
        picture = page.evaluate(
            "(() => { const c = document.querySelector('.picture'), d = c.getContext('2d'); "
            "return [...d.getImageData(c.width >> 1, c.height >> 1, 1, 1).data]; })()"
        )
        assert picture[3] == 255, "the frame is there"
        press(page, "Escape")
        page.locator(".hero").wait_for()
        page.wait_for_timeout(300)
        assert page.evaluate("held") == 0, "a page that is left keeps nothing"


def test_no_stray_key_makes_a_video_done_or_takes_it_back(editor_round: Round, browser: Browser, enter: Enter) -> None:
    with running(editor_round, "--editor.what_if", "false") as address:
        page = enter(address, hash="#/video/14")
        ready(page, "14")
        press(page, "Enter")
        expect(page.locator(".toast")).to_contain_text("press Enter again")
        for _ in range(5):  # a key that is held down repeats
            page.keyboard.down("Enter")
        page.keyboard.up("Enter")
        expect(page.get_by_text("Video 14 ")).to_have_count(0)
        page.locator(".editor[data-ready]").wait_for()
        assert [edit.status for edit in read_edits(editor_round).values()] == ["edited"], "one video, and no other"
        open_video(page, "14")
        press(page, "s v i ArrowRight o z 6")
        expect(page.locator(".toast").last).to_contain_text("press E to change it again")
        page.keyboard.press("Control+s")
        assert newest(editor_round, "14").revision == 1
        press(page, "e v Control+s")
        saved(page)
        assert newest(editor_round, "14").status == "draft"
        page.get_by_role("region", name="Video").get_by_role("link", name="Review").click()
        page.locator(".compare").wait_for()


def test_keys_of_other_keyboards_act(editor_round: Round, browser: Browser, enter: Enter) -> None:
    """Cyrillic letters, and the digits of AZERTY, act by their place; Latin letters as they are written."""
    send = "([key, code, shiftKey]) => document.body.dispatchEvent(new KeyboardEvent('keydown', {key, code, shiftKey, "
    send += "bubbles: true, cancelable: true}))"
    with running(editor_round, "--editor.what_if", "false") as address:
        page = enter(address, hash="#/video/14")
        ready(page, "14")
        for key, code, expected in (("é", "Digit2", "25"), ('"', "Digit3", "50"), ("(", "Digit5", "100")):
            page.evaluate(send, [key, code, False])
            assert expected in value(page), (key, value(page))
        page.evaluate(send, ["&", "Digit7", True])
        assert "100" in value(page), "a US keyboard's & is no 7"
        page.evaluate(send, ["я", "KeyZ", False])
        assert "50" in value(page), "Cyrillic: undone"
        page.evaluate(send, ["z", "KeyW", False])
        assert "25" in value(page), "AZERTY: what is written on it"
        page.evaluate(send, [",", "Slash", True])  # the Russian layout's
        expect(page.get_by_role("dialog")).to_have_count(0)
        page.evaluate(send, ["ч", "KeyX", False])
        page.get_by_role("dialog").wait_for()
        page.evaluate(send, ["'", "Digit4", False])
        expect(page.get_by_role("dialog")).to_have_count(1)
        page.evaluate(send, ["&", "Digit1", False])
        expect(page.get_by_role("dialog")).to_have_count(0)
        expect(page.get_by_text("Video 14 ")).to_have_count(0)
        assert newest(editor_round, "14").skip_reason == "wrong_label"


def test_what_if_moves_the_top_five_at_once(round_: Round, address: str, enter: Enter) -> None:
    page = enter(address, "wendy", "#/video/16")
    ready(page, "16")
    rows = page.locator(".verdict li")
    expect(rows).to_have_count(5)
    expect(page.locator(".panel > .note")).to_have_text("", timeout=30_000)

    def answer(keys: str) -> tuple[list[str], list[str]]:
        """Press keys that change the curve, and return the top 5 of the answer: its lines and its order."""
        with page.expect_response(re.compile("/what-if$"), timeout=30_000):
            press(page, keys)
        page.wait_for_timeout(300)
        return rows.all_inner_texts(), page.evaluate(
            "[...document.querySelectorAll('.verdict li')].map(e => e.dataset.class)"
        )

    own = rows.all_inner_texts()
    press(page, "Home i End")
    high, high_order = answer("o")
    low, low_order = answer("v")
    assert len({tuple(own), tuple(high), tuple(low)}) == 3, "the scores moved each time"
    assert high_order != low_order, "and so did the order"
    assert answer("z") == (high, high_order), "undone, the network says what it said"


def test_two_browsers_that_edit_the_same_video_lose_nothing(round_: Round, address: str, enter: Enter) -> None:
    ann, bob = enter(address, "ann", "#/video/11"), enter(address, "bob")
    ready(ann, "11")
    open_video(bob, "11")
    expect(bob.get_by_text("ann is editing this video now")).to_be_visible()
    press(bob, "5")
    assert "11" not in read_edits(round_), "read only"
    bob.get_by_role("button", name="Edit it all the same").click()
    expect(bob.get_by_text("ann is editing this video now")).to_have_count(0)
    ready(bob, "11")
    press(bob, "Home 5")
    saved(bob)
    press(ann, "Home 1")
    dialog = ann.get_by_role("dialog")
    expect(dialog).to_contain_text("bob is editing this video now")
    expect(dialog.locator("figure")).to_have_count(2)
    dialog.get_by_role("button", name="Decide later").click()
    expect(ann.locator("#status")).to_have_attribute("data-state", "conflict")
    press(ann, "Control+s")
    ann.get_by_role("dialog").get_by_role("button", name="Keep mine").click()
    saved(ann)
    mine = newest(round_, "11")
    assert (mine.editor, mine.edited_attention[0], mine.revision) == ("ann", 0, 2)
    theirs = parse_edit(round_.storage.read("edits/11/0001.json"), "bob's")
    assert (theirs.editor, theirs.edited_attention[0]) == ("bob", 1), "both are kept"
    press(bob, "ArrowRight 3")
    bob.get_by_role("dialog").get_by_role("button", name="Take theirs").click()
    bob.keyboard.press("Home")
    shows(bob, "mine 0%")
    bob.keyboard.press("z")
    assert "mine 100%" in value(bob), "and even that can be undone"


def test_a_lost_connection_and_a_closed_browser_lose_nothing(round_: Round, address: str, enter: Enter) -> None:
    page = enter(address, "cleo", "#/video/12")
    ready(page, "12")
    page.context.set_offline(True)
    press(page, "Home 5")
    expect(page.locator("#status")).to_contain_text("No connection")
    assert "12" not in read_edits(round_)
    page.context.set_offline(False)
    saved(page)
    assert newest(round_, "12").edited_attention[0] == 1
    page.context.set_offline(True)
    press(page, "1 Enter")
    expect(page.locator("#status")).to_contain_text("kept on this computer")
    again = reopened(page, enter, address, "cleo")
    expect(again.locator("#toasts").get_by_text("What was kept on this computer is saved now")).to_be_visible()
    expect(again.get_by_text("Not saved yet")).to_have_count(0)
    edit = newest(round_, "12")
    assert edit.edited_attention[0] == 0 and edit.status == "edited", "finished without a connection"
    open_video(again, "12")
    assert "mine 0%" in value(again)


def test_another_tab_sends_what_was_left_but_nothing_of_an_open_video(
    round_: Round, address: str, enter: Enter
) -> None:
    editing = enter(address, "dora", "#/video/10")
    ready(editing, "10")
    editing.route("**/edit", lambda route: route.abort())
    press(editing, "Home 5")
    expect(editing.locator("#status")).to_contain_text("No connection")
    other = editing.context.new_page()
    other.goto(address)
    expect(other.get_by_text("Not saved yet, kept on this computer")).to_be_visible()
    other.wait_for_timeout(1000)
    assert "10" not in read_edits(round_), "its own page will send it"
    editing.unroute("**/edit")
    saved(editing)
    press(editing, "3")
    saved(editing)
    editing.route("**/edit", lambda route: route.abort())
    press(editing, "1 Enter")
    expect(editing.locator("#status")).to_contain_text("No connection")
    editing.close()
    other.wait_for_function("async () => !(await navigator.locks.query()).held.length")
    other.evaluate("dispatchEvent(new Event('online'))")
    expect(other.locator("#toasts").get_by_text("What was kept on this computer is saved now")).to_be_visible()
    edit = newest(round_, "10")
    assert (edit.status, edit.edited_attention[0]) == ("edited", 0)


def test_what_was_left_unsaved_of_a_video_that_others_changed_waits_for_its_page(
    editor_round: Round, browser: Browser, enter: Enter
) -> None:
    with running(editor_round, "--editor.what_if", "false", "--editor.lease_seconds", "2") as address:
        ann = enter(address, "ann", "#/video/12")
        ready(ann, "12")
        ann.context.set_offline(True)
        press(ann, "Home 5")
        expect(ann.locator("#status")).to_contain_text("No connection")
        time.sleep(2.5)
        bob = enter(address, "bob", "#/video/12")
        ready(bob, "12")
        press(bob, "Home 1 Enter")
        expect(bob.get_by_text("Video 12 ")).to_have_count(0)
        again = reopened(ann, enter, address, "ann")
        expect(again.get_by_text("Not saved yet, kept on this computer")).to_be_visible()
        assert newest(editor_round, "12").editor == "bob"
        again.get_by_role("link", name="video 12", exact=True).click()
        dialog = again.get_by_role("dialog")
        expect(dialog).to_contain_text("bob saved this video in the meantime")
        dialog.get_by_role("button", name="Keep mine").click()
        saved(again)
        assert newest(editor_round, "12").edited_attention[0] == 1


def test_a_lease_that_expires_lets_another_in(editor_round: Round, browser: Browser, enter: Enter) -> None:
    with running(editor_round, "--editor.what_if", "false", "--editor.lease_seconds", "2") as address:
        ann, bob = enter(address, "ann", "#/video/13"), enter(address, "bob")
        ready(ann, "13")
        ann.keyboard.press("Home")
        time.sleep(2.5)
        open_video(bob, "13")
        expect(bob.get_by_text("ann is editing this video now")).to_be_visible()  # her page prolongs it
        bob.keyboard.press("Escape")
        ann.context.set_offline(True)
        press(ann, "5")
        time.sleep(2.5)
        open_video(bob, "13")
        expect(bob.locator(".banner")).to_have_count(0)
        press(bob, "Home 3 Enter")
        expect(bob.get_by_text("Video 13 ")).to_have_count(0)
        assert newest(editor_round, "13").editor == "bob"
        ann.context.set_offline(False)
        dialog = ann.get_by_role("dialog")
        expect(dialog).to_contain_text("bob saved this video in the meantime", timeout=20_000)
        dialog.get_by_role("button", name="Keep mine").click()
        saved(ann)
        edit = newest(editor_round, "13")
        assert (edit.editor, edit.revision, edit.edited_attention[0]) == ("ann", 2, 1)


def test_a_session_that_ended_is_opened_again_without_losing_anything(
    round_: Round, address: str, enter: Enter
) -> None:
    page = enter(address, "sam", "#/video/15")
    ready(page, "15")
    page.context.clear_cookies()
    press(page, "Home 5")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Your sign-in ended")
    dialog.get_by_label("Name").fill("sam")
    page.keyboard.press("Enter")
    saved(page)
    assert newest(round_, "15").edited_attention[0] == 1


def test_a_new_session_in_another_tab_does_not_stop_saving(round_: Round, address: str, enter: Enter) -> None:
    page = enter(address, "tab", "#/video/13")
    ready(page, "13")
    body = {"name": "tab", "password": ""}
    assert page.request.post(f"{address}/api/sign-in", data=body, headers={"Origin": address}).ok
    press(page, "End 3")
    saved(page)
    assert newest(round_, "13").edited_attention[-1] == 0.5


def test_dragging_over_the_picture_scrubs_and_changes_nothing(round_: Round, address: str, enter: Enter) -> None:
    page = enter(address, "drew", "#/video/14")
    ready(page, "14")
    box = page.locator(".stage").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 5, box["y"] + 20)
    page.mouse.down()
    for frame in (9, 20, 14):
        page.mouse.move(box["x"] + box["width"] * (frame + 0.5) / LENGTHS["14"], box["y"] + 30)
        assert page.get_by_role("slider").get_attribute("aria-valuenow") == str(frame + 1)
    page.mouse.up()
    page.mouse.move(box["x"] + 5, box["y"] + 20)
    assert "frame 15 of" in value(page) and "14" not in read_edits(round_)


def test_a_lead_compares_sends_back_and_finishes(editor_round: Round, browser: Browser, enter: Enter) -> None:
    note = "<img src=x onerror=alert(1)>"
    with running(editor_round, "--editor.what_if", "false", "--editor.shared_share", "1") as address:
        ann, bob, lea = enter(address, "ann"), enter(address, "bob"), enter(address, "lea")
        for page, keys in ((ann, "Home i ArrowRight ArrowRight o"), (bob, "Home i ArrowRight o")):
            open_video(page, "10")
            press(page, f"{keys} w")
            page.keyboard.type(note)
            press(page, "Escape Enter")
            expect(page.get_by_text("Video 10 ")).to_have_count(0)
        lea.get_by_role("link", name="Overview").click()
        row = lea.get_by_role("row", name=re.compile("^10 "))
        expect(row).to_contain_text("ann (done), bob (done)")
        row.get_by_role("link", name="compare").click()
        expect(lea.get_by_text("Curves 1 and 2: mean absolute difference")).to_be_visible()
        cards = lea.locator(".curve-card")
        expect(cards).to_have_count(2)
        expect(cards.first.locator("blockquote")).to_have_text(note)
        assert lea.locator("main img").count() == 0, "a note is data, never markup"
        cards.nth(1).get_by_role("button", name="Accept").click()
        lea.get_by_role("dialog").get_by_role("button", name="Accept").click()
        expect(cards.first).to_contain_text("Accepted by lea")
        assert newest(editor_round, "10").editor == "bob"
        press(lea, "1 b")
        lea.get_by_role("textbox", name="Note").fill("too early")
        lea.get_by_role("dialog").get_by_role("button", name="Send back").click()
        expect(cards.first).to_contain_text("sent back")
        bob.goto(f"{address}/#/")
        bob.get_by_role("button", name="Go on").click()
        expect(bob.get_by_text("lea sent it back")).to_be_visible()
        expect(bob.locator(".banner q")).to_have_text("too early")
        press(bob, "Enter")
        expect(bob.get_by_text("Video 10 ")).to_have_count(0)
        lea.goto(f"{address}/#/overview")
        with lea.expect_download() as download:
            lea.get_by_role("link", name="Export all corrections").click()
        lines = Path(download.value.path()).read_bytes().splitlines()
        assert {parse_edit(line, "line").slot for line in lines} == {1, 2}
        lea.get_by_role("button", name="Finish the round").click()
        lea.get_by_role("dialog").get_by_role("button", name="Finish", exact=True).click()
        expect(lea.locator(".page > :first-child")).to_contain_text("lea finished this round")
        open_video(ann, "17")
        expect(ann.get_by_text("What is changed from now on is not learnt from.")).to_be_visible()
        for hash, expected in (
            (f"#/round/{editor_round.round_id}", "2 of 8 videos are done|1 of 8 videos are done"),
            ("#/round/0123456789abcdef", "this editor has round"),
            ("#/video/%E0%A4%A", "is not in this round"),
        ):
            ann.evaluate("hash => { location.hash = hash; }", hash)
            expect(ann.locator("main")).to_contain_text(re.compile(expected))


def test_arrays_ask_before_they_replace_what_people_corrected(
    editor_round: Round, browser: Browser, enter: Enter, tmp_path: Path
) -> None:
    for video_id in ("10", "11"):
        np.save(tmp_path / f"{video_id}.npy", np.linspace(0, 1, LENGTHS[video_id]))
    (tmp_path / "12.npy").write_bytes(b"no array")
    files = [tmp_path / f"{video_id}.npy" for video_id in ("10", "11", "12")]
    with running(editor_round, "--editor.what_if", "false") as address:
        ann = enter(address, "ann", "#/video/10")
        ready(ann, "10")
        press(ann, "Home 5 Enter")
        expect(ann.get_by_text("Video 10 ")).to_have_count(0)
        lea = enter(address, "lea", "#/overview")
        said = lea.locator(".result")
        for answer, taken, editor in (
            ("Keep theirs", "1 array taken, 1 left out.", "ann"),
            ("Replace", "2 arrays", "lea"),
        ):
            lea.locator("#arrays").set_input_files(files)
            dialog = lea.get_by_role("dialog")
            expect(dialog).to_contain_text("1 of the videos was corrected in this round")
            expect(dialog).to_contain_text("10.npy")
            dialog.get_by_role("button", name=answer).click()
            expect(said).to_contain_text(taken)
            expect(said).to_contain_text("12.npy: ")
            assert newest(editor_round, "10").editor == editor and newest(editor_round, "11").editor == "lea"


CURVES = """async () => {
  const c = await import(new URL('static/curve.js', location.href));
  const results = {
    segment: c.segment(8, 3, 4), runs: c.runs(c.segment(20, 5, 9)), edge: c.runs(c.segment(6, 0, 5)),
    resized: c.runs(c.resizeRun(c.segment(20, 5, 9), {first: 5, last: 9}, 5, 14)),
    twice: c.runs(c.resizeRun(c.resizeRun(c.segment(20, 5, 9), {first: 5, last: 9}, 4, 9), {first: 4, last: 9}, 4, 12)),
    other: c.runs(c.resizeRun(c.merge(c.segment(30, 3, 6), c.segment(30, 20, 22)), {first: 3, last: 6}, 3, 29)),
    moved: c.moveRun(c.segment(12, 2, 3), {first: 2, last: 3}, 4),
    back: c.moveRun(c.segment(12, 2, 3), {first: 2, last: 3}, -9),
    shape: c.moveRun([0.1, 0, 0.6, 0.9, 0.8, 0.2, null, 0.3], {first: 2, last: 4}, 1),
    shrunk: c.resizeRun(c.segment(12, 2, 9), {first: 2, last: 9}, 2, 5),
    added: c.addRun([0.2, 0.1, 0.2, 0.2], [0.2, 0.1, 0.2, 0.2], 1, 1),
    beside: c.addRun([1, 0.25, null, 0.2], [1, 0, 0, 0], 3, 3),
    fill: c.fill([null, 1, null, null, 1, 0.5, null]), empty: c.fill([null, null]),
    smooth: c.smooth([0, 1, 0, null]), invert: c.invert([0, 0.25, null]), resample: c.resample([0, 1], 5),
    single: c.resample([0.5, 0.7], 1), line: c.line([0, 0, 0, 0], 3, 1, 1, 0),
    lift: c.lift([null, 0.95], 0, 1, 0.1, [0.4, 0]),
    busiest: c.busiest([0, 0, 3, 4, 3, 0, 1, 0]), still: c.busiest([0, 0, 0]),
  };
  const history = new c.History([0]);
  for (let i = 1; i <= 500; i += 1) history.set([i / 500]);
  while (history.undo());
  results.undone = history.curve;
  while (history.redo());
  results.redone = history.curve;
  return results;
}"""


def test_curves_are_computed_as_promised(address: str, enter: Enter) -> None:
    found = enter(address, "tess").evaluate(CURVES)
    third, two_thirds = 0.33333, 0.66667
    assert found["segment"] == [0, third, two_thirds, 1, 1, two_thirds, third, 0]
    assert found["runs"] == [{"first": 5, "last": 9}] and found["edge"] == [{"first": 0, "last": 5}]
    assert found["resized"] == [{"first": 5, "last": 14}] and found["twice"] == [{"first": 4, "last": 12}]
    assert found["moved"] == [0, 0, 0, 0, third, two_thirds, 1, 1, two_thirds, third, 0, 0], "with its ramps"
    assert found["back"] == [1, 1, two_thirds, third, 0, 0, 0, 0, 0, 0, 0, 0], "up to the first frame"
    assert found["shape"][3:6] == [0.6, 0.9, 0.8] and found["shape"][0] == 0.1 and found["shape"][6] is None
    assert found["shrunk"] == [third, two_thirds, 1, 1, 1, 1, two_thirds, third, 0, 0, 0, 0]
    assert found["added"] == [two_thirds, 1, two_thirds, third], "in place of the network's own, if that has no segment"
    assert found["beside"] == [1, third, two_thirds, 1], "what is there stays"
    assert found["other"] == [{"first": 3, "last": 22}], "it grows up to its neighbour, which stays as it is"
    assert found["fill"] == [1, 1, 1, 1, 1, 0.5, 0.5] and found["empty"] == [None, None]
    assert found["smooth"] == [third, 0.5, third, None] and found["invert"] == [1, 0.75, None]
    assert found["resample"] == [0, 0.25, 0.5, 0.75, 1] and found["single"] == [0.5]
    assert found["line"] == [0, 0, 0.5, 1] and found["lift"] == [0.5, 1]
    assert found["busiest"] == {"first": 2, "last": 4} and found["still"] is None
    assert found["undone"] == [0] and found["redone"] == [1]


def test_the_page_fits_a_laptop_in_both_themes(address: str, enter: Enter) -> None:
    names = count()
    for scheme in ("light", "dark"):
        page = enter(address, f"theo{next(names)}", "#/video/17", color_scheme=scheme)
        ready(page, "17")
        for width, height in ((1280, 720), (1440, 900), (960, 600)):  # the last is the second at a zoom of 150%
            page.set_viewport_size({"width": width, "height": height})
            sizes = page.evaluate("[document.body.scrollWidth, document.body.scrollHeight, innerWidth, innerHeight]")
            assert sizes[0] <= sizes[2], f"{width} pixels: no sideways scroll"
            assert sizes[1] <= sizes[3] or width == 960, "nothing is out of sight"
        page.close()


def test_lengths_are_those_of_the_round(round_: Round) -> None:
    assert {video.video_id: video.num_frames for video in round_.videos} == LENGTHS
