"""What a lead sees: progress, who did what, and how far people agree on the videos that several of them corrected."""

from collections import Counter, defaultdict
from statistics import median
from typing import Any

from stabn.attention.edit_document import DONE, Edit
from stabn.editor.agreement import Agreement, needs_training, pairs, summary
from stabn.editor.board import Board
from stabn.editor.queue import FINISHED, STATES, Queue, state_of
from stabn.editor.review import ReviewQueue


def counts(board: Board) -> dict[str, int]:
    """Return the number of videos in each state, of the curves that are learnt from, and of those that are done."""
    return _counted(Counter(state_of(board.edit(video_id)) for video_id in board.videos))


def _counted(states: Counter) -> dict[str, int]:
    return {**{state: states[state] for state in STATES}, "done": sum(states[state] for state in FINISHED)}


def actions(board: Board) -> list[dict[str, Any]]:
    """Return the progress of each action."""
    groups: dict[int, Counter] = defaultdict(Counter)
    for video in board.round.videos:
        groups[video.class_index][state_of(board.edit(video.video_id))] += 1
    return [
        {"class_index": index, "name": board.round.classes[index], "total": found.total(), **_counted(found)}
        for index, found in sorted(groups.items(), key=lambda group: board.round.classes[group[0]])
    ]


class _Person:
    def __init__(self, name: str) -> None:
        self.name = name
        self.states: Counter = Counter()
        self.seconds: list[float] = []
        self.last = ""
        self.agreements: list[Agreement] = []

    def add(self, edit: Edit, state: str) -> None:
        self.states[state] += 1
        self.last = max(self.last, edit.edited_at)
        if edit.status in DONE and edit.seconds:
            self.seconds.append(edit.seconds)


def curve_state(board: Board, edit: Edit) -> str:
    """Return the state of a person's curve: accepted also where the accepted one is a copy of it in slot 1."""
    learnt = board.edit(edit.video_id)
    if learnt is not None and learnt.editor == edit.editor and state_of(learnt) == "accepted" and edit.status in DONE:
        return "accepted"
    return state_of(edit)


def overview(board: Board, queue: Queue) -> dict[str, Any]:
    """Return everything that the lead's page shows of a round."""
    people: dict[str, _Person] = {}
    of_action: dict[int, list[Agreement]] = defaultdict(list)
    every: list[tuple[frozenset[str], Agreement]] = []
    shared = []
    reasons: Counter = Counter()
    for video in board.round.videos:
        edits, learnt = board.own_edits(video.video_id), board.edit(video.video_id)
        if learnt is not None and learnt.skip_reason:
            reasons[learnt.skip_reason] += 1
        for edit in edits.values():
            people.setdefault(edit.editor, _Person(edit.editor)).add(edit, curve_state(board, edit))
        found = pairs(edits)
        for first, second, value in found:
            every.append((frozenset((first.editor, second.editor)), value))
            of_action[video.class_index].append(value)
            for edit in (first, second):
                people[edit.editor].agreements.append(value)
        if queue.is_shared(video.video_id) or len(edits) > 1:
            states = [{"name": edit.editor, "state": curve_state(board, edit)} for _, edit in sorted(edits.items())]
            row = {"video_id": video.video_id, "class_index": video.class_index, "people": states}
            shared.append({**row, "wanted": queue.num_slots(video.video_id), **summary([item for *_, item in found])})
    shared.sort(key=lambda row: -1.0 if row["difference"] is None else row["difference"], reverse=True)
    seconds = [value for person in people.values() for value in person.seconds]
    return {
        "counts": counts(board),
        "to_review": len(ReviewQueue(board, queue).videos()),
        "reasons": dict(reasons),
        "median_seconds": median(seconds) if seconds else None,
        "agreement": summary([value for _, value in every]),
        "people": [
            {
                "name": person.name,
                **_counted(person.states),
                "median_seconds": median(person.seconds) if person.seconds else None,
                "last": person.last,
                **summary(person.agreements),
                "needs_training": needs_training(
                    person.agreements, [value for names, value in every if person.name not in names]
                ),
            }
            for person in sorted(people.values(), key=lambda person: person.name)
        ],
        "actions": [row | summary(of_action[row["class_index"]]) for row in actions(board)],
        "shared": shared,
        "problems": [f"{key}: {reason}" for key, reason in sorted(board.problems.items())],
    }
