"""stabn status: one screen of what runs, from whichever of KFP, MLflow and Kubernetes can be reached."""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from kfp_server import KfpServer
from kube_server import KubeServer, kube_server
from test_submit import kfp as kfp_of_tests
from test_submit import submit

from components.cluster.manifest import run_selector
from components.cluster.progress import describe_job
from pipelines import status as module
from pipelines.commands import status as status_command
from pipelines.status import status
from stabn.presets import load
from stabn.tracking import end_parent, stage_run

kfp = kfp_of_tests


@pytest.fixture
def pipeline(mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Be a step of a pipeline's run without KFP."""
    for name in ("KF_PIPELINES_ENDPOINT", "KUBECONFIG", "KUBERNETES_SERVICE_HOST", "STABN_MLFLOW_UI_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STABN_RUN_ID", "run-1")
    monkeypatch.setenv("STABN_PIPELINE", "full")
    return mlflow_uri


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeServer]:
    with kube_server(tmp_path) as (server, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        yield server


def test_a_local_run_shows_its_stages_the_epoch_and_the_time_left(pipeline: str, monkeypatch: Any) -> None:
    with stage_run("extract-frames", settings={}, inputs={}):
        pass
    with pytest.raises(ValueError), stage_run("select-classes", settings={}, inputs={}):
        raise ValueError("no such class")
    with stage_run("train", settings={"train": {"epochs": 10}}, inputs={}) as run:
        for epoch in (1, 2, 3, 4):
            run.log_metrics({"loss": 2.5, "validation_top1": 0.412}, step=epoch)
        run.log_metrics({"step/loss": 9.0}, step=900)
        began = mlflow.MlflowClient().get_run(run.run_id).info.start_time / 1000
        reached = mlflow.MlflowClient().get_metric_history(run.run_id, "loss")[-1].timestamp / 1000
        monkeypatch.setattr(module.time, "time", lambda: reached + 100)
        text = status()
        left = max(0, (reached - began) / 4 * 10 - (reached + 100 - began))
        expected = f"epoch 5 of 10, loss 2.5, validation_top1 0.412, about {module.clock(left)} left"
        assert expected in text and text.startswith("full run-1  running")
        assert "extract-frames" in text and "ValueError: no such class" in text
        assert "not reached: KFP: KF_PIPELINES_ENDPOINT is not set" in text
        assert "not reached: Kubernetes: no KUBECONFIG" in text
        assert status("other").startswith("no run other")
    end_parent("FINISHED")
    assert status("run-1").startswith("full run-1  finished")


def test_without_anything_it_says_what_it_could_not_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("KF_PIPELINES_ENDPOINT", "KUBECONFIG", "KUBERNETES_SERVICE_HOST", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    text = status()
    assert text.startswith("nothing runs")
    assert "MLflow: MLFLOW_TRACKING_URI is not set" in text and "KFP: KF_PIPELINES_ENDPOINT is not set" in text
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("pipelines.server.WAIT_SECONDS", 0.01)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    text = status()
    assert "KFP: KFP at http://127.0.0.1:9:" in text and "MLflow: MLFLOW_TRACKING_URI = 'http://127.0.0.1:9'" in text


def test_a_run_of_kfp_shows_tasks_links_and_the_trainjob(
    kfp: KfpServer,
    cluster: KubeServer,
    mlflow_uri: str,
    monkeypatch: Any,
    capsys: Any,
) -> None:
    kfp.steps = [("RUNNING", {"import-edits": "SUCCEEDED", "finetune": "RUNNING", "evaluate": "PENDING"})]
    assert submit() == 0
    (run_id,) = kfp.runs
    key, _, value = run_selector(run_id).partition("=")
    trainer: dict[str, Any] = {"progressPercentage": 37, "estimatedRemainingSeconds": 4200}
    trainer["metrics"] = [{"name": "loss", "value": "2.3"}]
    cluster.jobs["stabn-finetune-1"] = {
        "metadata": {"name": "stabn-finetune-1", "labels": {key: value}},
        "status": {"jobsStatus": [{"name": "node", "ready": 1, "active": 1}], "trainerStatus": trainer},
    }
    monkeypatch.setenv("STABN_MLFLOW_UI_URL", "https://mlflow.example")
    monkeypatch.setenv("STABN_RUN_ID", run_id)
    with stage_run("finetune", settings={"train": {"epochs": 20}}, inputs={}) as run:
        run.log_metrics({"loss": 1.5}, step=2)
        capsys.readouterr()
        given = Namespace(run="", watch=False, endpoint="", namespace="", editor="", seconds=1.0)
        status_command.run(given, load("mini"))
        text = capsys.readouterr().out
    assert text.startswith("night  running") and f"{kfp.endpoint}/#/runs/details/{run_id}" in text
    assert "https://mlflow.example/#/experiments/" in text and "not reached" not in text
    assert "stabn-finetune-1: runs, 37%, about 1:10:00 left, loss 2.3" in text
    assert "epoch 3 of 20, loss 1.5" in text
    for task, state in kfp.steps[0][1].items():
        assert any(task in line and state.lower() in line for line in text.splitlines())


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({}, "waits for its pods"),
        ({"jobsStatus": [{"ready": 0, "active": 1}]}, "its pods start"),
        ({"conditions": [{"type": "Suspended", "status": "True", "message": "queue\nfull"}]}, "suspended: queue full"),
        ({"conditions": [{"type": "Complete", "status": "True", "message": "done"}]}, "complete"),
        ({"conditions": [{"type": "Failed", "status": "True", "message": "exit 2"}]}, "failed: exit 2"),
        ({"jobsStatus": [{"ready": 1}], "trainerStatus": {"progressPercentage": 0}}, "runs, 0%"),
        ({"jobsStatus": None, "trainerStatus": None, "conditions": None}, "waits for its pods"),
    ],
)
def test_a_trainjob_in_one_phrase(found: dict[str, Any], said: str) -> None:
    assert describe_job({"status": found}) == said


def test_watching_shows_the_screen_again() -> None:
    shown: list[str] = []

    def show(text: str) -> None:
        shown.append(text)
        if len(shown) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        module.watch(lambda: f"screen {len(shown)}", 0.001, show)
    assert [f"screen {number}" in text for number, text in enumerate(shown)] == [True] * 3
