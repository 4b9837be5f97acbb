"""Stores that promise less: what they do is noticed before anything is entrusted to them."""

import email.utils
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from old_store import OldStore, old_store
from round_factory import make_round
from test_editor import OPEN
from test_editor import server as editor_server
from tiny_run import settings, write_dataset

from components.doctor import Places, examine
from stabn.data.frame_target import ForeignFrames, FrameTarget
from stabn.data.mjpeg import pack
from stabn.editor.services import Services
from stabn.endpoint import CHECKSUMS
from stabn.errors import RetryableError, StabnError
from stabn.storage import (
    Claim,
    ClaimLost,
    ObjectExists,
    OutputTaken,
    StorageError,
    check_promises,
    claims,
    open_storage,
    sole_writer,
)
from stabn.tracking import stage_run


@pytest.fixture
def no_modes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Give keys, and nothing else that an AWS client reads."""
    for name in (*CHECKSUMS, "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def old(no_modes: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[OldStore]:
    with old_store() as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        yield store


@pytest.fixture
def https(no_modes: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[OldStore]:
    with old_store(tmp_path) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "certificate.pem"))
        yield store


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("BEAT", 0.05), ("SILENT", 0.5), ("LOOK", 0.02), ("SETTLE", 0.2)):
        monkeypatch.setattr(claims, f"{name}_SECONDS", seconds)


# Checksums


def test_an_older_store_gets_objects_without_the_transfers_own_checksums(https: OldStore, tmp_path: Path) -> None:
    store = open_storage("s3://data/x")
    store.write("a", b"content")
    (tmp_path / "file").write_bytes(b"file")
    store.upload(tmp_path / "file", "b")
    assert https.objects == {"/data/x/a": b"content", "/data/x/b": b"file"}
    https.conditions = "unknown"
    assert check_promises(store) is False and store.read("a") == b"content"


def test_what_the_user_chose_wins_and_its_damage_is_named(https: OldStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    https.conditions = "unknown"
    with pytest.raises(StorageError, match="set AWS_REQUEST_CHECKSUM_CALCULATION=when_required"):
        check_promises(open_storage("s3://data/x"))
    lines: list[str] = []
    assert not examine(Places(storage_uri="s3://data/x"), lines.append)
    assert "AWS_REQUEST_CHECKSUM_CALCULATION=when_required" in lines[0]
    assert https.objects == {}
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "always")
    with pytest.raises(StorageError, match="AWS_REQUEST_CHECKSUM_CALCULATION = 'always'"):
        check_promises(open_storage("s3://data/x"))


def test_the_configuration_file_wins_too(https: OldStore, tmp_path: Path) -> None:
    (tmp_path / "config").write_text("[default]\nrequest_checksum_calculation = when_supported\n")
    with pytest.raises(StorageError, match="set AWS_REQUEST_CHECKSUM_CALCULATION"):
        check_promises(open_storage("s3://data/x"))


@pytest.mark.parametrize(
    "endpoint", ["", "https://s3.eu-west-1.amazonaws.com", "https://s3.cn-north-1.amazonaws.com.cn"]
)
def test_aws_itself_keeps_the_default(endpoint: str, no_modes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from stabn.storage.s3_client import client

    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert client().meta.config.request_checksum_calculation == "when_supported"
    assert client().meta.config.response_checksum_validation == "when_supported"


def test_mlflows_own_client_speaks_to_an_older_store_alike(https: OldStore, mlflow_uri: str) -> None:
    from mlflow import MlflowClient

    MlflowClient(mlflow_uri).create_experiment("stabn", artifact_location="s3://data/artifacts")
    before = {name: os.environ.get(name) for name in CHECKSUMS}
    try:
        with stage_run("report", settings={}, inputs={}) as run:
            run.log_text("all of it", "report.md")
    finally:
        for name in before:
            os.environ.pop(name, None)
    assert https.objects == {f"/data/artifacts/{run.run_id}/artifacts/report.md": b"all of it"}


# Promises


def test_a_real_store_and_a_folder_keep_all_promises_and_nothing_is_left(storage_uri: str) -> None:
    store = open_storage(storage_uri)
    assert check_promises(store) is True
    assert list(store.list()) == []


@pytest.mark.parametrize("conditions", ["ignored", "unknown"])
def test_a_store_without_conditional_writes_is_noticed(old: OldStore, conditions: str) -> None:
    old.conditions = conditions
    assert check_promises(open_storage("s3://data/x")) is False
    assert old.objects == {}
    lines: list[str] = []
    assert not examine(Places(storage_uri="s3://data/x"), lines.append)
    assert "ignores If-None-Match: only one editor server" in lines[0]


def test_a_store_that_lists_late_is_refused(old: OldStore) -> None:
    old.lists = False
    with pytest.raises(StorageError, match="just written is not listed"):
        check_promises(open_storage("s3://data/x"))


def test_a_folder_without_hard_links_keeps_the_promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    store = open_storage(tmp_path)
    assert check_promises(store) is True
    store.write("x", b"first", if_absent=True)
    with pytest.raises(ObjectExists):
        store.write("x", b"second", if_absent=True)
    assert store.read("x") == b"first" and [path.name for path in tmp_path.iterdir()] == ["x"]


# One owner per output


def test_another_run_is_refused_and_the_same_waits(storage_uri: str, impatient: None) -> None:
    store, told = open_storage(storage_uri), []
    with Claim(store, "train", {"epochs": 3}):
        with pytest.raises(OutputTaken, match=r"train on host .*epochs: 3 there, 5 here.*give another output"):
            Claim(store, "train", {"epochs": 5}).__enter__()
        order = []

        def follow() -> None:
            with Claim(store, "train", {"epochs": 3}, say=told.append):
                order.append("second")

        thread = threading.Thread(target=follow)
        thread.start()
        while not told:
            time.sleep(0.01)
        time.sleep(1.0)  # longer than a silent owner lives: this one is heard
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"] and "waiting until it ends" in told[0]
    assert list(store.list()) == []


_HOLD = """
import sys, time
from stabn.storage import Claim, open_storage
with Claim(open_storage(sys.argv[1]), "train", {"epochs": 3}):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_owner_is_followed_at_once(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "held\n"
    process.kill()
    process.wait()
    store = open_storage(tmp_path)
    assert list(store.list()) == ["owner.000001.json"]
    told: list[str] = []
    with Claim(store, "train", {"epochs": 5}, say=told.append):
        assert list(store.list()) == ["owner.000002.json"]
    assert told == [] and list(store.list()) == []


def on_another_machine(claim: Claim) -> Claim:
    claim._record.update(host="elsewhere", processes="others", started=0.0)
    return claim


def test_a_silent_owner_elsewhere_is_followed_and_stops_when_it_is_back(storage_uri: str, impatient: None) -> None:
    store, told = open_storage(storage_uri), []
    former = on_another_machine(Claim(store, "train", {"epochs": 3}))
    former.__enter__()
    with pytest.raises(OutputTaken, match="epochs: 3 there, 5 here"):
        Claim(store, "train", {"epochs": 5}).__enter__()
    former._ended.set()  # its machine hangs
    with Claim(store, "train", {"epochs": 5}, say=told.append) as claim:
        assert "waiting to see whether it is alive" in told[0]
        claim.confirm()
        with pytest.raises(ClaimLost, match="has taken this output over"):
            former.confirm()
        former.__exit__()
        claim.confirm()
    assert list(store.list()) == []


def test_the_same_pipeline_run_goes_on_without_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STABN_RUN_ID", "run-1")
    store, told = open_storage(tmp_path), []
    former = on_another_machine(Claim(store, "train", {"epochs": 3}))
    former.__enter__()
    with Claim(store, "train", {"epochs": 3}, say=told.append), pytest.raises(ClaimLost):
        former.confirm()
    former.__exit__()
    assert told == []


def test_of_two_that_begin_at_once_one_gets_a_store_without_conditions(old: OldStore, impatient: None) -> None:
    store, outcomes, leave = open_storage("s3://data/x"), [], threading.Event()

    def begin(epochs: int) -> None:
        try:
            with Claim(store, "train", {"epochs": epochs}, check_promises(store), say=lambda text: None) as claim:
                claim.confirm()
                outcomes.append("held")
                leave.wait(20)
        except OutputTaken:
            outcomes.append("refused")

    threads = [threading.Thread(target=begin, args=(epochs,)) for epochs in (3, 5)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while len(outcomes) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    leave.set()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", "refused"]


def test_two_trainings_with_other_settings_do_not_share_an_output(tmp_path: Path) -> None:
    from stabn.training.stage import train

    manifest, output = write_dataset(tmp_path), str(tmp_path / "out")
    with Claim(open_storage(output), "train", {"epochs": 9}):
        with pytest.raises(StabnError, match=r"writes this output \(.*epochs: 9 there, 1 here"):
            train(manifest, settings(train__epochs=1), output)
        assert [path.name for path in Path(output).iterdir()] == ["owner.000001.json"]


def test_a_training_that_lost_its_output_writes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stabn.training import stage
    from stabn.training.loop import Loop

    manifest, output = write_dataset(tmp_path), tmp_path / "out"
    real = Loop._train

    def taken_over(self: Loop, epoch: int) -> dict[str, float]:
        (output / "owner.000002.json").write_text(json.dumps({"id": "another", "name": "train", "host": "elsewhere"}))
        return real(self, epoch)

    monkeypatch.setattr(Loop, "_train", taken_over)
    with pytest.raises(ClaimLost, match="train on host elsewhere"):
        stage.train(manifest, settings(train__epochs=2), str(output))
    assert [path.name for path in output.iterdir()] == ["owner.000002.json"]


# Frames of two datasets


def test_frames_of_another_dataset_are_never_replaced(storage_uri: str) -> None:
    jpeg = simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8))
    first, second = (pack([jpeg], letter * 64)[0] for letter in "ab")
    store = open_storage(storage_uri)
    ours = FrameTarget(store, "videos/of/ours")
    ours.store("1.mjpeg", first, "a" * 64, stored=False)
    ours.store("1.mjpeg", second, "b" * 64, stored=True)  # the video changed
    theirs = FrameTarget(store, "videos/of/theirs")
    assert theirs.store("1.mjpeg", second, "b" * 64, stored=True) == {"frame_sizes": [len(second)]}
    for stored in (False, True):
        with pytest.raises(ForeignFrames, match=r"1\.mjpeg: .*/theirs.*frames of videos/of/ours.*another storage"):
            theirs.store("1.mjpeg", first, "a" * 64, stored)
    assert store.read("1.mjpeg") == second
    theirs.store("2.mjpeg", first, "a" * 64, stored=False)
    with pytest.raises(ForeignFrames):
        FrameTarget(store, "videos/of/ours").store("2.mjpeg", second, "b" * 64, stored=True)


