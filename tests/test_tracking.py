"""Stages find their MLflow run again from other processes, and tracking never ends a stage."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.parse

import mlflow
import pytest
from mlflow.protos import databricks_pb2

from stabn.data.manifest import Manifest
from stabn.local_mlflow import prepare_mlflow
from stabn.tracking import (
    ChampionChanged,
    TrackingError,
    compare_link,
    end_parent,
    fetch_artifact,
    names,
    register_if_better,
    stage_run,
)
from stabn.tracking import client as client_module

STAGE_IN_OTHER_PROCESS = """
import sys, time
from stabn.tracking import stage_run
with stage_run(sys.argv[1], settings={"epochs": 2}, inputs={"manifest": "abc"}) as run:
    run.log_metrics({"top1": 0.5})
    print(run.run_id, flush=True)
    if sys.argv[2:]:
        time.sleep(60)
"""


def _start(stage, *arguments):
    command = [sys.executable, "-c", STAGE_IN_OTHER_PROCESS, stage, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def client(mlflow_uri):
    from mlflow import MlflowClient

    return MlflowClient(mlflow_uri)


@pytest.fixture
def pipeline(monkeypatch):
    """Name a pipeline run in the environment, as a pipeline's pods have it."""
    monkeypatch.setattr(client_module, "SETTLE_SECONDS", 0.0)
    monkeypatch.setenv("STABN_RUN_ID", "run-1")
    monkeypatch.setenv("STABN_PIPELINE", "finetune")
    monkeypatch.setenv("STABN_GIT_COMMIT", "c0ffee")
    monkeypatch.setenv("STABN_IMAGE", "stabn/trainer:1")


def _runs(client):
    experiment = client.get_experiment_by_name("stabn")
    return client.search_runs([experiment.experiment_id])


def test_two_processes_share_one_parent_and_a_rerun_continues_its_run(client, monkeypatch):
    monkeypatch.setenv("STABN_RUN_ID", "run-1")
    monkeypatch.setenv("STABN_PIPELINE", "baseline")
    processes = [_start("evaluate/train"), _start("evaluate/validation")]
    first, second = (process.communicate()[0].strip() for process in processes)
    assert first and second and first != second
    parents = [run for run in _runs(client) if run.data.tags.get("stabn.role") == "parent"]
    assert len(parents) == 1 and len(_runs(client)) == 3
    for run_id in (first, second):
        assert client.get_run(run_id).data.tags["mlflow.parentRunId"] == parents[0].info.run_id
    with stage_run("evaluate/train", settings={"epochs": 3}, inputs={}) as run:
        assert run.run_id == first
        assert client.get_run(first).info.status == "RUNNING"
    again = client.get_run(first)
    assert again.info.status == "FINISHED" and len(_runs(client)) == 3
    assert again.data.params["epochs"] == "2" and again.data.tags["stabn.changed.epochs"] == "3"
    assert client.get_run(parents[0].info.run_id).info.status == "RUNNING"
    end_parent("FINISHED")
    assert client.get_run(parents[0].info.run_id).info.status == "FINISHED"


def test_of_parents_made_at_once_the_earliest_stays(client, pipeline, monkeypatch):
    with stage_run("extract", settings={}, inputs={}):
        pass
    earlier = client_module.find_parent(client, client.get_experiment_by_name("stabn").experiment_id, "run-1")
    made = client_module._make_parent(client, client.get_experiment_by_name("stabn").experiment_id, "run-1")
    assert made == earlier
    assert [run.info.run_id for run in _runs(client) if run.data.tags.get("stabn.role") == "parent"] == [earlier]


def test_sigterm_marks_the_run_killed(client):
    process = _start("train", "wait")
    run_id = process.stdout.readline().strip()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    run = client.get_run(run_id)
    assert run.info.status == "KILLED" and run.info.end_time
    assert run.data.metrics == {"top1": 0.5}


