"""The alias champion: moved for a network that beats the champion of today, and for no other."""

import contextlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from test_metrics import make_predictions, replaced, with_first_guess

from stabn.cli import main
from stabn.config import PromoteConfig
from stabn.evaluation.prediction_table import Predictions
from stabn.evaluation.promote import PromoteError, promote
from stabn.tracking import TrackingError, count_look, decide, find_champion, next_look, stage_run

CONFIG = PromoteConfig()
BASE = make_predictions(num_videos=600, num_classes=6)


def network(folder: Path, name: str, share: float, manifest: str = "manifest", spoiled: int = -1) -> Path:
    """Write predictions that are right for a share of the videos, the first ones, but never for a spoiled class."""
    true = BASE.class_index
    right = (np.arange(len(true)) < share * len(true)) & (true != spoiled)
    table = with_first_guess(BASE, np.where(right, true, (true + 1) % 6))
    metadata = {**table.metadata, "checkpoint_fingerprint": name, "manifest_fingerprint": manifest}
    path = folder / f"{name}-{manifest}"
    replaced(table, metadata=metadata).save(path)
    return path


def no_evaluation(uri: str, path: Path) -> None:
    raise AssertionError("the champion's predictions are known")


def test_the_first_network_that_beats_its_origin_is_the_champion(mlflow_uri: str, tmp_path: Path) -> None:
    before, worse, after = (network(tmp_path, *item) for item in (("a", 0.5), ("b", 0.4), ("c", 0.6)))
    result = promote(before, worse, "s3://m/b.pt", "net", CONFIG, no_evaluation)
    assert not result.promoted and "Not better by more than noise" in result.reason and find_champion("net") is None
    result = promote(before, after, "s3://m/c.pt", "net", CONFIG, no_evaluation)
    assert result.promoted and "there is no champion" in result.reason
    champion = find_champion("net")
    assert champion and champion.source == "s3://m/c.pt"
    assert "| before | 50.0 |" in result.table and "| after | 60.0 |" in result.table


def test_the_champion_of_today_has_to_be_beaten_not_the_origin(mlflow_uri: str, tmp_path: Path) -> None:
    before, best, better = (network(tmp_path, *item) for item in (("a", 0.5), ("b", 0.8), ("c", 0.6)))
    assert promote(before, best, "s3://m/b.pt", "net", CONFIG, no_evaluation).promoted
    result = promote(before, better, "s3://m/c.pt", "net", CONFIG, no_evaluation)
    assert not result.promoted and "Compared with the champion, version 1." in result.reason
    assert "champion, version 1 | 80.0" in result.table
    champion = find_champion("net")
    assert champion and champion.source == "s3://m/b.pt"
    assert promote(before, network(tmp_path, "d", 0.9), "s3://m/d.pt", "net", CONFIG, no_evaluation).promoted


def test_a_champion_of_other_videos_is_evaluated_on_these(mlflow_uri: str, tmp_path: Path) -> None:
    assert promote(network(tmp_path, "a", 0.5), network(tmp_path, "b", 0.9), "s3://m/b.pt", "net", CONFIG).promoted
    before, after = network(tmp_path, "c", 0.2, "new"), network(tmp_path, "d", 0.6, "new")
    with pytest.raises(PromoteError, match=r"version 1, s3://m/b.pt: no predictions of it on these videos"):
        promote(before, after, "s3://m/d.pt", "net", CONFIG)
    asked: list[str] = []

    def evaluate(uri: str, path: Path) -> None:
        asked.append(uri)
        Predictions.load(network(tmp_path, "b", 0.3, "new")).save(path)

    assert promote(before, after, "s3://m/d.pt", "net", CONFIG, evaluate).promoted
    assert asked == ["s3://m/b.pt"]


def test_a_champion_that_was_fine_tuned_needs_no_other_predictions(mlflow_uri: str, tmp_path: Path) -> None:
    assert promote(network(tmp_path, "a", 0.5), network(tmp_path, "b", 0.6), "s3://m/b.pt", "net", CONFIG).promoted
    before, after = network(tmp_path, "b", 0.6, "new"), network(tmp_path, "c", 0.8, "new")
    assert promote(before, after, "s3://m/c.pt", "net", CONFIG, no_evaluation).promoted


def test_a_champion_that_another_run_makes_meanwhile_has_to_be_beaten_too(mlflow_uri: str, tmp_path: Path) -> None:
    assert promote(network(tmp_path, "a", 0.5), network(tmp_path, "b", 0.9), "s3://m/b.pt", "net", CONFIG).promoted
    before, best, better = (network(tmp_path, *item, "new") for item in (("c", 0.2), ("d", 0.9), ("e", 0.6)))

    def evaluate(uri: str, path: Path) -> None:
        Predictions.load(network(tmp_path, "b", 0.3, "new")).save(path)

    def evaluate_slowly(uri: str, path: Path) -> None:
        evaluate(uri, path)
        assert promote(before, best, "s3://m/d.pt", "net", CONFIG, evaluate).promoted

    result = promote(before, better, "s3://m/e.pt", "net", CONFIG, evaluate_slowly)
    assert not result.promoted and "Compared with the champion, version 2." in result.reason
    champion = find_champion("net")
    assert champion and champion.source == "s3://m/d.pt"


def test_a_repeated_step_changes_nothing(mlflow_uri: str, tmp_path: Path) -> None:
    before, after = network(tmp_path, "a", 0.5), network(tmp_path, "b", 0.6)
    assert promote(before, after, "s3://m/b.pt", "net", CONFIG).promoted
    again = promote(before, after, "s3://m/b.pt", "net", CONFIG, no_evaluation)
    assert again.promoted and "champion already" in again.reason


