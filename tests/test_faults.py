"""An object store that fails between client and server: passing faults go unnoticed, lasting ones name the object."""

import os
from pathlib import Path

import pytest
from faulty_server import FAULTS, Faults

from stabn.errors import RetryableError, StabnError
from stabn.storage import Storage, StorageError, open_storage

CONTENT = bytes(range(256)) * 4096  # 1 MB
READS = ("read", "read_range", "download")


@pytest.fixture
def store(s3_uri: str, faults: Faults) -> Storage:
    storage = open_storage(s3_uri)
    storage.write("7.mjpeg", CONTENT)
    return storage


def read(store: Storage, how: str, folder: Path) -> bytes:
    if how == "read_range":
        return store.read_range("7.mjpeg", 1000, 700_000)
    if how == "download":
        store.download("7.mjpeg", folder / "7")
        return (folder / "7").read_bytes()
    return store.read("7.mjpeg")


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("how", READS)
def test_a_read_survives_two_faults(store: Storage, faults: Faults, kind: str, how: str, tmp_path: Path) -> None:
    faults.kind, faults.count = kind, 2
    expected = CONTENT[1000:701_000] if how == "read_range" else CONTENT
    assert read(store, how, tmp_path) == expected
    assert faults.happened == 2


@pytest.mark.parametrize("kind", FAULTS)
def test_writes_and_listings_survive_two_faults(store: Storage, faults: Faults, kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    steps = {
        "PUT": (lambda: store.write("8.mjpeg", CONTENT), lambda: store.upload(tmp_path / "file", "9.mjpeg")),
        "GET": (lambda: list(store.list()),),
        "HEAD": (lambda: store.exists("7.mjpeg"),),
    }
    if kind == "expired":
        del steps["HEAD"]  # its answer has no body and so no code
    if kind == "truncated":
        del steps["PUT"], steps["HEAD"]  # nothing to cut off
        store.write("8.mjpeg", CONTENT), store.write("9.mjpeg", CONTENT)
    for method, operations in steps.items():
        for operation in operations:
            faults.kind, faults.count, faults.happened = kind, 2, 0
            faults.matches = lambda m, path, method=method: m == method
            operation()
            assert faults.happened == 2, method
    assert store.read("8.mjpeg") == store.read("9.mjpeg") == CONTENT


@pytest.mark.parametrize("kind", FAULTS)
def test_a_lasting_fault_names_the_object(
    store: Storage, faults: Faults, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    faults.kind, faults.count = kind, 1000
    for how in READS:
        with pytest.raises(StabnError) as error:
            read(store, how, tmp_path)
        assert isinstance(error.value, StorageError if kind == "expired" else RetryableError)
        assert str(error.value).startswith(f"{store.uri}/7.mjpeg: ")
        assert not (tmp_path / "7").exists()
    if kind == "expired":
        assert "renew AWS_SESSION_TOKEN" in str(error.value)


def test_renewed_credentials_are_read_again(
    store: Storage, faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod's credentials are renewed in its file while it runs; the attempt after the refusal finds them there."""
    keys = {name.lower(): os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    path = tmp_path / "credentials"
    text = "[default]\n" + "".join(f"{name} = {value}\n" for name, value in keys.items())
    path.write_text(text + "aws_session_token = old\n")
    for name in keys:
        monkeypatch.delenv(name.upper())
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))

    def renew(method: str, url: str) -> bool:
        path.write_text(text)
        return True

    faults.kind, faults.count, faults.matches = "expired", 1, renew
    assert store.read("7.mjpeg") == CONTENT