def test_a_run_tells_what_made_it(client, pipeline, tmp_path):
    settings = {"train": {"epochs": 20, "scales": (1.0, 0.5)}, "note": "x" * 9000} | {f"s{i}": i for i in range(150)}
    (tmp_path / "curve.txt").write_text("1")
    with stage_run("train", settings=settings, inputs={"manifest": "abc"}, parent_model="s3://data/a.pt") as run:
        run.set_tags({"split": "validation"})
        run.log_artifact(tmp_path / "curve.txt", "curves")
        run.log_text("| top-1 |", "report/table.md")
    found = client.get_run(run.run_id)
    assert found.data.params["train.epochs"] == "20" and json.loads(found.data.params["train.scales"]) == [1.0, 0.5]
    assert len(found.data.params) == 153 and len(found.data.params["note"]) == 6000
    expected = {
        "stabn.stage": "train",
        "stabn.pipeline": "finetune",
        "stabn.run_id": "run-1",
        "mlflow.source.git.commit": "c0ffee",
        "stabn.image": "stabn/trainer:1",
        "stabn.manifest_fingerprint": "abc",
        "stabn.parent_model": "s3://data/a.pt",
        "split": "validation",
    }
    assert expected.items() <= found.data.tags.items()
    assert [file.path for file in client.list_artifacts(run.run_id, "report")] == ["report/table.md"]
    assert (tmp_path / "mlflow" / "mlflow-artifacts").is_dir()
    assert run.link == ""


def test_a_long_history_is_recorded_with_its_steps(client):
    history = [{"step": step, "loss": 1.0 / (step + 1), "top-1 (%)": step} for step in range(700)]
    with stage_run("train", settings={}, inputs={}) as run:
        run.log_metrics_history(history)
        run.log_metrics({"loss": 0.25}, step=700)
    recorded = sorted(client.get_metric_history(run.run_id, "loss"), key=lambda metric: metric.step)
    assert [(metric.step, metric.value) for metric in recorded] == [(h["step"], h["loss"]) for h in history] + [
        (700, 0.25)
    ]
    assert len(client.get_metric_history(run.run_id, "top-1 ___")) == 700


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("frame 3"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(2), "FAILED"),
        (SystemExit(0), "FINISHED"),
    ],
)
def test_how_a_stage_ends_is_recorded(client, error, status):
    others = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the session's S3 server has a handler
    try:
        with pytest.raises(type(error)), stage_run("train", settings={}, inputs={}) as run:
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
            raise error
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, others)
    found = client.get_run(run.run_id)
    assert found.info.status == status
    assert found.data.tags.get("stabn.error") == (f"{type(error).__name__}: {error}" if status != "FINISHED" else None)
    assert "mlflow.parentRunId" not in found.data.tags


def test_a_forked_worker_that_is_terminated_leaves_the_run_open(client):
    with stage_run("train", settings={}, inputs={}) as run:
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGTERM
        assert client.get_run(run.run_id).info.status == "RUNNING"
    assert client.get_run(run.run_id).info.status == "FINISHED"


def test_the_run_that_kfp_made_is_the_parent(client, pipeline, monkeypatch):
    experiment = client.create_experiment("of-kfp")
    of_pipeline = client.create_run(experiment).info.run_id
    of_task = client.create_run(experiment, tags={"mlflow.parentRunId": of_pipeline}).info.run_id
    for given in (of_pipeline, of_task):
        monkeypatch.setenv("MLFLOW_RUN_ID", given)
        with stage_run("train", settings={}, inputs={}) as run:
            found = client.get_run(run.run_id)
            assert found.data.tags["mlflow.parentRunId"] == of_pipeline
            assert found.info.experiment_id == experiment
    end_parent("FAILED")
    assert client.get_run(of_pipeline).info.status == "RUNNING"


