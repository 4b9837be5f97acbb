"""The mini dataset: its layout, its files, and what makes its actions easy or hard."""

import itertools
import json
import shutil
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from stabn.data.mini import DEMO_VIDEOS, VARIANTS, MiniDataset, _write_labels, entries_of, make_mini_dataset, smallest
from stabn.data.mini_motion import ACTIONS, DEMO_ACTIONS, EASY, HEIGHT, Action, MiniError, plan_video
from stabn.data.sampling import evaluation_sample
from stabn.data.ssv2 import flip_map, load_labels
from stabn.data.video import decode
from stabn.presets import load

SIZE = smallest(VARIANTS["demo"])  # the smallest one allowed
EVERY = (("knowledge", ACTIONS), ("mini", DEMO_ACTIONS))  # presets and their actions
EVERY_ACTION = sorted({*ACTIONS, *DEMO_ACTIONS}, key=repr)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> MiniDataset:
    calls: list[tuple[int, int]] = []
    made = make_mini_dataset(
        tmp_path_factory.mktemp("mini") / "data", SIZE, seed=3, workers=2, progress=lambda *c: calls.append(c)
    )
    assert calls == [(done, SIZE) for done in range(SIZE + 1)]
    return made


def test_layout_is_that_of_ssv2(dataset: MiniDataset) -> None:
    labels = load_labels(dataset.labels_dir)
    assert sorted(labels.classes) == list(labels.classes) and len(labels.classes) == len(DEMO_ACTIONS)
    assert {f"{video.video_id}.webm" for video in labels.videos} == {path.name for path in dataset.videos_dir.iterdir()}
    assert all(video.video_id.isdigit() for video in labels.videos)
    for split in ("train", "validation"):
        assert {video.class_index for video in labels.videos if video.split == split} == set(range(len(DEMO_ACTIONS)))
    rows = json.loads((dataset.labels_dir / "something-something-v2-train.json").read_text())
    assert all(set(row) == {"id", "label", "template", "placeholders"} for row in rows)
    for row in rows:
        assert all(name in row["label"] for name in row["placeholders"]) and "[" not in row["label"]
        assert len(row["placeholders"]) == row["template"].lower().count("[something]")
    test_rows = json.loads((dataset.labels_dir / "something-something-v2-test.json").read_text())
    assert test_rows and all(set(row) == {"id"} for row in test_rows)


def test_files_are_like_those_of_ssv2(dataset: MiniDataset) -> None:
    segments = json.loads(dataset.segments_path.read_text())
    assert set(segments) == {path.stem for path in dataset.videos_dir.iterdir()}
    for path in dataset.videos_dir.iterdir():
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.average_rate, stream.height) == ("libvpx-vp9", 12, HEIGHT) or (
                stream.codec_context.name,
                stream.average_rate,
                stream.height,
            ) == ("vp9", 12, HEIGHT)
            assert stream.width in VARIANTS["demo"].widths
            num_frames = sum(1 for packet in container.demux(stream) if packet.size)
        first, last = segments[path.stem]
        assert 24 <= num_frames <= 72 and 0 <= first < last <= num_frames and last - first >= 5


def test_missing_videos_are_made_again_alike_and_others_kept(dataset: MiniDataset, tmp_path: Path) -> None:
    shutil.copytree(dataset.folder, tmp_path / "copy")
    paths = sorted((tmp_path / "copy" / "videos").iterdir())
    lost, kept = paths[:2], {path: path.stat().st_mtime_ns for path in paths[2:]}
    for path in lost:
        path.unlink()
    make_mini_dataset(tmp_path / "copy", SIZE, seed=3, workers=1)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for path in lost:
        assert path.read_bytes() == (dataset.videos_dir / path.name).read_bytes()


