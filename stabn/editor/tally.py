"""How far a round is, without opening it: its description, its newest corrections, who waits for it, and its end."""

import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

from stabn.attention.automatic import EDITOR as AUTOMATIC
from stabn.attention.edit_document import Edit, edit_key, parse_edit, parse_edit_key
from stabn.attention.edits import read_finished
from stabn.attention.rounds import load_round
from stabn.attention.waiting import Waiting, read_waiting
from stabn.data.edit_table import EditError
from stabn.editor.queue import FINISHED, state_of
from stabn.storage import ObjectNotFound, Storage

log = logging.getLogger(__name__)

PAUSE_SECONDS = 900.0  # between two corrections people went away; the time does not count as work
LEAST_FOR_RATE = 3  # corrections, before anything is said of how long the others take


@dataclass(frozen=True)
class Brief:
    """What is kept of a correction."""

    revision: int
    editor: str
    state: str
    at: float


class Tally:
    """One round's numbers. One thread at a time may look and count; others may ask for what is shown meanwhile.

    Attributes:
        is_counted: whether the corrections were read once.
        finished: the record of finishing; a finished round's corrections are not read again.
    """

    def __init__(self, storage: Storage) -> None:
        item = load_round(storage.uri)
        self.storage, self.round_id, self.created_at = storage, item.round_id, item.created_at
        self.ids = frozenset(video.video_id for video in item.videos)
        self.num_actions = len({video.class_index for video in item.videos})
        self.finished: dict[str, Any] | None = None
        self.waiting: Sequence[Waiting] = ()
        self.is_counted = self._is_final = False
        self._briefs: dict[str, Brief] = {}

    def look(self) -> None:
        """Read whether the round is finished, and who waits for it."""
        if self.finished is None:
            self.finished = read_finished(self.storage)
        self.waiting = () if self.finished else read_waiting(self.storage)

    def count(self, readers: ThreadPoolExecutor) -> None:
        """Read the corrections that came since the last time."""
        if self._is_final:
            return
        is_final = self.finished is not None  # as it is now: who finishes it meanwhile may have saved meanwhile
        newest: dict[str, int] = {}
        for key in self.storage.list("edits/"):
            if (parts := parse_edit_key(key)) and parts[0] in self.ids:
                newest[parts[0]] = max(newest.get(parts[0], 0), parts[2])
        unknown = [
            (video_id, revision)
            for video_id, revision in newest.items()
            if video_id not in self._briefs or self._briefs[video_id].revision < revision
        ]
        found = readers.map(lambda place: self._read(*place), unknown)
        briefs = self._briefs | {video_id: brief for (video_id, _), brief in zip(unknown, found, strict=True)}
        self._briefs, self.is_counted, self._is_final = briefs, True, is_final

    def _read(self, video_id: str, revision: int) -> Brief:
        key = edit_key(video_id, revision)
        try:
            edit = parse_edit(self.storage.read(key), key)
        except (EditError, ObjectNotFound) as error:
            log.warning("%s: %s", self.storage.uri, error)
            return Brief(revision, "", "unusable", 0.0)
        return Brief(revision, edit.editor, state_of(edit), _seconds(edit))

    def shown(self, person: str) -> dict[str, Any]:
        """Return what the list of rounds shows, to a person whose own share is told."""
        briefs = list(self._briefs.values())
        states = Counter(brief.state for brief in briefs)
        done = [brief for brief in briefs if brief.state in FINISHED]
        people = Counter(brief.editor for brief in done)
        left = len(self.ids) - len(done)
        rate = per_hour([brief.at for brief in done])
        begun = len(briefs) - states["automatic"] > 0
        return {
            "round_id": self.round_id,
            "created_at": self.created_at,
            "total": len(self.ids),
            "num_actions": self.num_actions,
            "state": "finished" if self.finished else "open" if begun else "waiting",
            "is_counted": self.is_counted,
            "done": len(done),
            "begun": states["draft"] + states["sent_back"] + states["second_opinion"],
            "mine": people[person],
            "sent_back": sum(b.state == "sent_back" and b.editor == person for b in briefs),
            "people": [{"name": name, "done": number} for name, number in people.most_common()],
            "per_hour": rate,
            "hours_left": left / rate if rate and left else None,
        }


def per_hour(times: Sequence[float]) -> float | None:
    """Return how many corrections an hour of work brings, all people together; None: too few to tell.

    Args:
        times: when each was done, in seconds; where none came for PAUSE_SECONDS people had gone.
    """
    gaps = [second - first for first, second in pairwise(sorted(times)) if second - first < PAUSE_SECONDS]
    worked = sum(gaps)
    return 3600 * len(gaps) / worked if len(gaps) >= LEAST_FOR_RATE - 1 and worked else None


def _seconds(edit: Edit) -> float:
    return 0.0 if edit.editor == AUTOMATIC else datetime.fromisoformat(edit.edited_at).timestamp()
