"""Submitting to KFP with its real client: versions by commit, runs once, live states, exit codes, schedules, access."""

import base64
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from kfp_server import KfpServer, kfp_server

from pipelines import server as server_module
from pipelines.__main__ import PIPELINES, main
from pipelines.tasks import titles_of
from stabn.tracking import stage_run

FINETUNE = [
    "finetune",
    "--param",
    "data_round_uri=s3://data/rounds/r",
    "--param",
    "data_storage_uri=s3://data",
    "--name",
    "night",
]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def kfp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[KfpServer]:
    """Run a server that KF_PIPELINES_ENDPOINT points at, with short waits and no credentials."""
    monkeypatch.setattr(server_module, "WAIT_SECONDS", 0.01)
    monkeypatch.setattr("pipelines.follow.POLL_SECONDS", 0.01)
    monkeypatch.setattr("kfp.Client._LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    for name in ("KF_PIPELINES_SA_TOKEN_PATH", "STABN_KFP_TOKEN", "STABN_KFP_COOKIES", "KF_PIPELINES_UI_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with kfp_server() as kfp:
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", kfp.endpoint)
        yield kfp


def run(*words: str) -> int:
    """Run the command line; return its exit code."""
    try:
        main([*words])
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def submit(*words: str) -> int:
    return run("submit", *FINETUNE, "--commit", COMMIT, *words)


def test_a_submission_uploads_a_version_named_by_the_commit_and_runs_it(kfp: KfpServer, capsys: Any) -> None:
    assert submit("--param", "finetune_gamma=3", "--experiment", "nightly", "--service-account", "runner") == 0
    (made,) = kfp.runs.values()
    version = kfp.versions[made["pipeline_version_reference"]["pipeline_version_id"]]
    assert version["display_name"].startswith(f"{COMMIT[:12]}-") and COMMIT in version["description"]
    assert [item["display_name"] for item in kfp.pipelines.values()] == ["st-abn-finetune"]
    assert [item["display_name"] for item in kfp.experiments.values()] == ["nightly"]
    assert made["display_name"] == "night" and made["service_account"] == "runner"
    parameters = {"data_round_uri": "s3://data/rounds/r", "data_storage_uri": "s3://data", "finetune_gamma": 3.0}
    assert made["runtime_config"]["parameters"] == parameters
    assert f"{kfp.endpoint}/#/runs/details/{made['run_id']}" in capsys.readouterr().out
    environment = version["pipeline_spec"]["pipeline_spec"]["deploymentSpec"]["executors"]["exec-report"]["container"]
    assert {"name": "STABN_GIT_COMMIT", "value": COMMIT} in environment["env"]


def test_a_profile_has_pipelines_of_its_own(kfp: KfpServer) -> None:
    assert submit() == submit("--namespace", "team-a") == submit("--namespace", "team-a") == 0
    assert [item["namespace"] for item in kfp.pipelines.values()] == ["", "team-a"]
    used = [kfp.versions[run["pipeline_version_reference"]["pipeline_version_id"]] for run in kfp.runs.values()]
    assert [kfp.pipelines[version["pipeline_id"]]["namespace"] for version in used] == ["", "team-a", "team-a"]
    assert len(kfp.versions) == 4, "each upload has a version of the pipeline's name besides"


def test_the_same_commit_is_uploaded_once_and_other_settings_are_another_version(kfp: KfpServer) -> None:
    assert submit() == submit() == 0
    assert len(kfp.versions) == 2, "the first one that KFP makes with a pipeline, and ours"
    assert len(kfp.runs) == 2 and len(kfp.pipelines) == len(kfp.experiments) == 1
    assert submit("--trainer-image", "stabn-trainer:2") == 0
    names = {item["display_name"] for item in kfp.versions.values()} - {"st-abn-finetune"}
    assert len(names) == 2 and all(name.startswith(COMMIT[:12]) for name in names)


def test_parameters_come_from_a_file_and_flags_win(kfp: KfpServer, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "p.yaml").write_text("preset: mini\nfinetune_gamma: 2\noverrides:\n")
    assert submit("--param-file", str(tmp_path / "p.yaml"), "--param", "finetune_gamma=5") == 0
    (made,) = kfp.runs.values()
    values = made["runtime_config"]["parameters"]
    assert (values["preset"], values["finetune_gamma"], values["overrides"]) == ("mini", 5.0, "")
    (tmp_path / "p.yaml").write_text("presett: mini\n")
    assert submit("--param-file", str(tmp_path / "p.yaml")) == 2
    assert "no parameter presett" in capsys.readouterr().err
    assert run("submit", "finetune") == 2 and "data_round_uri" in capsys.readouterr().err
    assert len(kfp.runs) == 1


def test_a_folder_of_this_machine_is_no_place_for_a_server(kfp: KfpServer, capsys: Any, tmp_path: Path) -> None:
    for name in ("data_storage_uri", "data_round_uri"):
        assert submit("--param", f"{name}={tmp_path}") == 2
        assert f"{name} = '{tmp_path}': the steps of a run on a server have no folders" in capsys.readouterr().err
    assert not kfp.requests


def test_wait_shows_each_change_and_succeeds(kfp: KfpServer, capsys: Any) -> None:
    kfp.steps = [
        ("RUNNING", {"import edits": "RUNNING"}),
        (
            "RUNNING",
            {
                "import edits": "SUCCEEDED",
                "finetune": "PENDING",
                "finetune-driver(0)": "RUNNING",
                "executor(1)": "RUNNING",
            },
        ),
        ("RUNNING", {"import edits": "SUCCEEDED", "finetune": "RUNNING"}),
        ("SUCCEEDED", {"import edits": "SUCCEEDED", "finetune": "SUCCEEDED"}),
    ]
    assert submit("--wait") == 0
    lines = [line.split()[1:] for line in capsys.readouterr().out.splitlines() if line[:1].isdigit()]
    assert lines == [
        ["import", "edits", "running"],
        ["import", "edits", "succeeded", "1:15"],
        ["finetune", "pending"],
        ["finetune", "running"],
        ["finetune", "succeeded", "1:15"],
        ["run", "succeeded"],
    ]


def test_wait_ends_with_1_and_the_reason_when_the_run_fails(kfp: KfpServer, capsys: Any, tmp_path: Path) -> None:
    kfp.steps = [("RUNNING", {"finetune": "RUNNING"}), ("FAILED", {"finetune": "FAILED", "report": "SKIPPED"})]
    kfp.error = "exit code 2"
    assert submit("--wait", "--summary", str(tmp_path / "summary.md")) == 1
    error = capsys.readouterr().err
    assert "the run failed (finetune: exit code 2)" in error and "/#/runs/details/" in error
    assert "**Run failed**" in (tmp_path / "summary.md").read_text()
    kfp.steps = [("CANCELED", {})]
    assert submit("--wait") == 1 and "canceled" in capsys.readouterr().err


def argo_workflow(packed: bool) -> dict[str, Any]:
    """Return a workflow as KFP 2.17 makes it: drivers, executors, tries, a loop, a condition whose task failed."""
    nodes: dict[str, dict[str, Any]] = {}

    def node(name: str, parent: str = "", phase: str = "Succeeded", kind: str = "DAG", message: str = "") -> str:
        key = f"n-{len(nodes)}"
        minute = len(nodes)
        nodes[key] = {
            "id": key, "displayName": name, "boundaryID": parent, "phase": phase, "type": kind, "message": message,
            "startedAt": f"2026-01-01T00:{minute:02}:00Z", "finishedAt": f"2026-01-01T00:{minute + 1:02}:15Z",
        }  # fmt: skip
        return key

    root = node("st-abn-full-x7")
    dag = node("root", root)
    node("look-at-dataset-driver", dag, kind="Pod")
    node("look-at-dataset", dag, kind="Retry")
    node("look-at-dataset(0)", dag)
    loop = node("for-loop-1", dag)
    turns = node("iteration-iterator", loop)
    for number in range(2):
        turn = node(f"iteration-item({number}:{number})", turns)
        node("extract-frames-driver", turn, kind="Pod")
        node("extract-frames", turn, kind="Retry")
        node("extract-frames(0)", turn)
    condition = node("condition-2", dag, "Failed")
    node("evaluate-6", condition, "Failed", "Retry", message="No more retries left")
    last = node("evaluate-6(1)", condition, "Failed", message="child 'x' failed")
    node(
        "executor", last, "Failed", "Pod", message="main: Error (exit code 2): evaluate: no such table; evaluate again"
    )
    status: dict[str, Any] = {"phase": "Failed", "nodes": nodes}
    if packed:
        status = {"compressedNodes": base64.b64encode(gzip.compress(json.dumps(nodes).encode())).decode()}
    return {"metadata": {"name": "st-abn-full-x7"}, "status": status}


@pytest.mark.parametrize("packed", [False, True])
def test_a_run_is_followed_by_its_own_names_when_argo_compresses_its_nodes(
    kfp: KfpServer, capsys: Any, packed: bool
) -> None:
    """One line a task: no groups, no tries, the parts of a loop numbered, the reason of a failure."""
    kfp.workflow, kfp.steps = argo_workflow(packed), [("RUNNING", {}), ("FAILED", {})]
    places = [f"--param={name}=s3://bucket/x" for name in ("data_videos_uri", "data_labels_uri", "data_storage_uri")]
    assert run("submit", "full", *places, "--commit", COMMIT, "--wait") == 1
    captured = capsys.readouterr()
    lines = [" ".join(line.split()[1:]) for line in captured.out.splitlines() if line[:1].isdigit()]
    title = titles_of(json_format.MessageToDict(PIPELINES["full"].pipeline_spec))["evaluate-6"]
    assert title.startswith("evaluate ") and "6" not in title
    assert lines == [
        "look at the dataset succeeded 1:15",
        "extract frames 1/2 succeeded 1:15",
        "extract frames 2/2 succeeded 1:15",
        f"{title} failed 1:15 main: Error (exit code 2): evaluate: no such table; evaluate again; No more retries left",
        "run failed",
    ]
    assert f"the run failed ({title}: main: Error (exit code 2)" in captured.err


def test_more_parts_than_a_run_can_hold_are_refused_before_anything_is_sent(kfp: KfpServer, capsys: Any) -> None:
    places = [f"--param={name}=s3://bucket/x" for name in ("data_videos_uri", "data_labels_uri", "data_storage_uri")]
    assert run("submit", "full", *places, "--param", "extract_parts=110") == 2
    error = capsys.readouterr().err
    assert "extract_parts = 110: must be at most 100; Argo keeps the state of a run" in error and not kfp.requests


def test_a_run_whose_nodes_nobody_gives_out_is_followed_to_its_end(kfp: KfpServer, capsys: Any) -> None:
    kfp.workflow = {"status": {"offloadNodeStatusVersion": "fnv:1"}}
    kfp.steps = [("RUNNING", {"finetune": "RUNNING"}), ("RUNNING", {}), ("SUCCEEDED", {})]
    assert submit("--wait") == 0
    out = capsys.readouterr().out
    assert "KFP no longer says which tasks run" in out and "run succeeded" in out


def test_a_run_that_takes_too_long_goes_on_without_us(kfp: KfpServer, capsys: Any) -> None:
    kfp.steps = [("RUNNING", {})]
    assert submit("--wait", "--timeout-hours", "0.00001") == 75
    assert "goes on" in capsys.readouterr().err


def test_a_server_that_stumbles_is_asked_again(kfp: KfpServer, capsys: Any) -> None:
    kfp.steps = [("RUNNING", {}), ("SUCCEEDED", {})]
    kfp.failures.extend([("GET", "/pipelines", 503), ("GET", "/experiments", 500), ("GET", "/healthz", 502)])
    kfp.failures.extend([("GET", "/runs/", 503), ("GET", "/runs/", "drop"), ("POST", "/runs", 500)])
    assert submit("--wait") == 0
    assert not kfp.failures and len(kfp.runs) == 1


def test_a_lost_answer_does_not_start_the_run_twice(kfp: KfpServer) -> None:
    submit()
    kfp.failures.append(("POST", "/runs", "lose"))
    assert submit() == 0
    assert len(kfp.runs) == 2, "one by each submission"


def test_a_server_that_stays_away_ends_with_75(kfp: KfpServer, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kfp.failures.extend([("GET", "/pipelines", 503)] * 20)
    assert submit() == 75 and "503" in capsys.readouterr().err
    monkeypatch.setattr("pipelines.follow.PATIENCE_SECONDS", 0.0)
    kfp.failures.clear()
    kfp.failures.extend([("GET", "/runs/", 503)] * 20)
    assert submit("--wait") == 75 and "may go on" in capsys.readouterr().err
    kfp.failures.clear()
    assert run("submit", *FINETUNE, "--endpoint", "http://127.0.0.1:1") == 75


@pytest.mark.parametrize("kind", ["token", "file", "cookie"])
def test_access_with_the_usual_credentials(
    kfp: KfpServer, kind: str, capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if kind == "cookie":
        kfp.cookie = "authservice_session=abc"
    else:
        kfp.token = "secret-token"
    assert submit() == 2
    error = capsys.readouterr().err
    assert "refused access" in error and "no credentials" in error and not kfp.runs
    (tmp_path / "token").write_text("secret-token")
    name, value = {
        "token": ("STABN_KFP_TOKEN", "secret-token"),
        "file": ("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token")),
        "cookie": ("STABN_KFP_COOKIES", "authservice_session=abc"),
    }[kind]
    monkeypatch.setenv(name, value)
    assert submit() == 0 and len(kfp.runs) == 1
    monkeypatch.setenv(name, str(tmp_path / "none") if kind == "file" else "wrong-one")
    assert submit() == 2
    error = capsys.readouterr().err
    assert name in error and "wrong-one" not in error


def test_no_endpoint_is_one_line(kfp: KfpServer, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT")
    assert submit() == 2 and "set KF_PIPELINES_ENDPOINT" in capsys.readouterr().err
    assert submit("--endpoint", "kfp.example") == 2 and "begin with http" in capsys.readouterr().err


def test_once_starts_nothing_that_is_done_or_under_way(kfp: KfpServer, capsys: Any) -> None:
    kfp.steps = [("FAILED", {})]
    assert submit("--once", "--wait") == 1
    kfp.steps = [("RUNNING", {}), ("SUCCEEDED", {})]
    assert submit("--once", "--wait") == 0 and len(kfp.runs) == 2, "a failed run is tried again"
    assert submit("--once", "--wait") == 0 and len(kfp.runs) == 2
    assert "nothing new: night is succeeded already" in capsys.readouterr().out


def test_a_schedule_replaces_the_former_one(kfp: KfpServer, capsys: Any) -> None:
    schedule = ["schedule", *FINETUNE, "--commit", COMMIT]
    assert run(*schedule, "--cron", "0 0 3 * * *") == 0
    (first,) = kfp.recurring.values()
    assert first["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * *" and first["no_catchup"] is True
    assert first["mode"] == "ENABLE" and int(first["max_concurrency"]) == 1
    assert run(*schedule, "--every-hours", "24") == 0
    (second,) = kfp.recurring.values()
    assert int(second["trigger"]["periodic_schedule"]["interval_second"]) == 86400
    assert run(*schedule, "--cron", "0 3 * * *") == 2 and "six fields" in capsys.readouterr().err
    assert run(*schedule) == 2 and "either --cron or --every-hours" in capsys.readouterr().err
    assert list(kfp.recurring.values()) == [second]


def test_the_summary_has_the_table_the_decision_and_the_links(
    kfp: KfpServer, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The steps record in MLflow under the run's id; here the test does, while the run is under way."""
    assert submit() == 0
    (made,) = kfp.runs.values()
    made["state"] = "RUNNING"
    monkeypatch.setenv("STABN_RUN_ID", made["run_id"])
    monkeypatch.setenv("STABN_EXPERIMENT", "night")
    for name, top1 in (("before", 0.5), ("after", 0.625), ("control", 0.51)):
        with stage_run(f"evaluate/{name}/validation/as_is", settings={}, inputs={}) as stage:
            stage.log_metrics({"top1": top1, "top5": 0.9})
    with stage_run("promote", settings={}, inputs={}) as stage:
        stage.set_tags({"promoted": "False", "reason": "Not better by more than noise."})
    monkeypatch.setenv("STABN_MLFLOW_UI_URL", "https://mlflow.example")
    monkeypatch.delenv("STABN_EXPERIMENT")
    (tmp_path / "settings.yaml").write_text("experiment: night\n")
    path = tmp_path / "summary.md"
    assert submit("--once", "--wait", "--summary", str(path), "--settings", str(tmp_path / "settings.yaml")) == 0
    text = path.read_text()
    assert "| before | 50.0 | 90.0 |" in text and "| after | 62.5 | 90.0 |" in text
    assert "| control (gamma 0) | 51.0 | 90.0 |" in text and "baseline" not in text
    assert "**The alias `champion` did not move.** Not better by more than noise." in text
    assert f"/#/runs/details/{made['run_id']}" in text and "https://mlflow.example/#/compare-runs" in text
