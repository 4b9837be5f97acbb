"""Storage in a folder and in a real S3 server behaves the same, and says what is wrong."""

import concurrent.futures
import contextlib
import errno
import functools
import http.server
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import pytest

from stabn import local_services, storage
from stabn.errors import RetryableError, StabnError
from stabn.local_mlflow import LocalServiceError
from stabn.local_services import local_object_store
from stabn.storage import ObjectExists, ObjectNotFound, StorageError, open_storage, read_uri, write_uri
from stabn.storage import s3 as s3_module

BAD_KEYS = ["../x", "/x", "a//b", "", "a/../b", ".", "a/", "a\\b", "a\nb", ".part-x"]


def test_what_is_written_is_read_back(storage_uri):
    store = open_storage(storage_uri)
    store.write("videos/7.mjpeg", b"0123456789")
    store.write("videos/7.mjpeg", b"abcdefghij")
    assert store.read("videos/7.mjpeg") == b"abcdefghij"
    assert store.read_range("videos/7.mjpeg", 2, 3) == b"cde"
    assert store.read_range("videos/7.mjpeg", 3, 0) == b""
    assert store.exists("videos/7.mjpeg") and not store.exists("videos/8.mjpeg") and not store.exists("videos")
    store.write("empty", b"")
    assert store.read("empty") == b""
    store.delete("empty")
    store.delete("empty")
    assert not store.exists("empty")
    assert store.child("videos/").read("7.mjpeg") == b"abcdefghij"
    assert store.locate("videos/7.mjpeg") == f"{store.uri}/videos/7.mjpeg"


def test_keys_are_listed_sorted_and_below_the_prefix_only(storage_uri):
    store = open_storage(storage_uri)
    keys = ["a/2", "a-b", "a/1/x", "a/1-x", "b", "ab"]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda key: store.write(key, b"x"), keys))
    assert list(store.list()) == sorted(keys)
    assert list(store.list("a/")) == ["a/1-x", "a/1/x", "a/2"]
    assert list(store.list("a/1")) == ["a/1-x", "a/1/x"]
    assert list(store.list("nothing/")) == []
    assert list(store.child("a").list("1/")) == ["1/x"]


def test_folders_are_the_names_one_level_below(storage_uri):
    store = open_storage(storage_uri)
    for key in ("rounds/b/round.json", "rounds/a/videos/1/x", "rounds/a/round.json", "rounds/file", "other/c/d"):
        store.write(key, b"x")
    assert store.folders("rounds/") == ("a", "b") and store.folders() == ("other", "rounds")
    assert store.folders("nothing/") == () and store.child("rounds").folders() == ("a", "b")


def test_more_keys_than_one_page_are_listed(s3_uri):
    store = open_storage(s3_uri)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda i: store.write(f"k{i:04}", b""), range(1010)))
    assert list(store.list()) == [f"k{i:04}" for i in range(1010)]


