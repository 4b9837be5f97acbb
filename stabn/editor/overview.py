"""What a lead sees: progress, who did what, and how far people agree on the videos that several of them corrected."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, median
from typing import Any

import numpy as np

from stabn.attention.automatic import EDITOR as AUTOMATIC
from stabn.attention.edit_document import Edit
from stabn.editor.board import Board
from stabn.editor.queue import STATES, Queue, state_of

SEGMENT_LEVEL = 0.5  # frames from this attention on belong to the action


@dataclass(frozen=True)
class Agreement:
    """How far two curves of one video agree.

    Attributes:
        difference: mean absolute difference over the frames on which both have an opinion, 0 to 1.
        overlap: intersection over union of the frames at or above SEGMENT_LEVEL, 0 to 1; 1 if neither has any.
    """

    difference: float
    overlap: float


def agreement(first: Sequence[float | None], second: Sequence[float | None]) -> Agreement | None:
    """Compare two curves of one video; None if there is no frame on which both have an opinion."""
    a, b = (np.array([np.nan if value is None else value for value in curve]) for curve in (first, second))
    both = ~np.isnan(a) & ~np.isnan(b)
    if not both.any():
        return None
    a, b = a[both], b[both]
    in_a, in_b = a >= SEGMENT_LEVEL, b >= SEGMENT_LEVEL
    union = int((in_a | in_b).sum())
    return Agreement(float(np.abs(a - b).mean()), float((in_a & in_b).sum() / union) if union else 1.0)


def pairs(edits: dict[int, Edit]) -> list[tuple[Edit, Edit, Agreement]]:
    """Return every two people's finished curves of a video with their agreement."""
    done = [edit for edit in edits.values() if edit.status == "edited" and edit.editor != AUTOMATIC]
    result = []
    for first, second in combinations(done, 2):
        found = agreement(first.edited_attention, second.edited_attention)
        if first.editor != second.editor and found is not None:
            result.append((first, second, found))
    return result


def counts(board: Board) -> dict[str, int]:
    """Return the number of videos in each state, of the curves that are learnt from."""
    found = Counter(state_of(board.edit(video_id)) for video_id in board.videos)
    return {state: found[state] for state in STATES}


def actions(board: Board) -> list[dict[str, Any]]:
    """Return the progress of each action."""
    groups: dict[int, Counter] = defaultdict(Counter)
    for video in board.round.videos:
        groups[video.class_index][state_of(board.edit(video.video_id))] += 1
    return [
        {"class_index": index, "name": board.round.classes[index], "total": found.total(), **found}
        for index, found in sorted(groups.items(), key=lambda group: board.round.classes[group[0]])
    ]


def overview(board: Board, queue: Queue) -> dict[str, Any]:
    """Return everything that the lead's page shows of a round."""
    people: dict[str, dict[str, Any]] = {}
    agreements: dict[str, list[Agreement]] = defaultdict(list)
    shared, every = [], []
    reasons: Counter = Counter()
    for video in board.round.videos:
        edits, learnt = board.own_edits(video.video_id), board.edit(video.video_id)
        if learnt is not None and learnt.skip_reason:
            reasons[learnt.skip_reason] += 1
        for edit in edits.values():
            person = people.setdefault(
                edit.editor, {"name": edit.editor, "seconds": [], "last": "", "states": Counter()}
            )
            person["states"][state_of(edit)] += 1
            person["last"] = max(person["last"], edit.edited_at)
            if edit.status in ("edited", "skipped") and edit.seconds:
                person["seconds"].append(edit.seconds)
        found = pairs(edits)
        every += [value for *_, value in found]
        for first, second, value in found:
            agreements[first.editor].append(value)
            agreements[second.editor].append(value)
        if queue.is_shared(video.video_id) or len(edits) > 1:
            shared.append(
                {
                    "video_id": video.video_id,
                    "class_index": video.class_index,
                    "people": [{"name": edit.editor, "state": state_of(edit)} for _, edit in sorted(edits.items())],
                    "wanted": queue.num_slots(video.video_id),
                    **_mean([value for *_, value in found]),
                }
            )
    shared.sort(key=lambda row: -1.0 if row["difference"] is None else row["difference"], reverse=True)
    seconds = [value for person in people.values() for value in person["seconds"]]
    return {
        "counts": counts(board),
        "reasons": dict(reasons),
        "median_seconds": median(seconds) if seconds else None,
        "agreement": _mean(every) | {"pairs": len(every)},
        "people": [
            {
                "name": person["name"],
                **{state: person["states"][state] for state in STATES},
                "median_seconds": median(person["seconds"]) if person["seconds"] else None,
                "last": person["last"],
                **_mean(agreements[person["name"]]),
                "pairs": len(agreements[person["name"]]),
            }
            for person in sorted(people.values(), key=lambda person: person["name"])
        ],
        "actions": actions(board),
        "shared": shared,
        "problems": [f"{key}: {reason}" for key, reason in sorted(board.problems.items())],
    }


def _mean(values: Sequence[Agreement]) -> dict[str, float | None]:
    if not values:
        return {"difference": None, "overlap": None}
    return {
        "difference": fmean(value.difference for value in values),
        "overlap": fmean(value.overlap for value in values),
    }
