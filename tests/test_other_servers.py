"""Servers that never answer, ask for a sign-in, redirect, or take less than ours: an end, one line, nothing unsaid."""

import contextlib
import email.utils
import http.server
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from old_mlflow import OldMlflow, old_mlflow

from components.cluster.api import ClusterError, KubeApi
from components.doctor import Places, examine
from pipelines import server as kfp
from stabn.errors import RetryableError
from stabn.tracking import TrackingError, stage_run


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OldMlflow]:
    for name in ("STABN_RUN_ID", "STABN_EXPERIMENT", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with old_mlflow(tmp_path / "artifacts") as state:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", state.uri)
        yield state


# MLflow


def test_what_an_older_server_takes_is_recorded_and_the_rest_is_told(
    mlflow: OldMlflow, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mlflow.batch, mlflow.refused = 7, "wrong"
    settings = {f"setting{i}": str(i) for i in range(30)} | {"long": "x" * 700, "longest": "y" * 7000}
    with caplog.at_level(logging.WARNING), stage_run("train", settings=settings, inputs={}) as run:
        run.log_metrics({f"number{i}": i for i in range(30)} | {"wrong": 1.0, "after": 2.0})
    expected = settings | {"long": "x" * 500, "longest": "y" * 500}
    assert mlflow.params == expected
    assert len(mlflow.metrics) == 31 and mlflow.metrics["after"] == 2.0 and "wrong" not in mlflow.metrics
    assert (tmp_path / "artifacts" / "long" / "long.txt").read_text() == "x" * 700
    assert (tmp_path / "artifacts" / "long" / "longest.txt").read_text() == "y" * 7000
    said = [record.getMessage() for record in caplog.records]
    assert len([line for line in said if "wrong = 1.0 is refused" in line and "invalid metric" in line]) == 1
    assert len([line for line in said if "long is cut to 500 characters; the whole: long/long.txt" in line]) == 1
    assert not [line for line in said if "goes on without" in line]


def test_a_proxy_that_takes_small_requests_only_gets_small_ones(mlflow: OldMlflow) -> None:
    mlflow.body_bytes = 1500
    with stage_run("train", settings={f"setting{i}": "v" * 50 for i in range(60)}, inputs={}) as run:
        run.log_metrics({f"number{i}": i for i in range(100)})
    assert len(mlflow.params) == 60 and len(mlflow.metrics) == 100


@pytest.mark.parametrize("page", [(200, ""), (302, "/sign-in"), (401, "/"), (403, "/")])
def test_a_sign_in_before_mlflow_is_named_and_not_tried_again(mlflow: OldMlflow, page: tuple[int, str]) -> None:
    mlflow.page = page
    said = "a web page, as a sign-in does; set MLFLOW_TRACKING_TOKEN"
    with pytest.raises(TrackingError, match=said) as caught, stage_run("train", settings={}, inputs={}):
        pass
    assert "\n" not in str(caught.value)


def test_an_mlflow_that_never_answers_does_not_hold_a_stage_up(
    mlflow: OldMlflow, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    mlflow.silent = threading.Event()
    try:
        with stage_run("train", settings={}, inputs={}):
            pass
    finally:
        mlflow.silent.set()
    assert "check the address and that it runs" in caplog.text and "this stage is not in it (FINISHED)" in caplog.text


def test_an_mlflow_that_falls_silent_costs_little_and_what_is_lost_is_said(
    mlflow: OldMlflow, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    silent = threading.Event()
    with caplog.at_level(logging.WARNING):
        try:
            with stage_run("train", settings={}, inputs={}) as run:
                monkeypatch.setattr("stabn.tracking.client.SHORT_SECONDS", "1")
                mlflow.silent, before = silent, mlflow.requests
                for step in range(50):
                    run.log_metrics({"loss": 1.0}, step)
                assert mlflow.requests == before + 1, "asked once, and then left alone for a while"
        finally:
            silent.set()
    assert "50 numbers not recorded, the server is away" in caplog.text


# KFP, Kubernetes and the doctor


@contextlib.contextmanager
def answering(status: int, body: bytes, silent: threading.Event | None = None, **headers: str) -> Iterator[str]:
    """Run a server that gives every request one answer, or none; yield its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if silent is not None:
                silent.wait(20)
                return
            self.send_response_only(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        if silent is not None:
            silent.set()
        server.shutdown()
        server.server_close()


PAGE = b"<!doctype html><html><body>Sign in</body></html>"


@pytest.fixture
def kfp_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kfp.Client._LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    monkeypatch.setattr(kfp, "WAIT_SECONDS", 0.01)
    for name in ("KF_PIPELINES_SA_TOKEN_PATH", "STABN_KFP_TOKEN", "STABN_KFP_COOKIES"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("namespace", ["", "profile"])
@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (200, {"Content_Type": "text/html"}, "answers with a web page, as a sign-in does: set KF_PIPELINES_SA_TOKEN"),
        (302, {"Location": "https://sso.example.org/auth"}, "points to https://sso.example.org/auth, as a sign-in"),
    ],
)
def test_a_sign_in_before_kfp_is_named(
    kfp_client: None, namespace: str, status: int, headers: dict[str, str], said: str
) -> None:
    with answering(status, PAGE, **headers) as address, pytest.raises(kfp.ServerError, match=said):
        kfp.Server(address, namespace).get_run("run")


def test_a_kfp_that_never_answers_is_given_up(kfp_client: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kfp, "TIMEOUT", (1, 0.2))
    said = r"Read timed out.*check the address and that it runs"
    with answering(200, b"", threading.Event()) as address, pytest.raises(RetryableError, match=said):
        kfp.Server(address, "profile").get_run("run")


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    return tmp_path / "kubeconfig"


def write_kubeconfig(path: Path, url: str) -> None:
    named = {"cluster": {"server": url}, "user": {"token": "t"}, "context": {"cluster": "c", "user": "c"}}
    content = {f"{kind}s": [{"name": "c", kind: value}] for kind, value in named.items()}
    path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", "current-context": "c", **content}))


def test_a_sign_in_before_kubernetes_is_named(kubeconfig: Path) -> None:
    with answering(200, PAGE, Content_Type="text/html") as address:
        write_kubeconfig(kubeconfig, address)
        api = KubeApi("research", 5)
        for use in (lambda: api.get("trainjobs", "a"), lambda: api.pods("a=b"), lambda: api.events("a")):
            with pytest.raises(ClusterError, match="perhaps a sign-in's web page; check the address in the kubeconfig"):
                use()


def test_the_doctor_names_sign_ins_and_clocks(kubeconfig: Path) -> None:
    lines: list[str] = []
    with answering(200, PAGE, Content_Type="text/html") as address:
        write_kubeconfig(kubeconfig, address)
        examine(Places(tracking_uri=address, kfp_host=address), lines.append)
    failed = {line[9:21].strip(): line for line in lines if line.startswith("failed")}
    assert "answers with a web page, as a sign-in does" in failed["mlflow"]
    assert "answers with a web page, as a sign-in does" in failed["kfp"]
    assert "perhaps a sign-in's web page" in failed["kubernetes"]
    date = email.utils.formatdate(time.time() + 3600, usegmt=True)
    with answering(200, b"{}", Content_Type="application/json", Date=date) as address:
        examine(Places(kfp_host=address), lines.append)
    assert any("clock is 60 minutes behind the server's; set it (NTP)" in line for line in lines)
