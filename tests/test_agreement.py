"""Whether the attention lies where the action is."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_run import EDITED, settings, write_edits

from stabn.cli import main
from stabn.config import ConfigError
from stabn.data.manifest import Manifest
from stabn.evaluation.agreement import agreement, known_frames, measure_agreement, summarize_agreement

INSIDE = np.array([False, True, True, False])


def test_a_curve_is_compared_frame_by_frame() -> None:
    perfect = agreement(np.array([0.1, 0.9, 0.8, 0.2]), INSIDE)
    assert perfect == (1.0, 1.0, 1.0, 1.0, 0.5)
    opposite = agreement(np.array([0.9, 0.1, 0.2, 0.8]), INSIDE)
    assert opposite is not None and (opposite.auc, opposite.iou, opposite.pointing) == (0.0, 0.0, 0.0)
    assert opposite.ap == pytest.approx((1 / 3 + 2 / 4) / 2)
    half = agreement(np.array([0.0, 1.0, 0.0, 0.0]), INSIDE)
    assert half is not None and half.iou == 0.5 and half.pointing == 1.0
    assert agreement(np.array([0.1, 0.2]), np.array([True, True])) is None


def test_what_is_known_comes_from_segments_or_edits(manifest_path: str, tmp_path: Path) -> None:
    manifest = Manifest.load(manifest_path)
    (tmp_path / "segments.json").write_text(json.dumps({"1": [1, 3]}))
    assert known_frames(manifest, str(tmp_path / "segments.json"))["1"].tolist() == [False, True, True, *[False] * 3]
    edits = write_edits(tmp_path / "edits.parquet", EDITED)
    assert known_frames(manifest, edits)["2"].tolist() == [True, True, True, False, False, False, False]


def test_numbers_are_means_over_videos() -> None:
    rows = [
        {"action": name, **dict.fromkeys(("ap", "auc", "iou", "pointing", "chance"), v)}
        for name, v in (("a", 1.0), ("b", 0.0), ("b", 0.5))
    ]
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
