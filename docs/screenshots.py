"""Take the screenshots of the documentation: the editor on the demo's own round, in a real browser.

    make demo
    python docs/screenshots.py --dir demo

The round is copied first, without anybody's corrections, so the demo's own stays as it is. What people "did" for the
pictures are the demo's corrections, each shifted a little. Needs Chromium: an installed one, or STABN_CHROMIUM.
"""

import argparse
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from stabn.attention.edit_document import Edit, Review
from stabn.attention.edits import latest_edits, save_edit
from stabn.attention.rounds import Round, load_round, model_attention
from stabn.attention.waiting import Waiting
from stabn.local_services import local_object_store
from stabn.storage import open_storage

HERE = Path(__file__).parent
SIZE = {"width": 1280, "height": 800}
STORAGE = "screenshots"  # beside the demo's own rounds


def copy_round(folder_uri: str) -> tuple[Round, dict[str, tuple[float | None, ...]]]:
    """Copy the demo's round without corrections; return it and the demo's corrected curves by video id."""
    storage = open_storage(f"{folder_uri}/rounds")
    found = [key for key in storage.list() if key.endswith("/round.json")]
    if not found:
        raise SystemExit(f"{folder_uri}: no editing round; run `make demo` first")
    source = load_round(f"{folder_uri}/rounds/{found[0].rpartition('/')[0]}")
    target = open_storage(f"{folder_uri}/{STORAGE}/rounds/{source.round_id}")
    for key in sorted(source.storage.list(), key=lambda name: name == "round.json"):
        if key.startswith("videos/") or "/" not in key:
            target.write(key, source.storage.read(key))
    curves = {edit.video_id: edit.edited_attention for edit in latest_edits(source.storage)}
    return load_round(target.uri), curves


