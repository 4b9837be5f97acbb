"""The jobs of retrain.yaml, block by block, against an S3 server, MLflow, and servers in KFP's and GitHub's place."""

import base64
import json
import os
import shlex
import shutil
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from kfp_server import KfpServer, kfp_server
from workflow_runner import Runner, machine

from pipelines.server import Server, ServerError
from stabn.attention.rounds import Round
from stabn.errors import RetryableError
from stabn.local_services import LocalStore
from stabn.tracking import stage_run

ROOT = Path(__file__).parent.parent
RETRAIN = ROOT / ".github" / "workflows" / "retrain.yaml"
SHA = "0123456789abcdef0123456789abcdef01234567"
PREFIX = "ghcr.io/people/stabn/stabn-"
pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="the workflow's blocks are for bash")


def identity(seconds: float) -> str:
    """Return a token as GitHub gives out, good for some seconds."""
    parts = [{"alg": "RS256"}, {"exp": time.time() + seconds, "id": time.time_ns()}]
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + ".x"


class Identities:
    """GitHub's service that gives out identities: what it was asked for, and for how long its tokens are good."""

    def __init__(self) -> None:
        self.asked, self.seconds, self.url, self.given = list[str](), 600.0, "", ""
        self.kfp: KfpServer | None = None


@pytest.fixture
def identities() -> Iterator[Identities]:
    """Run a service of identities, of which KFP takes the newest one alone."""
    state = Identities()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
            assert self.headers["Authorization"] == "Bearer of-the-job" and query["api-version"] == ["2.0"]
            state.asked.append(query["audience"][0])
            state.given = identity(state.seconds)
            if state.kfp:
                state.kfp.token = state.given
            body = json.dumps({"value": state.given}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}/token?api-version=2.0"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield state
        server.shutdown()


@pytest.fixture
def kfp(identities: Identities) -> Iterator[KfpServer]:
    with kfp_server() as kfp:
        identities.kfp, kfp.token = kfp, "none yet"
        yield kfp


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    """A machine with a working tree, and recorders for docker, sudo and `make setup`."""
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    for path in ROOT.iterdir():
        if path.name not in (".venv", ".git"):
            (workspace / path.name).symlink_to(path)
    (workspace / ".venv").symlink_to(sys.prefix)
    variables = machine(GITHUB_SHA=SHA, GITHUB_RUN_ID="7", GITHUB_RUN_ATTEMPT="1", PYTHONPATH=str(ROOT))
    context = {
        "github": {"repository": "People/stabn", "token": "token-of-github", "actor": "ada"},
        "vars": {}, "secrets": {}, "inputs": {},
    }  # fmt: skip
    made = Runner(workspace, tmp_path / "runner", context, variables)
    made.record("docker", '[ "$1 $2" != "login ghcr.io" ] || cat >> "$RECORDED"\n[ "$1" != manifest ] || exit 1\n')
    made.record("sudo")
    make = shutil.which("make")
    made.record("make", f'[ "$1" = setup ] || exec {make} "$@"\n')
    return made


@pytest.mark.parametrize("role", ["data", "trainer"])
def test_an_image_is_built_with_room_and_former_layers_and_pushed(runner: Runner, role: str) -> None:
    runner.context["matrix"] = {"role": role}
    output = runner.run(RETRAIN, "images")
    image = f"{PREFIX}{role}"
    lines = runner.recorded
    assert lines[:2] == ["docker login ghcr.io --username ada --password-stdin", "token-of-github"]
    assert lines[2] == f"docker manifest inspect {image}:{SHA}" and lines[-1] == "docker logout ghcr.io"
    freed = next(line for line in lines if line.startswith("sudo rm -rf /usr/local/lib/android "))
    (built,) = (line for line in lines if line.startswith("docker buildx build "))
    assert lines.index(freed) < lines.index("docker buildx create --use") < lines.index(built)
    words = shlex.split(built)
    assert f"--file images/{role}.Dockerfile --tag {image}:{SHA}" in built and words[-1] == "." and "--push" in words
    assert f"--cache-from=type=registry,ref={image}:layers" in words
    assert f"--cache-to=type=registry,ref={image}:layers,mode=max,ignore-error=true" in words
    assert ("TORCH=cuda" in words) is (role == "trainer")
    assert "token-of-github" not in output


