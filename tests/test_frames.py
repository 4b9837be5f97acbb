"""Extraction: real WebM files in, packed JPEG frames and the manifest out, whatever goes wrong on the way."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
from faulty_server import Faults

from stabn.config import ExtractConfig
from stabn.data.extraction import encode_jpeg, pack_frames
from stabn.data.frames import ExtractError, Part, extract_frames, extract_part, merge_frames
from stabn.data.manifest import Manifest, ManifestError, build_manifest
from stabn.data.mjpeg import unpack
from stabn.data.sources import SourceError
from stabn.data.ssv2 import LABELS_FILE, SPLIT_FILES
from stabn.data.video import Planes
from stabn.data.video_encoding import encode
from stabn.storage import open_storage

TEMPLATE = "Moving [something] up"
CONFIG = ExtractConfig(short_side=48, workers=1, max_rejects=0.0)


@pytest.fixture
def dataset(small_dataset: Path) -> Path:
    return small_dataset


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


def test_a_store_that_fails_now_and_then_goes_unnoticed(
    dataset: Path, s3_uri: str, faults: Faults, tmp_path: Path
) -> None:
    faults.kind, faults.count = "error_500", 4
    assert len(extract(dataset, s3_uri, tmp_path / "out")) == 3
    assert faults.happened == 4


# Parts


def many(folder: Path, dataset: Path, count: int) -> Path:
    """Make a dataset of `count` videos (copies of the small one's), one more that no list names, and bad entries."""
    (folder / "videos").mkdir(parents=True)
    originals = sorted((dataset / "videos").iterdir())
    rows = []
    for number in range(count):
        shutil.copyfile(originals[number % 3], folder / "videos" / f"{100 + number}.webm")
        rows.append({"id": str(100 + number), "label": "", "template": TEMPLATE})
    shutil.copyfile(originals[0], folder / "videos" / "7.webm")
    rows += [{"id": "../8", "label": "", "template": TEMPLATE}, {"id": "9", "template": "Juggling [something]"}]
    rows += [{"id": "10", "label": "", "template": TEMPLATE}, rows[0]]
    (folder / "labels").mkdir()
    for name, content in {LABELS_FILE: {"Moving something up": "0"}, SPLIT_FILES["train"]: rows}.items():
        (folder / "labels" / name).write_text(json.dumps(content))
    for split in ("validation", "test"):
        (folder / "labels" / SPLIT_FILES[split]).write_text("[]")
    return folder


def empty(uri: str) -> None:
    storage = open_storage(uri)
    for key in storage.list():
        storage.delete(key)


def test_the_result_does_not_depend_on_the_number_of_parts(
    dataset: Path, storage_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = many(tmp_path / "many", dataset, 8)
    config = replace(CONFIG, max_rejects=0.5)
    places = (str(folder / "videos"), str(folder / "labels"), storage_uri)

    def files() -> list[bytes]:
        return [(tmp_path / f"{name}.parquet").read_bytes() for name in ("manifest", "rejects")]

    paths = (tmp_path / "manifest.parquet", tmp_path / "rejects.parquet")
    assert len(extract_frames(*places, *paths, config)) == 8
    whole = files()
    reasons = {row["video_id"]: row["reason"] for row in pq.read_table(paths[1]).to_pylist()}
    assert {name: reason.split(":")[0] for name, reason in reasons.items()} == {
        "../8": "bad id",
        "9": "unknown template",
        "10": "missing",
        "100": "duplicate",
    }
    assert "1 videos are named by no label file and left alone" in capsys.readouterr().out
    for total in (3, 11):  # more parts than some have videos for
        empty(storage_uri)
        for number in [*range(2, total + 1), 1]:
            with pytest.raises(ExtractError, match=rf"part \d+/{total} of .* --part \d+/{total}"):
                merge_frames(*places, total, *paths, config)
            extract_part(*places, Part(number, total), config)
        merge_frames(*places, total, *paths, config)
        assert files() == whole


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/0", "a/b", "1/2/3", ""])
def test_a_part_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ExtractError, match="write i/n"):
        Part.parse(text)


def test_killed_in_the_middle_it_decodes_nothing_twice(dataset: Path, s3_uri: str, tmp_path: Path) -> None:
    folder = many(tmp_path / "many", dataset, 60)
    command = [sys.executable, "-m", "stabn.cli", "extract-frames", "--videos", folder / "videos"]
    command += ["--labels", folder / "labels", "--storage", s3_uri, "--max-rejects", "0.2", "--workers", "2"]

    def start(name: str) -> subprocess.Popen[str]:
        outputs = ["--manifest", tmp_path / f"{name}.parquet", "--rejects", tmp_path / f"{name}-rejects.parquet"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": ""}
        return subprocess.Popen([*command, *outputs], env=environment, stdout=subprocess.PIPE, text=True)

    def stored() -> int:
        return sum(key.endswith(".mjpeg") for key in open_storage(s3_uri).list())

    first = start("killed")
    while stored() < 5:
        assert first.poll() is None
    workers = psutil.Process(first.pid).children(recursive=True)
    first.kill()
    first.wait()
    psutil.wait_procs(workers, timeout=10)
    assert not any(worker.is_running() and worker.status() != "zombie" for worker in workers), "workers live on"
    there = stored()
    assert 5 <= there < 60
    second = start("resumed")
    output = second.communicate()[0]
    assert second.returncode == 0 and f"{there} of 60 videos were there already" in output
    empty(s3_uri)
    third = start("whole")
    output = third.communicate()[0]
    assert third.returncode == 0 and "were there already" not in output
    assert (tmp_path / "resumed.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


# The dataset's own archive


def archive(dataset: Path, folder: Path, num_parts: int) -> bytes:
    """Pack the videos as the dataset comes: one tar.gz cut into numbered parts."""
    folder.mkdir()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(dataset / "videos", "20bn-something-something-v2")
    data = buffer.getvalue()
    size = -(-len(data) // num_parts)
    for number in range(num_parts):
        name = f"20bn-something-something-v2-{number:02}"
        (folder / name).write_bytes(data[number * size : (number + 1) * size])
    return data


def test_videos_are_read_from_the_archive_as_from_files(dataset: Path, storage_uri: str, tmp_path: Path) -> None:
    expected = extract(dataset, storage_uri + "/a", tmp_path / "a")
    archive(dataset, tmp_path / "parts", 3)
    source = tmp_path / "parts"
    if storage_uri.startswith("s3://"):
        for path in source.iterdir():
            open_storage(storage_uri + "/source").upload(path, path.name)
        source = storage_uri + "/source"
    for run in ("b", "c"):  # the second one finds everything done
        paths = (tmp_path / f"{run}.parquet", tmp_path / f"{run}-rejects.parquet")
        manifest = extract_frames(str(source), str(dataset / "labels"), storage_uri + "/b", *paths, CONFIG)
        assert manifest.fingerprint == expected.fingerprint
    assert (tmp_path / "b.parquet").read_bytes() == (tmp_path / "c.parquet").read_bytes()


def test_an_incomplete_archive_is_an_error(dataset: Path, tmp_path: Path) -> None:
    archive(dataset, tmp_path / "parts", 4)

    def run() -> None:
        paths = (tmp_path / "manifest.parquet", tmp_path / "rejects.parquet")
        extract_frames(str(tmp_path / "parts"), str(dataset / "labels"), str(tmp_path / "store"), *paths, CONFIG)

    (tmp_path / "parts" / "20bn-something-something-v2-03").unlink()
    with pytest.raises(SourceError, match=r"damaged or cut off after [0-2] videos"):
        run()
    (tmp_path / "parts" / "20bn-something-something-v2-01").unlink()
    with pytest.raises(SourceError, match=r"has no part 20bn-something-something-v2-01"):
        run()
    assert not (tmp_path / "manifest.parquet").exists()


# Bad input


def no_video(path: Path, webm: bytes) -> None:
    with av.open(str(path), "w", format="webm") as container:
        stream = container.add_stream("libopus", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), format="flt", layout="mono")
        frame.rate = 48000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def frames(count: int, height: int = 64, width: int = 96) -> list[np.ndarray]:
    return [np.full((height, width, 3), 3 * number % 256, np.uint8) for number in range(count)]


BAD: dict[str, tuple[str, Callable[[Path, bytes], object]]] = {
    "missing": ("missing", lambda path, webm: path.unlink()),
    "zero bytes": ("empty", lambda path, webm: path.write_bytes(b"")),
    "cut off": ("truncated", lambda path, webm: path.write_bytes(webm[: len(webm) // 2])),
    "text": ("no video", lambda path, webm: path.write_bytes(b"not a video at all" * 100)),
    "sound only": ("no video", no_video),
    "garbled": ("undecodable", lambda path, webm: path.write_bytes(webm[:500] + bytes(len(webm) - 500))),
    "30 frames per second": ("wrong frame rate", lambda path, webm: encode(path, frames(20), 30)),
    "1 frame": ("too short", lambda path, webm: encode(path, frames(1), 12)),
    "501 frames": ("too long", lambda path, webm: encode(path, frames(501, 16, 16), 12)),
    "large frames": ("too large", lambda path, webm: encode(path, frames(2, 1100, 1100), 12)),
    "large file": ("too large", lambda path, webm: path.write_bytes(webm + bytes(1 << 20))),
}


@pytest.mark.parametrize("decoder", ["pyav", "ffmpeg"])
def test_each_kind_of_bad_video_is_listed_with_its_reason(dataset: Path, tmp_path: Path, decoder: str) -> None:
    folder = many(tmp_path / "many", dataset, len(BAD) + 1)
    for number, (_, damage) in enumerate(BAD.values()):
        path = folder / "videos" / f"{100 + number}.webm"
        damage(path, path.read_bytes())
    config = replace(CONFIG, decoder=decoder, max_frames=500, max_pixels=1_000_000, max_mb=1, max_rejects=1.0)
    manifest = extract(folder, str(tmp_path / "store"), tmp_path / "out", config)
    assert manifest.table["video_id"].to_pylist() == [str(100 + len(BAD))]
    rows = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    reasons = {row["video_id"]: row["reason"] for row in rows}
    found = {name: reasons[str(100 + number)].split(":")[0] for number, name in enumerate(BAD)}
    assert found == {name: kind for name, (kind, _) in BAD.items()}
    with pytest.raises(ExtractError, match=r"15 of 16 videos .*more than --max-rejects 0\.5 .*too large \(2\)"):
        extract(folder, str(tmp_path / "store"), tmp_path / "strict", replace(config, max_rejects=0.5))
    assert (tmp_path / "strict" / "rejects.parquet").exists() and not (
        tmp_path / "strict" / "manifest.parquet"
    ).exists()
    any_rate = replace(config, fps=0.0)
    assert len(extract(folder, str(tmp_path / "store"), tmp_path / "any", any_rate)) == 2


def test_a_decoder_that_hangs_is_given_up(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Video 3 is the largest; the program that decodes it never ends."""
    sizes = sorted(path.stat().st_size for path in (dataset / "videos").iterdir())
    program = tmp_path / "ffmpeg"
    program.write_text(
        f"""#!/bin/sh
for word; do
  case "$word" in file:*)
    if [ $(stat -c %s "${{word#file:}}") -ge {sizes[-1]} ]; then echo $$ >> {tmp_path}/pid; exec sleep 600; fi
  esac
done
exec {imageio_ffmpeg.get_ffmpeg_exe()} "$@"
"""
    )
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    config = replace(CONFIG, decoder="ffmpeg", max_rejects=1.0, time_limit=2.0)
    manifest = extract(dataset, str(tmp_path / "store"), tmp_path / "out", config)
    assert sorted(manifest.table["video_id"].to_pylist()) == ["1", "2"]
    (row,) = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert row == {"video_id": "3", "split": "test", "reason": "timeout: not decoded within 2 s"}
    pid = int((tmp_path / "pid").read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie", "the program lives on"
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE")
    assert len(extract(dataset, str(tmp_path / "store"), tmp_path / "again", config)) == 3


def test_a_place_without_videos_is_never_a_success(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    paths = (tmp_path / "manifest.parquet", tmp_path / "rejects.parquet")
    labels, store = str(dataset / "labels"), str(tmp_path / "store")
    with pytest.raises(SourceError, match=r"no videos \(\.webm, \.mp4.* and no archive"):
        extract_frames(str(tmp_path / "nothing"), labels, store, *paths, replace(CONFIG, max_rejects=1.0))
    shutil.copyfile(dataset / "videos" / "1.webm", tmp_path / "nothing" / "99.webm")
    with pytest.raises(ExtractError, match=r"missing \(2\), such as \S+ \(missing: no such file\); "):
        extract_frames(str(tmp_path / "nothing"), labels, store, *paths, replace(CONFIG, max_rejects=1.0))
    assert paths[1].exists() and not paths[0].exists()


def test_packed_frames_tell_their_source_and_their_sizes(dataset: Path) -> None:
    data = (dataset / "videos" / "1.webm").read_bytes()
    packed, record = pack_frames(data, CONFIG, "1")
    sha256, sizes, size = unpack(packed) or ("", [], (0, 0))
    assert sha256 == hashlib.sha256(data).hexdigest() and sizes == record["frame_sizes"]
    assert size == (record["width"], record["height"])
    assert unpack(packed[:-1]) is None and unpack(b"") is None and unpack(packed[sizes[0] :]) is None
    with av.open(io.BytesIO(packed), format="mjpeg") as container:
        assert sum(1 for _ in container.decode(video=0)) == 24


@pytest.mark.parametrize("size", [(8, 11), (9, 10), (9, 11), (16, 16)])
def test_a_jpeg_depends_on_nothing_but_its_frame(size: tuple[int, int]) -> None:
    rows, columns = np.ogrid[: size[0], : size[1]]
    luma = (40 + 6 * rows + 8 * columns).astype(np.uint8)
    chroma = np.full(((size[0] + 1) // 2, (size[1] + 1) // 2), 128, np.uint8)
    jpegs = set()
    for surroundings in (0, 255):
        memory = np.full((32, 32), surroundings, np.uint8)
        memory[: size[0], : size[1]] = luma
        jpegs.add(encode_jpeg(Planes(memory[: size[0], : size[1]], chroma, chroma), quality=95))
    decoded = simplejpeg.decode_jpeg(jpegs.pop(), "GRAY")[:, :, 0]
    assert not jpegs and decoded.shape == size
    assert np.abs(decoded.astype(int) - luma).max() <= 4


# Other people's files


def labelled(folder: Path, rows: list[dict[str, object]], test: list[dict[str, object]] | None = None) -> None:
    """Write labels of one class: the rows are for training but for the last one."""
    folder.mkdir()
    files: dict[str, object] = {LABELS_FILE: {"Moving something up": "0"}}
    files |= {SPLIT_FILES["train"]: rows[:-1], SPLIT_FILES["validation"]: rows[-1:]}
    files |= {} if test is None else {SPLIT_FILES["test"]: test}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


def of_class(*ids: object) -> list[dict[str, object]]:
    return [{"id": name, "label": "x", "template": TEMPLATE} for name in ids]


def test_what_lies_beside_the_videos_is_no_damage(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A subset of the labels with integer ids, no test.json, other suffixes, folders, and what macOS leaves."""
    webm = {name: (dataset / "videos" / f"{name}.webm").read_bytes() for name in ("1", "2", "3")}
    files = {"a/1.WEBM": webm["1"], "b/c/2.webm": webm["2"], "4.webm": webm["3"], "._1.webm": b"x", ".DS_Store": b"x"}
    files |= {"__MACOSX/a/._1.WEBM": b"x", "a/readme.txt": b"x"}
    for path, content in files.items():
        (tmp_path / "videos" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / path).write_bytes(content)
    encode(tmp_path / "videos" / "b" / "3.mp4", frames(9, 64, 96), 12, codec="h264")
    labelled(tmp_path / "labels", of_class(1, 2, 3))
    manifest = extract(tmp_path, str(tmp_path / "store"), tmp_path / "out")
    assert manifest.table["video_id"].to_pylist() == ["1", "2", "3"]
    assert pq.read_table(tmp_path / "out" / "rejects.parquet").num_rows == 0
    assert "1 videos are named by no label file and left alone" in capsys.readouterr().out


def test_test_videos_may_be_missing(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labelled(tmp_path / "labels", of_class("1", "2", "3"), [{"id": "98"}, {"id": "99"}])
    (tmp_path / "videos").symlink_to(dataset / "videos")
    assert len(extract(tmp_path, str(tmp_path / "store"), tmp_path / "out")) == 3
    assert "2 test videos are not there" in capsys.readouterr().out


@pytest.mark.parametrize("packed", [False, True])
def test_two_files_of_one_id_are_one_video_or_none(
    dataset: Path, tmp_path: Path, packed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    webm = {name: (dataset / "videos" / f"{name}.webm").read_bytes() for name in ("1", "2", "3")}
    files = {"a/1.webm": webm["1"], "b/1.webm": webm["2"], "a/2.webm": webm["2"], "b/2.webm": webm["2"]}
    files |= {"a/3.webm": webm["3"]}
    place = tmp_path / "videos"
    place.mkdir()
    if packed:
        with tarfile.open(place / "20bn-something-something-v2-00", "w:gz") as tar:
            for path, content in files.items():
                info = tarfile.TarInfo(f"./{path}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    else:
        for path, content in files.items():
            (place / path).parent.mkdir(exist_ok=True)
            (place / path).write_bytes(content)
    labelled(tmp_path / "labels", of_class("1", "2", "3"))
    config = replace(CONFIG, max_rejects=0.5)
    for run in ("first", "again"):
        manifest = extract(tmp_path, str(tmp_path / "store"), tmp_path / run, config)
        assert manifest.table["video_id"].to_pylist() == ["2", "3"]
        (row,) = pq.read_table(tmp_path / run / "rejects.parquet").to_pylist()
        assert row["video_id"] == "1" and row["reason"].startswith("ambiguous: a/1.webm and b/1.webm differ")
        assert "1 files are copies of others of the same id" in capsys.readouterr().out


def test_a_labs_own_actions_come_from_a_table(dataset: Path, tmp_path: Path) -> None:
    webm = {name: (dataset / "videos" / f"{name}.webm").read_bytes() for name in ("1", "2", "3")}
    for path, name in (("Pour water/1.webm", "1"), ("Stir/1.webm", "2"), ("Stir/b.WebM", "3")):
        (tmp_path / "videos" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / path).write_bytes(webm[name])
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "labels.csv").write_bytes(
        '\ufeffPath;Label;Split\r\nPour water/1.webm;注ぐ;train\r\n./Stir/1.webm;"stir; slowly";Val\r\n'
        "Stir/b.WebM;注ぐ;training\r\n".encode()
    )
    manifest = extract(tmp_path, str(tmp_path / "store"), tmp_path / "out")
    assert manifest.classes == ("stir; slowly", "注ぐ")
    rows = [(v.video_id, v.split, v.class_index) for v in map(manifest.video, range(3))]
    assert rows == [("Stir--b", "train", 1), ("Pour_water--1", "train", 1), ("Stir--1", "validation", 0)]


def test_a_manifest_names_each_video_once(dataset: Path, tmp_path: Path) -> None:
    manifest = extract(dataset, str(tmp_path / "store"), tmp_path / "out")
    twice = pa.concat_tables([manifest.table, manifest.table.slice(1, 1)])
    name = manifest.video_id(1)
    with pytest.raises(ManifestError, match=f"video '{name}' comes twice"):
        build_manifest(twice, manifest.classes, manifest.storage_uri, {})
    whole = pq.read_table(tmp_path / "out" / "manifest.parquet")
    pq.write_table(pa.concat_tables([whole, whole.slice(1, 1)]), tmp_path / "twice.parquet")
    with pytest.raises(ManifestError, match=f"video '{name}' comes twice"):
        Manifest.load(tmp_path / "twice.parquet")
