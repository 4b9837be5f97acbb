"""The lead's queue: videos whose curves are done and that nobody has accepted yet."""

from collections.abc import Collection

from stabn.attention.automatic import EDITOR as AUTOMATIC
from stabn.attention.edit_document import DONE
from stabn.editor.agreement import pairs
from stabn.editor.board import Board
from stabn.editor.queue import Queue, state_of


class ReviewQueue:
    """The videos that wait for a lead's word: those on which people differ most, then the most wrongly recognised."""

    def __init__(self, board: Board, queue: Queue) -> None:
        self.board, self.queue = board, queue

    def waits(self, video_id: str) -> bool:
        """Tell whether a video waits: all that was begun of it is done, and none was accepted."""
        edits = self.board.edits(video_id)
        learnt = edits.get(1)
        if learnt is None or learnt.editor == AUTOMATIC or state_of(learnt) == "accepted":
            return False
        return all(edit.status in DONE for edit in edits.values())

    def videos(self, person: str = "", class_index: int | None = None) -> list[str]:
        """Return the ids of those that wait, in their order.

        Args:
            person: only videos of which this person made a curve; empty: everybody.
            class_index: only videos of this action.
        """
        found = []
        for position, video in enumerate(self.queue.order):
            edits = self.board.edits(video.video_id)
            if class_index is not None and video.class_index != class_index:
                continue
            if person and all(edit.editor != person for edit in edits.values()):
                continue
            if self.waits(video.video_id):
                differences = [value.difference for *_, value in pairs(edits)]
                found.append((-max(differences, default=0.0), position, video.video_id))
        return [video_id for *_, video_id in sorted(found)]

    def next(self, passed: Collection[str], person: str, class_index: int | None) -> tuple[str | None, int]:
        """Return the next video that waits, those that were put aside last, and how many wait."""
        videos = self.videos(person, class_index)
        return next(iter(sorted(videos, key=lambda video_id: video_id in passed)), None), len(videos)