def test_an_image_that_is_there_is_not_built_again(runner: Runner) -> None:
    runner.record("docker")
    runner.context["matrix"] = {"role": "trainer"}
    assert f"{PREFIX}trainer:{SHA} is there" in runner.run(RETRAIN, "images")
    assert [line.split()[1] for line in runner.recorded] == ["login", "manifest", "logout"]


def test_one_that_cannot_be_built_fails_the_job_and_logs_out(runner: Runner) -> None:
    runner.record("docker", '[ "$1" != manifest ] && [ "$2" != build ]\n')
    runner.context["matrix"] = {"role": "data"}
    with pytest.raises(AssertionError, match="Build and push: exit 2"):
        runner.run(RETRAIN, "images")
    assert runner.recorded[-1] == "docker logout ghcr.io"


def prepare(runner: Runner, kfp: KfpServer, identities: Identities, s3: LocalStore, item: Round, mlflow: str) -> None:
    """Set the repository's variables and secrets, as docs/retraining.md lists them."""
    runner.context["vars"] = {
        "STABN_KFP_ENDPOINT": kfp.endpoint, "STABN_KFP_UI": "https://kfp.example", "STABN_KFP_AUDIENCE": "kfp-of-ours",
        "STABN_KFP_NAMESPACE": "team-a", "STABN_KFP_SERVICE_ACCOUNT": "runner", "STABN_MLFLOW_URI": mlflow,
        "STABN_MLFLOW_UI": "https://mlflow.example", "STABN_S3_ENDPOINT": s3.endpoint, "STABN_ROUND_URI": item.uri,
        "STABN_PULL_SECRET": "our-registry",
    }  # fmt: skip
    keys = {name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    runner.context["secrets"] = {
        "STABN_S3_KEY_ID": keys["AWS_ACCESS_KEY_ID"], "STABN_S3_SECRET_KEY": keys["AWS_SECRET_ACCESS_KEY"],
    }  # fmt: skip
    runner.variables |= {"ACTIONS_ID_TOKEN_REQUEST_URL": identities.url, "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "of-the-job"}


def test_a_night_submits_follows_and_writes_the_summary_once(
    runner: Runner,
    kfp: KfpServer,
    identities: Identities,
    s3: LocalStore,
    editor_round: Round,
    mlflow_uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare(runner, kfp, identities, s3, editor_round, mlflow_uri)
    output = runner.run(RETRAIN, "pipeline")
    assert runner.names[:3] == ["actions/checkout", "actions/setup-python", "make setup"]
    assert runner.recorded == ["make setup"]
    (made,) = kfp.runs.values()
    assert made["service_account"] == "runner" and made["display_name"].startswith(f"finetune {editor_round.round_id}")
    parameters = made["runtime_config"]["parameters"]
    assert parameters["data_round_uri"] == editor_round.uri and parameters["preset"] == "ssv2_r50_32"
    version = kfp.versions[made["pipeline_version_reference"]["pipeline_version_id"]]
    assert version["display_name"].startswith(SHA[:12])
    spec = version["pipeline_spec"]
    executors = spec["pipeline_spec"]["deploymentSpec"]["executors"]
    assert {item["container"]["image"] for item in executors.values()} == {
        f"{PREFIX}{role}:{SHA}" for role in ("data", "trainer")
    }
    platform = spec["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert all("our-registry" in json.dumps(item["imagePullSecret"]) for item in platform.values())
    assert identities.asked == ["kfp-of-ours"] and identities.given not in output
    summary = runner.home / "summary.md"
    assert "**Run succeeded**: https://kfp.example/#/runs/details/" in summary.read_text()

    # The steps of the run record in MLflow; the next night finds it done, and shows what it came to.
    monkeypatch.setenv("STABN_RUN_ID", made["run_id"])
    monkeypatch.setenv("STABN_EXPERIMENT", "stabn-retrain")
    for name, top1 in (("before", 0.5), ("after", 0.625)):
        with stage_run(f"evaluate/{name}/held_out/as_is", settings={}, inputs={}) as stage:
            stage.log_metrics({"top1": top1, "top5": 0.9})
    made["state"] = "SUCCEEDED"
    summary.unlink()
    assert "nothing new: finetune" in runner.run(RETRAIN, "pipeline") and len(kfp.runs) == 1
    assert (
        "| after | 62.5 | 90.0 |" in summary.read_text()
        and "https://mlflow.example/#/compare-runs" in summary.read_text()
    )


def test_an_identity_is_renewed_before_it_ends_and_its_lack_is_one_line(
    kfp: KfpServer, identities: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GitHub's are good for minutes, and a run is followed for hours."""
    monkeypatch.setattr("pipelines.server.WAIT_SECONDS", 0.01)
    monkeypatch.setenv("STABN_KFP_AUDIENCE", "kfp-of-ours")
    monkeypatch.delenv("ACTIONS_ID_TOKEN_REQUEST_URL", raising=False)
    with pytest.raises(ServerError, match="STABN_KFP_AUDIENCE = 'kfp-of-ours': only a GitHub job"):
        Server(kfp.endpoint)
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_URL", identities.url)
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "of-the-job")
    identities.seconds = 30.0
    server = Server(kfp.endpoint)
    made = [server.experiment(name) for name in ("night", "day")]
    asked = len(identities.asked)
    assert len(set(made)) == 2 and asked > 2, "the server takes the newest alone"
    identities.seconds = 600.0
    assert server.experiment("third") != server.experiment("fourth")
    assert len(identities.asked) == asked + 1
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_URL", "http://127.0.0.1:1/")
    with pytest.raises(RetryableError, match="GitHub gave no identity for 'kfp-of-ours'"):
        Server(kfp.endpoint)


def test_by_hand_with_a_stored_token(
    runner: Runner, kfp: KfpServer, identities: Identities, s3: LocalStore, editor_round: Round, mlflow_uri: str
) -> None:
    prepare(runner, kfp, identities, s3, editor_round, mlflow_uri)
    for name in ("STABN_KFP_AUDIENCE", "STABN_PULL_SECRET", "STABN_KFP_NAMESPACE", "STABN_KFP_SERVICE_ACCOUNT"):
        del runner.context["vars"][name]
    runner.context["secrets"]["STABN_KFP_TOKEN"] = kfp.token = "token-that-is-kept"
    overrides = "finetune.epochs=3 $(touch pwned) `id` ; 'x"
    runner.context["inputs"] = {"pipeline": "finetune", "overrides": overrides, "again": True}
    with pytest.raises(AssertionError, match="exit 2"):
        runner.run(RETRAIN, "pipeline")
    assert not kfp.runs and not (runner.workspace / "pwned").exists(), "what people send is never a command"
    runner.context["inputs"]["overrides"] = "finetune.epochs=3"
    runner.run(RETRAIN, "pipeline")
    (made,) = kfp.runs.values()
    assert made["display_name"] == "finetune by hand 7-1" and not identities.asked
    assert made["runtime_config"]["parameters"]["overrides"] == "finetune.epochs=3"


def test_without_a_round_it_says_so_and_a_failed_run_fails_the_job(
    runner: Runner, kfp: KfpServer, identities: Identities, s3: LocalStore, editor_round: Round, mlflow_uri: str
) -> None:
    prepare(runner, kfp, identities, s3, editor_round, mlflow_uri)
    uri = runner.context["vars"].pop("STABN_ROUND_URI")
    assert "No round: set the variable STABN_ROUND_URI" in runner.run(RETRAIN, "pipeline") and not kfp.runs
    assert "No round" in (runner.home / "summary.md").read_text()
    # A finished round that the bridge passes on; the run fails.
    runner.context["github"]["event"] = {"client_payload": {"round_uri": uri}}
    kfp.steps, kfp.error = [("FAILED", {"finetune": "FAILED"})], "exit code 2"
    with pytest.raises(AssertionError, match="Submit, follow, and write the summary: exit 1"):
        runner.run(RETRAIN, "pipeline")
    assert "**Run failed**" in (runner.home / "summary.md").read_text()
