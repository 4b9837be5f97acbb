"""The editor's page in a real browser, for tests: run a server, sign in, press keys, read what is shown and saved."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from playwright.sync_api import Page, expect

from stabn.attention.edit_document import Edit
from stabn.attention.edits import read_edits
from stabn.attention.rounds import Round

Enter = Callable[..., Page]  # signs a person in: the fixture `enter`
expect.set_options(timeout=10_000)


@contextmanager
def running(item: Round | str, *options: str) -> Iterator[str]:
    """Run `stabn editor` as a user does, on a round or on a storage, and yield its address."""
    what = ["--storage", item] if isinstance(item, str) else ["--round", item.uri]
    open_to_all = [] if "--editor.auth" in options else ["--editor.auth", "open"]
    command = [sys.executable, "-m", "stabn.cli", "editor", *what, *open_to_all]
    command += ["--editor.port", "0", "--editor.shared_share", "0", "--editor.refresh_seconds", "1", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        match = re.search(r"http://\S+", line)
        assert match, line + process.stdout.read()
        yield match[0]
    finally:
        process.terminate()
        output, _ = process.communicate(timeout=20)
    assert "Traceback" not in output, output


def open_video(page: Page, video_id: str) -> None:
    page.evaluate("id => { location.hash = `#/video/${id}`; }", video_id)
    ready(page, video_id)


def ready(page: Page, video_id: str) -> None:
    expect(page.locator(".editor[data-ready]").get_by_text(f"Video {video_id} ")).to_be_visible()


def reopened(page: Page, enter: Enter, address: str, name: str, password: str = "") -> Page:
    """Sign in with what the browser of a page without a connection keeps on its computer, as after it was killed."""
    kept = page.context.storage_state()["origins"]
    return enter(address, name, password=password, storage_state={"origins": kept, "cookies": []})


def press(page: Page, keys: str) -> None:
    for key in keys.split():
        page.keyboard.press(key)


def saved(page: Page) -> None:
    expect(page.locator("#status")).to_have_attribute("data-state", "saved")


def newest(item: Round, video_id: str) -> Edit:
    return read_edits(item)[video_id]


def kept(page: Page, item: Round, video_id: str) -> tuple[float | None, ...]:
    """Save, and return the curve as the storage has it."""
    page.keyboard.press("Control+s")
    saved(page)
    return newest(item, video_id).edited_attention


def value(page: Page) -> str:
    """Return what the strip tells screen readers of the present frame."""
    return page.get_by_role("slider").get_attribute("aria-valuetext") or ""


def shows(page: Page, text: str) -> None:
    """Wait until the strip tells this of the present frame, as after a dialog."""
    expect(page.get_by_role("slider")).to_have_attribute("aria-valuetext", re.compile(re.escape(text)))


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    box = page.locator(".timeline").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + start[0] * box["width"], box["y"] + start[1])
    page.mouse.down()
    page.mouse.move(box["x"] + end[0] * box["width"], box["y"] + end[1], steps=6)
    page.mouse.up()


def lanes(page: Page) -> dict[str, float]:
    """Return the middle of each of the timeline's lanes, in pixels from its top."""
    script = "import(new URL('static/lanes.js', location.href)).then(m => m.layout(0.28 * innerHeight).lanes)"
    return {name: top + height / 2 for name, (top, height) in page.evaluate(script).items()}
