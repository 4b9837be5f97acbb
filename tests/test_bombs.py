"""Small files that would become large, links that lead elsewhere, and code: refused before they do anything."""

import io
import pickle
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from test_checkpoint import dump, network

from stabn.data.manifest import Manifest, ManifestError
from stabn.data.sources import SourceVideo, open_source
from stabn.models.load_report import WeightsError
from stabn.models.weights import read_weights
from stabn.training.checkpoint import CheckpointError, load_model, read_checkpoint, serialize


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.size, found.type, found.linkname = size, kind, link
    return found


class Zeros(io.RawIOBase):
    """A file of zeros that needs no memory."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        buffer[:] = bytes(len(buffer))
        return len(buffer)


def read_archive(folder: Path, limit: int = 1 << 20) -> list[SourceVideo]:
    return list(open_source(str(folder)).videos(lambda video_id, stamp, size: size <= limit))


def test_links_and_devices_in_an_archive_are_no_videos(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    with tarfile.open(tmp_path / "videos.tar.gz", "w:gz") as archive:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE), start=1):
            archive.addfile(member(f"{number}.webm", kind=kind, link=str(tmp_path / "secret")))
        for name in ("../../outside.webm", "/etc/cron.d/9.webm", "a/../../7.webm"):
            archive.addfile(member(name, 4), io.BytesIO(b"data"))
    before = sorted(path for path in tmp_path.rglob("*"))
    found = read_archive(tmp_path)
    assert [video.data for video in found] == [b"data"] and found[0].path == "/etc/cron.d/9.webm"
    assert sorted(tmp_path.rglob("*")) == before


BOMB = """
import resource, sys
from stabn.data.sources import SourceError, open_source
sys.path.insert(0, "tests")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    found = [(video.size, video.data) for video in open_source(sys.argv[1]).videos(lambda name, stamp, size: size < 9)]
    print(found)
except SourceError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.parametrize(
    ("kind", "said"),
    [(tarfile.REGTYPE, "(314572800, None)"), (tarfile.XHDTYPE, "a name or header of 314572800 bytes")],
    ids=["video", "header"],
)
def test_what_an_archive_unpacks_to_does_not_fill_the_memory(tmp_path: Path, kind: bytes, said: str) -> None:
    with tarfile.open(tmp_path / "videos.tgz", "w:gz", compresslevel=1) as archive:
        archive.addfile(member("1.webm", 300 << 20, kind), io.BufferedReader(Zeros()))
    done = subprocess.run([sys.executable, "-c", BOMB, str(tmp_path)], capture_output=True, text=True, check=True)
    *lines, added = done.stdout.splitlines()
    assert said in lines[0] and int(added) < 100, done.stdout


def test_many_zeros_behind_an_archive_do_not_fill_the_memory(tmp_path: Path) -> None:
    import gzip

    with gzip.open(tmp_path / "videos.tgz", "wb", compresslevel=1) as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            archive.addfile(member("1.webm", 4), io.BytesIO(b"data"))
        for _ in range(300):
            file.write(bytes(1 << 20))
    done = subprocess.run([sys.executable, "-c", BOMB, str(tmp_path)], capture_output=True, text=True, check=True)
    *lines, added = done.stdout.splitlines()
    assert lines == ["[(4, b'data')]"] and int(added) < 100, done.stdout


def compressed(data: bytes) -> bytes:
    """Return a file of PyTorch whose entries are compressed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return buffer.getvalue()


def test_weights_that_would_grow_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"conv.weight": torch.zeros(1 << 20)}, buffer)
    repeated = serialize({"conv.weight": torch.zeros(1).expand(1 << 40)})
    for data, said in ((compressed(buffer.getvalue()), "compressed"), (repeated, r"\(1099511627776,\), larger")):
        (tmp_path / "w.pt").write_bytes(data)
        with pytest.raises(WeightsError, match=rf"w\.pt: cannot be read as weights \(it .*{said}"):
            read_weights(str(tmp_path / "w.pt"))
        with pytest.raises(CheckpointError, match=r"w\.pt: cannot be read as a checkpoint"):
            read_checkpoint(str(tmp_path / "w.pt"))


def test_settings_of_a_larger_network_than_the_weights_take_no_memory(tmp_path: Path) -> None:
    (tmp_path / "c.pt").write_bytes(dump(*network()))
    content = read_checkpoint(str(tmp_path / "c.pt"))
    config = {**content["model_config"], "width": 1 << 20}
    (tmp_path / "c.pt").write_bytes(serialize({**content, "model_config": config}))
    with pytest.raises(CheckpointError, match=r"c\.pt: its settings are not those of its weights"):
        load_model(str(tmp_path / "c.pt"))


def test_a_manifest_of_very_many_equal_rows_is_refused(tmp_path: Path) -> None:
    table = pa.table({"video_id": pa.nulls(30_000_000, pa.int8())})
    pq.write_table(table.replace_schema_metadata({b"stabn": b"{}"}), tmp_path / "m.parquet")
    assert (tmp_path / "m.parquet").stat().st_size < 1 << 20
    with pytest.raises(ManifestError, match="30000000 rows, more than"):
        Manifest.load(tmp_path / "m.parquet")


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["pickle", "npy", "legacy"])
def test_code_in_a_file_of_weights_is_not_run(tmp_path: Path, kind: str) -> None:
    payload, path = Payload(tmp_path / "ran"), tmp_path / "w.pth"
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": payload}))
    elif kind == "npy":
        np.save(path.open("wb"), np.array([payload], dtype=object), allow_pickle=True)
    else:
        torch.save({"state_dict": payload}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match=r"w\.pth: cannot be read as weights"):
        read_weights(str(path))
    assert not (tmp_path / "ran").exists()
