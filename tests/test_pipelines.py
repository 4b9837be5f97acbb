"""The pipelines: forms that explain themselves, components that call what exists, output that people can read."""

import ast
import importlib
import inspect
import json
import logging
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import dsl
from kfp.dsl.base_component import BaseComponent

import components.component
from components.cluster.config import ClusterConfig
from components.component import run_step
from components.end_run import run_end
from components.mounted import STORAGE_DIR, read_mounted
from pipelines.__main__ import PIPELINES, main
from pipelines.build import build, compile_pipeline
from pipelines.demo import TASKS, readable
from pipelines.local import code_fingerprint, parse_parameters
from pipelines.resources import STAGES as STAGE_SETTINGS
from pipelines.resources import CompileSettings
from stabn.config import ConfigError
from stabn.data.sources import dataset_fingerprint
from stabn.errors import StabnError
from stabn.forms import offered
from stabn.stages import FORMS, REQUIRED, STAGES
from stabn.tracking import stage_run

ROOT = Path(__file__).parent.parent
COMPONENTS = sorted(path for path in (ROOT / "components").glob("*.py") if " = component(" in path.read_text())
GOLDEN = ROOT / "tests" / "golden"
# They look at what may change without their inputs changing, or end what has begun.
UNCACHED = {"check-full", "look-at-dataset", "promote", "end-run"}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return the YAML of each pipeline as `python -m pipelines compile` writes it."""
    folder = tmp_path_factory.mktemp("build")
    command = [sys.executable, "-m", "pipelines", "compile", "--output", str(folder)]
    command += ["--data-image", "stabn-data:1.0", "--trainer-image", "stabn-trainer:1.0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(folder / f"{name}.yaml") for name in PIPELINES]
    return {path.stem: next(yaml.safe_load_all(path.read_text())) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def compiled_texts(compiled: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the same files as they are, Kubernetes settings included."""
    folder = next(path for path in tmp_path_factory.getbasetemp().glob("build*"))
    return {path.stem: path.read_text() for path in folder.glob("*.yaml")}


