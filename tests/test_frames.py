"""Extraction: real WebM files in, packed JPEG frames and the manifest out, whatever goes wrong on the way."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg

from stabn.config import ExtractConfig
from stabn.data.frames import ExtractError, extract_frames
from stabn.data.manifest import Manifest
from stabn.data.ssv2 import LABELS_FILE, SPLIT_FILES
from stabn.data.video import encode
from stabn.storage import open_storage

TEMPLATE = "Moving [something] up"
CONFIG = ExtractConfig(short_side=48, workers=1, max_reject_share=0.0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of 24, 9 and 30 frames in SSv2's layout."""
    folder = tmp_path_factory.mktemp("dataset")
    rng = np.random.default_rng(0)
    for name, (length, width) in {"1": (24, 128), "2": (9, 96), "3": (30, 128)}.items():
        low = rng.integers(0, 255, (length, 6, width // 16, 3), dtype=np.uint8)
        (folder / "videos").mkdir(exist_ok=True)
        encode(folder / "videos" / f"{name}.webm", list(low.repeat(16, 1).repeat(16, 2)), 12)
    (folder / "labels").mkdir()
    (folder / "labels" / LABELS_FILE).write_text(json.dumps({"Moving something up": "0"}))
    row = {"label": "moving a cup up", "template": TEMPLATE, "placeholders": ["a cup"]}
    splits = {"train": [{"id": "1", **row}], "validation": [{"id": "2", **row}], "test": [{"id": "3"}]}
    for split, rows in splits.items():
        (folder / "labels" / SPLIT_FILES[split]).write_text(json.dumps(rows))
    return folder


def extract(dataset: Path, storage_uri: str, out: Path, config: ExtractConfig = CONFIG) -> Manifest:
    out.mkdir(exist_ok=True)
    paths = (out / "manifest.parquet", out / "rejects.parquet")
    return extract_frames(str(dataset / "videos"), str(dataset / "labels"), storage_uri, *paths, config)


def test_a_video_becomes_one_object_of_jpegs_end_to_end(dataset: Path, storage_uri: str, tmp_path: Path) -> None:
    manifest = extract(dataset, storage_uri, tmp_path / "out")
    assert [manifest.video(i).num_frames for i in range(3)] == [30, 24, 9]  # by split: test, train, validation
    assert Manifest.load(tmp_path / "out" / "manifest.parquet").fingerprint == manifest.fingerprint
    storage = open_storage(manifest.storage_uri)
    for i in range(3):
        video = manifest.video(i)
        assert (video.class_index == -1) == (video.split == "test")
        data = storage.read(video.object_key)
        assert len(data) == video.frame_sizes.sum()
        for part in np.split(np.frombuffer(data, np.uint8), np.cumsum(video.frame_sizes)[:-1]):
            assert simplejpeg.decode_jpeg(part.tobytes()).shape == (video.height, video.width, 3)
        assert min(video.height, video.width) == 48


def test_again_decodes_nothing_and_ends_in_the_same_bytes(dataset: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = extract(dataset, str(store), tmp_path / "a")
    objects = {path: path.stat().st_mtime_ns for path in Path(first.storage_uri).glob("*.mjpeg")}
    assert len(objects) == 3
    extract(dataset, str(store), tmp_path / "b")
    assert {path: path.stat().st_mtime_ns for path in objects} == objects
    lost = sorted(objects)[0]
    lost.unlink()
    extract(dataset, str(store), tmp_path / "c")
    assert lost.exists() and all(path.stat().st_mtime_ns == objects[path] for path in sorted(objects)[1:])
    manifests = [(tmp_path / name / "manifest.parquet").read_bytes() for name in "abc"]
    assert manifests[0] == manifests[1] == manifests[2]


def test_a_changed_video_is_decoded_again(dataset: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dataset, tmp_path / "copy")
    first = extract(copy, str(tmp_path / "store"), tmp_path / "a")
    shutil.copyfile(copy / "videos" / "3.webm", copy / "videos" / "1.webm")
    second = extract(copy, str(tmp_path / "store"), tmp_path / "b")
    assert second.video(second.index_of("1")).num_frames == 30
    assert second.fingerprint != first.fingerprint


def test_both_engines_give_the_same_frames(dataset: Path, tmp_path: Path) -> None:
    found = []
    for decoder in ("pyav", "ffmpeg"):
        config = ExtractConfig(short_side=48, workers=1, decoder=decoder)
        manifest = extract(dataset, str(tmp_path / decoder), tmp_path / f"{decoder}-out", config)
        found.append([manifest.video(i).frame_sizes.tolist() for i in range(3)])
    assert found[0] == found[1]


def test_unusable_videos_are_listed_with_the_reason(dataset: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dataset, tmp_path / "copy")
    (copy / "videos" / "1.webm").write_bytes(b"")
    (copy / "videos" / "2.webm").unlink()
    data = (copy / "videos" / "3.webm").read_bytes()
    with pytest.raises(ExtractError, match=r"2 of 3 videos .*max_reject_share = 0 .*rejects\.parquet"):
        extract(copy, str(tmp_path / "store"), tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert {row["video_id"]: row["reason"].split(":")[0] for row in rows} == {"1": "empty", "2": "missing"}
    assert not (tmp_path / "out" / "manifest.parquet").exists()
    lenient = ExtractConfig(short_side=48, workers=1, max_reject_share=0.7)
    assert len(extract(copy, str(tmp_path / "store"), tmp_path / "lenient", lenient)) == 1
    (copy / "videos" / "3.webm").write_bytes(data[: len(data) // 2])
    with pytest.raises(ExtractError, match=r"3 of 3 videos.*undecodable \(1\)"):
        extract(copy, str(tmp_path / "store2"), tmp_path / "out2", ExtractConfig(max_reject_share=1.0, workers=1))
