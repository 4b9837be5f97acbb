"""Metrics against plain loops, and prediction tables that survive a file."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stabn.evaluation import metrics, significance
from stabn.evaluation.prediction_table import MetricsError, Predictions


def make_predictions(num_videos=200, num_classes=7, seed=0, accuracy=0.4, attention_branch=True) -> Predictions:
    """Make a table in which the first guess is right for about `accuracy` of the videos."""
    rng = np.random.default_rng(seed)
    true = np.random.default_rng(99).integers(0, num_classes, num_videos)
    k = min(5, num_classes)
    top5 = np.stack([rng.permutation(num_classes)[:k] for _ in range(num_videos)])
    for row in np.flatnonzero(rng.random(num_videos) < accuracy):
        order = [true[row], *(c for c in rng.permutation(num_classes) if c != true[row])]
        top5[row] = order[:k]
    scores = -np.sort(-rng.random((num_videos, k)), axis=1) / k
    described = {
        "classes": [f"class {i}" for i in range(num_classes)],
        "split": "validation",
        "attention": "as_is",
        "checkpoint_fingerprint": f"checkpoint{seed}",
        "manifest_fingerprint": "manifest",
    }
    return Predictions(
        video_ids=[f"v{i}" for i in range(num_videos)],
        class_index=true,
        top5=top5,
        scores=scores,
        loss=rng.random(num_videos),
        attention_top5=top5[:, ::-1] if attention_branch else None,
        attention_scores=scores if attention_branch else None,
        metadata=described,
    )


def replaced(table: Predictions, **changes) -> Predictions:
    """Copy a table with columns replaced."""
    names = ("video_ids", "class_index", "top5", "scores", "loss", "attention_top5", "attention_scores", "metadata")
    return Predictions(**{name: getattr(table, name) for name in names} | changes)


def with_first_guess(table: Predictions, guess) -> Predictions:
    """Copy a table with other first guesses; the rest of the top 5 is whatever remains."""
    num_classes = len(table.classes)
    top5 = [[g, *(c for c in range(num_classes) if c != g)][: table.top5.shape[1]] for g in guess]
    return replaced(table, top5=np.array(top5))


@pytest.mark.parametrize("num_classes", [3, 7, 174])
@pytest.mark.parametrize("attention_branch", [True, False])
def test_a_saved_table_is_read_back_unchanged(tmp_path: Path, num_classes: int, attention_branch: bool):
    table = make_predictions(num_classes=num_classes, attention_branch=attention_branch)
    table.save(tmp_path / "new" / "predictions.parquet")
    read = Predictions.load(tmp_path / "new" / "predictions.parquet")
    assert read.video_ids == table.video_ids and read.metadata == table.metadata
    for name in ("class_index", "top5", "scores", "loss", "attention_top5", "attention_scores"):
        ours, theirs = getattr(table, name), getattr(read, name)
        assert (ours is None and theirs is None) or (np.array_equal(ours, theirs) and ours.dtype == theirs.dtype)
    assert read.fingerprint == table.fingerprint
    assert read.split == "validation" and read.attention == "as_is" and len(read.classes) == num_classes


def test_topk_and_per_class_equal_a_loop():
    table = make_predictions(num_classes=12, num_videos=300)
    for k in (1, 2, 5):
        for branch, columns in (("perception", table.top5), ("attention", table.attention_top5)):
            hits = sum(table.class_index[i] in columns[i][:k] for i in range(len(table)))
            assert metrics.topk_accuracy(table, k, branch) == pytest.approx(hits / len(table))
    frame = metrics.per_class_accuracy(table)
    for c in range(12):
        rows = [i for i in range(len(table)) if table.class_index[i] == c]
        assert frame["support"][c] == len(rows)
        assert frame["top1"][c] == pytest.approx(sum(table.top5[i][0] == c for i in rows) / len(rows))
        assert frame["top5"][c] == pytest.approx(sum(c in table.top5[i] for i in rows) / len(rows))
    assert list(frame["name"]) == list(table.classes)


def test_a_class_without_videos_has_no_accuracy():
    table = make_predictions()
    table = replaced(table, class_index=np.where(table.class_index == 3, 0, table.class_index))
    frame = metrics.per_class_accuracy(table)
    assert frame["support"][3] == 0 and np.isnan(frame["top1"][3]) and frame["top1"].notna().sum() == 6
    assert np.isnan(metrics.group_accuracy(table, [3]).selected)


def test_confusion_matrix_equals_a_loop():
    table = make_predictions(num_classes=6)
    expected = np.zeros((6, 6), dtype=np.int64)
    for true, predicted in zip(table.class_index, table.top5[:, 0], strict=True):
        expected[true, predicted] += 1
    matrix = metrics.confusion_matrix(table)
    assert matrix.dtype == np.int64 and np.array_equal(matrix, expected)


def test_group_accuracy_equals_a_loop():
    table = make_predictions()
    groups = metrics.group_accuracy(table, {1, 4})
    inside = [i for i in range(len(table)) if table.class_index[i] in (1, 4)]
    outside = [i for i in range(len(table)) if table.class_index[i] not in (1, 4)]
    share = lambda rows: sum(bool(table.correct[i]) for i in rows) / len(rows)  # noqa: E731
    assert groups.selected == pytest.approx(share(inside))
    assert groups.others == pytest.approx(share(outside))
    assert groups.all == pytest.approx(share(range(len(table))))
    assert groups[3:] == (2, 5, len(inside), len(outside))
    with pytest.raises(MetricsError, match="class 7 was selected, but there are 7 classes"):
        metrics.group_accuracy(table, [7])


def test_bootstrap_agrees_with_resampling_videos_one_by_one():
    before, after = make_predictions(seed=1, accuracy=0.4), make_predictions(seed=2, accuracy=0.55)
    result = significance.paired_bootstrap(before, after, seed=3, samples=20000)
    change = after.correct.astype(int) - before.correct.astype(int)
    rng = np.random.default_rng(4)
    slow = np.array([change[rng.integers(0, len(change), len(change))].mean() for _ in range(4000)])
    assert result.mean == pytest.approx(change.mean())
    assert result.low == pytest.approx(np.percentile(slow, 2.5), abs=0.012)
    assert result.high == pytest.approx(np.percentile(slow, 97.5), abs=0.012)
    assert result.p_not_better == pytest.approx((slow <= 0).mean(), abs=0.01)
    assert result == significance.paired_bootstrap(before, after, seed=3, samples=20000)


def test_comparison_does_not_depend_on_the_order_of_the_videos():
    before, after = make_predictions(seed=1), make_predictions(seed=2, accuracy=0.6)
    shuffled = after.take(np.random.default_rng(0).permutation(len(after)))
    assert shuffled.video_ids != after.video_ids
    assert significance.paired_bootstrap(before, shuffled, 0) == significance.paired_bootstrap(before, after, 0)
    assert shuffled.fingerprint == after.fingerprint


def test_no_difference_is_no_difference():
    table = make_predictions()
    assert significance.paired_bootstrap(table, table, 0) == (0, 0, 0, 1)
    won, reason = significance.wins(table, table)
    assert not won and reason.startswith("Not better by more than noise: top-1 changed by 0.0 points")


def test_tables_of_different_videos_or_classes_are_not_compared():
    before, after = make_predictions(), make_predictions(seed=1)
    with pytest.raises(MetricsError, match="1 videos are in only one of the tables \\(for example v0\\)"):
        significance.paired_bootstrap(before, after.take(range(1, len(after))), 0)
    with pytest.raises(MetricsError, match="class 2 is 'class 2' and 'other'"):
        renamed = [*after.classes[:2], "other", *after.classes[3:]]
        significance.paired_bootstrap(before, replaced(after, metadata=after.metadata | {"classes": renamed}), 0)
    with pytest.raises(MetricsError, match="true class"):
        significance.paired_bootstrap(before, replaced(after, class_index=(after.class_index + 1) % 7), 0)


def test_wins_needs_a_real_gain_without_a_ruined_class():
    num_videos = 1000
    base = make_predictions(num_videos=num_videos, num_classes=10)
    true = base.class_index
    wrong = (true + 1) % 10
    rank = np.arange(num_videos)
    before = with_first_guess(base, np.where(rank % 2 == 0, true, wrong))
    better = with_first_guess(base, np.where(rank % 5 < 4, true, wrong))
    assert significance.wins(before, better)[0]
    won, reason = significance.wins(better, before)
    assert not won and "Not better" in reason
    ruined = with_first_guess(base, np.where((rank % 5 < 4) & (true != 6), true, wrong))
    won, reason = significance.wins(before, ruined)
    assert not won and "'class 6' fell by" in reason and f"on {(true == 6).sum()} videos" in reason
    assert significance.wins(before, ruined, class_fdr=0.0)[0]


def test_harmless_changes_are_rarely_blocked_by_a_class():
    """With a clear gain overall and the same on every class, noise must not look like a ruined class."""
    blocked = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        base = make_predictions(num_videos=280, num_classes=14)
        true, wrong = base.class_index, (base.class_index + 1) % 14
        before = with_first_guess(base, np.where(rng.random(280) < 0.55, true, wrong))
        after = with_first_guess(base, np.where(rng.random(280) < 0.85, true, wrong))
        blocked += not significance.wins(before, after)[0]
    assert blocked <= 3


def test_each_class_is_tested_on_the_videos_that_changed():
    base = make_predictions(num_videos=60, num_classes=2)
    true, wrong = base.class_index, 1 - base.class_index
    first = np.flatnonzero(true == 0)
    guess = true.copy()
    guess[first[:10]] = wrong[first[:10]]
    table = significance.class_differences(with_first_guess(base, true), with_first_guess(base, guess))
    assert table.loc[0, ["won", "lost"]].tolist() == [0, 10] and table.loc[1, ["won", "lost", "p"]].tolist() == [
        0,
        0,
        1,
    ]
    assert table.loc[0, "p"] == pytest.approx(2 * 0.5**10) and table.loc[0, "q"] == pytest.approx(4 * 0.5**10)
    assert significance.exact_mcnemar(3, 1) == pytest.approx(0.625)


def test_numbers_that_cannot_be_computed_are_refused():
    table = make_predictions(attention_branch=False)
    with pytest.raises(MetricsError, match="no attention branch"):
        metrics.topk_accuracy(table, 1, "attention")
    with pytest.raises(MetricsError, match="at least one video"):
        metrics.topk_accuracy(table.take([]), 1)
    unlabelled = replaced(table, class_index=np.full(len(table), -1))
    for compute in (metrics.per_class_accuracy, metrics.confusion_matrix):
        with pytest.raises(MetricsError, match="video v0 of split validation has no label"):
            compute(unlabelled)


def test_contradictory_tables_are_refused():
    table = make_predictions()
    with pytest.raises(MetricsError, match="video 'v0' comes twice, in rows 1 and 2; run the evaluation again"):
        replaced(table, video_ids=["v0", *table.video_ids[:-1]])
    with pytest.raises(MetricsError, match="contains class 7, there are 7 classes"):
        replaced(table, top5=np.full_like(table.top5, 7))
    with pytest.raises(MetricsError, match=r"loss has shape \(3,\), expected \(200,\)"):
        replaced(table, loss=table.loss[:3])
    with pytest.raises(MetricsError, match="metadata without classes, split"):
        replaced(table, metadata={"attention": "as_is"})


def test_files_that_are_no_prediction_tables_are_named(tmp_path: Path):
    with pytest.raises(MetricsError, match=r"absent\.parquet: no such prediction table"):
        Predictions.load(tmp_path / "absent.parquet")
    (tmp_path / "empty.parquet").write_bytes(b"")
    with pytest.raises(MetricsError, match=r"empty\.parquet: not a readable Parquet file"):
        Predictions.load(tmp_path / "empty.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(MetricsError, match=r"other\.parquet: not a prediction table \(columns a\)"):
        Predictions.load(tmp_path / "other.parquet")