def tasks(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return every task of a pipeline that has a container, those inside conditions too."""
    for component in ({"dag": spec["root"]["dag"]}, *spec["components"].values()):
        for name, task in component.get("dag", {}).get("tasks", {}).items():
            if "executorLabel" in spec["components"][task["componentRef"]["name"]]:
                yield name, task


@pytest.mark.parametrize("name", PIPELINES)
def test_forms_explain_every_parameter(name: str, compiled: dict[str, dict[str, Any]]) -> None:
    spec = compiled[name]
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    for key, item in parameters.items():
        assert len(item["description"]) > 10 and item["description"].endswith("."), key
        assert item["parameterType"] in ("STRING", "NUMBER_INTEGER", "NUMBER_DOUBLE", "BOOLEAN"), key
    required = {item.form_name for item in FORMS[name] if item.default is REQUIRED}
    assert required == {key for key, item in parameters.items() if "defaultValue" not in item}, "KFP refuses without"
    assert not any(item.get("isOptional") for key, item in parameters.items() if key in required)
    assert set(sorted(parameters)[: len(required)]) == required, "KFP's page sorts by name: what must be given is first"
    choices = {item.form_name: list(offered(name, item.form_name)) for item in FORMS[name] if item.choices}
    assert choices == {key: item["literals"] for key, item in parameters.items() if "literals" in item}
    assert all(parameters[key]["defaultValue"] in values for key, values in choices.items()), "preset in the dropdown"
    assert spec["pipelineInfo"]["description"] and spec["pipelineInfo"]["displayName"].startswith("ST-ABN")


def test_defaults_of_the_forms_are_the_papers(compiled: dict[str, dict[str, Any]]) -> None:
    parameters = compiled["full"]["root"]["inputDefinitions"]["parameters"]
    values = {key: item.get("defaultValue") for key, item in parameters.items()}
    assert (values["preset"], values["finetune_gamma"], values["select_threshold"]) == ("ssv2_r50_32", 10, 0.5)
    assert values["edit_source"] == "people", "corrections by people are the point"


def test_the_graphs_have_every_stage(compiled: dict[str, dict[str, Any]]) -> None:
    stages = {name: [task for task, _ in tasks(spec)] for name, spec in compiled.items()}
    assert sorted(stages["full"]) == sorted(TASKS), "what the demo shows progress for"
    assert len(stages["baseline"]) == 12 and "export-attention" in stages["baseline"]
    for name, tasks_of in stages.items():
        tasks_of.remove(f"check-{name}")
    kinds = {name: Counter(re.sub(r"-\d$", "", task) for task in names) for name, names in stages.items()}
    halves = kinds["baseline"] + kinds["finetune"] - Counter(["end-run"])
    assert halves + Counter(["edits"]) == kinds["full"], "the two halves and the people"


def test_a_run_always_comes_to_an_end(compiled: dict[str, dict[str, Any]]) -> None:
    """However the other tasks end: parents in MLflow would stay RUNNING, TrainJobs of killed steps would go on."""
    for spec in compiled.values():
        root = spec["root"]["dag"]["tasks"]
        assert sorted(root) == ["end-run", "exit-handler-1"]
        assert root["end-run"]["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"


@pytest.mark.parametrize(
    ("state", "status"), [("SUCCEEDED", "FINISHED"), ("FAILED", "FAILED"), ("CANCELLED", "KILLED")]
)
def test_the_end_of_a_run_is_that_of_its_parent(
    state: str, status: str, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    for name in ("KUBERNETES_SERVICE_HOST", "KUBECONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STABN_RUN_ID", f"ending-{state}")
    monkeypatch.setenv("STABN_PIPELINE", "full")
    with stage_run("train", settings={}, inputs={}) as run:
        pass
    final = dsl.PipelineTaskFinalStatus(
        state=state, pipeline_job_resource_name="x", pipeline_task_name="x", error_code=0, error_message=""
    )
    run_step("end-run", run_end, {"status": final})
    client = MlflowClient(mlflow_uri)
    parent = client.get_run(run.run_id).data.tags["mlflow.parentRunId"]
    assert client.get_run(parent).info.status == status


def test_edits_are_never_taken_from_the_cache(compiled: dict[str, dict[str, Any]]) -> None:
    cached = {name: task.get("cachingOptions", {}).get("enableCache", False) for name, task in tasks(compiled["full"])}
    assert {name for name, is_cached in cached.items() if not is_cached} == {"edits", *UNCACHED}
    imported = dict(tasks(compiled["finetune"]))["import-edits"]
    assert not imported.get("cachingOptions", {}).get("enableCache", False), "here its inputs do not tell of new edits"


def test_every_task_has_an_image_and_no_packages_to_install(compiled: dict[str, dict[str, Any]]) -> None:
    for spec in compiled.values():
        for name, executor in spec["deploymentSpec"]["executors"].items():
            container = executor["container"]
            assert container["image"].startswith("stabn-"), name
            assert "pip install" not in str(container["command"]), f"{name}: a cluster may have no way out"


@pytest.mark.parametrize("path", COMPONENTS, ids=lambda path: path.stem)
def test_components_call_what_exists_with_arguments_that_fit(path: Path) -> None:
    """They import what they call when they run: neither Python nor a type checker looks at it before."""
    functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    assert functions
    calls = 0
    for function in functions:
        known: dict[str, Any] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{path.name}: {node.module} has no {alias.name}"
                    if (node.module or "").startswith(("stabn", "components")):
                        known[alias.asname or alias.name] = getattr(module, alias.name)
        assert known or function.name.startswith("_"), f"{function.name} calls nothing of the library"
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in known:
                keywords = {item.arg: None for item in node.keywords if item.arg}
                bind = inspect.signature(known[node.func.id]).bind
                if len(keywords) == len(node.keywords):  # else some are given by their declaration
                    bind(*node.args, **keywords)
                calls += 1
    assert calls


def test_components_are_what_their_stages_declare() -> None:
    """Interface and text of each come from its declaration, and its function reads nothing that it is not given."""
    made = {}
    for path in COMPONENTS:
        module = importlib.import_module(f"components.{path.stem}")
        components = {item.name: item for item in vars(module).values() if isinstance(item, BaseComponent)}
        made |= components
        tree = {node.name: node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        for name, item in components.items():
            stage = STAGES[name]
            inputs, outputs = item.component_spec.inputs or {}, item.component_spec.outputs or {}
            given = ["status"] if name == "end-run" else []  # KFP's own, to the last task
            assert list(inputs) == [one.name for one in (*stage.reads, *stage.takes)] + given, name
            assert set(outputs) == {one.name for one in stage.writes} | {key or "Output" for key in stage.returns}, name
            runs = re.search(
                rf"from components.{path.stem} import (\w+) as run$", inspect.getsource(item.python_func), re.M
            )
            assert runs, name
            read = {
                node.attr
                for node in ast.walk(tree[runs[1]])
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "step"
            }
            assert read <= {*inputs, *outputs, "by_form", "config", "placement", "declared"}, name
    assert set(made) == set(STAGES)


@pytest.mark.parametrize(
    ("stage", "given", "said"),
    [
        ("plan-parts", {"num_parts": 0}, "plan-parts: extract_parts = 0: must be at least 1"),
        (
            "edits",
            {"source": "person"},
            "edits: edit_source = 'person': choose one of people, segments, segments_shifted, segments_other, network",
        ),
    ],
)
def test_a_step_refuses_what_its_stage_cannot_use(
    stage: str, given: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {item.name: item.default for item in STAGES[stage].takes} | given
    with pytest.raises(SystemExit) as ended:
        run_step(stage, lambda step: pytest.fail("it ran"), values)
    assert ended.value.code == 2 and capsys.readouterr().err == f"{said}\n"


def test_a_step_does_not_say_that_it_found_credentials(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """botocore does at every start, at the level that KFP's executor shows."""
    from botocore.session import Session

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(logging.getLogger("botocore.credentials"), "level", logging.NOTSET)
    logging.getLogger("botocore.credentials").manager._clear_cache()  # type: ignore[attr-defined]
    Session().get_credentials()
    assert "Found credentials" in caplog.text
    caplog.clear()
    run_step("plan-parts", lambda step: Session().get_credentials(), {"num_parts": 1})
    assert "Found credentials" not in caplog.text


@pytest.mark.parametrize(
    ("error", "ended", "reason"),
    [
        (
            StabnError("edits/1.json: 44 values\nfor 45 frames; export again"),
            SystemExit,
            "edits/1.json: 44 values for 45",
        ),
        (ZeroDivisionError("a defect"), ZeroDivisionError, "ZeroDivisionError: a defect"),
        (StabnError("http://me:password@host: away " + "x" * 9000), SystemExit, "http://***@host: away xxx"),
    ],
)
def test_a_failed_step_leaves_its_reason_where_argo_reads_it(
    error: Exception, ended: type[BaseException], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Argo's message of a node is `main: Error (exit code 2): ` and what the container leaves in that log."""

    def fail(step: Any) -> None:
        raise error

    log = tmp_path / "termination-log"
    monkeypatch.setattr(components.component, "TERMINATION_LOG", log)
    for is_pod in (False, True):
        with pytest.raises(ended):
            run_step("plan-parts", fail, {"num_parts": 1})
        assert log.exists() is is_pod, "nothing is made where there is no pod"
        log.touch()
    assert log.read_text().startswith(f"plan-parts: {reason}") and len(log.read_text()) <= 500


KFP_OUTPUT = """\
09:15:39.199 - INFO - Running pipeline: \x1b[95m'st-abn-full'\x1b[0m
--------------------------------------------------------------------------------
09:15:39.207 - INFO - Executing task \x1b[96m'extract-frames'\x1b[0m
/x/kfp/local/subprocess_task_handler.py:81: RuntimeWarning: You may be attemping to run a task that uses custom
  warnings.warn(
09:15:39.207 - INFO - Streamed logs:

    [KFP Executor 2026-11-23 09:15:39,276 INFO]: Looking for component `extract_frames` in --component_module_path
    [KFP Executor 2026-11-23 09:15:39,277 INFO]: Got executor_input:
    {
        "inputs": {
            "parameterValues": {
                "preset": "mini"
            }
        },
        "outputs": {
            "outputFile": "/x/executor_output.json"
        }
    }
    [KFP Executor 2026-11-23 09:15:42,526 INFO]: Found credentials in environment variables.
    extract-frames  45/45 videos  10.9/s  0:04 taken  rejects 0
    [KFP Executor 2026-11-23 09:15:46,810 INFO]: Wrote executor output file to /x/executor_output.json.


09:15:47.705 - INFO - Task \x1b[96m'extract-frames'\x1b[0m finished with status \x1b[92mSUCCESS\x1b[0m
09:15:47.705 - INFO - Task \x1b[96m'extract-frames'\x1b[0m outputs:
    manifest: Dataset( name='manifest',
                       uri='/x/extract-frames/manifest',
                       metadata={'fingerprint': '5b9e1924e191348f', 'num_videos': 45.0} )
--------------------------------------------------------------------------------
Task train cache hit (key=cfcc8309332d); skipping execution.
09:15:47.707 - INFO - Executing task \x1b[96m'evaluate-2'\x1b[0m
09:15:47.707 - INFO - Streamed logs:

    evaluate baseline, train: 30 videos, top1 40.0%
    stabn.errors.StabnError: a line of the stage itself is never lost
"""


def test_readable_keeps_headings_and_the_stages_own_lines() -> None:
    lines = [line for line in readable(KFP_OUTPUT.splitlines()) if line.strip()]
    assert [line.strip() for line in lines] == [
        "[ 1/24] extract-frames   (0:00 so far)",
        "extract-frames  45/45 videos  10.9/s  0:04 taken  rejects 0",
        "[ 2/24] train   reused: it ran before with the same inputs and code",
        "[ 3/24] evaluate-2   (0:00 so far)",
        "evaluate baseline, train: 30 videos, top1 40.0%",
        "stabn.errors.StabnError: a line of the stage itself is never lost",
    ]


def test_readable_shows_a_line_as_soon_as_it_comes() -> None:
    source = iter(KFP_OUTPUT.splitlines())
    shown = readable(source)
    assert "extract-frames" in next(shown) and next(source).startswith("/x/kfp"), "nothing was read ahead"


def test_parameters_have_the_types_of_the_form() -> None:
    texts = {
        "data_videos_uri": "v",
        "data_labels_uri": "l",
        "data_storage_uri": "s",
        "select_max_classes": "4",
        "finetune_gamma": "0",
    }
    values = parse_parameters(PIPELINES["full"], texts)
    assert values == {**texts, "select_max_classes": 4, "finetune_gamma": 0.0}
    assert type(values["select_max_classes"]) is int and type(values["finetune_gamma"]) is float
    assert (
        parse_parameters(PIPELINES["finetune"], {"data_round_uri": "5", "data_storage_uri": "s"})["data_round_uri"]
        == "5"
    )


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (
            {"data_round_uri": "r", "data_storage_uri": "s", "gama": "1"},
            r"no parameter gama; it has .*data_round_uri.*finetune_gamma",
        ),
        ({"data_round_uri": "r"}, r"give --param data_storage_uri=…"),
        ({}, r"give --param data_round_uri=… --param data_storage_uri=…"),
        (
            {"data_round_uri": "r", "data_storage_uri": "s", "finetune_gamma": "ten"},
            r"finetune_gamma = 'ten': expected a number",
        ),
        (
            {"data_round_uri": "r", "data_storage_uri": "s", "finetune_gamma": "-1"},
            r"finetune_gamma = -1.0: must be at least 0",
        ),
        (
            {"data_round_uri": "r", "data_storage_uri": "s", "promote_metric": "top-1"},
            r"promote_metric = 'top-1': choose one of",
        ),
        ({"data_round_uri": "r", "data_storage_uri": "s", "num_nodes": "0"}, r"num_nodes = 0: must be at least 1"),
        ({"data_round_uri": "r", "data_storage_uri": "s", "preset": "huge"}, r"preset = 'huge': choose one of mini"),
        (
            {"data_round_uri": "r", "data_storage_uri": "s", "overrides": "train.epocs=2"},
            r"train.epocs: no such setting",
        ),
    ],
)
def test_parameters_that_do_not_fit_are_named(texts: dict[str, str], said: str) -> None:
    with pytest.raises(StabnError, match=said):
        parse_parameters(PIPELINES["finetune"], texts)


