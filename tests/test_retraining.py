"""What starts retraining: the workflows, the bridge from the editor's webhook, and the corrections' own fingerprint."""

import hashlib
import hmac
import json
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.__main__ import PIPELINES
from pipelines.bridge import BridgeError, make_bridge
from pipelines.local import parse_parameters
from pipelines.resources import CompileSettings
from stabn.presets import resolve

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
SECRET = "sixteen-characters-or-more"


def workflow(name: str) -> dict[Any, Any]:
    return yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yaml").read_text())


def test_the_workflows_are_valid() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    done = subprocess.run([*command, *map(str, WORKFLOWS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.stem for path in WORKFLOWS} == {"ci", "retrain", "cluster-e2e"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_workflows_run_pinned_actions_with_least_permissions(path: Path) -> None:
    text, document = path.read_text(), yaml.safe_load(path.read_text())
    used = re.findall(r"uses: (\S+)(.*)", text)
    assert used
    for action, comment in used:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action) and re.fullmatch(r" # v[\d.]+", comment), action
    assert document["permissions"] == {"contents": "read"}
    allowed = {"contents": "read", "packages": "write", "id-token": "write"}
    for name, job in document["jobs"].items():
        assert job["timeout-minutes"], name
        assert set(job.get("permissions", {}).items()) <= set(allowed.items()), name
        for step in job["steps"]:
            if "checkout" in step.get("uses", ""):
                assert step["with"]["persist-credentials"] is False
            for expression in re.findall(r"\$\{\{(.*?)\}\}", step.get("run", "")):
                assert re.fullmatch(r" (matrix\.role|github\.sha) ", expression), "only what nobody can choose"


def test_retraining_starts_as_it_should() -> None:
    document = workflow("retrain")
    starts = document[True]  # YAML reads `on` as true
    assert set(starts) == {"push", "schedule", "workflow_dispatch", "repository_dispatch"}
    assert starts["repository_dispatch"]["types"] == ["round-finished"]
    assert set(starts["workflow_dispatch"]["inputs"]["pipeline"]["options"]) <= set(PIPELINES)
    paths = starts["push"]["paths"]
    for path in (item.removesuffix("/**") for item in paths if not item.startswith("!")):
        assert (ROOT / path).exists() or path == "images", path
    script = next(
        step["run"] for step in document["jobs"]["pipeline"]["steps"] if "pipelines submit" in step.get("run", "")
    )
    assert "--once --wait" in script and '--summary "$GITHUB_STEP_SUMMARY"' in script
    assert document["concurrency"]["cancel-in-progress"] is False
    # Whatever comes later takes the place of a run that waits in the same group: a finished round needs one of its own.
    assert "${{ github.event.client_payload.round_uri ||" in document["concurrency"]["group"]


@pytest.mark.parametrize("name", ["finetune", "baseline"])
def test_the_settings_of_retraining_fit_the_pipelines(name: str) -> None:
    values = yaml.safe_load((ROOT / "pipelines" / "retrain" / f"{name}.yaml").read_text())
    texts = {key: str(value) for key, value in values.items()} | (
        {"data_round_uri": "s3://stabn/rounds/r"} if name == "finetune" else {}
    )
    assert parse_parameters(PIPELINES[name], texts)["preset"] == "ssv2_r50_32"
    assert CompileSettings.load(ROOT / "pipelines" / "retrain" / "settings.yaml").experiment == "stabn-retrain"


def test_the_knowledge_benchmark_is_a_set_of_parameters_too() -> None:
    path = ROOT / "pipelines" / "knowledge.yaml"
    texts = {key: str(value or "") for key, value in yaml.safe_load(path.read_text()).items()}
    places = dict.fromkeys(
        ("data_videos_uri", "data_labels_uri", "data_storage_uri", "edit_segments_uri"), "s3://bucket/x"
    )
    values = parse_parameters(PIPELINES["full"], texts | places)
    settings = resolve("knowledge").select
    assert (values["select_threshold"], values["select_max_classes"]) == (settings.threshold, settings.max_classes)
    assert (values["preset"], values["report_split"]) == ("knowledge", "held_out")


class GitHub:
    """What GitHub was asked, and what it answers."""

    def __init__(self) -> None:
        self.status, self.asked, self.url = 204, list[tuple[str, str, Any]](), ""


@pytest.fixture
def github() -> Iterator[GitHub]:
    """Run a server in GitHub's place."""
    state = GitHub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.asked.append((self.path, self.headers["Authorization"], body))
            self.send_response(state.status)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield state
        server.shutdown()


@pytest.fixture
def bridge(github: GitHub, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run the bridge; return its address."""
    monkeypatch.setenv("STABN_WEBHOOK_SECRET", SECRET)
    monkeypatch.setenv("STABN_GITHUB_TOKEN", "token-of-github")
    with make_bridge("people/stabn", "127.0.0.1", 0, github.url) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def post(url: str, content: Any, secret: str = SECRET, age: int = 0, tamper: bytes = b"") -> int:
    """Send a webhook as the editor does; return the status."""
    body = json.dumps(content).encode()
    stamp = str(int(time.time()) - age)
    signature = hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    headers = {"X-Stabn-Signature": f"t={stamp},v1={signature}", "Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body + tamper, headers), timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


ROUND = {"event": "round.finished", "round_uri": "s3://b/rounds/r1", "round_id": "r1", "edits_fingerprint": "f", "x": 1}


def test_the_bridge_passes_a_finished_round_on(bridge: str, github: GitHub) -> None:
    assert post(bridge, ROUND) == 202
    ((path, authorization, body),) = github.asked
    assert path == "/repos/people/stabn/dispatches" and authorization == "Bearer token-of-github"
    payload = {"round_uri": "s3://b/rounds/r1", "round_id": "r1", "edits_fingerprint": "f"}
    assert body == {"event_type": "round-finished", "client_payload": payload}


def test_the_bridge_takes_no_other_requests(bridge: str, github: GitHub) -> None:
    assert post(bridge, ROUND, secret="another-secret-entirely") == 401
    assert post(bridge, ROUND, age=301) == 401
    assert post(bridge, ROUND, tamper=b" ") == 401
    assert post(bridge, {**ROUND, "event": "other"}) == post(bridge, [1]) == 422
    assert post(bridge, {**ROUND, "round_uri": "s3://b/$(id)"}) == 422
    assert post(bridge, {**ROUND, "by": "x" * 70000}) == 413
    assert not github.asked


def test_the_bridge_tells_the_editor_when_github_refuses(bridge: str, github: GitHub) -> None:
    github.status = 403
    assert post(bridge, ROUND) == 502


def test_the_bridge_needs_its_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STABN_WEBHOOK_SECRET", raising=False)
    with pytest.raises(BridgeError, match="STABN_WEBHOOK_SECRET: set at least 16"):
        make_bridge("a/b", "127.0.0.1", 0)
    with pytest.raises(BridgeError, match="owner/name"):
        make_bridge("a", "127.0.0.1", 0)
