"""What the network says under other attention than its own."""

import json
from pathlib import Path

import pytest
import torch
from tiny_run import settings

from stabn.config import ConfigError
from stabn.data.manifest import Manifest
from stabn.data.segments import SegmentsError
from stabn.evaluation.attention_modes import AttentionMode, known_curves
from stabn.evaluation.predict import evaluate
from stabn.evaluation.prediction_table import Predictions
from stabn.models import STABN
from stabn.stages import ATTENTION_MODES, FRAME_MODES

OWN = torch.tensor([[0.1, 0.2, 0.6], [0.5, 0.7, 0.9]])


def replaced(name: str, own: torch.Tensor = OWN, known: torch.Tensor | None = None) -> torch.Tensor:
    """Return what takes the place of an attention."""
    return AttentionMode(name).options(known)["temporal_transform"](own)


def test_each_mode_replaces_the_attention_by_what_it_says() -> None:
    torch.testing.assert_close(replaced("temporal_inverted"), 1 - OWN)
    torch.testing.assert_close(replaced("temporal_mean"), torch.tensor([[0.3] * 3, [0.7] * 3]))
    torch.testing.assert_close(replaced("temporal_reversed"), torch.tensor([[0.6, 0.2, 0.1], [0.9, 0.7, 0.5]]))
    torch.testing.assert_close(replaced("temporal_uniform"), torch.full((2, 3), 0.5))
    known = torch.tensor([[1.0, float("nan"), 0.0], [float("nan")] * 3])
    expected = torch.tensor([[1.0, 0.2, 0.0], [0.5, 0.7, 0.9]])
    torch.testing.assert_close(replaced("temporal_segments", known=known), expected)
    assert AttentionMode("as_is").options(None) == {} and "spatial_transform" in AttentionMode(
        "spatial_inverted"
    ).options(None)
    with pytest.raises(ConfigError, match="attention = 'upside_down': choose one of as_is"):
        AttentionMode("upside_down")


def test_another_videos_attention_is_never_the_videos_own() -> None:
    mode = AttentionMode("temporal_other")
    batches = [OWN, OWN[:1] + 0.05]  # the second has one video alone
    first, second = (mode.options(None)["temporal_transform"](own) for own in batches)
    torch.testing.assert_close(first, OWN.flip(0))
    torch.testing.assert_close(second, OWN[1:])


def test_a_transform_that_changes_nothing_changes_nothing() -> None:
    config = settings().model
    torch.manual_seed(0)
    model = STABN(config).eval()
    video = torch.randn(2, 3, config.num_frames, 32, 32)
    same = model(video, temporal_transform=lambda own: own)
    torch.testing.assert_close(model(video).logits, same.logits, rtol=0, atol=0)
    inverted = model(video, temporal_transform=lambda own: 1 - own)
    expected = model(video, temporal_attention=1 - same.temporal_attention.flatten(1))
    torch.testing.assert_close(inverted.logits, expected.logits, rtol=0, atol=0)
    torch.testing.assert_close(inverted.temporal_attention, same.temporal_attention)


def test_every_mode_is_evaluated(manifest_path: str, trained: str, tmp_path: Path) -> None:
    manifest = Manifest.load(manifest_path)
    videos = [manifest.video(int(row)) for row in manifest.indices("validation")]
    segments = tmp_path / "segments.json"
    segments.write_text(json.dumps({video.video_id: [0, 3] for video in videos}))
    losses = {}
    for mode in ATTENTION_MODES:
        where = str(segments) if mode == "temporal_segments" else ""
        result = evaluate(
            trained, manifest_path, "validation", mode, tmp_path / f"{mode}.parquet", settings(), segments_uri=where
        )
        assert result.predictions.attention == mode and len(result.predictions) == len(videos)
        losses[mode] = result.metrics["loss"]
    assert len(set(losses.values())) == len(losses), "each changes what the network says"
    with pytest.raises(ConfigError, match="temporal_segments needs their file"):
        evaluate(trained, manifest_path, "validation", "temporal_segments", tmp_path / "p", settings())
    segments.write_text("[1, 2]")
    with pytest.raises(SegmentsError, match=r"segments\.json"):
        known_curves(manifest, manifest.indices("validation"), str(segments))


def test_one_evaluation_also_says_what_other_attention_would(manifest_path: str, trained: str, tmp_path: Path) -> None:
    config = settings(train__batch_size=16)  # all in one batch: whose attention another video gets depends on it
    own = evaluate(trained, manifest_path, "validation", "as_is", tmp_path / "own.parquet", config).predictions
    kept = Predictions.load(tmp_path / "own.parquet")
    for mode in FRAME_MODES:
        alone = evaluate(trained, manifest_path, "validation", mode, tmp_path / "p.parquet", config).predictions
        assert own.under[mode].tolist() == alone.predicted.tolist() == kept.under[mode].tolist(), mode
        assert not alone.under
