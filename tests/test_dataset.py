"""From stored frames to clips: sampling, the manifest, augmentation, edits at the sampled frames."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from torch.utils.data import DataLoader

from stabn.config import DataConfig
from stabn.data.dataset import ClipDataset, FrameReader, decode_jpeg
from stabn.data.manifest import Manifest, ManifestError, build_manifest
from stabn.data.sampler import EpochSampler
from stabn.data.sampling import covering_samples, evaluation_sample, training_sample
from stabn.data.transforms import color_matrix, crop_clip, evaluation_crop, random_crop, to_input
from stabn.storage import open_storage

CLASSES = (
    "Pushing something from left to right",
    "Pushing something from right to left",
    "Putting something upright on the table",
)
LENGTHS = {"1": 8, "2": 33, "3": 120}
CONFIG = DataConfig(num_frames=8, crop_size=32, scales=(1.0, 0.8), workers=0)


@pytest.fixture
def manifest(storage_uri: str) -> Manifest:
    storage = open_storage(storage_uri)
    rng = np.random.default_rng(0)
    rows = []
    for video_id, length in LENGTHS.items():
        low = rng.integers(0, 255, (length, 6, 10, 3), dtype=np.uint8)
        frames = low.repeat(8, 1).repeat(8, 2)
        jpegs = [simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality=95) for frame in frames]
        storage.write(f"{video_id}.mjpeg", b"".join(jpegs))
        rows.append(
            {
                "video_id": video_id,
                "split": "train",
                "class_index": int(video_id) - 1,
                "label": "",
                "object_key": f"{video_id}.mjpeg",
                "frame_sizes": [len(jpeg) for jpeg in jpegs],
                "num_frames": length,
                "width": 80,
                "height": 48,
                "source_sha256": "0" * 64,
            }
        )
    return build_manifest(rows, CLASSES, storage.uri, {"short_side": 48})


def test_training_takes_one_frame_of_each_segment() -> None:
    rng = np.random.default_rng(0)
    for num_source in (8, 31, 32, 45, 120):
        sample = training_sample(num_source, 32, 1, rng)[0]
        edges = np.arange(33) * num_source / 32
        assert ((sample >= np.floor(edges[:-1])) & (sample < np.ceil(edges[1:]))).all()
        assert (np.diff(sample) >= 0).all()


def test_short_videos_repeat_their_frames_evenly() -> None:
    assert np.bincount(evaluation_sample(8, 32, 1)[0]).tolist() == [4] * 8
    assert np.bincount(training_sample(8, 32, 1, np.random.default_rng(0))[0]).tolist() == [4] * 8


def test_two_clips_divide_the_video() -> None:
    clips = training_sample(80, 32, 2, np.random.default_rng(3))
    assert clips.shape == (2, 32) and not set(clips[0]) & set(clips[1])
    assert (np.diff(clips, axis=1) >= 0).all()
    middle = evaluation_sample(64, 32, 2)
    assert (middle[0] == np.arange(32) * 2).all() and (middle[1] == np.arange(32) * 2 + 1).all()


@pytest.mark.parametrize("num_source", [1, 7, 8, 9, 31, 32, 33, 64, 100, 120])
@pytest.mark.parametrize("num_frames", [1, 8, 32])
def test_covering_passes_see_every_source_frame(num_source: int, num_frames: int) -> None:
    passes = covering_samples(num_source, num_frames)
    assert set(passes.ravel()) == set(range(num_source))
    assert (np.diff(passes, axis=1) >= 0).all()


def test_manifest_round_trip_does_not_depend_on_order(manifest: Manifest, tmp_path: Path) -> None:
    rows = manifest.table.to_pylist()
    other = build_manifest(rows[::-1], CLASSES, manifest.storage_uri, manifest.settings)
    for name, item in (("a", manifest), ("b", other)):
        item.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = Manifest.load(tmp_path / "a")
    assert loaded.fingerprint == manifest.fingerprint and loaded.classes == CLASSES
    rows[0]["frame_sizes"][0] += 1
    assert build_manifest(rows, CLASSES, manifest.storage_uri, {}).fingerprint != manifest.fingerprint


def test_manifest_says_what_it_does_not_have(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="video '9' is not in the manifest"):
        manifest.index_of("9")
    with pytest.raises(ManifestError, match=r"split 'test' has no videos.*train"):
        manifest.indices("test")
    (tmp_path / "other").write_bytes(b"not parquet")
    with pytest.raises(ManifestError, match="not a manifest"):
        Manifest.load(tmp_path / "other")


def test_frames_are_read_by_index(manifest: Manifest) -> None:
    reader = FrameReader(manifest)
    packed = reader.packed(1)
    everything = np.stack(list(packed))
    assert everything.shape == (33, 48, 80, 3) and everything.dtype == np.uint8
    assert packed.shape == everything.shape and len(packed) == 33
    assert (packed[[30, 2, 2]] == everything[[30, 2, 2]]).all() and (packed[30] == everything[30]).all()
    assert FrameReader(manifest, cache_mb=1).jpegs(1, [30, 2]) == reader.jpegs(1, [2, 30])
    with pytest.raises(ManifestError, match="video 2 has frames 0 to 32"):
        reader.jpegs(1, [33])


def test_clips_depend_on_seed_epoch_and_video_alone(manifest: Manifest) -> None:
    def clip(seed: int, epoch: int, order: list[int]) -> torch.Tensor:
        data = ClipDataset(manifest, order, CONFIG, train=True, seed=seed)
        data.epoch = epoch
        return data[order.index(2)]["clips"]

    first = clip(0, 0, [0, 1, 2])
    assert first.shape == (1, 8, 32, 32, 3) and first.dtype == torch.uint8
    assert torch.equal(first, clip(0, 0, [2, 0]))
    assert not torch.equal(first, clip(0, 1, [2])) and not torch.equal(first, clip(1, 0, [2]))


def test_flip_mirrors_the_clip_and_swaps_left_and_right_in_the_label(manifest: Manifest) -> None:
    plain = ClipDataset(
        manifest, [0, 1, 2], DataConfig(num_frames=8, crop_size=32, scales=(1.0,), flip=False), train=True
    )
    flipping = ClipDataset(
        manifest, [0, 1, 2], DataConfig(num_frames=8, crop_size=32, scales=(1.0,), flip=True), train=True
    )
    seen = set()
    for epoch in range(8):
        plain.epoch = flipping.epoch = epoch
        for position in range(3):
            a, b = plain[position], flipping[position]
            mirrored = torch.equal(b["clips"], a["clips"].flip(3))
            assert mirrored or torch.equal(b["clips"], a["clips"])
            swapped = {0: 1, 1: 0, 2: 2}[position] if mirrored else position
            assert int(b["target"]) == swapped
            assert flipping.flipped_class[flipping.flipped_class[position]] == position
            seen.add((position, mirrored))
    assert len(seen) == 6, "each class was seen both ways"


def test_edits_land_on_the_sampled_frames(manifest: Manifest) -> None:
    curve = np.linspace(0, 1, 120, dtype=np.float32)
    curve[5] = np.nan
    data = ClipDataset(manifest, [1, 2], CONFIG, train=False, edits={"3": curve})
    sample = evaluation_sample(120, 8, 1)
    assert np.array_equal(data[1]["temporal_target"].numpy(), curve[sample], equal_nan=True)
    assert torch.isnan(data[0]["temporal_target"]).all()


def test_input_is_normalised_on_the_device() -> None:
    frames = torch.randint(0, 256, (2, 3, 5, 4, 3), dtype=torch.uint8)
    result = to_input(frames, CONFIG, "cpu")
    mean, std = torch.tensor(CONFIG.mean), torch.tensor(CONFIG.std)
    expected = ((frames / 255 - mean) / std).permute(0, 4, 1, 2, 3)
    assert torch.allclose(result, expected, atol=1e-5)
    assert result.is_contiguous(memory_format=torch.channels_last_3d)


def test_color_jitter_is_brightness_contrast_and_saturation() -> None:
    class Fixed:
        def uniform(self, low: float, high: float, size: int) -> np.ndarray:
            return np.array([0.1, -0.1, 0.15])

    matrix = color_matrix(CONFIG, Fixed())  # type: ignore[arg-type]
    color = np.array([0.2, 0.5, 0.7])
    gray = color @ (0.299, 0.587, 0.114)
    saturated = 1.15 * color + (1 - 1.15) * gray
    expected = ((saturated * 1.1 * 0.9 + 0.5 * (1 - 0.9)) - np.array(CONFIG.mean)) / np.array(CONFIG.std)
    assert np.allclose(matrix[:, :3] @ color + matrix[:, 3], expected, atol=1e-5)


def test_clips_do_not_depend_on_workers_processes_or_the_cache(manifest: Manifest, tmp_path: Path) -> None:
    config = replace(CONFIG, cache_dir=str(tmp_path / "cache"), cache_gb=0.01)

    def clips(config: DataConfig, workers: int, world_size: int) -> dict[int, torch.Tensor]:
        found = {}
        for rank in range(world_size):
            dataset = ClipDataset(manifest, [0, 1, 2], config, train=True, seed=1)
            dataset.epoch = 4
            sampler = EpochSampler([0, 1, 2], 2, seed=1, epoch=4, rank=rank, world_size=world_size)
            for batch in DataLoader(dataset, batch_sampler=sampler, num_workers=workers):
                found |= {int(index): clip for index, clip in zip(batch["index"], batch["clips"], strict=True)}
        return found

    alone = clips(CONFIG, 0, 1)
    for other in (clips(CONFIG, 2, 1), clips(config, 0, 2), clips(config, 2, 3)):
        assert sorted(other) == [0, 1, 2] and all(torch.equal(other[i], alone[i]) for i in alone)
    assert len(list((tmp_path / "cache").glob("*/*"))) == 3


def test_one_get_for_exactly_the_span_of_the_sampled_frames(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = FrameReader(manifest)
    gets: list[tuple[int, int]] = []
    read_range = type(reader.storage).read_range

    def counted(self: object, key: str, start: int, length: int) -> bytes:
        gets.append((start, length))
        return read_range(self, key, start, length)

    monkeypatch.setattr(type(reader.storage), "read_range", counted)
    sizes = manifest.video(2).frame_sizes
    reader.jpegs(2, [50, 20, 99, 50])
    assert gets == [(int(sizes[:20].sum()), int(sizes[20:100].sum()))]


def test_large_frames_are_decoded_small(manifest: Manifest) -> None:
    """A crop of 48 rows shown in 16: a half of the resolution suffices, and looks the same."""
    small = DataConfig(num_frames=8, crop_size=16, scales=(1.0,), workers=0, evaluation_scale=1.0)
    clip = ClipDataset(manifest, [1], small, train=False)[0]["clips"][0].numpy().astype(int)
    frames = FrameReader(manifest).packed(1)[evaluation_sample(33, 8, 1)[0]]
    exact = crop_clip(frames, evaluation_crop(80, 48, small), 16).astype(int)
    assert np.abs(clip - exact).mean() < 3
    jpeg = FrameReader(manifest).jpegs(1, [0])[0]
    assert 16 <= decode_jpeg(jpeg, "2", 0, min_height=16).shape[0] <= 24
    assert decode_jpeg(jpeg, "2", 0).shape == (48, 80, 3)


def test_a_manifest_is_passed_to_other_processes(manifest: Manifest) -> None:
    copy = pickle.loads(pickle.dumps(manifest))
    assert copy.fingerprint == manifest.fingerprint
    assert copy.video(1).frame_sizes.tolist() == manifest.video(1).frame_sizes.tolist()
    assert [copy.index_of(name) for name in LENGTHS] == [0, 1, 2]
    with pytest.raises(ManifestError, match="row 3 of a manifest of 3"):
        copy.video(3)


def test_a_crop_stays_inside_a_frame_that_was_decoded_smaller() -> None:
    """Stored frames of any size, decoded at libjpeg's scales: the crop never leaves them, whatever is rounded."""
    rng = np.random.default_rng(3)
    for _ in range(300):
        height, width = (int(n) for n in rng.integers(17, 400, 2))
        config = replace(CONFIG, crop_size=int(rng.integers(16, 120)), scales=(1.0, 0.87, 0.66))
        for crop in (random_crop(width, height, config, rng), evaluation_crop(width, height, config)):
            for eighths in range(1, 9):
                rows, columns = -(-height * eighths // 8), -(-width * eighths // 8)
                small = crop.scaled(rows, columns, height)
                assert small.side >= 1 and min(small.left, small.top) >= 0
                assert small.left + small.side <= columns and small.top + small.side <= rows
                assert abs(small.side - crop.side * eighths / 8) <= 2


@pytest.mark.parametrize("size", [(45, 81), (61, 47), (97, 193), (255, 453)])
def test_odd_frames_are_decoded_smaller(tmp_path: Path, size: tuple[int, int]) -> None:
    frame = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    jpeg = simplejpeg.encode_jpeg(frame, quality=90)
    (tmp_path / "1.mjpeg").write_bytes(jpeg * 4)
    row = {"video_id": "1", "split": "train", "class_index": 0, "label": "", "object_key": "1.mjpeg"}
    row |= {"frame_sizes": [len(jpeg)] * 4, "num_frames": 4, "height": size[0], "width": size[1]}
    manifest = build_manifest([{**row, "source_sha256": "0" * 64}], CLASSES, str(tmp_path), {})
    dataset = ClipDataset(manifest, [0], replace(CONFIG, crop_size=16, scales=(1.0, 0.83)), train=True)
    for epoch in range(50):
        dataset.epoch = epoch
        assert dataset[0]["clips"].shape == (1, 8, 16, 16, 3)
