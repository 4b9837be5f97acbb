"""Attention per source frame, rounds, edits as documents, and their import."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch

from stabn.attention.automatic import automatic_edits, wait_for_edits
from stabn.attention.control_curves import stretched
from stabn.attention.edit_document import Edit, parse_edit
from stabn.attention.edits import EditConflict, import_round, read_edits, save_edit
from stabn.attention.export import PASSES_AT_ONCE, attend, export_round, panel
from stabn.attention.render import attention_figure, preview_frames
from stabn.attention.rounds import Round, RoundError, load_round, model_attention
from stabn.attention.waiting import WaitingRecord, read_waiting
from stabn.config import DataConfig, ModelConfig
from stabn.data.edit_table import EditError, load_edit_table
from stabn.data.manifest import build_manifest
from stabn.data.packed_frames import JpegFile, PackedFrames
from stabn.data.sampling import covering_samples
from stabn.data.transforms import crop_clip, evaluation_crop, to_input
from stabn.errors import RetryableError
from stabn.models import STABN
from stabn.presets import mini
from stabn.stages import EDIT_SOURCES
from stabn.storage import FolderStorage, StorageError, open_storage
from stabn.training.checkpoint import dump_checkpoint

CLASSES = ("Moving something up", "Moving something down", "Something falling like a rock")
DATA = DataConfig(num_frames=8, crop_size=32)
LENGTHS = {"10": 8, "20": 120, "30": 33}


def network() -> STABN:
    torch.manual_seed(0)
    model = STABN(ModelConfig(num_blocks=(1, 1, 1, 1), width=4, num_classes=3, num_frames=8))
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 8, 32, 32))
    return model.eval()


def video(length: int) -> np.ndarray:
    return np.random.default_rng(length).integers(0, 255, (length, 40, 56, 3), dtype=np.uint8)


@pytest.mark.parametrize("length", [8, 120, 3])
def test_every_source_frame_has_the_mean_over_the_passes_that_saw_it(length: int) -> None:
    model, frames = network(), video(length)
    result = attend(model, frames, DATA, "fp32")
    sums, counts = np.zeros(length), np.zeros(length)
    crop = evaluation_crop(56, 40, DATA)
    for sample in covering_samples(length, 8):
        clip = torch.from_numpy(crop_clip(frames[sample], crop, 32))[None]
        with torch.inference_mode():
            temporal = model(to_input(clip, DATA, "cpu")).temporal_attention.flatten()
        for frame, value in zip(sample, temporal.tolist()):
            sums[frame] += value
            counts[frame] += 1
    assert counts.min() >= 1
    np.testing.assert_allclose(result.temporal, sums / counts, atol=1e-5)
    assert result.spatial.shape[0] == length and result.spatial.dtype == np.uint8
    assert result.probabilities.sum() == pytest.approx(1, abs=1e-5)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("round-inputs")
    storage = open_storage(str(folder / "frames"))
    rows = []
    for video_id, length in LENGTHS.items():
        jpegs = [simplejpeg.encode_jpeg(frame) for frame in video(length)]
        storage.write(f"{video_id}.mjpeg", b"".join(jpegs))
        sizes = [len(jpeg) for jpeg in jpegs]
        rows.append(
            {"video_id": video_id, "split": "train", "class_index": 0, "label": "", "object_key": f"{video_id}.mjpeg"}
            | {"frame_sizes": sizes, "num_frames": length, "width": 56, "height": 40, "source_sha256": "0"}
        )
    manifest = build_manifest(rows, CLASSES, storage.uri, {})
    manifest.save(folder / "manifest.parquet")
    model = network()
    content = dump_checkpoint(
        model, model.config, DATA, CLASSES, manifest_fingerprint=manifest.fingerprint, stage="train", epoch=1
    )
    (folder / "checkpoint.pt").write_bytes(content)
    chosen = {"class_index": 0, "name": CLASSES[0], "train_accuracy": 0.1, "validation_accuracy": 0.1}
    selection = {
        "format": 1,
        "classes": [{**chosen, "train_support": 3, "validation_support": 3}],
        "video_ids": list(LENGTHS),
        "validation_video_ids": [],
        "num_misclassified": 3,
        "reason": "",
        "settings": {},
        "inputs": {},
    }
    (folder / "selection.json").write_text(json.dumps(selection))
    return {name: str(folder / name) for name in ("checkpoint.pt", "manifest.parquet", "selection.json")}


@pytest.fixture
def round_(inputs: dict[str, str], storage_uri: str) -> Round:
    return export_round(*inputs.values(), storage_uri, mini())


def edit_of(item: Round, video_id: str, curve: list[float | None], **changes: object) -> Edit:
    values = {
        "round_id": item.round_id,
        "video_id": video_id,
        "revision": 1,
        "num_frames": LENGTHS.get(video_id, 8),
        "model_attention": tuple(model_attention(item, video_id)) if video_id in LENGTHS else (0.5,) * 8,
        "edited_attention": tuple(curve),
        "status": "edited",
        "editor": "ann",
        "edited_at": "2026-01-02T03:04:05+00:00",
    }
    return Edit(**{**values, **changes})  # type: ignore[arg-type]


def test_a_round_has_everything_and_an_export_again_keeps_edits(round_: Round, inputs: dict[str, str]) -> None:
    storage = round_.storage
    for video_id in LENGTHS:
        names = {key.split("/")[-1] for key in storage.list(f"videos/{video_id}/")}
        assert names == {"attention.json", "spatial.npz", "figure.png", "preview.webm"}
        assert len(model_attention(round_, video_id)) == LENGTHS[video_id]
    save_edit(round_, edit_of(round_, "10", [1.0] * 8))
    parent = round_.uri.rsplit("/rounds/", 1)[0]
    again = export_round(*inputs.values(), parent, mini())
    assert again.round_id == round_.round_id and set(read_edits(again)) == {"10"}
    assert load_round(round_.uri) == again
    with pytest.raises(RoundError, match=r"no round\.json"):
        load_round(parent)


def test_edits_are_imported_per_source_frame(round_: Round, tmp_path: Path) -> None:
    save_edit(round_, edit_of(round_, "10", [0.0, 1.0, None, 0.5, 0.5, 0.5, 0.5, 0.5]))
    save_edit(round_, edit_of(round_, "30", [0.25] * 33, status="skipped", skip_reason="wrong_label"))
    paths = [tmp_path / name for name in ("edits", "manifest", "checkpoint", "selection")]
    summary = import_round(round_.uri, *paths)
    assert (summary.edited, summary.skipped, summary.missing) == (("10",), ("30",), ("20",))
    table = load_edit_table(paths[0])
    assert list(table) == ["10"] and table.round_id == round_.round_id
    np.testing.assert_array_equal(table["10"], np.float32([0, 1, np.nan, 0.5, 0.5, 0.5, 0.5, 0.5]))
    assert all(path.stat().st_size for path in paths)


def test_importing_nothing_is_an_error(round_: Round, tmp_path: Path) -> None:
    with pytest.raises(EditError, match="no edited video"):
        import_round(round_.uri, *(tmp_path / name for name in "abcd"))


def test_the_later_of_two_people_gets_both_versions(round_: Round) -> None:
    mine = edit_of(round_, "10", [1.0] * 8)
    theirs = dataclasses.replace(mine, editor="bob", edited_attention=(0.0,) * 8)
    save_edit(round_, theirs)
    with pytest.raises(EditConflict, match=r"video 10.*bob") as conflict:
        save_edit(round_, mine)
    assert conflict.value.mine == mine and conflict.value.theirs == theirs
    save_edit(round_, dataclasses.replace(mine, revision=2))
    assert read_edits(round_)["10"].editor == "ann"


def test_bad_edits_are_refused(round_: Round) -> None:
    good = edit_of(round_, "10", [1.0] * 8)
    bad = {
        "edited_attention": dataclasses.replace(good, edited_attention=(1.2,) * 8),
        "7 values|has 7": dataclasses.replace(good, edited_attention=(1.0,) * 7),
        "belongs to round": dataclasses.replace(good, round_id="0" * 16),
        "not in round": edit_of(round_, "40", [1.0] * 8),
        "model_attention": dataclasses.replace(good, model_attention=(0.123,) * 8),
        "status": dataclasses.replace(good, status="finished"),
    }
    for message, edit in bad.items():
        with pytest.raises((EditError, RoundError), match=message):
            save_edit(round_, edit)
    with pytest.raises((EditError, RoundError, StorageError)):
        save_edit(round_, dataclasses.replace(good, video_id="../x"))
    assert not read_edits(round_)
    with pytest.raises(EditError, match=r"edits/10/0001\.json: not JSON"):
        parse_edit(b"{", "edits/10/0001.json")


def test_a_long_video_is_never_uncompressed_as_a_whole() -> None:
    jpeg = simplejpeg.encode_jpeg(np.full((32, 48, 3), 90, np.uint8))
    asked: list[int] = []

    class Watched(PackedFrames):
        def __getitem__(self, index: Any) -> np.ndarray:
            asked.append(1 if np.ndim(index) == 0 else len(index))
            return super().__getitem__(index)

    data = DataConfig(num_frames=4, crop_size=32)
    model = STABN(ModelConfig(block="basic", num_blocks=(1, 1, 1, 1), width=4, num_classes=2, num_frames=4)).eval()
    attention = attend(model, Watched([jpeg] * 500, "long"), data)
    assert attention.temporal.shape == (500,) and max(asked) <= PASSES_AT_ONCE * data.num_frames
    frames = Watched([jpeg] * 500, "long")
    asked.clear()
    attention_figure(frames, [panel("prediction", attention, ("a", "b"), -1)], heading="long")
    assert next(preview_frames(frames, attention.temporal)).shape[1] == 48
    assert len(asked) < 40 and max(asked) == 1, "a figure shows some of the frames, a preview one after the other"


def test_frames_in_a_file_are_those_in_memory() -> None:
    jpegs = [simplejpeg.encode_jpeg(frame) for frame in video(9)]
    frames = JpegFile(iter(jpegs))
    assert [frames[number] for number in (8, 0, 3, -1)] == [jpegs[number] for number in (8, 0, 3, -1)]
    assert list(frames) == jpegs and len(frames) == 9
    held, kept = PackedFrames(jpegs, "held"), PackedFrames(frames, "kept")
    assert held.shape == kept.shape and np.array_equal(held[[7, 2]], kept[[7, 2]])


def test_automatic_edits_are_high_on_the_action_and_leave_people_alone(round_: Round, tmp_path: Path) -> None:
    segments = tmp_path / "segments.json"
    segments.write_text(json.dumps({"10": [2, 5], "20": [40, 60]}))
    save_edit(round_, edit_of(round_, "10", [0.5] * 8))
    summary = automatic_edits(round_, str(segments))
    edits = read_edits(round_)
    assert edits["10"].editor == "ann" and edits["10"].revision == 1
    curve = np.array(edits["20"].edited_attention)
    assert (curve[40:60] == 1).all() and (curve[:37] == 0).all() and (curve[63:] == 0).all()
    assert edits["30"].status == "skipped", "its segment is not known"
    assert automatic_edits(round_, str(segments)).fingerprint == summary.fingerprint
    assert len(list(round_.storage.list("edits/"))) == 3, "the second time nothing is written"


def test_controls_have_the_shape_of_corrections_without_their_knowledge(round_: Round, tmp_path: Path) -> None:
    segments = tmp_path / "segments.json"
    segments.write_text(json.dumps({"10": [2, 5], "20": [40, 60], "30": [0, 3]}))
    curves = {}
    for source in EDIT_SOURCES:
        first = automatic_edits(round_, str(segments), source).fingerprint
        curves[source] = {name: np.array(edit.edited_attention) for name, edit in read_edits(round_).items()}
        assert automatic_edits(round_, str(segments), source).fingerprint == first, "the same whenever it runs again"
    true = curves["segments"]
    for name, curve in true.items():
        np.testing.assert_allclose(sorted(curves["segments_shifted"][name]), sorted(curve))
        np.testing.assert_allclose(curves["network"][name], model_attention(round_, name), atol=1e-4)
        others = [stretched(other, len(curve)) for key, other in true.items() if key != name]
        assert any(np.allclose(curves["segments_other"][name], other, atol=1e-4) for other in others)


def test_waiting_ends_when_people_are_done_or_time_is_up(round_: Round) -> None:
    with pytest.raises(RetryableError, match="0 of 3"):
        wait_for_edits(round_, 1.0, timeout_seconds=0.05, poll_seconds=0.01)
    save_edit(round_, edit_of(round_, "10", [0.5] * 8))
    assert wait_for_edits(round_, 0.3, timeout_seconds=5).edited == ("10",)


def test_who_waits_is_seen_though_the_clocks_of_two_machines_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times are the storage's: the run that waits is an hour behind, the editor that reads is not."""
    storage, hour = open_storage(str(tmp_path)), 3600
    behind = time.time() - hour
    monkeypatch.setattr(FolderStorage, "now", lambda self: behind + hour)
    with monkeypatch.context() as machine:
        machine.setattr(time, "time", lambda: behind)
        WaitingRecord(storage, 3, 60.0).tell()
    (found,) = read_waiting(storage)
    assert found.needed == 3 and found.until - found.since == 60
