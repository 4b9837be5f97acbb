"""Which video a person gets next, and what each person sees of a video's state."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

from stabn.attention.automatic import EDITOR as AUTOMATIC
from stabn.attention.edit_document import DONE, Edit
from stabn.attention.rounds import RoundError, RoundVideo
from stabn.data.edit_table import EditError
from stabn.editor.board import Board
from stabn.editor.leases import Lease, LeaseHeld, Leases
from stabn.storage import ObjectNotFound

CLOSED = 0  # in place of a slot
SENT_BACK, MINE, SECOND_OPINION, NEW, CHECK, ABANDONED = range(6)  # in this order they are handed out
STATES = ("todo", "automatic", "draft", "sent_back", "second_opinion", "edited", "skipped", "accepted")
FINISHED = ("edited", "skipped", "accepted")  # the states of what people are done with


@dataclass(frozen=True)
class Place:
    """What a person has to do with a video.

    Attributes:
        slot: which of the video's curves is theirs; 1 is what is learnt from, CLOSED: none, all are others' own.
        edit: its newest revision, None if nobody began.
        state: one of STATES.
        blind: others correct the same video, and this person must not see how.
    """

    video: RoundVideo
    slot: int
    edit: Edit | None
    state: str
    blind: bool


class Queue:
    """Hand out a round's videos, the most wrongly recognised ones first."""

    def __init__(self, board: Board, leases: Leases) -> None:
        self.board, self.leases = board, leases
        self.order = sorted(board.round.videos, key=lambda video: (-wrongness(video), video.video_id))
        self._draw = {video.video_id: _draw(board.round.round_id, video.video_id) for video in board.round.videos}

    def is_shared(self, video_id: str) -> bool:
        """Tell whether several people correct a video; a larger share only adds videos."""
        return self._draw[video_id] < self.board.settings.shared_share

    def num_slots(self, video_id: str) -> int:
        """Return how many people correct a video."""
        return self.board.settings.people_per_shared if self.is_shared(video_id) else 1

    def place(self, video_id: str, person: str) -> Place:
        """Return a person's own curve of a video, or the one that they may begin or take over.

        Where several people make curves, each on their own, nobody is given a curve that is another's; with none left
        the slot is CLOSED, and the edit is the one that is learnt from, for its state only.
        """
        video, edits = self.board.video(video_id), self.board.edits(video_id)
        own = [slot for slot, edit in sorted(edits.items()) if edit.editor == person]
        own += [slot for slot in sorted(edits) if self.board.beginner(video_id, slot) == person]
        if own:
            slot = own[0] if self.may_see(edits[own[0]], person) else CLOSED
        else:
            slot = self._free_slot(video_id, edits, person)
        edit = edits.get(slot or 1)
        return Place(video, slot, edit, state_of(edit), blind=slot != 1)

    def is_independent(self, video_id: str) -> bool:
        """Tell whether several people make or made curves of a video, each on their own."""
        return self.num_slots(video_id) > 1 or any(slot > 1 for slot in self.board.edits(video_id))

    def may_see(self, edit: Edit | None, person: str) -> bool:
        """Tell whether a person may see and change a curve without being told what another thinks of the video.

        They may see their own, also as a lead changed it, what nobody made, and what its editor asks others about.
        """
        if edit is None or edit.editor in (person, AUTOMATIC) or edit.status == "second_opinion":
            return True
        if not self.is_independent(edit.video_id):
            return True
        is_copy = edit.review is not None and edit.review.verdict == "accepted"
        return self.board.beginner(edit.video_id, edit.slot) == person and not is_copy

    def next(self, person: str, passed: Collection[str] = (), class_index: int | None = None) -> Lease | None:
        """Lease the next video to a person; None: there is nothing left for them.

        Args:
            person: who asks.
            passed: videos that they put aside; they come last.
            class_index: only videos of this action.
        """
        for video_id, slot in self.candidates(person, passed, class_index):
            try:
                lease = self.leases.take(video_id, slot, person)
            except LeaseHeld:
                continue
            if self._is_wanted(video_id, slot, person):
                return lease
            self.leases.release(video_id, slot, person)
        return None

    def reload(self, video_id: str) -> None:
        """Read the newest revision of each of a video's curves, as other servers may have saved since.

        Raises:
            EditError: one is unusable.
        """
        for slot in range(1, max([self.num_slots(video_id), *self.board.edits(video_id)]) + 1):
            self.board.load(video_id, slot)

    def _is_wanted(self, video_id: str, slot: int, person: str) -> bool:
        """Tell whether a video still is what its place in the queue says, and can be shown."""
        try:
            self.board.info(video_id)
            self.reload(video_id)
        except (EditError, RoundError, ObjectNotFound) as error:
            self.board.problems[f"videos/{video_id}"] = str(error)
            return False
        place = self.place(video_id, person)
        return place.slot == slot and self._kind(place, person) is not None

    def candidates(
        self, person: str, passed: Collection[str] = (), class_index: int | None = None
    ) -> list[tuple[str, int]]:
        """Return video ids and slots for a person, best first, without those that others edit now."""
        ranked = []
        for position, video in enumerate(self.order):
            if class_index is not None and video.class_index != class_index:
                continue
            place = self.place(video.video_id, person)
            lease = self.leases.active(video.video_id, place.slot)
            if lease is not None and lease.holder != person:
                continue
            kind = self._kind(place, person)
            if kind is not None:
                ranked.append((video.video_id in passed, kind, position, video.video_id, place.slot))
        return [(video_id, slot) for *_, video_id, slot in sorted(ranked)]

    def _kind(self, place: Place, person: str) -> int | None:
        """Return why a person should get a video, None if they should not."""
        edit = place.edit
        if place.slot == CLOSED:
            return None
        if edit is None:
            return NEW
        if place.state == "automatic":
            return CHECK
        if edit.editor == person:
            return {"sent_back": SENT_BACK, "draft": MINE}.get(place.state)
        return {"second_opinion": SECOND_OPINION, "draft": ABANDONED}.get(place.state)

    def _free_slot(self, video_id: str, edits: dict[int, Edit], person: str) -> int:
        """Return a slot that nobody has begun, else one whose editor asks for a second opinion, else CLOSED or 1."""
        slots = {*edits, *range(1, self.num_slots(video_id) + 1)}
        leases = {slot: self.leases.active(video_id, slot) for slot in slots}
        free = [slot for slot, lease in sorted(leases.items()) if lease is None or lease.holder == person]
        for slot in free:
            if slot not in edits or (slot == 1 and edits[slot].editor == AUTOMATIC):
                return slot
        for slot in free:
            if slot in edits and edits[slot].status == "second_opinion":
                return slot
        return CLOSED if self.is_independent(video_id) else 1


def wrongness(video: RoundVideo) -> float:
    """Return how wrong the network was, -1 to 1: its score of the class it gave minus that of the true one."""
    if video.predicted == video.class_index:
        return -video.score
    return video.score - (video.true_score or 0.0)


def _draw(round_id: str, video_id: str) -> float:
    """Return a number in [0, 1) that every server draws alike."""
    return int.from_bytes(hashlib.sha256(f"{round_id}/{video_id}".encode()).digest()[:8]) / 2**64


def state_of(edit: Edit | None) -> str:
    """Return one of STATES."""
    if edit is None:
        return "todo"
    if edit.editor == AUTOMATIC:
        return "automatic"
    if edit.status == "draft" and edit.review is not None and edit.review.verdict == "sent_back":
        return "sent_back"
    if edit.status in DONE and edit.review is not None and edit.review.verdict == "accepted":
        return "accepted"
    return edit.status
