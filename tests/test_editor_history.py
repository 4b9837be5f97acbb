"""The checker of histories finds what it is there to find."""

from pathlib import Path

import pytest
from editor_crowd import Crowd
from editor_history import Done, History
from faulty_server import Faults

from stabn.attention.rounds import Round


def history() -> History:
    """Return one in which all is well: ann saves twice and leaves, ben goes on, cleo finishes."""
    return History(
        10.0,
        [
            Done("ann", "lease", "1", 0.0, 0.1, 200),
            Done("ann", "save", "1", 1.0, 1.1, 200, 1, "a1"),
            Done("ann", "save", "1", 2.0, 2.5, 0, 0, "a2"),  # no answer, but it was saved
            Done("ben", "lease", "1", 2.6, 2.7, 409),
            Done("ann", "save", "1", 2.6, 3.0, 200, 2, "a2"),
            Done("ann", "release", "1", 3.5, 3.6, 200),
            Done("ben", "lease", "1", 4.0, 4.1, 200),
            Done("ben", "read", "1", 4.0, 4.1, 200, 2),
            Done("ben", "save", "1", 4.5, 4.6, 200, 3, "b1"),
            Done("cleo", "finish", "", 5.0, 5.1, 200, 0, "by cleo"),
            Done("ben", "save", "1", 6.0, 6.1, 200, 4, "b2"),
        ],
        {("1", 1): "a1", ("1", 2): "a2", ("1", 3): "b1", ("1", 4): "b2"},
        "by cleo",
        {"1": 3},
    )


def test_what_can_have_been_is_accepted() -> None:
    assert history().wrong() == []


@pytest.mark.parametrize("place", [("1", 2), ("1", 4)])
def test_a_lost_save_is_found(place: tuple[str, int]) -> None:
    changed = history()
    del changed.saved[place]
    assert any(line.startswith("lost") for line in changed.wrong())
    changed.saved[place] = "a1"
    assert any(line.startswith("lost") for line in changed.wrong())


def test_a_save_of_nobody_and_a_hole_are_found() -> None:
    changed = history()
    changed.saved["1", 6] = "z"
    assert [line.partition(":")[0] for line in changed.wrong()] == ["invented", "gone"]


def test_a_stale_read_is_found() -> None:
    changed = history()
    changed.done.append(Done("dan", "read", "1", 7.0, 7.1, 200, 3))
    assert [line.partition(":")[0] for line in changed.wrong()] == ["stale"]


@pytest.mark.parametrize(("began", "found"), [(3.0, True), (3.55, False)])
def test_two_who_hold_a_video_are_found(began: float, found: bool) -> None:
    changed = history()
    changed.done = [one for one in changed.done if one.kind != "save"]
    changed.saved, changed.learnt = {}, {}
    changed.done.append(Done("dan", "lease", "1", began, began + 0.01, 200))
    changed.done[-1:] += [Done("dan", "release", "1", 3.58, 3.59, 200)]
    assert [line.partition(":")[0] for line in changed.wrong()] == ["held twice"] * found


def test_a_lease_is_relied_on_no_longer_than_it_lasts() -> None:
    changed = history()
    changed.done.append(Done("dan", "lease", "2", 0.0, 0.1, 200))
    changed.done.append(Done("eve", "lease", "2", 6.5, 6.6, 200))
    assert changed.wrong() == []
    changed.done.append(Done("fay", "lease", "2", 7.0, 7.1, 200))
    assert [line.partition(":")[0] for line in changed.wrong()] == ["held twice"]


def test_a_finished_round_that_changes_is_found() -> None:
    changed = history()
    changed.learnt = {"1": 4}
    assert [line.partition(":")[0] for line in changed.wrong()] == ["changed when finished"]
    changed.finished = "by dan"
    assert "finished otherwise than told: by cleo" in changed.wrong()


def test_an_error_of_the_server_is_found() -> None:
    changed = history()
    changed.done.append(Done("dan", "read", "1", 7.0, 7.1, 500))
    assert changed.wrong() == ["failed: read of dan: 500"]


def test_two_servers_and_some_people(editor_round: Round, faults: Faults, tmp_path: Path) -> None:
    """The drill of tests/drills/test_editor_replicas.py made small."""
    history = Crowd(editor_round, tmp_path, faults, size=150, people=8, seed=3, pause=2.0).run()
    assert history.wrong() == []
    assert history.finished and sum(one.kind == "save" and one.status == 200 for one in history.done) > 10