def test_another_request_for_the_same_folder_is_refused(dataset: MiniDataset, tmp_path: Path) -> None:
    with pytest.raises(MiniError, match=r"another mini dataset.*'seed': 3"):
        make_mini_dataset(dataset.folder, SIZE, seed=4)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(MiniError, match="not empty and not a mini dataset"):
        make_mini_dataset(tmp_path, SIZE)
    for size in (SIZE - 1, "large"):
        with pytest.raises(MiniError, match=f"give 'demo' or a number of at least {SIZE}"):
            make_mini_dataset(tmp_path / "other", size)


def test_demo_shares_and_unbalanced_classes() -> None:
    entries = entries_of(DEMO_VIDEOS, seed=0)
    splits = Counter(entry.split for entry in entries)
    assert splits == VARIANTS["demo"].videos
    assert len({entry.video_id for entry in entries}) == DEMO_VIDEOS
    counts = Counter(entry.action.template for entry in entries if entry.split == "train").values()
    assert 1.2 <= max(counts) / min(counts) <= 4.0


def test_classes_have_left_right_pairs_and_hard_ones() -> None:
    for actions, paired in ((ACTIONS, 6), (DEMO_ACTIONS, 4)):
        _check_classes(actions, paired)


def _check_classes(actions: tuple[Action, ...], paired: int) -> None:
    flipped = flip_map([action.template for action in actions])
    assert sum(other != index for index, other in enumerate(flipped)) == paired
    assert all(flipped[flipped[index]] == index for index in range(len(actions)))
    for index, other in enumerate(flipped):
        assert (actions[index].around, actions[index].hand) == (actions[other].around, actions[other].hand)
    assert 3 <= sum(action.around is not EASY for action in actions) < len(actions) / 2


@pytest.mark.parametrize("action", EVERY_ACTION, ids=lambda action: f"{action.template} {action.weight}")
def test_the_hand_touches_in_the_action_and_only_there(action) -> None:  # type: ignore[no-untyped-def]
    for seed in range(40):
        plan = plan_video(action, np.random.default_rng(seed))
        if plan.hand is None:
            assert action.hand == "none"
            continue
        touching = np.linalg.norm(plan.hand[:, :2] - plan.path[:, :2], axis=1) < plan.radii[0]
        expected = np.zeros(len(touching), bool)
        if action.hand != "none":
            expected[plan.first : plan.last] = True
        if action.motion == "spin":  # it goes on spinning by itself
            assert touching[plan.first] and not touching[~expected].any()
        else:
            assert (touching == expected).all(), seed


@pytest.mark.parametrize("action", EVERY_ACTION, ids=lambda action: f"{action.template} {action.weight}")
def test_the_segment_moves_as_the_class_says(action) -> None:  # type: ignore[no-untyped-def]
    for seed in range(40):
        plan = plan_video(action, np.random.default_rng(seed))
        start, end = plan.path[plan.first], plan.path[plan.last - 1]
        moved, camera, zoomed, turned = end[:2] - start[:2], end[2:4] - start[2:4], end[4] - start[4], end[5] - start[5]
        if action.motion in ("slide", "fall"):
            assert moved @ action.direction > 0.3 * HEIGHT and np.abs(camera).max() < 10
        elif action.motion in ("approach", "depart"):
            near, far = (np.linalg.norm(state[:2] - plan.anchor) for state in (end, start))
            assert (far - near) * (1 if action.motion == "approach" else -1) > 0.25 * HEIGHT
        elif action.motion == "pan":
            assert camera @ action.direction > 0.3 * HEIGHT and np.abs(moved).max() < 1
        elif action.motion == "zoom":
            assert zoomed * action.direction[0] > 0.4
        else:
            assert abs(turned) > 2 * np.pi * 0.9


def test_hard_actions_are_short_within_motion_as_large_as_their_own() -> None:
    for action in EVERY_ACTION:
        plans = [plan_video(action, np.random.default_rng(seed)) for seed in range(40)]
        share = np.mean([(plan.last - plan.first) / len(plan.path) for plan in plans])
        outside = np.mean([np.ptp(plan.path[: plan.first + 1, :4], axis=0).max() for plan in plans])
        if action.around is not EASY:
            assert share < 0.4 and outside > 0.25 * HEIGHT
        else:
            assert outside < 0.15 * HEIGHT