def people_work(item: Round, curves: dict[str, tuple[float | None, ...]]) -> list[str]:
    """Save what some people would have done by now; return the ids, those that nobody corrected last."""
    draw = random.Random(1)
    ids = sorted(curves, key=lambda _: draw.random())
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=2)
    accepted = Review(verdict="accepted", reviewer="Aoi", reviewed_at=start.isoformat())
    for place, video_id in enumerate(ids[: len(ids) * 3 // 5]):
        shifted = place % 4 == 0
        for slot, name in ((1, ("Kaito", "Mio", "Ren")[place % 3]), (2, ("Mio", "Ren", "Kaito")[place % 3])):
            if slot == 2 and not shifted:
                continue
            by, true = draw.choice((-2, -1, 0, 1)) if slot == 2 else 0, curves[video_id]
            curve = tuple(true[min(max(index - by, 0), len(true) - 1)] for index in range(len(true)))
            skipped, wanted = place % 9 == 5, place % 11 == 7
            edit = Edit(
                round_id=item.round_id, video_id=video_id, revision=1, num_frames=len(curve), slot=slot, editor=name,
                model_attention=tuple(model_attention(item, video_id)), edited_attention=curve,
                status="skipped" if skipped else "second_opinion" if wanted and slot == 1 else "edited",
                skip_reason=draw.choice(("unsure", "action_not_visible")) if skipped else None,
                edited_at=(start + timedelta(seconds=97 * place)).isoformat(), seconds=round(draw.uniform(9, 34), 1),
                note="The hand lets go late; I took the moment it falls." if place % 4 == 0 and slot == 2 else "",
                review=accepted if place == 3 else None,
            )  # fmt: skip
            save_edit(item, edit)
    return ids


def other_rounds(item: Round, curves: dict[str, tuple[float | None, ...]]) -> None:
    """Write what the list shows of other rounds: two that are finished, and a new one for which a run waits."""
    content = json.loads(item.storage.read("round.json"))
    for number, (weeks, count) in enumerate(((9, 38), (5, 44), (0, 52))):
        round_id = f"{number + 5:x}c41d0be7a92f36{number}"
        start = datetime.now(UTC).replace(microsecond=0) - timedelta(weeks=weeks, hours=1)
        made = open_storage(item.uri.replace(item.round_id, round_id))
        videos = content["videos"][:count]
        changed = {"round_id": round_id, "created_at": start.isoformat(), "videos": videos}
        made.write("round.json", json.dumps(content | changed).encode())
        if weeks == 0:
            made.write("waiting/waits.json", json.dumps(waiting(len(videos), start)).encode())
            continue
        for place, video in enumerate(videos):
            curve, at = curves[video["video_id"]], start + timedelta(seconds=40 * place)
            edit = Edit(
                round_id=round_id, video_id=video["video_id"], revision=1, num_frames=len(curve),
                model_attention=tuple(0.5 for _ in curve), edited_attention=curve, status="edited",
                editor=("Kaito", "Mio", "Ren")[place % 3], edited_at=at.isoformat(),
            )  # fmt: skip
            made.write(edit.key, edit.to_json())
        run = str(uuid.uuid5(uuid.NAMESPACE_URL, round_id))
        finished = {"by": "Aoi", "at": (start + timedelta(days=2)).isoformat(), "target": "kfp", "started": run}
        made.write("editor/finished.json", json.dumps(finished).encode())


def waiting(needed: int, start: datetime) -> dict[str, Any]:
    """Return the record of a run that waits for a round."""
    run, since = str(uuid.uuid5(uuid.NAMESPACE_URL, "waits")), start.timestamp()
    until = since + 7 * 86400
    return asdict(Waiting(run, since, datetime.now(UTC).timestamp(), until, needed))


@contextmanager
def editor(storage_uri: str) -> Iterator[str]:
    """Serve the rounds and yield the address."""
    command = [sys.executable, "-m", "stabn.cli", "editor", "--storage", storage_uri, "--editor.auth", "open"]
    command += ["--editor.kfp_public_url", "https://kfp.example.org"]
    process = subprocess.Popen([*command, "--editor.port", "0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        match = re.search(r"http://\S+", process.stdout.readline())
        if match is None:
            raise SystemExit("the editor did not start")
        yield match[0]
    finally:
        process.terminate()
        process.communicate(timeout=30)


def sign_in(browser: Browser, address: str, name: str, scheme: Any, hash: str = "") -> Page:
    """Return a page of a person, in a browser of their own."""
    page = browser.new_context(viewport=SIZE, color_scheme=scheme).new_page()  # type: ignore[arg-type]
    page.goto(f"{address}/{hash}")
    page.get_by_label("Name").fill(name)
    page.keyboard.press("Enter")
    page.locator(".page, .editor").first.wait_for()
    return page


def shoot(page: Page, name: str, colours: int = 0) -> None:
    """Write a screenshot, with a palette of so many colours if it has few of its own."""
    page.wait_for_timeout(700)  # rows that move to their place
    path = HERE / f"editor-{name}.png"
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    image = image.quantize(colours, dither=Image.Dither.NONE) if colours else image
    image.save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} kB", flush=True)


def correct(page: Page, curve: tuple[float | None, ...]) -> bool:
    """Correct the video that is open, from here to here; tell whether the network then is right, and surer of it."""
    page.locator(".editor[data-ready]").wait_for(timeout=60_000)
    expect(page.locator(".panel > .note")).to_have_text("", timeout=60_000)
    right = page.locator(".verdict li.right .score")
    before = score(right)
    action = [frame for frame, value in enumerate(curve) if value == 1]
    for frame, key in ((action[0], "i"), (action[-1], "o")):
        page.keyboard.press("Home")
        for _ in range(frame):
            page.keyboard.press("ArrowRight")
        page.keyboard.press(key)
    page.wait_for_timeout(1500)
    return score(right) > before and bool(
        page.locator(".verdict li.right").evaluate("e => e.style.cssText.includes('--rank: 0')")
    )


def score(place: Locator) -> int:
    """Return the percentage that a row of the network's answer shows; 0: it is not among the five."""
    return int(place.inner_text().removesuffix("%")) if place.count() else 0


def first_convincing(page: Page, address: str, todo: list[str], curves: dict[str, tuple[float | None, ...]]) -> None:
    """Open videos that nobody has corrected yet until a correction puts the network right; the last one stays."""
    for video_id in todo:
        page.goto(f"{address}/#/video/{video_id}")
        page.get_by_text(f"Video {video_id} ").wait_for()
        if correct(page, curves[video_id]):
            break


def main() -> None:
    """Take all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("demo"), help="folder of the demo (default: demo)")
    args = parser.parse_args()
    names = ("chromium", "chromium-browser", "google-chrome")
    program = os.environ.get("STABN_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    with local_object_store(args.dir / "storage") as store, sync_playwright() as playwright:
        storage = open_storage(f"{store.uri('data')}/{STORAGE}")
        for key in list(storage.list()):
            storage.delete(key)
        item, curves = copy_round(store.uri("data"))
        ids = people_work(item, curves)
        todo = ids[len(ids) * 3 // 5 :]
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        other_rounds(item, curves)
        item.storage.write("waiting/waits.json", json.dumps(waiting(40, datetime.now(UTC))).encode())
        with editor(storage.uri) as start:
            page = sign_in(browser, start, "Sora", "light")
            expect(page.get_by_text("counting")).to_have_count(0, timeout=60_000)
            shoot(page, "rounds", 128)
            address = f"{start}/rounds/{item.round_id}"
            page.goto(f"{address}/")
            page.locator(".hero").wait_for()
            shoot(page, "queue")
            first_convincing(page, address, todo, curves)
            shoot(page, "video")
            page.keyboard.press("?")
            shoot(page, "keys", 128)
            page.keyboard.press("Escape")
            page.keyboard.press("h")
            page.keyboard.press("d")
            shoot(page, "video-dark")
            page.context.close()
            lead = sign_in(browser, address, "Aoi", "light", "#/overview")
            shoot(lead, "overview", 128)
            lead.goto(f"{address}/#/review")
            lead.locator(".compare").wait_for()
            lead.wait_for_timeout(2000)
            shoot(lead, "compare")
        browser.close()
        for key in list(storage.list()):
            storage.delete(key)


if __name__ == "__main__":
    main()