@pytest.mark.parametrize(("changes", "moves"), [({}, False), ({"class_fdr": 0.0}, True)])
def test_a_ruined_class_keeps_the_champion(
    mlflow_uri: str, tmp_path: Path, changes: dict[str, Any], moves: bool
) -> None:
    before, after = network(tmp_path, "a", 0.5), network(tmp_path, "b", 1.0, spoiled=2)
    result = promote(before, after, "s3://m/b.pt", "net", PromoteConfig(**changes))
    assert result.promoted is moves and (moves or "'class 2' fell by" in result.reason)


def test_the_metric_is_the_one_agreed_on(mlflow_uri: str, tmp_path: Path) -> None:
    before, after = network(tmp_path, "a", 0.5), network(tmp_path, "b", 0.9)
    result = promote(before, after, "s3://m/b.pt", "net", PromoteConfig(metric="top5", class_fdr=0.0))
    assert "top-5 changed by" in result.reason


def test_without_a_registry_it_only_says_what_it_thinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    result = promote(network(tmp_path, "a", 0.5), network(tmp_path, "b", 0.6), str(tmp_path / "b.pt"), "net", CONFIG)
    assert not result.promoted and "Better by more than noise" in result.reason
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_looks_at_the_same_videos_are_counted_and_said(mlflow_uri: str, tmp_path: Path) -> None:
    """Each network counts once however often its step runs, whether it wins or not; other videos begin at one."""
    before, worse, better = (network(tmp_path, *item) for item in (("a", 0.5), ("b", 0.4), ("c", 0.6)))
    first = promote(before, worse, "s3://m/b.pt", "net", CONFIG, no_evaluation)
    assert first.reason.endswith("It is the first network to be measured on these 600 validation videos for promotion.")
    second = promote(before, better, "s3://m/c.pt", "net", CONFIG, no_evaluation)
    assert "network number 2 to be measured" in second.reason and "with a probability of about 5%." in second.reason
    again = promote(before, worse, "s3://m/b.pt", "net", CONFIG)
    assert "network number 2 to be measured" in again.reason, "the same network is no new look"
    videos, fewer = Predictions.load(better), Predictions.load(better).take(np.arange(599))
    assert next_look("net", videos.videos_fingerprint, "d") == 3
    assert next_look("net", fewer.videos_fingerprint, "d") == 1
    assert next_look("another", videos.videos_fingerprint, "d") == 1
    shuffled = videos.take(np.random.default_rng(0).permutation(len(videos)))
    assert shuffled.videos_fingerprint == videos.videos_fingerprint == Predictions.load(before).videos_fingerprint


def test_of_looks_at_the_same_time_none_is_lost(mlflow_uri: str) -> None:
    count_look("net", "videos", "0")
    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(lambda number: count_look("net", "videos", str(number)), range(1, 13)))
    assert next_look("net", "videos", "12") == 13 and max(count or 0 for count in counts) == 13


def test_a_better_network_waits_for_a_person(mlflow_uri: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr("stabn.evaluation.approval.POLL_SECONDS", 0.02)
    before, after = network(tmp_path, "a", 0.5), network(tmp_path, "b", 0.8)
    hours = 0.2 / 3600
    late = promote(before, after, "s3://m/b.pt", "net", CONFIG, no_evaluation, hours)
    assert not late.promoted and "Nobody approved within" in late.reason and find_champion("net") is None
    assert "version 1 waits for a person" in capsys.readouterr().out
    with pytest.raises(TrackingError, match="has no version '7'"):
        decide("net", "7", True, "ann")
    decide("net", "1", False, "ann", "too dark")
    declined = promote(before, after, "s3://m/b.pt", "net", CONFIG, no_evaluation, 1.0)
    assert not declined.promoted and "Declined by ann at" in declined.reason and "too dark" in declined.reason
    assert "too dark" in MlflowClient().get_model_version("net", "1").description
    main(["approve", "net", "1"])
    assert promote(before, after, "s3://m/b.pt", "net", CONFIG, no_evaluation, 1.0).promoted
    champion = find_champion("net")
    assert champion and champion.version == "1" and champion.tags["wins"] == "true"
    with ThreadPoolExecutor() as pool:
        better = network(tmp_path, "c", 0.95)
        waiting = pool.submit(promote, before, better, "s3://m/c.pt", "net", CONFIG, no_evaluation, 1.0)
        until = time.monotonic() + 60
        while time.monotonic() < until and not waiting.done():
            with contextlib.suppress(MlflowException):  # not registered yet
                if MlflowClient().get_model_version("net", "2").tags.get("stabn.approval") == "wanted":
                    break
            time.sleep(0.05)
        MlflowClient().set_model_version_tag("net", "2", "stabn.approval", "yes")  # as MLflow's page does
        assert waiting.result(60).promoted
    worse = promote(before, network(tmp_path, "d", 0.4), "s3://m/d.pt", "net", CONFIG, no_evaluation, 1.0)
    assert not worse.promoted and "approv" not in worse.reason  # nobody is asked about a worse one


def test_the_line_that_waits_links_the_report(mlflow_uri: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("STABN_RUN_ID", "run-1")
    monkeypatch.setenv("STABN_MLFLOW_UI_URL", "https://mlflow.example")
    with stage_run("report", settings={}, inputs={}) as run:
        pass
    before, after = network(tmp_path, "a", 0.5), network(tmp_path, "b", 0.8)
    promote(before, after, "s3://m/b.pt", "net", CONFIG, no_evaluation, 0.1 / 3600)
    assert f"/runs/{run.run_id}/artifacts" in capsys.readouterr().out
