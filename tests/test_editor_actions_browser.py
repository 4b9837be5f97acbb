"""How many actions the common edits take: the table of docs/editor.md, counted by doing them in a real browser."""

import re
from collections.abc import Callable
from pathlib import Path

from editor_pages import Enter, drag, kept, lanes, newest, press, ready, running
from playwright.sync_api import Browser, Page, expect

from stabn.attention.rounds import Round

PAGE = Path(__file__).parent.parent / "docs" / "editor.md"
LENGTH = 40  # of video 14

Do = Callable[[Page], None]


def key(name: str) -> Do:
    return lambda page: page.keyboard.press(name)


def pull(lane: str, first: float, last: float) -> Do:
    """Return a drag from a frame to another in a lane of the timeline."""
    return lambda page: drag(page, (first / LENGTH, lanes(page)[lane]), (last / LENGTH, lanes(page)[lane]))


def told(edit: str) -> int:
    """Return how many actions the table says that an edit takes here."""
    (row,) = re.findall(rf"^\| {re.escape(edit)} \| (\d+)\b", PAGE.read_text(), re.MULTILINE)
    return int(row)


def test_common_edits_take_as_few_actions_as_the_table_says(
    editor_round: Round, browser: Browser, enter: Enter
) -> None:
    with running(editor_round, "--editor.what_if", "false") as address:
        page = enter(address, hash="#/video/14")
        ready(page, "14")

        def act(edit: str, *actions: Do) -> None:
            assert len(actions) == told(edit), edit
            for action in actions:
                action(page)

        def high() -> list[int]:
            return [frame for frame, level in enumerate(kept(page, editor_round, "14")) if level == 1]

        act("one segment, with the mouse", pull("track", 10.5, 19.5))
        assert high() == [*range(10, 20)]
        act("make it longer or shorter", pull("track", 20, 24.9))
        assert high() == [*range(10, 25)]
        act("move it", pull("track", 17, 20))
        assert high() == [*range(13, 28)]
        act("a second segment", pull("track", 32.5, 35.5))
        assert high() == [*range(13, 28), *range(32, 36)]
        act("take the last change back", key("z"))
        assert high() == [*range(13, 28)]
        act("go back to a former revision", key("p"), lambda page: page.get_by_label("Restore revision 1").click())
        expect(page.get_by_role("dialog")).to_have_count(0)
        assert high() == [*range(10, 20)]
        press(page, "Home ArrowRight")
        act("one segment, with keys, at the frame where it begins", key("i"), key("End"), key("o"))
        assert high() == [*range(1, LENGTH)]
        act("done, and the next video", key("Enter"))
        expect(page.get_by_text("Video 14 ")).to_have_count(0)
        page.locator(".editor[data-ready]").wait_for()
        first = page.url.rpartition("/")[2]
        act("the network was right, next", key("Enter"), key("Enter"))
        expect(page.get_by_text(f"Video {first} ")).to_have_count(0)
        assert newest(editor_round, first).status == "edited"
        page.locator(".editor[data-ready]").wait_for()
        second = page.url.rpartition("/")[2]
        act("skip with a reason, next", key("x"), key("2"))
        expect(page.get_by_text(f"Video {second} ")).to_have_count(0)
        assert newest(editor_round, second).skip_reason == "action_not_visible"
