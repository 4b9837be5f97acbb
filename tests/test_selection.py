"""Selection rules: below on both splits, worst first, limits, and nothing as a result."""

import json
from pathlib import Path

import numpy as np
import pytest

from stabn.attention.selection import SelectionError, load_selection
from stabn.config import SelectConfig
from stabn.evaluation.prediction_table import Predictions
from stabn.evaluation.select_classes import choose, select_classes

COUNTS = {"train": 20, "validation": 10}


def make_split(split: str, accuracies: list[float], supports: list[int] | None = None, /, **metadata) -> Predictions:
    """Make a table in which class c is right on exactly `accuracies[c]` of its videos."""
    num_classes = len(accuracies)
    ids, true, guess = [], [], []
    for c, accuracy in enumerate(accuracies):
        support = supports[c] if supports else COUNTS[split]
        for i in range(support):
            ids.append(f"{split}-{c}-{i}")
            true.append(c)
            guess.append(c if i < round(accuracy * support) else (c + 1) % num_classes)
    k = min(5, num_classes)
    top5 = np.array([[g, *(c for c in range(num_classes) if c != g)][:k] for g in guess])
    described = {
        "classes": [f"class {c}" for c in range(num_classes)],
        "split": split,
        "attention": "as_is",
        "checkpoint_fingerprint": "checkpoint",
        "manifest_fingerprint": "manifest",
    }
    return Predictions(
        video_ids=ids,
        class_index=true,
        top5=top5,
        scores=np.full(top5.shape, 0.1),
        loss=np.zeros(len(ids)),
        metadata=described | metadata,
    )


def choose_from(train: list[float], validation: list[float], **settings):
    return choose(make_split("train", train), make_split("validation", validation), SelectConfig(**settings))


def test_only_classes_below_on_both_splits_are_chosen_worst_first():
    selection = choose_from([0.4, 0.4, 0.9, 0.1, 0.45], [0.4, 0.9, 0.1, 0.3, 0.2])
    assert selection.class_indices == [4, 3, 0]
    first = selection.classes[0]
    assert (first.name, first.train_accuracy, first.validation_accuracy) == ("class 4", 0.45, 0.2)
    assert (first.train_support, first.validation_support) == (20, 10)
    assert selection.outcome == "selected"


def test_a_network_that_knows_its_training_videos_is_judged_on_validation_alone():
    settings = {"splits": "validation", "videos": "all", "max_classes": 1}
    selection = choose_from([1.0, 1.0, 0.95], [0.4, 0.9, 0.3], **settings)
    assert selection.class_indices == [2] and selection.num_misclassified == 1
    assert sorted(selection.video_ids) == sorted(f"train-2-{i}" for i in range(20))


def test_randomly_drawn_videos_are_as_many_as_the_misclassified_ones_of_each_action():
    both = ([0.4, 0.3, 0.9], [0.2, 0.1, 0.9])
    misclassified, drawn = choose_from(*both), choose_from(*both, videos="random")
    assert len(drawn.video_ids) == len(misclassified.video_ids) == drawn.num_misclassified == 12 + 14
    for c, count in ((0, 12), (1, 14)):
        assert sum(name.startswith(f"train-{c}-") for name in drawn.video_ids) == count
    assert set(drawn.video_ids) != set(misclassified.video_ids)
    assert "26 randomly drawn training videos" in drawn.reason


def test_exactly_at_the_threshold_is_not_below():
    assert choose_from([0.5, 0.4, 0.4], [0.4, 0.5, 0.4]).class_indices == [2]


def test_ties_are_broken_by_training_accuracy_then_index():
    assert choose_from([0.3, 0.1, 0.3, 0.2], [0.2, 0.2, 0.2, 0.2]).class_indices == [1, 3, 0, 2]


def test_no_more_than_max_classes():
    selection = choose_from([0.1] * 6, [0.5, 0.4, 0.3, 0.2, 0.1, 0.0], max_classes=3)
    assert selection.class_indices == [5, 4, 3]
    assert "5 on both; 3 chosen" in selection.reason


def test_classes_with_too_few_videos_are_left_out_and_counted():
    train = make_split("train", [0.0, 0.0, 0.0], [20, 4, 20])
    validation = make_split("validation", [0.0, 0.0, 0.0], [5, 10, 4])
    selection = choose(train, validation, SelectConfig(min_support=5))
    assert selection.class_indices == [0]
    assert "(2 with fewer than 5 videos in a split are left out)" in selection.reason


def test_a_class_absent_from_a_split_is_never_chosen():
    train, validation = make_split("train", [0.0, 0.9], [20, 20]), make_split("validation", [0.0, 0.9], [0, 10])
    assert choose(train, validation, SelectConfig()).outcome == "nothing"