@pytest.mark.parametrize("key", BAD_KEYS)
@pytest.mark.parametrize("uri", ["folder", "s3://data/x"])
def test_keys_that_leave_the_prefix_are_refused(uri, key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = open_storage(uri)
    for use in (store.read, store.exists, store.delete, store.locate):
        with pytest.raises(StorageError, match="key"):
            use(key)
    with pytest.raises(StorageError):
        store.write(key, b"x")
    with pytest.raises(StorageError):
        store.download(key, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_object_is_named(storage_uri, tmp_path):
    store = open_storage(storage_uri)
    for use in (store.read, lambda key: store.read_range(key, 0, 1), lambda key: store.download(key, tmp_path / "x")):
        with pytest.raises(ObjectNotFound, match=f"{store.uri}/no/such"):
            use("no/such")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("start", "length"), [(4, 9), (6, 1), (40, 2), (-1, 2), (0, -1)])
def test_a_range_must_arrive_whole(storage_uri, start, length):
    store = open_storage(storage_uri)
    store.write("x", b"123456")
    with pytest.raises(StorageError, match=f"{store.uri}/x"):
        store.read_range("x", start, length)


def test_of_eight_writers_of_a_new_object_one_wins(storage_uri):
    store = open_storage(storage_uri)
    barrier = threading.Barrier(8)

    def attempt(i):
        barrier.wait()
        try:
            store.write("edits/0001.json", bytes([i]), if_absent=True)
        except ObjectExists as error:
            assert "edits/0001.json" in str(error)
            return None
        return i

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        winners = [i for i in threads.map(attempt, range(8)) if i is not None]
    assert len(winners) == 1
    assert store.read("edits/0001.json") == bytes(winners)
    assert list(store.list()) == ["edits/0001.json"]


def test_readers_never_see_a_part_of_a_write(storage_uri):
    store = open_storage(storage_uri)
    versions = [bytes([i]) * 300_000 for i in range(12)]
    store.write("x", versions[0])
    writer = threading.Thread(target=lambda: [store.write("x", data) for data in versions])
    writer.start()
    while writer.is_alive():
        assert store.read("x") in versions
    assert list(store.list()) == ["x"]


def test_an_interrupted_file_leaves_the_former_one_and_no_litter(tmp_path, monkeypatch):
    store = open_storage(tmp_path)
    store.write("x", b"former")
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StorageError, match="No space left"):
        store.write("x", b"new")
    assert store.read("x") == b"former"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_files_go_up_and_down_whole(storage_uri, tmp_path):
    store = open_storage(storage_uri)
    data = os.urandom(9 << 20)  # more than one part of a multipart upload
    (tmp_path / "up").write_bytes(data)
    store.upload(tmp_path / "up", "checkpoint.pt")
    store.download("checkpoint.pt", tmp_path / "new" / "down")
    assert (tmp_path / "new" / "down").read_bytes() == data
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["down"]
    assert store.read_range("checkpoint.pt", 8 << 20, 100) == data[8 << 20 : (8 << 20) + 100]
    with pytest.raises(StorageError, match="missing"):
        store.upload(tmp_path / "missing", "x")


def test_a_file_goes_up_once(s3_uri, tmp_path, monkeypatch):
    (tmp_path / "up").write_bytes(b"x" * 1000)
    client, sent = s3_module._client(), []
    send = client._make_api_call
    monkeypatch.setattr(client, "_make_api_call", lambda name, request: sent.append(name) or send(name, request))
    open_storage(s3_uri).upload(tmp_path / "up", "x")
    assert sent == ["PutObject"]


def test_single_objects_by_uri(storage_uri, tmp_path):
    uri = f"{storage_uri}/round/round.json"
    assert not storage.uri_exists(uri)
    storage.write_uri(uri, b"{}")
    assert storage.uri_exists(uri) and storage.read_uri(uri) == b"{}"
    storage.fetch(uri, tmp_path / "copy.json")
    assert storage.read_uri(tmp_path / "copy.json") == b"{}"
    assert storage.read_uri(f"file://{tmp_path}/copy.json") == b"{}"


def _read_in_other_process(store):
    return store.read("x")


def test_a_storage_can_be_pickled_and_used_after_a_fork(storage_uri):
    store = open_storage(storage_uri)
    store.write("x", b"here")
    assert pickle.loads(pickle.dumps(store)) == store
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_read_in_other_process, [store] * 4) == [b"here"] * 4


@pytest.mark.parametrize("uri", ["", "gs://bucket/x", "s3://", "s3:///x", "s3://data/../x", "s3://data//x", "file://x"])
def test_other_uris_are_refused(uri):
    with pytest.raises(StorageError):
        open_storage(uri)


