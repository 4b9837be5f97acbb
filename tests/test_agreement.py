"""Whether the attention lies where the action is: by video, by command, in every epoch, and in the report."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from tiny_run import EDITED, settings, write_edits

from stabn.cli import main
from stabn.config import ConfigError
from stabn.data.edit_table import EditError
from stabn.data.manifest import Manifest
from stabn.data.segments import SegmentsError
from stabn.evaluation.agreement import measure_agreement, summarize_agreement
from stabn.evaluation.attention_section import agreement_by_video, agreement_section
from stabn.evaluation.predict import evaluate
from stabn.evaluation.prediction_table import MetricsError, Predictions
from stabn.evaluation.tables import Comparison
from stabn.tracking.client import tracking_client
from stabn.training.agreement import Agreement, agreement, known_frames
from stabn.training.stage import finetune, train

INSIDE = np.array([False, True, True, False])


def test_a_curve_is_compared_frame_by_frame() -> None:
    perfect = agreement(np.array([0.1, 0.9, 0.8, 0.2]), INSIDE)
    assert perfect is not None and perfect[:5] == (1.0, 1.0, 1.0, 1.0, 0.5)
    opposite = agreement(np.array([0.9, 0.1, 0.2, 0.8]), INSIDE)
    assert opposite is not None and (opposite.auc, opposite.iou, opposite.pointing) == (0.0, 0.0, 0.0)
    assert opposite.ap == pytest.approx((1 / 3 + 2 / 4) / 2)
    half = agreement(np.array([0.0, 1.0, 0.0, 0.0]), INSIDE)
    assert half is not None and half.iou == 0.5 and half.pointing == 1.0
    assert agreement(np.array([0.1, 0.2]), np.array([True, True])) is None
    orders = [agreement(order, INSIDE) for order in itertools.permutations([0.1, 0.2, 0.3, 0.4])]
    assert perfect.ap_by_chance == pytest.approx(np.mean([found.ap for found in orders if found]))


def test_what_is_known_comes_from_segments_or_edits(manifest_path: str, tmp_path: Path) -> None:
    manifest = Manifest.load(manifest_path)
    (tmp_path / "segments.json").write_text(json.dumps({"1": [1, 3]}))
    rows = [manifest.index_of(name) for name in ("1", "2", "4")]
    known = known_frames(manifest, rows, str(tmp_path / "segments.json"))
    assert {name: frames.tolist() for name, frames in known.items()} == {"1": [0, 1, 1, 0, 0, 0]}
    edits = known_frames(manifest, rows, write_edits(tmp_path / "edits.parquet", EDITED))
    assert set(edits) == {"1", "2"} and np.isnan(edits["2"][3]), "a frame without an opinion is neither in nor out"
    assert np.nan_to_num(edits["2"], nan=9).tolist() == [1, 1, 1, 9, 0, 0, 0]
    found = agreement([0.2, 0.3, 0.4, 0.9, 0, 0, 0], edits["2"])
    assert found is not None and found[:5] == (1, 1, 1, 1, 0.5)
    (tmp_path / "segments.json").write_text(json.dumps({"1": [1, 7]}))
    with pytest.raises(SegmentsError, match=r"segments.json: segment \[1, 7\] of video 1 does not lie in its 6 frames"):
        known_frames(manifest, rows, str(tmp_path / "segments.json"))
    with pytest.raises(EditError, match=r"e.parquet: 3 values for video 1 of 6 frames"):
        known_frames(manifest, rows, write_edits(tmp_path / "e.parquet", {"1": [1.0, 0, 0]}))


def test_numbers_are_means_over_videos() -> None:
    rows = [{"action": name, **dict.fromkeys(Agreement._fields, v)} for name, v in (("a", 1.0), ("b", 0.0), ("b", 0.5))]
    table = summarize_agreement(rows)
    assert table["videos"].tolist() == [1, 2, 3] and table["ap"].tolist() == [1.0, 0.25, 0.5]


def test_the_command_compares_a_network_with_segments(
    manifest_path: str, trained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = Manifest.load(manifest_path)
    names = [manifest.video_id(row) for row in manifest.indices("validation")]
    (tmp_path / "s.json").write_text(json.dumps({name: [1, 3] for name in names}))
    words = ["--checkpoint", trained, "--manifest", manifest_path, "--truth", str(tmp_path / "s.json")]
    main(["agreement", *words, "--output", str(tmp_path / "out.json"), "--train.device", "cpu"])
    assert "pointing" in capsys.readouterr().out
    kept = json.loads((tmp_path / "out.json").read_text())
    assert kept["split"] == "validation" and kept["actions"]["all"]["videos"] == len(names)
    assert all(0 <= kept["actions"]["all"][name] <= 1 for name in ("ap", "auc", "iou", "pointing"))
    (tmp_path / "s.json").write_text("{}")
    with pytest.raises(ConfigError, match="names no video of split validation"):
        measure_agreement(trained, manifest_path, "auto", str(tmp_path / "s.json"), settings())


def write_truth(manifest: Manifest, path: Path, count: int) -> str:
    """Write that frames 1 and 2 matter in some validation videos, and in one of training, which does not count."""
    names = [manifest.video_id(row) for row in manifest.indices("validation")[:count]]
    path.write_text(json.dumps({name: [1, 3] for name in [*names, "1"]}))
    return str(path)


def test_every_epoch_is_compared_on_the_known_videos_alone(
    manifest_path: str, trained: str, tmp_path: Path, mlflow_uri: str
) -> None:
    """The last epoch's numbers are those of the network's own predictions, over 4 of 6 validation videos."""
    manifest = Manifest.load(manifest_path)
    truth = write_truth(manifest, tmp_path / "truth.json", 4)
    edits, config = write_edits(tmp_path / "edits.parquet", EDITED), settings(finetune__epochs=2)
    done = finetune(trained, manifest_path, edits, config, str(tmp_path / "out"), truth_uri=truth)
    assert [row["validation_agreement_videos"] for row in done.history] == [4, 4]
    table = evaluate(done.best_uri, manifest_path, "validation", "as_is", tmp_path / "p.parquet", config).predictions
    known = known_frames(manifest, manifest.indices("validation"), truth)
    means = np.nanmean(agreement_by_video(table, known), axis=0)
    for name, mean in zip(Agreement._fields, means):
        assert done.history[-1][f"validation_agreement_{name}"] == pytest.approx(mean, abs=1e-6), name
    client = tracking_client()
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    tuned = next(run for run in runs if run.info.run_name == "finetune")
    logged = client.get_metric_history(tuned.info.run_id, "validation_agreement_ap")
    assert [(item.step, item.value) for item in logged] == [
        (row["epoch"], row["validation_agreement_ap"]) for row in done.history
    ]


def test_training_with_edits_is_compared_too_and_nothing_where_nothing_is_known(
    manifest_path: str, tmp_path: Path
) -> None:
    edits, config = write_edits(tmp_path / "edits.parquet", EDITED), settings(train__epochs=1)
    truth = write_truth(Manifest.load(manifest_path), tmp_path / "truth.json", 3)
    rows = [
        train(manifest_path, config, str(tmp_path / name), edits_path=edits, truth_uri=uri).history[0]
        for name, uri in (("with", truth), ("without", ""))
    ]
    assert rows[0]["validation_agreement_videos"] == 3 and 0 <= rows[0]["validation_agreement_iou"] <= 1
    assert not [name for name in rows[1] if "agreement" in name]
    assert {name: rows[0][name] for name in ("train_loss", "validation_loss")} == {
        name: rows[1][name] for name in ("train_loss", "validation_loss")
    }, "nothing is learnt from it"


def attending(shift: int, num_videos: int = 40) -> Predictions:
    """Return predictions whose attention is highest at the frame 2 + 2 * shift of the frames 0, 2, 4 and 6."""
    classes = np.arange(num_videos) % 2
    curve = np.roll([0.1, 0.9, 0.2, 0.15], shift)
    return Predictions(
        video_ids=tuple(f"v{number}" for number in range(num_videos)),
        class_index=classes,
        top5=np.stack([classes, 1 - classes], 1),
        scores=np.full((num_videos, 2), 0.5),
        loss=np.ones(num_videos),
        temporal=np.tile(curve, (num_videos, 1)),
        frames=np.tile([0, 2, 4, 6], (num_videos, 1)),
        metadata={"classes": ["a", "b"], "split": "held_out", "attention": "as_is"},
    )


def test_the_reports_section_has_each_network_and_their_differences(tmp_path: Path) -> None:
    before, after = attending(1), attending(0)
    before.save(tmp_path / "p.parquet")
    kept = Predictions.load(tmp_path / "p.parquet")
    assert np.array_equal(kept.temporal, before.temporal) and np.array_equal(kept.frames, before.frames)
    known = {f"v{number}": np.array([0, 0, 1, 0, 0, 0, 0, 0], np.float32) for number in range(30)}
    known["v30"] = np.zeros(8, np.float32)
    comparison = Comparison(
        before=kept, after=after, control=before, before_inverted=before, after_inverted=after, selected=(0,)
    )
    section = agreement_section(comparison, known)
    assert section is not None and (section["num_known"], section["num_counted"]) == (31, 30)
    assert section["rows"] == [
        ("before", ["0.250", "0.000", "0.000", "0.000"]),
        ("after", ["1.000", "1.000", "1.000", "1.000"]),
        ("control", ["0.250", "0.000", "0.000", "0.000"]),
        ("by chance", ["0.521", "0.500", "–", "0.250"]),
    ]
    changes = dict(section["changes"])
    assert changes["after − before"][0] == ("+0.750", "+0.750 to +0.750")
    assert changes["control − before"][3] == ("0.000", "0.000 to 0.000") and len(changes) == 3
    assert [(name, count) for name, count, _ in section["actions"]] == [("a", 15), ("b", 15)]
    assert section["metrics"]["after_agreement_ap"] == 1 and section["metrics"]["agreement_videos"] == 30
    assert agreement_section(comparison, {}) is None
    with pytest.raises(MetricsError, match="video v0 of 3 frames: frame 6 was recognised"):
        agreement_by_video(before, {"v0": np.array([0, 1, 0], np.float32)})
    with pytest.raises(MetricsError, match="without temporal attention: evaluate"):
        agreement_by_video(dataclasses.replace(before, temporal=None, frames=None), known)