def test_run_refuses_before_it_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    for name in ("STABN_PIPELINE", "STABN_RUN_ID"):
        monkeypatch.setenv(name, "test")
    with pytest.raises(SystemExit) as stopped:
        main(["run", "full", "--dir", str(tmp_path / "run"), "--param", "data_videos_uri=v"])
    assert stopped.value.code == 2 and not (tmp_path / "run").exists()
    assert "give --param data_labels_uri=… --param data_storage_uri=…" in capsys.readouterr().err


def test_a_parameter_without_a_value_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    for name in ("STABN_PIPELINE", "STABN_RUN_ID"):
        monkeypatch.setenv(name, "test")
    ran: list[Any] = []
    monkeypatch.setattr("pipelines.__main__.run_local", lambda *args: ran.append(args))
    with pytest.raises(SystemExit):
        main(
            [
                "run",
                "finetune",
                "--dir",
                str(tmp_path),
                "--param",
                "data_round_uri=r",
                "--param",
                "data_storage_uri=s",
                "--param",
                "preset mini",
            ]
        )
    assert "preset mini" in capsys.readouterr().err and not ran


def executors(folder: Path, name: str, **flags: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the pipeline, its containers, and their Kubernetes settings by task, as compiled with these settings."""
    settings = CompileSettings.load(folder / "settings.yaml", **flags)
    compile_pipeline(build(name, settings), settings, folder / "out.yaml")
    spec, platform = yaml.load_all((folder / "out.yaml").read_text(), yaml.CSafeLoader)
    containers = {key: item["container"] for key, item in spec["deploymentSpec"]["executors"].items()}
    return spec, containers, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def test_compile_settings_reach_every_task(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(
        "image_pull_secret: registry\nstorage_secret: ''\nexperiment: night\nparameters: {data_storage_uri: s3://ours}\n"
        "stages:\n  train: {cpu: 7, memory_limit: 99Gi, timeout_hours: 2, retries: 9, shm: 8Gi, "
        "accelerator: nvidia.com/gpu, accelerators: 2}\n"
    )
    spec, containers, pods = executors(tmp_path, "full", data_image="data:7", trainer_image="trainer:7", commit="abc")
    assert spec["root"]["inputDefinitions"]["parameters"]["data_storage_uri"]["defaultValue"] == "s3://ours"
    assert {container["image"] for container in containers.values()} == {"data:7", "trainer:7"}
    train = containers["exec-train"]
    resources = train["resources"]
    assert resources["cpuRequest"] == 7 and resources["memoryLimit"] == pytest.approx(99 * 2**30 / 1e9)
    assert resources["accelerator"]["type"] == "nvidia.com/gpu" and resources["accelerator"]["count"] == "2"
    with_gpu = [name for name, item in containers.items() if "accelerator" in item["resources"]]
    assert with_gpu == ["exec-train", "exec-train-baseline"], "no other step gets one"
    assert pods["exec-train"]["activeDeadlineSeconds"] == "7200"
    assert pods["exec-train"]["emptyDirMounts"][0]["sizeLimit"] == "8Gi"
    for name, container in containers.items():
        environment = {item["name"]: item["value"] for item in container["env"]}
        assert environment["STABN_GIT_COMMIT"] == "abc" and environment["STABN_EXPERIMENT"] == "night", name
        assert environment["STABN_PIPELINE"] == "full" and environment["STABN_IMAGE"] == container["image"]
        pod = pods[name]
        assert pod["imagePullPolicy"] == "IfNotPresent" and pod["imagePullSecret"][0]["secretName"] == "registry"
        mounts = {item["configMapName"]: item["mountPath"] for item in pod["configMapAsVolume"]}
        assert mounts["stabn-storage"] == str(STORAGE_DIR) and "secretAsVolume" not in pod
        assert [item["name"] for item in pod["fieldPathAsEnv"]] == ["STABN_RUN_ID"]
    retries = {name: task["retryPolicy"] for name, task in tasks(spec)}
    assert retries["train"]["maxRetryCount"] == 9 and retries["report"]["maxRetryCount"] == 2
    assert all(policy["backoffDuration"] == "30s" and policy["backoffFactor"] == 2 for policy in retries.values())
    assert "activeDeadlineSeconds" not in pods["exec-edits"], "people take their time; edit_timeout_hours limits it"


def test_a_run_is_ended_and_cleared_away_when_the_settings_say_so(tmp_path: Path) -> None:
    """KFP 2.17 makes Argo's `activeDeadlineSeconds` and `ttlStrategy` of it; 0 days leave it to the server."""

    def limits(text: str) -> dict[str, int]:
        (tmp_path / "settings.yaml").write_text(text)
        settings = CompileSettings.load(tmp_path / "settings.yaml")
        compile_pipeline(build("finetune", settings), settings, tmp_path / "out.yaml")
        _, platform = yaml.load_all((tmp_path / "out.yaml").read_text(), yaml.CSafeLoader)
        return platform["platforms"]["kubernetes"].get("pipelineConfig", {})

    day = 24 * 3600
    assert limits("") == {"resourceTtlOnSuccess": 7 * day, "resourceTtlOnFailure": 30 * day}
    given = limits("deadline_days: 1.5\nsuccess_days: 0.00001\nfailure_days: 0\n")
    assert sorted(given.values()) == [1, 1.5 * day] and given["resourceTtlOnSuccess"] == 1
    assert limits("{success_days: 0, failure_days: 0}") == {}
    with pytest.raises(ConfigError, match=r"deadline_days = 30000\.0"):
        limits("deadline_days: 30000")


def test_the_last_retry_has_time_left(tmp_path: Path) -> None:
    """KFP ends a task for good when its longest duration of retrying is over, counted from the first attempt on."""
    (tmp_path / "settings.yaml").write_text("")
    spec, _, pods = executors(tmp_path, "full")
    checked = 0
    for name, task in tasks(spec):
        policy, pod = task["retryPolicy"], pods[task["componentRef"]["name"].replace("comp-", "exec-")]
        retries, window = policy["maxRetryCount"], int(policy["backoffMaxDuration"].removesuffix("s"))
        waits = sum(int(policy["backoffDuration"].removesuffix("s")) * 2**i for i in range(retries))
        if deadline := int(pod.get("activeDeadlineSeconds", 0)):
            assert window >= (retries + 1) * deadline + waits, name
            checked += 1
        else:
            assert window > 90 * 24 * 3600, name
    assert checked >= 10


@pytest.mark.parametrize("name", PIPELINES)
def test_a_step_is_small(name: str, tmp_path: Path) -> None:
    """All of it stands in the workflow once for each step that runs, and Argo keeps less than 1 MB of that."""
    (tmp_path / "settings.yaml").write_text("")
    _, containers, pods = executors(tmp_path, name)
    sizes = {step: len(json.dumps(container)) + len(json.dumps(pods[step])) for step, container in containers.items()}
    assert max(sizes.values()) < 2700, sizes


def test_a_step_finds_its_settings_as_files_and_what_was_injected_wins(tmp_path: Path) -> None:
    """As a ConfigMap is mounted: each key a link into a folder whose name begins with two points."""
    (tmp_path / "..2026").mkdir()
    for name, text in {"AWS_ENDPOINT_URL": "https://s3\n", "MLFLOW_TRACKING_URI": "http://ours", "EMPTY": ""}.items():
        (tmp_path / "..2026" / name).write_text(text)
        (tmp_path / name).symlink_to(tmp_path / "..2026" / name)
    (tmp_path / "..data").symlink_to(tmp_path / "..2026")
    environment = {"MLFLOW_TRACKING_URI": "http://injected"}
    read_mounted([tmp_path, tmp_path / "none"], environment)
    assert environment == {"MLFLOW_TRACKING_URI": "http://injected", "AWS_ENDPOINT_URL": "https://s3"}


def test_keys_of_kfps_own_store_do_not_reach_ours(tmp_path: Path) -> None:
    """With `fromEnv` in kfp-launcher, AWS_… in a step's environment are KFP's; ours are files, which win as a whole."""
    (tmp_path / "AWS_ACCESS_KEY_ID").write_text("ours")
    (tmp_path / "AWS_SECRET_ACCESS_KEY").write_text("our secret")
    kfps = {"AWS_ACCESS_KEY_ID": "kfp", "AWS_SECRET_ACCESS_KEY": "k", "AWS_SESSION_TOKEN": "k", "AWS_REGION": "eu"}
    environment = dict(kfps)
    read_mounted([tmp_path], environment)
    assert environment == {"AWS_ACCESS_KEY_ID": "ours", "AWS_SECRET_ACCESS_KEY": "our secret", "AWS_REGION": "eu"}
    (tmp_path / "AWS_ENDPOINT_URL").write_text("http://ours")
    environment = {"AWS_ENDPOINT_URL": "http://kfp", "AWS_ENDPOINT_URL_S3": "http://kfp"}
    read_mounted([tmp_path], environment)
    assert environment["AWS_ENDPOINT_URL"] == "http://ours" and "AWS_ENDPOINT_URL_S3" not in environment
    identity = {"AWS_ROLE_ARN": "arn", "AWS_WEB_IDENTITY_TOKEN_FILE": "/t", "AWS_SESSION_TOKEN": "s"}
    environment = dict(identity)
    read_mounted([tmp_path / "none"], environment)
    assert environment == identity, "without a secret, workload identity is left alone"


def test_no_step_has_keys_or_kfps_mlflow_variables_in_its_environment(tmp_path: Path) -> None:
    """KFP's launcher takes AWS_… for its own; its plugin's MLFLOW_… by value clash with any of ours by reference."""
    (tmp_path / "settings.yaml").write_text("")
    _, containers, pods = executors(tmp_path, "full")
    for step, pod in pods.items():
        names = {item["name"] for item in containers[step].get("env", [])}
        names |= {item["name"] for item in pod.get("fieldPathAsEnv", [])}
        assert names and all(name.startswith("STABN_") for name in names), step
        assert not {"secretAsEnv", "configMapAsEnv"} & set(pod), step


@pytest.mark.parametrize("name", PIPELINES)
def test_every_step_may_run_in_a_restricted_namespace(name: str, tmp_path: Path) -> None:
    """KFP sets all else that the standard wants: seccomp, no capabilities, no more privileges."""
    (tmp_path / "settings.yaml").write_text("")
    *_, pods = executors(tmp_path, name)
    assert len(pods) >= 5
    for step, pod in pods.items():
        assert pod["securityContext"]["runAsNonRoot"] is True, step


def test_every_step_is_told_how_long_to_try_again(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("patience_minutes: 90\nstages: {select: {timeout_hours: 1}}\n")
    _, containers, _ = executors(tmp_path, "full")
    minutes = {
        name: {item["name"]: item["value"] for item in container["env"]}["STABN_PATIENCE_MINUTES"]
        for name, container in containers.items()
    }
    assert minutes.pop("exec-select-classes") == "60", "no longer than the step may take"
    assert {minutes.pop(f"exec-{name}") for name in ("check-full", "look-at-dataset", "plan-parts", "end-run")} == {
        "60"
    }
    assert set(minutes.values()) == {"90"}


def test_a_step_outlasts_the_wait_for_its_nodes() -> None:
    """A full cluster lets a TrainJob wait for a day: the step that follows it must not be ended before."""
    for stage in ("train", "finetune", "evaluate", "promote"):
        limit = STAGE_SETTINGS[stage].timeout_hours
        assert not limit or limit >= ClusterConfig().pending_minutes / 60 + 24, stage


@pytest.mark.parametrize("image", ["stabn-data", "stabn-data:latest", "registry:5000/stabn-data"])
def test_an_image_name_that_may_change_its_content_turns_caching_off(tmp_path: Path, image: str) -> None:
    (tmp_path / "settings.yaml").write_text("")
    spec, *_ = executors(tmp_path, "full", data_image=image, trainer_image="stabn-trainer@sha256:" + "0" * 64)
    assert not any(task["cachingOptions"].get("enableCache") for _, task in tasks(spec))
    spec, *_ = executors(tmp_path, "full", data_image="r:5000/d:1", trainer_image="stabn-trainer@sha256:" + "0" * 64)
    assert dict(tasks(spec))["extract-frames"]["cachingOptions"] == {"enableCache": True}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data_imgae: x", r"settings.yaml: no setting 'data_imgae'; there are data_image"),
        ("stages: {trian: {cpu: 1}}", r"stages.trian: no such stage; there are plan, extract"),
        ("stages: {train: {cpus: 1}}", r"stages.train: no setting 'cpus'"),
        ("stages: {train: {retries: -1}}", r"stages.train: retries = -1: must be at least 0"),
        ("stages: {train: {retries: two}}", r"stages.train: retries = 'two': expected int"),
        ("image_pull_policy: Sometimes", r"image_pull_policy = 'Sometimes': choose one of Always"),
        ("- a list", r"expected names and values"),
        ("a: [", r"settings.yaml: while parsing"),
    ],
)
def test_compile_settings_that_do_not_fit_are_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "settings.yaml").write_text(text)
    with pytest.raises(StabnError, match=said):
        CompileSettings.load(tmp_path / "settings.yaml")