def test_without_an_address_nothing_is_tracked(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    with stage_run("train", settings={"a": 1}, inputs={}) as run:
        run.log_metrics({"loss": 1.0}, step=0)
        run.log_metrics_history([{"step": 0, "loss": 1.0}])
        run.log_params({"b": 2})
        run.log_artifact("missing.txt")
        run.log_text("x", "y.txt")
        run.set_tags({"a": "b"})
    assert run.run_id == "" and run.link == "" and compare_link(["a", "b"]) == ""
    assert register_if_better("m", "s3://x", {}, {}, True, "why") == ("", False)
    end_parent("FINISHED")
    assert list(tmp_path.iterdir()) == []


def test_an_unusable_address_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for uri in (f"sqlite:///{tmp_path}/file/mlflow.db", f"{tmp_path}/mlruns", "gopher://user:secret@x"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with (
            pytest.raises(TrackingError, match="MLFLOW_TRACKING_URI") as caught,
            stage_run("train", settings={}, inputs={}),
        ):
            pass
        assert "secret" not in str(caught.value)


def test_a_server_that_is_away_at_the_start_gets_everything_when_it_is_back(client, pipeline, monkeypatch, caplog):
    """What a busy server does to steps that start together: each goes on, and nothing of it is lost."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    with stage_run("train", settings={"epochs": 2}, inputs={"manifest": "abc"}) as run:
        run.log_metrics({"loss": 1.0}, step=1)
        run.set_tags({"checkpoint": "c"})
        run.log_text("table", "report/table.md")
        assert run.run_id == "" and run.link == ""
        run._open_again_at = 0.0
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        run.log_metrics({"loss": 0.5}, step=2)
    data = client.get_run(run.run_id)
    assert [metric.value for metric in client.get_metric_history(run.run_id, "loss")] == [1.0, 0.5]
    assert (data.data.params["epochs"], data.data.tags["checkpoint"], data.info.status) == ("2", "c", "FINISHED")
    assert [file.path for file in client.list_artifacts(run.run_id, "report")] == ["report/table.md"]
    said = [record.getMessage() for record in caplog.records if "goes on" in record.getMessage()]
    assert len(said) == 1 and "secret" not in said[0]


def test_a_server_that_refuses_only_at_the_end_does_not_fail_the_stage(client, monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with stage_run("train", settings={}, inputs={}) as run:
        run.log_metrics({"loss": 1.0})
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{tmp_path}/mlruns")
    assert "MLFLOW_TRACKING_URI" in caplog.text and "this stage is not in it (FINISHED)" in caplog.text


def test_a_server_that_never_answers_does_not_fail_the_stage(monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with stage_run("train", settings={}, inputs={}) as run:
        run.log_metrics({"loss": 1.0})
    assert "this stage is not in it (FINISHED)" in caplog.text


def test_a_server_that_goes_away_does_not_end_the_stage(client, monkeypatch, caplog):
    with stage_run("train", settings={}, inputs={}) as run:
        log_batch = type(client).log_batch
        monkeypatch.setattr(type(client), "log_batch", lambda *a, **k: (_ for _ in ()).throw(OSError("server is gone")))
        for step in range(3):
            run.log_metrics({"loss": float(step)}, step=step)
        run.set_tags({"a": "b"})
        monkeypatch.setattr(type(client), "log_batch", log_batch)
    assert len([record for record in caplog.records if "server is gone" in record.message]) == 1
    assert [metric.value for metric in client.get_metric_history(run.run_id, "loss")] == [0.0, 1.0, 2.0]
    assert client.get_run(run.run_id).info.status == "FINISHED"


def test_what_is_stored_while_the_server_is_away_is_sent_when_it_is_back(client, monkeypatch, caplog, tmp_path):
    gone, real = [True], {name: getattr(type(client), name) for name in ("log_batch", "log_artifact", "log_text")}
    for name, method in real.items():

        def unsteady(self, *a, _method=method, **k):
            if gone[0]:
                raise OSError("server is gone")
            return _method(self, *a, **k)

        monkeypatch.setattr(type(client), name, unsteady)
    with stage_run("train", settings={"epochs": 2}, inputs={}) as run:
        run.set_tags({"checkpoint": "first"})
        (tmp_path / "table.md").write_text("all of it")
        run.log_artifact(tmp_path / "table.md", "report")
        (tmp_path / "table.md").unlink()
        run.log_text("page", "page.html")
        run.set_tags({"checkpoint": "second"})
        run.log_artifact(tmp_path / "never.md")
        gone[0] = False
    data = client.get_run(run.run_id)
    assert (data.data.params["epochs"], data.data.tags["checkpoint"], data.info.status) == ("2", "second", "FINISHED")
    files = {file.path for folder in (None, "report") for file in client.list_artifacts(run.run_id, folder)}
    assert files == {"report", "report/table.md", "page.html"}
    said = [record.getMessage() for record in caplog.records]
    assert sum("server is gone" in text for text in said) == 1
    assert sum("never.md not recorded" in text for text in said) == 1


def test_a_file_that_cannot_be_stored_holds_up_no_other_and_is_named(client, monkeypatch, caplog, tmp_path):
    real = type(client).log_text

    def refuse(self, run_id, text, name):
        if name == "first.txt":
            raise OSError("access denied")
        real(self, run_id, text, name)

    monkeypatch.setattr(type(client), "log_text", refuse)
    with stage_run("train", settings={}, inputs={}) as run:
        run.log_text("x", "first.txt")
        run.log_text("x", "second.txt")
        run.set_tags({"a": "b"})
    data = client.get_run(run.run_id)
    assert (data.data.tags["a"], data.info.status) == ("b", "FINISHED")
    assert [file.path for file in client.list_artifacts(run.run_id)] == ["second.txt"]
    assert "not recorded to the end: file first.txt" in caplog.text


def test_only_a_better_model_becomes_the_champion(client):
    with stage_run("promote", settings={}, inputs={}) as run:
        first = register_if_better("st-abn", "s3://data/a.pt", {"top1": 0.5}, {"top1": 0.6}, True, "better", run.run_id)
        again = register_if_better("st-abn", "s3://data/a.pt", {"top1": 0.5}, {"top1": 0.6}, True, "better", run.run_id)
        worse = register_if_better("st-abn", "s3://data/b.pt", {"top1": 0.6}, {"top1": 0.4}, False, "worse", run.run_id)
    assert first == again == ("1", True) and worse == ("2", False)
    champion = client.get_model_version_by_alias("st-abn", "champion")
    assert champion.version == 1 or champion.version == "1"
    assert champion.source == "s3://data/a.pt" and champion.tags["after.top1"] == "0.6"
    assert client.get_model_version("st-abn", "2").description == "worse"


def test_the_champion_moves_only_from_the_version_that_was_compared_with(client):
    assert register_if_better("st-abn", "s3://data/a.pt", {}, {}, True, "first", rival="").moved
    for rival in ("", "2"):
        with pytest.raises(ChampionChanged, match="comparing again"):
            register_if_better("st-abn", "s3://data/b.pt", {}, {}, True, "better", rival=rival)
    assert len(client.search_model_versions("name = 'st-abn'")) == 1
    assert register_if_better("st-abn", "s3://data/b.pt", {}, {}, True, "better", rival="1") == ("2", True)


def test_the_compare_page_gets_both_runs(client, monkeypatch):
    ids = []
    for stage in ("evaluate/before", "evaluate/after"):
        with stage_run(stage, settings={}, inputs={}) as run:
            ids.append(run.run_id)
    assert compare_link(ids) == ""
    monkeypatch.setenv("STABN_MLFLOW_UI_URL", "https://mlflow.example/")
    link = urllib.parse.unquote(compare_link(ids))
    assert (
        link
        == f'https://mlflow.example/#/compare-runs?runs=["{ids[0]}", "{ids[1]}"]&experiments=["{run.experiment_id}"]'
    )
    assert run.link == f"https://mlflow.example/#/experiments/{run.experiment_id}/runs/{ids[1]}"


@pytest.mark.parametrize("stage", ["", "a' or 'b", "../x"])
def test_stage_names_that_a_query_could_misread_are_refused(mlflow_uri, stage):
    with pytest.raises(TrackingError, match="stage"), stage_run(stage, settings={}, inputs={}):
        pass


def test_the_commit_is_that_of_this_code_only(tmp_path, monkeypatch):
    package = tmp_path / "stabn"
    package.mkdir()
    monkeypatch.setattr(names, "__file__", str(package / "tracking" / "names.py"))
    assert names.git_commit() == ""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (package / "tracking.py").write_text("")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "Begin"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert names.git_commit() == head
    (package / "tracking.py").write_text("changed")
    assert names.git_commit() == f"{head}-dirty"


def test_the_artifacts_of_a_moved_folder_are_found(client, pipeline, tmp_path, monkeypatch):
    with stage_run("train", settings={}, inputs={}) as run:
        run.log_text("kept", "note.txt")
    moved = tmp_path / "else where's"
    (tmp_path / "mlflow").rename(moved)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", prepare_mlflow(moved))
    (tmp_path / "out").mkdir()
    found = fetch_artifact(run.run_id, "note.txt", tmp_path / "out")
    assert found is not None and found.read_text() == "kept"
    with stage_run("evaluate", settings={}, inputs={}) as later:
        later.log_text("new", "new.txt")
    assert len(list(moved.rglob("new.txt"))) == 1 and not (tmp_path / "mlflow").exists()


def test_runs_of_one_dataset_name_it_alike(client, pipeline, manifest_path, tmp_path):
    """The first stage tells where it is and how much; later ones may know its fingerprint alone."""
    dataset = Manifest.load(manifest_path).dataset
    with stage_run("extract-frames", settings={}, inputs={}) as first:
        first.log_dataset(dataset, "extract-frames")
    with stage_run("report", settings={}, inputs={"dataset": dataset.digest, "selection": "s"}) as second:
        pass
    with stage_run("edits", settings={}, inputs={"round": "r"}) as none:
        pass
    used = [client.get_run(run.run_id).inputs.dataset_inputs for run in (first, second, none)]
    assert [[(item.dataset.name, item.dataset.digest) for item in items] for items in used] == [
        [("manifest", dataset.digest)],
        [("manifest", dataset.digest)],
        [],
    ]
    (told,) = used[1]
    assert json.loads(told.dataset.profile) == {"videos": {"train": 9, "validation": 6}, "classes": 3}
    assert mlflow.data.get_source(told).uri == dataset.source
    assert [tag.value for tag in told.tags] == ["report"]


def test_a_server_that_knows_no_datasets_keeps_the_rest(client, monkeypatch, caplog):
    def unknown(*args, **options):
        raise mlflow.MlflowException("no such path", error_code=databricks_pb2.ENDPOINT_NOT_FOUND)

    monkeypatch.setattr(mlflow.MlflowClient, "log_inputs", unknown)
    with stage_run("train", settings={"a": 1}, inputs={"dataset": "abc"}) as run:
        run.log_metrics({"loss": 1.0})
    found = client.get_run(run.run_id)
    assert found.data.tags["stabn.dataset_fingerprint"] == "abc" and found.data.metrics == {"loss": 1.0}
    assert not caplog.records


@pytest.mark.parametrize("status", ["FAILED", "KILLED", "FINISHED"])
def test_no_run_stays_open_when_its_pipeline_ended(client, pipeline, status):
    with stage_run("extract", settings={}, inputs={}) as done:
        pass
    with stage_run("train", settings={}, inputs={}) as killed:
        pass
    parent = client.get_run(killed.run_id).data.tags["mlflow.parentRunId"]
    client.update_run(killed.run_id, status="RUNNING")  # as a process leaves it that is killed
    end_parent(status)
    found = {run: client.get_run(run).info.status for run in (done.run_id, killed.run_id, parent)}
    assert list(found.values()) == ["FINISHED", "KILLED", status]
