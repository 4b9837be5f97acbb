"""The same processes load from the first epoch to the last, and read nothing that is not needed."""

import dataclasses
import multiprocessing
import multiprocessing.resource_tracker
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from tiny_run import EDITED, settings, write_dataset, write_edits

from stabn.config import DataConfig
from stabn.data.dataset import ClipDataset, FrameReader
from stabn.data.manifest import Manifest
from stabn.data.sampler import EpochSampler
from stabn.errors import StabnError
from stabn.training import estimate
from stabn.training.estimate import loading_processes
from stabn.training.loading import ClipLoader, in_batches
from stabn.training.stage import finetune

CPU, GPU = torch.device("cpu"), torch.device("cuda")
CLIPS = settings().data


def datasets(manifest_path: str, config: DataConfig = CLIPS) -> tuple[ClipDataset, ClipDataset]:
    manifest = Manifest.load(manifest_path)
    training = ClipDataset(manifest, manifest.indices("train"), config, train=True, seed=3)
    return training, ClipDataset(manifest, manifest.indices("validation"), config, train=False)


def load_epochs(
    loader: ClipLoader, training: ClipDataset, validation: ClipDataset
) -> Iterator[tuple[dict[str, Any], set[int]]]:
    """Yield all batches of two epochs, each followed by a validation, and which processes there were."""
    for epoch in range(2):
        training.epoch = epoch
        sampler = EpochSampler(np.arange(len(training)), 4, seed=3, epoch=epoch)
        for dataset, batches in ((training, sampler), (validation, in_batches(range(len(validation)), 4))):
            for batch in loader.batches(dataset, batches):
                yield batch, {child.pid for child in psutil.Process().children() if child.status() != "zombie"}


@pytest.fixture
def started_by_training() -> Iterator[None]:
    """Be like a process that training has started, whose own processes would start Python anew."""
    former = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(former, force=True)


def test_the_same_processes_load_every_epoch_what_this_one_would(manifest_path: str, started_by_training: None) -> None:
    multiprocessing.resource_tracker.ensure_running()
    before = {child.pid for child in psutil.Process().children()}
    training, validation = datasets(manifest_path)
    with ClipLoader([training, validation], CPU, 0) as loader:
        expected = [batch for batch, _ in load_epochs(loader, training, validation)]
    assert len(expected) == 2 * (3 + 2)
    assert not torch.equal(expected[0]["clips"], expected[5]["clips"]), "augmentation follows the epoch"
    with ClipLoader([training, validation], CPU, 2) as loader:
        found, processes = zip(*load_epochs(loader, training, validation), strict=True)
        workers = processes[0] - before
        lines = [" ".join(psutil.Process(number).cmdline()) for number in workers]
    assert len(workers) == 2 and all(one - before == workers for one in processes)
    assert not any("spawn_main" in line for line in lines), "Python was started anew"
    assert not any(psutil.pid_exists(number) for number in workers), "they live on"
    for batch, other in zip(found, expected, strict=True):
        assert batch.keys() == other.keys()
        for name, value in batch.items():
            assert torch.equal(value.nan_to_num(2), other[name].nan_to_num(2)), name


@pytest.mark.parametrize("workers", [0, 1])
def test_a_pass_that_is_left_does_not_disturb_the_next(manifest_path: str, workers: int) -> None:
    training, validation = datasets(manifest_path)
    with ClipLoader([training, validation], CPU, workers) as loader:
        left = loader.batches(training, [[0], [1], [2], [3], [4]])
        assert next(left)["index"].tolist() == [0]
        found = [batch["index"].tolist() for batch in loader.batches(validation, [[0, 1], [2]])]
    assert found == [[9, 10], [11]]


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_is_read_of_clips_that_are_known(tmp_path: Path, workers: int) -> None:
    training, _ = datasets(write_dataset(tmp_path))
    whole = [training[position] for position in range(4)]
    for row in (1, 3, 4):
        (tmp_path / "frames" / f"{row + 1}.mjpeg").unlink()
    with ClipLoader([training], CPU, workers) as loader:
        mixed, none = loader.batches(training, [[0, 1, 2, 3], [3, 4]], {1, 3, 4}.__contains__)
        assert none["index"].tolist() == [3, 4] and "clips" not in none and none["color"].shape == (2, 3, 4)
        for position, clips in enumerate(mixed["clips"]):
            assert torch.equal(clips, whole[position]["clips"] * (position % 2 == 0))
        with pytest.raises(StabnError):
            list(loader.batches(training, [[0, 1]], {3}.__contains__))


def test_finetuning_with_cached_features_reads_each_clip_once(
    manifest_path: str, trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    jpegs = FrameReader.jpegs

    def counted(self: FrameReader, index: int, frames: Any) -> dict[int, bytes]:
        read.append(index)
        return jpegs(self, index, frames)

    monkeypatch.setattr(FrameReader, "jpegs", counted)
    edits = write_edits(tmp_path / "edits.parquet", EDITED)
    options = {"finetune__augment": False, "finetune__epochs": 4, "finetune__validate_every": 4}
    for kept, times in ((True, 1), (False, 4)):
        read.clear()
        config = settings(**options, finetune__feature_cache_mb=64 * kept)
        finetune(trained, manifest_path, edits, config, str(tmp_path / str(kept)))
        assert sorted(read) == sorted([*range(9)] * times + [*range(9, 15)])


def test_loading_processes_share_the_memory_for_frames(manifest_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest.load(manifest_path)
    sizes = [int(manifest.video(row).frame_sizes.sum()) for row in range(3)]
    reader = FrameReader(manifest, 1)
    monkeypatch.setattr(reader, "_room", 2 * (sizes[0] + sizes[1]) + 1)
    reader.share_memory(2)
    for row in range(3):
        reader.jpegs(row, [0])
    assert list(reader._memory) == [0, 1]


@pytest.mark.parametrize(
    ("cores", "processes", "free_gb", "memory_gb", "expected"),
    [
        (16, 1, 64, 256, 15),
        (64, 1, 64, 256, 16),
        (64, 8, 200, 1000, 7),
        (16, 1, 1, 256, 1),  # a batch of 64 clips of 4.8 MB, twice, is 0.62 GB
        (16, 1, 64, 8, 3),
        (16, 1, None, 8, 3),
        (16, 1, 0.1, 256, 0),
        (1, 1, 64, 256, 0),
        (4, 8, 64, 256, 0),
    ],
)
def test_the_number_of_loading_processes_follows_the_machine(
    cores: int,
    processes: int,
    free_gb: float | None,
    memory_gb: int,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(estimate, "num_cores", lambda: cores)
    monkeypatch.setattr(estimate, "free_shared_memory", lambda: None if free_gb is None else int(free_gb * 1e9))
    monkeypatch.setattr(estimate, "memory_limit", lambda: memory_gb * 10**9)
    clips = DataConfig()
    assert loading_processes(clips, 64 // processes, processes, GPU) == expected
    assert loading_processes(clips, 64 // processes, processes, CPU) == 0, "the network keeps the cores busy"
    assert loading_processes(dataclasses.replace(clips, workers=0), 64, processes, GPU) == 0
    if not free_gb or free_gb > 1:
        assert loading_processes(dataclasses.replace(clips, workers=3), 8, processes, CPU) == 3