@pytest.mark.parametrize("name", PIPELINES)
def test_the_compiled_pipelines_are_those_checked_in(name: str, compiled_texts: dict[str, str]) -> None:
    """What changes in the YAML is seen in the commit; `make golden` renews the files."""
    assert compiled_texts[name] == (GOLDEN / f"{name}.yaml").read_text(), "if that is intended: make golden"


def test_the_dataset_fingerprint_tells_of_every_change(tmp_path: Path) -> None:
    videos, labels = tmp_path / "videos", tmp_path / "labels"
    for folder in (videos, labels):
        folder.mkdir()
    (videos / "1.webm").write_bytes(b"one")
    (labels / "labels.json").write_text("{}")
    seen = [dataset_fingerprint(str(videos), str(labels))]
    assert seen[0] == dataset_fingerprint(str(videos), str(labels))
    (videos / "1.webm").write_bytes(b"other")
    seen.append(dataset_fingerprint(str(videos), str(labels)))
    (labels / "labels.json").write_text("[1]")
    seen.append(dataset_fingerprint(str(videos), str(labels)))
    seen.append(dataset_fingerprint(str(videos), str(labels), "2"))
    assert len(set(seen)) == 4
    with pytest.raises(StabnError, match=r"data_videos_uri is empty"):
        dataset_fingerprint("", str(labels))
    with pytest.raises(StabnError, match=r"data_labels_uri = .*nothing is there"):
        dataset_fingerprint(str(videos), str(tmp_path / "none"))


def test_results_of_other_code_are_not_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("stabn", "components", "pipelines"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "a.py").write_text("A = 1\n")
    monkeypatch.setattr("pipelines.local.SOURCES", tmp_path)
    first = code_fingerprint()
    assert first == code_fingerprint()
    (tmp_path / "stabn" / "a.py").write_text("A = 2\n")
    assert code_fingerprint() != first