def test_uris_are_normalised(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_storage("s3://data/a/").uri == "s3://data/a"
    assert open_storage("s3://data").locate("k") == "s3://data/k"
    assert open_storage("x/").uri == str(tmp_path / "x")
    assert open_storage(f"file://{tmp_path}/a%20b").uri == str(tmp_path / "a b")
    with pytest.raises(StorageError, match="names no object"):
        storage.read_uri("s3://data")


@pytest.mark.parametrize("name", ["74225", "a.b-c_d", "x" * 128])
def test_plain_ids_pass(name):
    assert storage.check_id(name, "video id") == name


@pytest.mark.parametrize("name", ["", ".hidden", "../x", "a/b", "a b", "x" * 129, "é", "a\n", "-x"])
def test_other_ids_are_refused(name):
    with pytest.raises(StabnError, match="video id"):
        storage.check_id(name, "video id")


def test_wrong_credentials_say_what_to_check(s3_uri, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = open_storage(s3_uri)
    for use in (
        lambda: store.read("x"),
        lambda: store.exists("x"),
        lambda: store.write("x", b""),
        lambda: list(store.list()),
    ):
        with pytest.raises(StorageError, match=r"403.*AWS_SECRET_ACCESS_KEY") as caught:
            use()
        assert store.uri in str(caught.value) and "wrong" not in str(caught.value)


def test_no_credentials_say_what_to_set(s3_uri, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(StorageError, match="set AWS_ACCESS_KEY_ID"):
        open_storage(s3_uri).read("x")


def test_a_bucket_that_does_not_exist_is_named(s3):
    store = open_storage("s3://no-such-bucket/x")
    for use in (lambda: store.read("y"), lambda: store.write("y", b""), lambda: list(store.list())):
        with pytest.raises(StorageError, match=r"s3://no-such-bucket.*NoSuchBucket.*AWS_ENDPOINT_URL") as caught:
            use()
        assert not isinstance(caught.value, ObjectNotFound)


@pytest.fixture
def flaky_endpoint(monkeypatch):
    """Serve answers from a list on a local port that the AWS variables name."""
    Answer = namedtuple("Answer", "status body length")
    answers, requests = [], []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            requests.append(self.path)
            self.send_response(answer.status)
            self.send_header("Content-Length", str(answer.length))
            self.end_headers()
            self.wfile.write(answer.body)
            self.close_connection = True

        def log_message(self, *message):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield Answer, answers, requests
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("status", [500, 503, 429])
def test_an_overloaded_store_may_be_tried_again(flaky_endpoint, status):
    Answer, answers, _ = flaky_endpoint
    answers.append(Answer(status, b"", 0))
    with pytest.raises(RetryableError, match=f"s3://data/x/y.*{status}"):
        open_storage("s3://data/x").read("y")


@pytest.mark.parametrize(("status", "code"), [(507, "XMinioStorageFull"), (403, "QuotaExceeded")])
def test_a_full_store_is_not_an_overloaded_one(flaky_endpoint, status, code):
    Answer, answers, _ = flaky_endpoint
    body = f"<Error><Code>{code}</Code><Message>full</Message></Error>".encode()
    answers.append(Answer(status, body, len(body)))
    with pytest.raises(StorageError, match=f"s3://data/x/y: .*{code}: it is full, or the bucket's quota is used up"):
        open_storage("s3://data/x").read("y")


@pytest.mark.parametrize("uri", ["s3:/data/x", "S3:/data/x", "s3//data/x", "s3:data/x", "file:/data/x", "gs:/data/x"])
def test_what_is_nearly_a_uri_is_no_folder(uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for action in (open_storage, read_uri, lambda text: write_uri(text, b"1")):
        with pytest.raises(StorageError, match="two slashes after a colon"):
            action(uri)
    write_uri(f"./{uri}", b"1")
    assert read_uri(f"./{uri}") == b"1"


def test_a_connection_that_breaks_in_the_middle_is_repeated(flaky_endpoint, tmp_path):
    Answer, answers, requests = flaky_endpoint
    answers += [Answer(200, b"abc", 6), Answer(200, b"abcdef", 6)]
    assert open_storage("s3://data").read("y") == b"abcdef"
    answers[:] = [Answer(200, b"abc", 6), Answer(200, b"abcdef", 6)]
    open_storage("s3://data").download("y", tmp_path / "y")
    assert (tmp_path / "y").read_bytes() == b"abcdef"
    answers[:] = [Answer(200, b"abc", 6)]
    with pytest.raises(RetryableError, match="s3://data/y"):
        open_storage("s3://data").download("y", tmp_path / "z")
    assert not (tmp_path / "z").exists() and len(requests) == 2 + 2 + s3_module.OWN_ATTEMPTS


def test_a_store_that_is_not_there_may_be_tried_again(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(RetryableError, match=r"s3://data/x.*AWS_ENDPOINT_URL"):
        open_storage("s3://data").write("x", b"")


_SERVE = """
import os, sys, time
from stabn.local_services import local_object_store
from stabn.storage import open_storage
with local_object_store(sys.argv[1]) as store:
    open_storage(store.uri()).write("kept", b"by the first start")
    print(store.endpoint, flush=True)
    time.sleep(60)
"""


def _serve(folder):
    process = subprocess.Popen([sys.executable, "-c", _SERVE, str(folder)], stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip()


def _is_listening(endpoint):
    import socket

    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", int(endpoint.rpartition(":")[2]))) == 0


def test_a_second_start_sees_the_earlier_objects(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://elsewhere")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    process, endpoint = _serve(tmp_path)
    try:
        with local_object_store(tmp_path) as shared:
            assert shared.endpoint == endpoint and open_storage(shared.uri()).read("kept") == b"by the first start"
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 143
    finally:
        process.kill()
    assert not _is_listening(endpoint)
    assert (tmp_path / "keys.json").stat().st_mode & 0o777 == 0o600
    with local_object_store(tmp_path) as store:
        assert open_storage(store.uri()).read("kept") == b"by the first start"
        assert os.environ["AWS_ENDPOINT_URL"] == store.endpoint == endpoint
        assert "AWS_SESSION_TOKEN" not in os.environ
    assert os.environ["AWS_ENDPOINT_URL"] == "http://elsewhere" and os.environ["AWS_SESSION_TOKEN"] == "token"


def test_the_store_goes_on_while_another_process_uses_it(tmp_path, capfd):
    program = (
        "import sys\nfrom stabn.local_services import local_object_store\nfrom stabn.storage import open_storage\n"
    )
    program += "with local_object_store(sys.argv[1]) as store:\n    print(store.endpoint, flush=True)\n"
    program += "    sys.stdin.readline()\n    open_storage(store.uri()).write('late', b'x')\n"
    with contextlib.ExitStack() as stack:
        start = functools.partial(subprocess.Popen, [sys.executable, "-c", program, str(tmp_path)], text=True)
        both = [stack.enter_context(start(stdin=subprocess.PIPE, stdout=subprocess.PIPE)) for _ in range(2)]
        first, second = (process.stdout.readline().strip() for process in both)
        assert first == second and _is_listening(first), "one of them runs it, whichever came first"
        for process in both:  # the owner's own work may end first
            process.stdin.write("\n")
            process.stdin.flush()
            time.sleep(0.5)
        assert [process.wait(30) for process in both] == [0, 0], "also the second one could write at its end"
    assert not _is_listening(first)


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    import fcntl

    def refuse(file, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(LocalServiceError, match=r"No locks available .*local disk"), local_object_store(tmp_path):
        pass


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends a child with its parent")
def test_a_killed_process_leaves_no_server(tmp_path):
    process, endpoint = _serve(tmp_path)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while _is_listening(endpoint):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_store_that_dies_at_start_shows_its_log(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "filerldb2").write_text("not a folder")
    with pytest.raises(LocalServiceError, match=r"(?s)weed\.log.*filer"), local_object_store(tmp_path):
        pass


def test_a_full_disk_is_refused_with_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(local_services, "RESERVED_BYTES", 1 << 60)
    with pytest.raises(LocalServiceError, match="MB free on this disk"), local_object_store(tmp_path):
        pass


def test_without_a_server_buckets_are_folders(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(local_services, "_find_weed", lambda: None)
    with local_object_store(tmp_path) as store:
        open_storage(store.uri("data", "/frames/")).write("x", b"1")
        assert not store.endpoint
    assert (Path(tmp_path) / "objects" / "data" / "frames" / "x").read_bytes() == b"1"
    assert "folder" in capsys.readouterr().out