def test_each_hard_video_of_the_demo_shows_all_four_slides_and_the_action_is_anywhere_among_them() -> None:
    """Which slides a video has, and when it is the action's turn, tells nothing of the class."""
    ways = {(1, 0), (-1, 0), (0, 1), (0, -1)}
    turns = Counter()
    for action in (action for action in DEMO_ACTIONS if action.around.each_way):
        for seed in range(60):
            plan = plan_video(action, np.random.default_rng(seed))
            steps = np.diff(plan.path[:, :2], axis=0).round(6)
            moving = [tuple(np.sign(step).astype(int)) for step in steps if np.abs(step).max() > 0.2]
            runs = [way for way, _ in itertools.groupby(moving)]
            assert set(runs) == ways and len(runs) == 4, (action.template, seed, runs)
            turns[runs.index(tuple(np.sign(action.direction).astype(int)))] += 1
    assert min(turns[turn] for turn in range(4)) > 30


def test_what_is_seen_stays_in_the_middle_square() -> None:
    for action in EVERY_ACTION:
        for seed in range(40):
            path = plan_video(action, np.random.default_rng(seed)).path
            seen = np.exp(path[:, 4:5]) * (path[:, :2] - path[:, 2:4])
            assert np.abs(seen).max() < 120, (action.template, seed)


def test_pictures_change_where_the_action_is(dataset: MiniDataset) -> None:
    segments = json.loads(dataset.segments_path.read_text())
    labels = load_labels(dataset.labels_dir)
    pulls = [v for v in labels.videos if v.class_index >= 0 and "Pulling" in labels.classes[v.class_index]]
    assert pulls
    for video in pulls:
        first, last = segments[video.video_id]
        frames = np.stack(list(decode(dataset.videos_dir / f"{video.video_id}.webm", short_side=80))).astype(float)
        change = np.abs(frames[last - 1] - frames[first]).mean(axis=2)
        assert np.quantile(change, 0.99) > 40  # where the object was or is, far above noise and light


def test_the_knowledge_variant_holds_many_videos_of_its_hard_actions_out(tmp_path: Path) -> None:
    kind = VARIANTS["knowledge"]
    entries = entries_of(kind.size, 0, kind)
    counts = Counter((entry.split, entry.action.around is not EASY) for entry in entries)
    assert counts["held_out", True] >= 460 and counts["train", True] >= 60
    assert len({entry.video_id for entry in entries}) == kind.size
    made = MiniDataset(tmp_path, tmp_path / "videos", tmp_path, tmp_path / "segments.json", kind.size)
    _write_labels(made, entries, 0, kind)
    held = [video for video in load_labels(made.labels_dir).videos if video.split == "held_out"]
    assert len(held) == kind.videos["held_out"] and all(video.class_index >= 0 and video.label for video in held)
    with pytest.raises(MiniError, match="40 videos leave none of some actions to train on"):
        entries_of(40, 0, kind)
    with pytest.raises(MiniError, match="variant 'other': choose one of demo, knowledge"):
        make_mini_dataset(tmp_path / "other", SIZE, variant="other")


def test_three_sampled_frames_show_an_action_that_knowledge_helps() -> None:
    seen, away = [], []
    frames_of = [(action, load(name).data.num_frames) for name, actions in EVERY for action in actions]
    for action, num_frames in ((action, number) for action, number in frames_of if action.around is not EASY):
        for seed in range(40):
            plan = plan_video(action, np.random.default_rng(seed))
            frames = evaluation_sample(len(plan.path), num_frames, 1)[0]
            seen.append(int(((frames >= plan.first) & (frames < plan.last)).sum()))
            far = np.linalg.norm(plan.hand[:, :2] - plan.path[:, :2], axis=1)[: max(0, plan.first - 6)]
            away.extend(far)
    assert np.mean(seen) >= 3 and min(seen) >= 2
    assert np.mean(away) > 130, "the hand comes into view for the action"