# The editor


def test_one_editor_server_keeps_revisions_apart_where_the_store_does_not(
    old: OldStore, impatient: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    item = make_round(tmp_path, "s3://data/editor")
    with editor_server(item) as person:
        assert "ignores If-None-Match, so only one process at a time" in capsys.readouterr().out
        with pytest.raises(OutputTaken, match=r"an editor server on host .* writes this output .*ignores If"):
            Services(item.uri, OPEN)
        with pytest.raises(OutputTaken, match="ignores If-None-Match"):
            sole_writer(item.storage, "stage edits")
        people = [person(f"a{i}") for i in range(6)]
        for client in people:
            client.open("10", take_over=True)
        with ThreadPoolExecutor(6) as pool:
            codes = list(pool.map(lambda i: people[i].save("10", [i / 10] * 12).status_code, range(6)))
        assert codes.count(200) == 1 and set(codes) <= {200, 409}
        others = {"id": "another", "name": "an editor server", "host": "elsewhere"}
        old.objects[f"/data/editor/rounds/{item.round_id}/owner.000007.json"] = json.dumps(others).encode()
        answer = people[0].save("11", [0.5] * 24)
        assert answer.status_code == 503 and "another server has this round" in answer.json()["error"]
    assert [key for key in old.objects if "/owner." in key] == [
        f"/data/editor/rounds/{item.round_id}/owner.000007.json"
    ]


# What a store answers


def test_a_clock_that_is_wrong_is_named(old: OldStore) -> None:
    date = email.utils.formatdate(time.time() - 3600)
    old.answer = (403, {"Date": date}, b"<Error><Code>RequestTimeTooSkewed</Code></Error>")
    with pytest.raises(StorageError, match=r"s3://data/x/y: .*RequestTimeTooSkewed; .*60 minutes ahead of the store's"):
        open_storage("s3://data/x").read("y")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((301, {"x-amz-bucket-region": "eu-west-1"}, b"<Error><Code>PermanentRedirect</Code></Error>"), "=eu-west-1"),
        (
            (301, {}, b"<Error><Code>PermanentRedirect</Code><Endpoint>s3.eu.example.org</Endpoint></Error>"),
            "points to s3.eu.example.org",
        ),
        ((307, {"Location": "https://sso.example.org/login"}, b""), "points to https://sso.example.org/login"),
        (
            (400, {}, b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>"),
            "set AWS_DEFAULT_REGION=eu-west-1",
        ),
        ((200, {"Content-Type": "text/html"}, b"<!doctype html><p>Sign in<br></html>"), "a proxy that wants a sign-in"),
    ],
)
def test_an_answer_that_points_elsewhere_says_where(old: OldStore, answer: tuple, said: str) -> None:
    old.answer = answer
    store = open_storage("s3://data/x")
    for use in (lambda: list(store.list()), lambda: check_promises(store)):
        with pytest.raises(StabnError) as caught:
            use()
    assert said in str(caught.value) and "\n" not in str(caught.value) and "AWS_ENDPOINT_URL" in str(caught.value)


def test_a_store_that_never_answers_is_given_up_once(no_modes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stabn.storage.s3_client.READ_TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(RetryableError, match=r"s3://data/x/y: Read timeout.*is AWS_ENDPOINT_URL"):
            open_storage("s3://data/x").read("y")
        silent.settimeout(0)
        asked = 0
        with pytest.raises(BlockingIOError):
            while True:
                silent.accept()[0].close()
                asked += 1
        assert asked == 1, "AWS_MAX_ATTEMPTS alone says how often"
