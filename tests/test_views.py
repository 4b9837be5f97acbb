"""Several looks at each video: which they are, and that their probabilities are averaged, whatever the attention."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import settings

from stabn.config import DataConfig
from stabn.data.dataset import MIDDLE, ClipDataset, View, all_views
from stabn.data.manifest import Manifest
from stabn.data.transforms import evaluation_crop, evaluation_crops
from stabn.evaluation.predict import predict
from stabn.training.checkpoint import load_model
from stabn.training.device import batch_input, forward_clips


@pytest.mark.parametrize(("width", "height"), [(60, 40), (40, 60), (40, 40)])
def test_squares_lie_along_the_longer_side(width: int, height: int) -> None:
    config = DataConfig(crop_size=32)
    crops = evaluation_crops(width, height, config, 3)
    assert crops[1] == evaluation_crop(width, height, config) == evaluation_crops(width, height, config, 1)[0]
    side = crops[0].side
    ends = [(c.left, c.top) for c in (crops[0], crops[2])]
    middle = (min(width, height) - side) // 2
    last = (width - side, middle) if width >= height else (middle, height - side)
    assert ends == [(0, middle) if width >= height else (middle, 0), last]


def test_one_look_of_an_odd_number_is_the_middle() -> None:
    assert [view.is_middle for view in all_views(1, 3)] == [False, True, False]
    assert sum(view.is_middle for view in all_views(3, 3)) == 1
    assert not any(view.is_middle for view in all_views(2, 3)) and MIDDLE.is_middle


@pytest.mark.parametrize(("clips", "crops"), [(1, 3), (2, 1)])
def test_scores_are_the_mean_of_the_views_and_maps_are_those_of_the_middle(
    manifest_path: str, trained: str, clips: int, crops: int
) -> None:
    manifest = Manifest.load(manifest_path)
    model, checkpoint = load_model(trained)
    rows, data = manifest.indices("validation"), checkpoint.data_config
    one = predict(model, manifest, rows, data, settings())
    config = settings(data__test_clips=clips, data__test_crops=crops)
    found = predict(model, manifest, rows, data, config)
    assert np.array_equal(found["temporal"], one["temporal"]) and np.array_equal(found["frames"], one["frames"])
    expected = torch.zeros(len(rows), 3)
    for view in all_views(clips, crops):
        dataset = ClipDataset(manifest, rows, data, train=False, view=view)
        items = torch.utils.data.default_collate([dataset[i] for i in range(len(rows))])
        with torch.inference_mode():
            logits = forward_clips(model, batch_input(items, data, torch.device("cpu"))).logits
        expected += logits.softmax(1) / (clips * crops)
    scores = np.take_along_axis(expected.numpy(), found["top5"], axis=1)
    np.testing.assert_allclose(found["scores"], scores, rtol=1e-4)
    assert (np.diff(found["scores"], axis=1) <= 0).all() and not np.allclose(found["scores"], one["scores"])
    true = np.take_along_axis(expected.numpy(), found["class_index"][:, None], axis=1)[:, 0]
    np.testing.assert_allclose(found["loss"], -np.log(true), rtol=1e-4)
    assert found["under"].keys() == one["under"].keys()


def test_an_attention_that_changes_nothing_is_averaged_over_the_same_views(manifest_path: str, trained: str) -> None:
    """Known segments that name no video leave the attention as it is."""
    manifest = Manifest.load(manifest_path)
    model, checkpoint = load_model(trained)
    rows, config = manifest.indices("validation"), settings(data__test_crops=3)
    own = predict(model, manifest, rows, checkpoint.data_config, config)
    other = predict(model, manifest, rows, checkpoint.data_config, config, "temporal_segments")
    assert np.array_equal(own["scores"], other["scores"])


def test_a_clip_of_several_lies_between_the_others(manifest_path: str) -> None:
    manifest = Manifest.load(manifest_path)
    data = DataConfig(num_frames=4, crop_size=32, num_clips=2)
    usual = ClipDataset(manifest, [0], data, train=False)[0]["clips"]
    three = [ClipDataset(manifest, [0], data, train=False, view=View(i, 3))[0]["clips"] for i in range(3)]
    assert all(clips.shape == usual.shape for clips in three)
    assert not torch.equal(three[0], three[2])


def test_a_report_says_how_many_views(manifest_path: str, trained: str, tmp_path: Path) -> None:
    from stabn.evaluation.predict import evaluate

    config = settings(data__test_crops=3)
    found = evaluate(trained, manifest_path, "validation", "spatial_inverted", tmp_path / "p.parquet", config)
    assert found.predictions.metadata["frames"] == "4, 1 x 3 views"
