"""The cache on a node's disk: one fetch per object, never more than the limit, never a wrong byte."""

import multiprocessing
import pickle
import warnings
from pathlib import Path

import pytest

from stabn.data.cache import NodeCache, open_cache
from stabn.storage import FolderStorage, Storage, StorageError, open_storage

SIZE = 10_000


class Counting(FolderStorage):
    """A folder that counts what is read from it."""

    reads = 0

    def read_range(self, key: str, start: int, length: int) -> bytes:
        self.reads += 1
        return super().read_range(key, start, length)


@pytest.fixture
def store(tmp_path: Path) -> Counting:
    storage = Counting(tmp_path / "remote")
    for number in range(50):
        storage.write(f"{number}", content(number))
    return storage


def content(number: int) -> bytes:
    return bytes([number]) * (SIZE - 1) + b"!"


def read(cache: NodeCache, store: Storage, number: int, start: int = 5, length: int = SIZE - 5) -> bytes:
    return cache.read_range(store, f"{number}", SIZE, "v1", start, length)


def used(cache: NodeCache) -> int:
    return sum(path.stat().st_size for path in cache.folder.glob("*/*"))


def test_an_object_is_fetched_once(store: Counting, tmp_path: Path) -> None:
    cache = NodeCache(tmp_path / "cache", 10**6)
    for again in (cache, cache, pickle.loads(pickle.dumps(cache)), NodeCache(tmp_path / "cache", 10**6)):
        assert read(again, store, 7) == content(7)[5:]
        assert read(again, store, 7, 3, 10) == content(7)[3:13]
    assert store.reads == 1
    cache.read_range(store, "7", SIZE, "v2", 0, 1)
    assert store.reads == 2, "another version is another object"


def test_the_limit_holds_and_what_is_used_stays(store: Counting, tmp_path: Path) -> None:
    cache = NodeCache(tmp_path / "cache", 20 * SIZE)
    for number in range(50):
        read(cache, store, number)
        read(cache, store, 0)
        assert used(cache) <= 20 * SIZE
    assert store.reads == 50, "video 0 was always there"
    assert used(cache) > 10 * SIZE


def test_an_object_larger_than_the_cache_is_read_in_part(store: Counting, tmp_path: Path) -> None:
    cache = NodeCache(tmp_path / "cache", SIZE // 2)
    assert read(cache, store, 1, 2, 3) == content(1)[2:5]
    assert used(cache) == 0


def test_a_damaged_file_is_fetched_again(store: Counting, tmp_path: Path) -> None:
    cache = NodeCache(tmp_path / "cache", 10**6)
    read(cache, store, 1)
    (path,) = cache.folder.glob("*/*")
    path.write_bytes(b"half")
    assert read(cache, store, 1) == content(1)[5:]
    assert path.stat().st_size == SIZE


def test_a_disk_that_cannot_be_written_is_a_warning(store: Counting, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    cache = NodeCache(tmp_path / "cache", 10**6)
    with pytest.warns(UserWarning, match="cache cannot be written"):
        assert read(cache, store, 1) == content(1)[5:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(cache, store, 2) == content(2)[5:]


def fill(folder: Path, remote: str, seed: int) -> bool:
    cache, store = NodeCache(folder, 12 * SIZE), open_storage(remote)
    return all(
        read(cache, store, (seed * 7 + step * 3) % 50) == content((seed * 7 + step * 3) % 50)[5:] for step in range(300)
    )


def test_processes_fill_it_at_once(store: Counting, tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert all(pool.starmap(fill, [(tmp_path / "cache", store.uri, seed) for seed in range(4)]))
    assert 0 < used(NodeCache(tmp_path / "cache", 0)) <= 12 * SIZE + 4 * SIZE
    assert not list((tmp_path / "cache").glob("*/.part-*"))


def test_settings_choose_the_cache(tmp_path: Path) -> None:
    assert open_cache("", 1.0) is None
    cache = open_cache(str(tmp_path), 0.5)
    assert cache is not None and cache.limit == 500_000_000
    with pytest.raises(StorageError, match="local disk"):
        open_cache("s3://bucket/cache", 1.0)