def test_videos_are_the_misclassified_ones_of_each_split():
    train, validation = make_split("train", [0.4, 0.2, 0.9]), make_split("validation", [0.4, 0.2, 0.9])
    selection = choose(train, validation, SelectConfig())
    for table, ids in ((train, selection.video_ids), (validation, selection.validation_video_ids)):
        rows = zip(table.video_ids, table.class_index, table.correct, strict=True)
        expected = {video_id for video_id, true, correct in rows if true < 2 and not correct}
        assert set(ids) == expected and len(ids) == len(expected)
    assert selection.num_misclassified == len(selection.video_ids) == 12 + 16


def test_the_limit_is_shared_evenly_and_what_a_class_leaves_goes_to_others():
    selection = choose_from([0.45, 0.0, 0.2], [0.4, 0.0, 0.0], max_videos=9)
    per_class = [sum(v.startswith(f"train-{c}-") for v in selection.video_ids) for c in range(3)]
    assert per_class == [3, 3, 3]
    assert len({v.split("-")[1] for v in selection.video_ids[:3]}) == 3
    more = choose_from([0.45, 0.0, 0.2], [0.4, 0.0, 0.0], max_videos=40)
    assert [sum(v.startswith(f"train-{c}-") for v in more.video_ids) for c in range(3)] == [11, 15, 14]
    assert more.video_ids[:9] == selection.video_ids
    assert more.num_misclassified == 11 + 20 + 16


def test_nothing_selected_is_a_result_that_is_written_and_read(tmp_path: Path):
    make_split("train", [0.9, 0.4]).save(tmp_path / "train.parquet")
    make_split("validation", [0.4, 0.9]).save(tmp_path / "validation.parquet")
    selection = select_classes(
        tmp_path / "train.parquet", tmp_path / "validation.parquet", SelectConfig(), tmp_path / "selection.json"
    )
    assert selection.outcome == "nothing" and selection.classes == [] and selection.video_ids == []
    assert selection.reason == (
        "Of 2 actions, 1 are below 50.0% on the training split, 1 on the validation split, 0 on both."
    )
    assert load_selection(tmp_path / "selection.json") == selection
    assert json.loads((tmp_path / "selection.json").read_text())["outcome"] == "nothing"


def test_a_selection_without_misclassified_training_videos_has_nothing_to_edit(tmp_path: Path):
    selection = choose_from([0.4, 0.9], [0.4, 0.9])
    assert selection.outcome == "selected"
    assert type(selection)(classes=selection.classes, video_ids=[], validation_video_ids=["v"]).outcome == "nothing"


def test_the_file_carries_settings_and_inputs(tmp_path: Path):
    train, validation = make_split("train", [0.1, 0.9]), make_split("validation", [0.1, 0.9])
    train.save(tmp_path / "train.parquet")
    validation.save(tmp_path / "validation.parquet")
    settings = SelectConfig(max_classes=3, threshold=0.3)
    paths = tmp_path / "train.parquet", tmp_path / "validation.parquet"
    selection = select_classes(*paths, settings, tmp_path / "selection.json")
    read = load_selection(tmp_path / "selection.json")
    assert read == selection and read.settings == settings and read.fingerprint == selection.fingerprint
    assert read.inputs == {
        "train_predictions": train.fingerprint,
        "validation_predictions": validation.fingerprint,
        "checkpoint": "checkpoint",
        "manifest": "manifest",
    }


@pytest.mark.parametrize(
    ("train_metadata", "validation_metadata", "message"),
    [
        ({"split": "validation"}, {}, "predictions of split 'validation' given where 'train' is needed"),
        ({}, {"attention": "spatial_inverted"}, "attention 'spatial_inverted'"),
        ({}, {"checkpoint_fingerprint": "other"}, "checkpoint_fingerprint: checkpoint for train, other for validation"),
        ({}, {"classes": ["a", "b"]}, "class lists of the two prediction tables differ"),
    ],
)
def test_tables_that_do_not_belong_together_are_refused(tmp_path, train_metadata, validation_metadata, message):
    make_split("train", [0.1, 0.9], **train_metadata).save(tmp_path / "train.parquet")
    make_split("validation", [0.1, 0.9], **validation_metadata).save(tmp_path / "validation.parquet")
    with pytest.raises(SelectionError, match=message):
        paths = tmp_path / "train.parquet", tmp_path / "validation.parquet"
        select_classes(*paths, SelectConfig(), tmp_path / "selection.json")
    assert not (tmp_path / "selection.json").exists()


def test_files_that_are_no_selection_are_named(tmp_path: Path):
    with pytest.raises(SelectionError, match="no such selection"):
        load_selection(tmp_path / "absent.json")
    for content, message in (("{", "not JSON"), ("[]", "not a selection of format 1"), ('{"format": 1}', "incomplete")):
        (tmp_path / "selection.json").write_text(content)
        with pytest.raises(SelectionError, match=message):
            load_selection(tmp_path / "selection.json")
