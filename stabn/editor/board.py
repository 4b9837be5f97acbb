"""The round's state as this server knows it: the newest revision of every curve, refreshed from storage."""

import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from stabn.attention.edit_document import Edit, edit_folder, edit_key, parse_edit, parse_edit_key
from stabn.attention.edits import READERS
from stabn.attention.rounds import Round, RoundError, RoundVideo, model_attention
from stabn.config import EditorConfig
from stabn.data.edit_table import EditError
from stabn.storage import ObjectNotFound, check_id
from stabn.text import parse_json

log = logging.getLogger(__name__)

SETTINGS_FILE = "editor/settings.json"


@dataclass(frozen=True)
class RoundSettings:
    """What a lead chose for a round: the share of its videos that several people correct, and how many people."""

    shared_share: float
    people_per_shared: int


@dataclass(frozen=True)
class VideoInfo:
    """What the network made of a video: its own curve, its top 5, and the part of the frame that it saw."""

    curve: tuple[float, ...]
    top: list[dict[str, Any]]
    crop: dict[str, int]


class Board:
    """The newest revision of each slot of each video, and the round's settings.

    Storage is the truth: a save is a conditional write there, and this memory only follows. Threads may use it.

    Attributes:
        problems: documents that cannot be used, by key, with the reason.
    """

    def __init__(self, item: Round, config: EditorConfig) -> None:
        self.round = item
        self.storage = item.storage
        self.videos: dict[str, RoundVideo] = {video.video_id: video for video in item.videos}
        self.problems: dict[str, str] = {}
        self.settings = RoundSettings(config.shared_share, config.people_per_shared)
        self._edits: dict[str, dict[int, Edit]] = {}
        self._past: dict[str, Edit] = {}
        self._beginners: dict[tuple[str, int], str] = {}
        self._info: dict[str, VideoInfo] = {}
        self._lock = threading.Lock()

    def video(self, video_id: str) -> RoundVideo:
        """Return a video of the round; no other id gets past here.

        Raises:
            RoundError: the round does not have it.
        """
        if video_id not in self.videos:
            raise RoundError(f"video {video_id!r:.140} is not in this round")
        return self.videos[video_id]

    def edits(self, video_id: str) -> dict[int, Edit]:
        """Return the newest revision of each slot of a video."""
        return self._edits.get(video_id, {})

    def edit(self, video_id: str, slot: int = 1) -> Edit | None:
        """Return the newest revision of a slot."""
        return self.edits(video_id).get(slot)

    def beginner(self, video_id: str, slot: int) -> str:
        """Return who saved a slot's first revision, whoever changed it since; empty: nobody, or it is unreadable."""
        return self._beginners.get((video_id, slot), "")

    def own_edits(self, video_id: str) -> dict[int, Edit]:
        """Return the newest revision of each slot that the person of the slot made.

        They differ from `edits` where a lead accepted another slot's curve into slot 1: reads what was there before.
        """
        edits = self.edits(video_id)
        others = {edit.editor for slot, edit in edits.items() if slot > 1}
        first = edits.get(1)
        while first is not None and first.review is not None and first.editor in others:
            first = self._former(first)
        return edits if first is edits.get(1) else {slot: e for slot, e in {**edits, 1: first}.items() if e is not None}

    def _former(self, edit: Edit) -> Edit | None:
        if edit.revision == 1:
            return None
        key = edit_key(edit.video_id, edit.revision - 1, edit.slot)
        if key not in self._past and (found := self._revision(key)):
            self._past[key] = found
        return self._past.get(key)

    def put(self, edit: Edit) -> None:
        """Remember a revision unless a newer one is known."""
        with self._lock:
            slots = self._edits.setdefault(edit.video_id, {})
            known = slots.get(edit.slot)
            if known is None or known.revision < edit.revision:
                self._edits[edit.video_id] = {**slots, edit.slot: edit}
            if edit.revision == 1:
                self._beginners[edit.video_id, edit.slot] = edit.editor

    def load(self, video_id: str, slot: int) -> Edit | None:
        """Return the newest revision of a slot as it is in storage now.

        Raises:
            EditError: that document is unusable.
        """
        found = [parts[2] for key in self.storage.list(edit_folder(video_id, slot)) if (parts := parse_edit_key(key))]
        if not found:
            return None
        known = self.edit(video_id, slot)
        if known is None or known.revision < max(found):
            self._read(video_id, slot, max(found))
        self._learn_beginner(video_id, slot)
        return self.edit(video_id, slot)

    def revisions(self, video_id: str, slot: int, number: int) -> tuple[list[Edit], int]:
        """Return the newest revisions of a slot, the newest first, and how many earlier ones there are."""
        keys = [key for key in self.storage.list(edit_folder(video_id, slot)) if parse_edit_key(key)]
        with ThreadPoolExecutor(READERS) as readers:
            found = list(readers.map(self._revision, keys[: -number - 1 : -1]))
        return [edit for edit in found if edit is not None], max(0, len(keys) - number)

    def _revision(self, key: str) -> Edit | None:
        try:
            return parse_edit(self.storage.read(key), key)
        except (EditError, ObjectNotFound) as error:
            self.problems[key] = str(error)
            return None

    def refresh(self) -> None:
        """Read what other servers and programs wrote since the last time."""
        newest: dict[tuple[str, int], int] = {}
        for prefix in ("edits/", "opinions/"):
            for key in self.storage.list(prefix):
                if (parts := parse_edit_key(key)) and parts[0] in self.videos:
                    newest[parts[:2]] = max(newest.get(parts[:2], 0), parts[2])
        unknown = []
        for (video_id, slot), revision in newest.items():
            known = self.edit(video_id, slot)
            if known is None or known.revision < revision:
                unknown.append((video_id, slot, revision))
        with ThreadPoolExecutor(READERS) as readers:
            list(readers.map(lambda place: self._try_read(*place), unknown))
            list(readers.map(lambda place: self._learn_beginner(*place), newest))
        self._refresh_settings()

    def info(self, video_id: str) -> VideoInfo:
        """Return what the network made of a video; it never changes.

        Raises:
            RoundError: its document is unusable.
        """
        if video_id not in self._info:
            key = f"videos/{check_id(video_id, 'video id')}/attention.json"
            curve = tuple(model_attention(self.round, video_id))
            try:
                content = parse_json(self.storage.read(key))
                self._info[video_id] = VideoInfo(curve, content["top5"], content["crop"])
            except (ValueError, KeyError) as error:
                raise RoundError(f"{key}: unreadable ({error}); export the round again") from None
        return self._info[video_id]

    def change_settings(self, settings: RoundSettings) -> None:
        """Store a lead's choice."""
        self.storage.write(SETTINGS_FILE, json.dumps(asdict(settings)).encode())
        self.settings = settings

    def _learn_beginner(self, video_id: str, slot: int) -> None:
        if (video_id, slot) not in self._beginners:
            key = edit_key(video_id, 1, slot)
            try:
                self._beginners[video_id, slot] = parse_edit(self.storage.read(key), key).editor
            except (EditError, ObjectNotFound) as error:
                self._beginners[video_id, slot] = ""
                self.problems[key] = str(error)

    def _refresh_settings(self) -> None:
        try:
            self.settings = RoundSettings(**parse_json(self.storage.read(SETTINGS_FILE)))
        except ObjectNotFound:
            pass
        except (ValueError, TypeError) as error:
            self.problems[SETTINGS_FILE] = str(error)

    def _try_read(self, video_id: str, slot: int, revision: int) -> None:
        try:
            self._read(video_id, slot, revision)
        except EditError as error:
            key = edit_key(video_id, revision, slot)
            if key not in self.problems:
                log.error("%s", error)
            self.problems[key] = str(error)

    def _read(self, video_id: str, slot: int, revision: int) -> None:
        key = edit_key(video_id, revision, slot)
        edit = parse_edit(self.storage.read(key), key)
        if edit.key != key or edit.round_id != self.round.round_id:
            raise EditError(f"{key}: holds revision {edit.revision} of video {edit.video_id} of {edit.round_id}")
        if edit.num_frames != self.videos[video_id].num_frames:
            raise EditError(f"{key}: {edit.num_frames} values for a video of {self.videos[video_id].num_frames} frames")
        self.put(edit)
