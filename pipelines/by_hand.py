"""`stabn demo --by-hand`: a newcomer corrects three videos of the demo's round, and learning goes on with them."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from stabn.attention.automatic import EDITOR as AUTOMATIC
from stabn.attention.edit_document import DONE
from stabn.attention.edits import latest_edits
from stabn.attention.rounds import Round, load_round
from stabn.errors import StabnError

VIDEOS = 3
POLL_SECONDS = 2.0


def by_hand_videos(item: Round) -> int:
    """Return how many of a round's videos a person is done with."""
    return sum(edit.editor != AUTOMATIC and edit.status in DONE for edit in latest_edits(item.storage))


def correct_by_hand(round_uri: str, videos: int = VIDEOS) -> None:
    """Open the editor on a round until so many videos more are corrected by a person.

    Raises:
        StabnError: the editor ended, or could not begin.
    """
    item = load_round(round_uri)
    wanted = min(by_hand_videos(item) + videos, len(item.videos))
    with _editor(round_uri) as (process, address):
        print(
            f"\nNow it is your turn: open {address}, give any name, and press Enter for the first video.\n"
            "Go to the first frame of the action and press I, to the last and press O; Enter: done, next.\n"
            f"After {videos} videos it goes on by itself."
        )
        shown = -1
        while (left := wanted - by_hand_videos(item)) > 0:
            if left != shown:
                print(f"  {videos - left} of {videos} videos are corrected", flush=True)
                shown = left
            if process.poll() is not None:
                raise StabnError("the editor ended before the videos were corrected; run the same command again")
            time.sleep(POLL_SECONDS)
    print(f"  {videos} of {videos} videos are corrected; learning from them\n", flush=True)


@contextmanager
def _editor(round_uri: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """Run the editor on this machine, and yield its process and the address to open."""
    command = [sys.executable, "-m", "stabn.cli", "editor", "--round", round_uri, "--editor.auth", "open"]
    process = subprocess.Popen([*command, "--editor.port", "0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        found = re.search(r"http://\S+", process.stdout.readline())
        if not found:
            raise StabnError("the editor did not start; its own line above says why")
        yield process, found[0]
    finally:
        process.terminate()
        process.communicate(timeout=30)
