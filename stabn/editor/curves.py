"""Which of a video's curves a person may open and save, so that curves made independently stay independent."""

import dataclasses
from typing import Any

from stabn.attention.automatic import EDITOR as AUTOMATIC
from stabn.attention.edit_document import Edit
from stabn.attention.edits import EditConflict, save_edit
from stabn.attention.rounds import RoundVideo
from stabn.editor.auth import User
from stabn.editor.board import Board
from stabn.editor.http import ApiError, run_in_threadpool
from stabn.editor.leases import Lease, LeaseHeld, Leases
from stabn.editor.queue import CLOSED, Place, Queue, state_of

MAX_SLOT = 9


class Curves:
    """Open and save curves; of a video that several people correct, only leads get at another's."""

    def __init__(self, board: Board, queue: Queue, leases: Leases) -> None:
        self.board, self.queue, self.leases = board, queue, leases

    def place(self, video: RoundVideo, user: User, slot: int | None) -> Place:
        """Return what a person works on; a lead may ask for any curve.

        Raises:
            ApiError: 404 no such curve, 409 all of the video's curves are others'.
        """
        if slot is None or not user.is_lead:
            place = self.queue.place(video.video_id, user.name)
            if place.slot != CLOSED:
                return place
            if not user.is_lead:
                raise _closed(video.video_id)
            slot = 1
        edit = self.board.edit(video.video_id, slot)
        if slot != 1 and edit is None:
            raise ApiError(404, "not_found", f"video {video.video_id} has no curve {slot}")
        return Place(video, slot, edit, state_of(edit), blind=False)

    def enter(
        self, video: RoundVideo, user: User, slot: int | None, take_over: bool
    ) -> tuple[Place, Lease, Edit | None]:
        """Return what a person works on, its lease, and its newest revision.

        Raises:
            ApiError: 404 no such curve, 409 all of the video's curves are others'.
        """
        for _ in range(MAX_SLOT + 1):  # another server may have given away a slot that seems free here
            place = self.place(video, user, slot)
            chosen = user.is_lead and (slot is not None or not self.queue.may_see(place.edit, user.name))
            alone = not self.queue.is_independent(video.video_id)
            lease = self.take(video.video_id, place.slot, user.name, take_over and (alone or place.edit is not None))
            edit = self.board.load(video.video_id, place.slot)
            mine, is_begun = lease.holder == user.name, edit is not None and edit.editor != AUTOMATIC
            if chosen or alone or (self.queue.may_see(edit, user.name) and (mine or is_begun)):
                return dataclasses.replace(place, edit=edit, state=state_of(edit)), lease, edit
            if mine:
                self.leases.release(video.video_id, place.slot, user.name)
        raise _closed(video.video_id)

    def check_own(self, edit: Edit | None, user: User) -> None:
        """Refuse to change, or to tell of, a curve that another made on their own.

        Raises:
            ApiError: 409.
        """
        if edit is not None and not user.is_lead and not self.queue.may_see(edit, user.name):
            raise _closed(edit.video_id)

    async def check_slot(self, video: RoundVideo, user: User, slot: int) -> None:
        """Refuse to touch a curve that this person was not given.

        Raises:
            ApiError: 400 no slot, 409 another's.
        """
        if user.is_lead and (slot == 1 or self.board.edit(video.video_id, slot) is not None):
            return
        if not 1 <= slot <= MAX_SLOT:
            raise ApiError(400, "bad_request", f"slot = {slot}: from 1 to {MAX_SLOT}")
        lease = self.leases.active(video.video_id, slot)
        if lease is None and slot != self.queue.place(video.video_id, user.name).slot:
            lease = await run_in_threadpool(self.leases.look, video.video_id, slot)  # another server may have given it
        holds = lease is not None and lease.holder == user.name
        if not holds and slot != self.queue.place(video.video_id, user.name).slot:
            raise ApiError(409, "slot", f"video {video.video_id} was given to others meanwhile; open it again")

    def take(self, video_id: str, slot: int, person: str, force: bool) -> Lease:
        """Take a lease; return the one that holds where it is another's."""
        try:
            return self.leases.take(video_id, slot, person, force)
        except LeaseHeld as error:
            return error.lease

    def save(self, edit: Edit, own: tuple[float, ...], user: User) -> Edit:
        """Save a revision under a lease and return it.

        Args:
            edit: the revision.
            own: the network's own curve.
            user: who saves it.

        Raises:
            ApiError: 409 with what is there: somebody saved since, or edits the video now.
        """
        name, slot, person = edit.video_id, edit.slot, edit.editor
        if not self.leases.is_fresh(name, slot, person):
            try:
                self.leases.take(name, slot, person)
            except LeaseHeld as error:
                theirs = self.board.load(name, slot)
                self.check_own(theirs, user)
                raise ApiError(
                    409, "lease", f"{error.lease.holder} is editing this video now", holder=error.lease.holder,
                    theirs=edit_json(theirs),
                ) from None  # fmt: skip
        try:
            save_edit(self.board.round, edit, own)
        except EditConflict as error:
            self.board.put(error.theirs)
            if _is_same(error.theirs, edit):  # the answer to the first attempt got lost
                return error.theirs
            theirs = self.board.load(name, slot) or error.theirs
            self.check_own(theirs, user)
            raise ApiError(
                409, "conflict", f"{theirs.editor} saved this video at {theirs.edited_at}", theirs=edit_json(theirs)
            ) from None
        self.board.put(edit)
        if edit.status != "draft":
            self.leases.release(name, slot, person)
        return edit


def edit_json(edit: Edit | None) -> dict[str, Any] | None:
    """Return what a page shows of a revision; the network's own curve is sent once, with the video."""
    if edit is None:
        return None
    content = dataclasses.asdict(edit)
    del content["model_attention"], content["round_id"], content["format"]
    return content


def _closed(video_id: str) -> ApiError:
    return ApiError(
        409, "slot", f"video {video_id} was given to others, each of them on their own; only a lead may look at it"
    )


def _is_same(theirs: Edit, mine: Edit) -> bool:
    names = ("editor", "edited_attention", "status", "skip_reason", "note", "review")
    return all(getattr(theirs, name) == getattr(mine, name) for name in names)
