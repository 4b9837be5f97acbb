"""Two networks on the same videos: what is certain about their difference, in numbers, text and a page."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from tiny_run import settings

from stabn.cli import main
from stabn.config import ConfigError
from stabn.evaluation.compare import compare, compare_networks
from stabn.evaluation.crossed import crossed_bootstrap
from stabn.evaluation.predict import evaluate
from stabn.evaluation.prediction_table import MetricsError, Predictions
from stabn.tracking import fetch_artifact, stage_run
from stabn.tracking.client import tracking_client
from stabn.training.stage import train

CLASSES = [f"Doing <{number}>" for number in range(4)]


def network(seed: int, accuracy: float, num_videos: int = 400, split: str = "held_out") -> Predictions:
    """Return the predictions of a network that is right with a probability, its mistakes its own."""
    rng = np.random.default_rng(seed)
    true = np.arange(num_videos) % 4
    guess = np.where(rng.random(num_videos) < accuracy, true, (true + 1) % 4)
    top = np.array([[g, *[c for c in range(4) if c != g]] for g in guess])
    return Predictions(
        video_ids=tuple(f"v{i}" for i in range(num_videos)),
        class_index=true,
        top5=top,
        scores=np.full((num_videos, 4), 0.25),
        loss=np.ones(num_videos),
        metadata={"classes": CLASSES, "split": split, "attention": "as_is"},
    )


def test_one_seed_is_compared_video_by_video() -> None:
    first, second = network(1, 0.5), network(2, 0.8)
    found = compare_networks([first], [second])
    assert (found.won, found.lost) == (
        int((~first.correct & second.correct).sum()),
        int((first.correct & ~second.correct).sum()),
    )
    assert found.change.mean == pytest.approx(found.second - found.first) and found.change.low > 0
    assert found.p is not None and found.p < 1e-6 and found.classes["q"].max() < 0.05
    assert len(found.videos[0]) == found.won and found.videos[0][0].startswith("v")
    same = compare_networks([first], [first])
    assert (same.won, same.lost, same.p, same.change.mean) == (0, 0, 1.0, 0.0)


def test_several_seeds_widen_the_interval() -> None:
    first, second = (
        [network(seed, 0.6) for seed in range(5)],
        [network(seed + 50, 0.6 + 0.05 * seed) for seed in range(5)],
    )
    found = compare_networks(first, second)
    videos_only = compare_networks([first[2]], [second[2]]).change
    assert found.p is None and found.num_seeds == 5 and found.change.deviation > 0.03
    assert found.change.high - found.change.low > 0.5 * (videos_only.high - videos_only.low)
    assert {"low", "high"} <= set(found.classes) and len(found.classes) == 4
    with pytest.raises(MetricsError, match="5 and 4 tables: give as many seeds"):
        compare_networks(first, second[1:])
    with pytest.raises(MetricsError, match="split 'validation' beside 'held_out'"):
        compare_networks(first[:1], [network(1, 0.5, split="validation")])


def test_the_crossed_bootstrap_covers_the_truth() -> None:
    """Of 95% intervals over random seeds and videos about 95% hold the true mean; those over videos alone do not."""
    covered = 0
    for trial in range(100):
        rng = np.random.default_rng(trial)
        chance = 0.5 + rng.normal(0, 0.08, (8, 1)) + rng.normal(0, 0.1, (1, 200))
        interval = crossed_bootstrap(rng.random((8, 200)) < chance, samples=400, seed=trial)
        covered += interval.low <= 0.5 <= interval.high
    assert 85 <= covered <= 100
    half = crossed_bootstrap([[1, 0, 0, 0]], videos=[True, True, False, False])
    assert half.mean == 0.5 and np.isnan(half.deviation)


def test_the_command_prints_and_keeps_the_comparison(
    tmp_path: Path, mlflow_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    network(1, 0.5).save(tmp_path / "a.parquet")
    network(2, 0.8).save(tmp_path / "b.parquet")
    with stage_run("evaluate/b", settings={}, inputs={}) as run:
        run.log_artifact(tmp_path / "b.parquet")
    main(["compare", str(tmp_path / "a.parquet"), f"runs:/{run.run_id}", "--output", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "400 videos of split held_out: a difference beyond noise" in said and "exact McNemar p = " in said
    document = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert document["change"]["low"] > 0 and len(document["classes"]) == 4 and document["videos"]["won"]
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "Doing &lt;0&gt;" in page and "Doing <0>" not in page


def test_the_page_shows_the_attention_of_videos_that_changed(tmp_path: Path, mlflow_uri: str) -> None:
    """Curves of at most so many videos won and lost, from the tables alone; the page is kept in MLflow too."""
    rng = np.random.default_rng(0)
    places = []
    for seed, accuracy in ((1, 0.5), (2, 0.8)):
        table = network(seed, accuracy)
        frames = np.tile([9, 1, 3, 5], (len(table), 1))
        table = dataclasses.replace(table, temporal=rng.random((len(table), 4)), frames=frames)
        places.append(str(tmp_path / f"{seed}.parquet"))
        table.save(places[-1])
    found = compare(*places, 2, tmp_path / "out")
    page = (tmp_path / "out" / "compare.html").read_text()
    assert page.count("<svg") == page.count('class="line before"') == page.count('class="line after"') == 4
    shown = json.loads((tmp_path / "out" / "compare.json").read_text())["attention"]
    assert len(shown) == 4 and len(set(shown) & set(found.videos[0])) == len(set(shown) & set(found.videos[1])) == 2
    name, curves = next(iter(shown.items()))
    table = Predictions.load(places[0])
    assert table.temporal is not None
    assert curves["A"]["frame"] == [2, 4, 6, 10], "source frames in order, counted from 1"
    own = table.temporal[table.video_ids.index(name)]
    assert curves["A"]["attention"] == pytest.approx([*own[1:], own[0]], abs=1e-4)
    assert "2 of them, taken in the order of a hash" in page and not re.search(r"https?://", page)
    client = tracking_client()
    run = client.search_runs([item.experiment_id for item in client.search_experiments()])[0]
    assert fetch_artifact(run.info.run_id, "compare.html", tmp_path / "kept").read_text() == page  # type: ignore[union-attr]
    compare(*places, 0, tmp_path / "none")
    assert "<svg" not in (tmp_path / "none" / "compare.html").read_text()
    with pytest.raises(ConfigError, match="shown = -1: must be at least 0"):
        compare(*places, -1)


def test_checkpoints_draw_the_videos_that_changed(manifest_path: str, trained: str, tmp_path: Path) -> None:
    """With the networks and the manifest the frames are drawn; others than those that were evaluated are refused."""
    other = train(manifest_path, settings(train__epochs=1, train__seed=9), str(tmp_path / "other")).best_uri
    places = [str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")]
    for checkpoint, place in zip((trained, other), places):
        evaluate(checkpoint, manifest_path, "validation", "as_is", place, settings())
    table = Predictions.load(places[0])
    spoiled = table.top5.copy()
    spoiled[0] = table.class_index[0], *[c for c in range(3) if c != table.class_index[0]]
    dataclasses.replace(table, top5=spoiled).save(places[0])  # so that at least this video changes
    table = Predictions.load(places[1])
    spoiled = table.top5.copy()
    spoiled[0] = (table.class_index[0] + np.array([1, 0, 2])) % 3
    dataclasses.replace(table, top5=spoiled).save(places[1])
    compare(*places, 1, tmp_path / "out", f"{trained},{other}", manifest_path)
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "data:image/png;base64," in page and "spatial attention" in page
    with pytest.raises(MetricsError, match=r"the predictions of A are of \w+; give its own"):
        compare(*places, 1, "", f"{other},{trained}", manifest_path)
    with pytest.raises(ConfigError, match="give two, A,B, and a manifest"):
        compare(*places, 1, "", trained, manifest_path)
