"""What people did to a round through several editors, and whether it can have been: histories in the manner of Jepsen.

An answer is believed: who was told that something is saved, held or finished relies on it. A request without an answer
may have happened or not. Times are of one clock that nothing disturbs.
"""

import bisect
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SKEW_SECONDS = 4.0  # by which leases may end early: clocks that differ by 3 s count as equal, stores tell whole seconds


@dataclass
class Done:
    """A request of a person.

    Attributes:
        kind: save, lease (taken or prolonged), release, read or finish.
        began: seconds, when it was sent.
        ended: seconds, when its answer was there.
        status: of the answer; 0: there was none.
        revision: that was saved or read.
        mark: what was saved; of a record of finishing, its content.
    """

    person: str
    kind: str
    video_id: str
    began: float
    ended: float
    status: int
    revision: int = 0
    mark: str = ""


@dataclass
class History:
    """All requests, and what the storage holds in the end.

    Attributes:
        saved: mark of each document, by video and revision.
        finished: the record of finishing; "": none.
        learnt: revision of each video that fine-tuning reads of the finished round.
    """

    lease_seconds: float
    done: list[Done] = field(default_factory=list)
    saved: dict[tuple[str, int], str] = field(default_factory=dict)
    finished: str = ""
    learnt: Mapping[str, int] = field(default_factory=dict)

    def wrong(self) -> list[str]:
        """Return all that cannot have been, a line each."""
        return [*self._lost(), *self._invented(), *self._stale(), *self._leases(), *self._finished(), *self._failed()]

    def _of(self, kind: str) -> list[Done]:
        return [one for one in self.done if one.kind == kind]

    def _acknowledged(self) -> list[Done]:
        return [one for one in self._of("save") if one.status == 200]

    def _lost(self) -> list[str]:
        return [
            f"lost: {one.person} was told that revision {one.revision} of video {one.video_id} is {one.mark!r}; it is "
            f"{self.saved.get((one.video_id, one.revision))!r}"
            for one in self._acknowledged()
            if self.saved.get((one.video_id, one.revision)) != one.mark
        ]

    def _invented(self) -> list[str]:
        sent = {(one.video_id, one.mark) for one in self._of("save")}
        wrong = [f"invented: {place} is {mark!r}" for place, mark in self.saved.items() if (place[0], mark) not in sent]
        newest: dict[str, int] = defaultdict(int)
        for video_id, revision in self.saved:
            newest[video_id] = max(newest[video_id], revision)
        for video_id, last in newest.items():
            wrong += [f"gone: {video_id}, {n} of {last}" for n in range(1, last) if (video_id, n) not in self.saved]
        return wrong

    def _stale(self) -> list[str]:
        wrong = []
        for video_id, ones in _by_video([*self._acknowledged(), *self._of("read")]).items():
            told = sorted((o.ended, o.revision) for o in ones if o.status == 200)
            highest = list(itertools.accumulate((revision for _, revision in told), max))
            for one in ones:
                if one.kind == "read" and one.status == 200:
                    before = bisect.bisect_left(told, (one.began, 0))
                    if before and one.revision < highest[before - 1]:
                        wrong.append(
                            f"stale: {one.person} read revision {one.revision} of video {video_id} after revision "
                            f"{highest[before - 1]} was told of"
                        )
        return wrong

    def _leases(self) -> list[str]:
        """Two people who can both rely on holding a video at one moment."""
        wrong = []
        for video_id, ones in _by_video([*self._of("lease"), *self._of("release"), *self._of("save")]).items():
            held = []
            ends = [one for one in ones if one.kind != "lease"]
            for one in ones:
                if one.kind == "lease" and one.status == 200:
                    until = one.began + self.lease_seconds - SKEW_SECONDS
                    until = min([until, *(e.began for e in ends if e.person == one.person and e.ended > one.began)])
                    held.append((one.ended, until, one.person))
            for one_held, other in itertools.combinations(sorted(h for h in held if h[0] < h[1]), 2):
                if other[0] < one_held[1] and one_held[2] != other[2]:
                    wrong.append(f"held twice: video {video_id} by {one_held} and by {other}")
        return wrong

    def _finished(self) -> list[str]:
        told = {one.mark for one in self._of("finish") if one.status == 200}
        wrong = [f"finished otherwise than told: {mark}" for mark in told if mark != self.finished]
        for video_id, revision in self.learnt.items():
            ends = [one.ended for one in self._of("finish") if one.status == 200]
            if ends and any(
                one.began > max(ends)
                for one in self._of("save")
                if one.video_id == video_id and self.saved.get((video_id, revision)) == one.mark
            ):
                wrong.append(f"changed when finished: revision {revision} of video {video_id} is learnt from")
        return wrong

    def _failed(self) -> list[str]:
        return [f"failed: {one.kind} of {one.person}: 500" for one in self.done if one.status == 500]


def _by_video(ones: Sequence[Done]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = defaultdict(list)
    for one in ones:
        found[one.video_id].append(one)
    return found
