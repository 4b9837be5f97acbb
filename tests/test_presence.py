"""What an earlier stage left may be gone while KFP's cache calls the stage done: noticed at the start of the next."""

import shutil
from pathlib import Path

import pytest
from round_factory import make_round
from test_editor import OPEN
from tiny_run import settings, write_dataset

from pipelines.__main__ import _parser, _settings
from stabn.attention.automatic import collect_edits
from stabn.attention.edits import import_edits
from stabn.attention.export import export_round
from stabn.attention.rounds import RoundError
from stabn.config import ExtractConfig
from stabn.data.dataset import FrameReader
from stabn.data.frames import ExtractError, Part, extract_part, merge_frames
from stabn.data.manifest import Manifest
from stabn.data.presence import FramesGone, check_frames
from stabn.editor.services import Services
from stabn.evaluation.predict import evaluate
from stabn.presets import mini
from stabn.training.stage import train

REMEDY = r"are gone.*run extract-frames again.*`--no-cache extract --no-cache merge`"


def test_frames_that_are_gone_stop_a_stage_at_its_start(trained: str, tmp_path: Path) -> None:
    uri = write_dataset(tmp_path)
    check_frames(Manifest.load(uri))
    shutil.rmtree(tmp_path / "frames")
    with pytest.raises(FramesGone, match=r"1\.mjpeg: the frames of video 1 \(and of 9 of the 9 videos.*" + REMEDY):
        train(uri, settings(train__epochs=1), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(FramesGone, match=REMEDY):
        evaluate(trained, uri, "validation", "as_is", tmp_path / "predictions.parquet", settings())
    with pytest.raises(FramesGone, match=REMEDY):
        FrameReader(Manifest.load(uri)).packed(3)


def test_frames_of_which_a_part_is_gone_or_others_are_there(tmp_path: Path) -> None:
    manifest = Manifest.load(write_dataset(tmp_path))
    path = tmp_path / "frames" / "1.mjpeg"
    whole = path.read_bytes()
    for damaged in (whole[:-10], whole[:10], b"", whole[:-2] + b"\0\0"):
        path.write_bytes(damaged)
        with pytest.raises(FramesGone, match="`--no-cache extract"):
            check_frames(manifest)
    path.write_bytes(whole)
    check_frames(manifest)


def test_a_part_that_the_cache_calls_done_is_looked_at(small_dataset: Path, tmp_path: Path) -> None:
    places = (str(small_dataset / "videos"), str(small_dataset / "labels"), str(tmp_path / "storage"))
    outputs, config = (tmp_path / "manifest", tmp_path / "rejects"), ExtractConfig(short_side=48, workers=1)
    extract_part(*places, Part(), config)
    merge_frames(*places, 1, *outputs, config)
    frames = next((tmp_path / "storage").glob("frames-*"))
    for path in frames.glob("*.mjpeg"):
        path.unlink()
    with pytest.raises(FramesGone, match=REMEDY):
        merge_frames(*places, 1, *outputs, config)
    extract_part(*places, Part(), config)
    merge_frames(*places, 1, *outputs, config)
    shutil.rmtree(frames / "parts")
    with pytest.raises(ExtractError, match=r"or what it left was deleted.*`--no-cache extract`"):
        merge_frames(*places, 1, *outputs, config)


def test_a_round_that_is_gone_in_part_is_told_and_written_again(tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    item = make_round(tmp_path, str(storage))
    folder = Path(item.uri)
    shutil.rmtree(folder / "videos" / "12")
    (folder / "checkpoint.pt").unlink()
    uses = (
        lambda: collect_edits(item.uri, "people", "", 0.0, 0.0),
        lambda: import_edits(item.uri, tmp_path / "edits.parquet"),
        lambda: Services(item.uri, OPEN),
    )
    for use in uses:
        with pytest.raises(RoundError, match=r"checkpoint\.pt: gone.*2 of the 11 objects.*`--no-cache export`"):
            use()
    paths = (str(tmp_path / name) for name in ("checkpoint.pt", "manifest.parquet", "selection.json"))
    export_round(*paths, str(storage), mini())
    collect_edits(item.uri, "people", "", 0.0, 0.0)
    shutil.rmtree(storage / "frames")
    with pytest.raises(FramesGone, match=REMEDY):
        Services(item.uri, OPEN)
    (folder / "round.json").unlink()
    with pytest.raises(RoundError, match=r"no round\.json there.*`--no-cache export`"):
        collect_edits(item.uri, "people", "", 0.0, 0.0)


def test_a_stage_can_be_submitted_without_the_cache() -> None:
    flags = ["--data-image=data:1", "--trainer-image=trainer:1", "--no-cache=extract", "--no-cache=merge"]
    chosen = _settings(_parser().parse_args(["submit", "full", *flags]))
    uncached = [name for name, stage in chosen.stages.items() if not stage.cache]
    assert uncached == ["extract", "merge", "edits", "promote"]
