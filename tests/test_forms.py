"""What a later stage will refuse is refused when submitting, when compiling, and in a pipeline's first step."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.check_form import run_finetune, run_full
from components.component import run_step
from components.placement import Placement
from pipelines.__main__ import main
from pipelines.build import build, compile_pipeline
from pipelines.resources import CompileSettings
from stabn.attention.rounds import Round
from stabn.config import ConfigError, FitConfig
from stabn.errors import StabnError
from stabn.forms import check_form, offered
from stabn.stages import FORMS, REQUIRED
from stabn.tracking import TrackingError, find_champion

BASE = {"data_videos_uri": "s3://data/v", "data_labels_uri": "s3://data/l", "data_storage_uri": "s3://data/s"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"edit_source": "person"}, "edit_source = 'person': choose one of people, segments"),
    ({"promote_metric": "top-1"}, "promote_metric = 'top-1': choose one of top1, top5"),
    ({"model_name": "ST ABN v2"}, "model_name = 'ST ABN v2': .*use letters, digits"),
    ({"model_name": "team/abn"}, "model_name = 'team/abn': "),
    ({"select_threshold": 50.0}, "select_threshold = 50.0: must be at most 1"),
    ({"num_nodes": 0}, "num_nodes = 0: must be at least 1"),
    ({"edit_source": "segments"}, "edit_source = 'segments' without edit_segments_uri"),
    ({"edit_segments_uri": "s3://data/x.json"}, "edit_segments_uri = .* with edit_source = 'people'"),
    (
        {"edit_source": "segments", "edit_segments_uri": "s3://data"},
        "edit_segments_uri = 's3://data': .*names no object",
    ),
    ({"data_storage_uri": "gs://b/s"}, "data_storage_uri = 'gs://b/s': .*unknown kind of storage"),
    ({"data_storage_uri": "/data", "num_nodes": 2}, "data_storage_uri = '/data': the nodes of a job cannot read it"),
    ({"node_accelerator": "gpu"}, "node_accelerator = 'gpu': write the resource's whole name"),
    ({"node_accelerator": "nvidia.com/gpu 8"}, "node_accelerator = 'nvidia.com/gpu 8'"),
    ({"preset": "huge"}, "preset = 'huge': choose one of mini"),
    ({"preset": "baseline_r50_32"}, "a baseline has no attention to correct"),
    ({"overrides": "train.epochs"}, "overrides = 'train.epochs': .*write section.name=value"),
    ({"overrides": "train.epocs=2"}, "train.epocs: no such setting"),
    ({"overrides": "train.device=cuda0"}, "train.device = 'cuda0': write auto, cpu, cuda or cuda:N"),
    ({"overrides": "train.momentum=0"}, "train.momentum = 0 with nesterov = true"),
    ({"overrides": "extract.min_frames=9 extract.max_frames=8"}, "extract.min_frames = 9 with max_frames = 8"),
    ({"overrides": "model.width=32"}, "train.init_weights = 'imagenet': there is no such network"),
    ({"overrides": "train.batch_size=8", "num_nodes": 3, "procs_per_node": 3}, "train.batch_size = 8 for 9 processes"),
    ({"overrides": "finetune.batch_size=8", "num_nodes": 9}, "finetune.batch_size = 8 for 9 processes"),
    ({"overrides": "finetune.device=cuda:1", "procs_per_node": 2}, "finetune.device = 'cuda:1' with 2 processes"),
    ({"report_split": "test"}, "report_split = 'test': its videos have no labels"),
    ({"data_videos_uri": ""}, "give --param data_videos_uri"),
]


@pytest.mark.parametrize(("given", "said"), REFUSED, ids=[str(given) for given, _ in REFUSED])
def test_submitting_and_the_first_step_refuse_the_same(
    given: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    values = BASE | given
    words = [word for name, value in values.items() for word in ("--param", f"{name}={value}")]
    with pytest.raises(SystemExit) as submitted:
        main(["submit", "full", *words, "--endpoint", "http://127.0.0.1:9"])
    by_submit = capsys.readouterr().err
    assert submitted.value.code == 2
    form = {item.form_name: item for item in FORMS["full"]}
    whole = {item.name: values.get(name, item.default) for name, item in form.items()}
    with pytest.raises(SystemExit) as stepped:
        run_step("check-full", run_full, whole)
    by_step = capsys.readouterr().err
    assert stepped.value.code == 2
    with pytest.raises(ConfigError, match=said) as raised:
        check_form("full", values)
    assert str(raised.value) in by_submit and str(raised.value) in by_step


def test_what_fits_gives_the_settings_of_the_form() -> None:
    config = check_form("full", BASE | {"preset": "mini", "select_threshold": 0.25, "overrides": "train.epochs=2"})
    assert (config.select.threshold, config.train.epochs, config.preset) == (0.25, 2, "mini")
    assert check_form(
        "finetune", {"data_round_uri": "s3://data/r", "data_storage_uri": "s3://data", "preset": "baseline_r50_32"}
    )
    with pytest.raises(ConfigError, match="a baseline has no attention"):
        check_form(
            "finetune",
            {"data_round_uri": "r", "data_storage_uri": "s", "preset": "baseline_r50_32", "route": "retrain"},
        )
    for form in FORMS.values():
        for item in form:
            if item.default is not REQUIRED:
                item.check(item.default)


def test_later_stages_ask_the_same_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="node_accelerator = 'gpu': write the resource's whole name"):
        Placement(1, 1, "gpu")
    with pytest.raises(ConfigError, match="batch_size = 64 for 65 processes"):
        FitConfig().check_processes(65)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(TrackingError, match="model 'ST ABN v2': use letters"):
        find_champion("ST ABN v2")


def test_compiling_refuses_a_default_that_no_stage_can_use(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("parameters: {model_name: ST ABN v2}")
    settings = CompileSettings.load(tmp_path / "settings.yaml")
    with pytest.raises(ConfigError, match="model_name = 'ST ABN v2'"):
        compile_pipeline(build("full", settings), settings, tmp_path / "full.yaml")


def test_choices_become_dropdowns_unless_the_server_is_too_old(tmp_path: Path) -> None:
    for is_new, metrics in ((True, ["top1", "top5"]), (False, None)):
        settings = CompileSettings(dropdowns=is_new)
        compile_pipeline(build("finetune", settings), settings, tmp_path / "out.yaml")
        spec = next(yaml.load_all((tmp_path / "out.yaml").read_text(), yaml.CSafeLoader))
        parameters = spec["root"]["inputDefinitions"]["parameters"]
        assert parameters["promote_metric"].get("literals") == metrics
        assert ("mini" in parameters["preset"].get("literals", [])) is is_new
        assert "literals" not in parameters["model_name"]


def test_no_dropdown_offers_what_the_first_step_refuses() -> None:
    assert "test" not in offered("full", "report_split") and "held_out" in offered("full", "report_split")
    assert not [name for name in offered("full", "preset") if name.startswith("baseline")]
    assert "baseline_r50_32" in offered("finetune", "preset"), "the round's own network is used, not the preset's"
    assert offered("full", "edit_source")[:2] == ("people", "segments")


def test_what_each_parameter_means_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    main(["parameters", "full"])
    said = capsys.readouterr().out
    assert said.startswith("data_labels_uri   required\n    folder or s3:// prefix with")
    assert "promote_metric   default 'top1', one of top1, top5\n" in said and "train_baseline   default 'no'" in said
    assert all(f"\n{item.form_name}   " in f"\n{said}" for item in FORMS["full"])


def test_a_name_that_is_nearly_right_is_answered_with_the_right_one() -> None:
    for given, meant in (("videos_uri", "data_videos_uri"), ("accelerator", "node_accelerator")):
        with pytest.raises(ConfigError, match=rf"no parameter {given} \(meant: {meant}\?\); it has "):
            check_form("full", BASE | {given: "x"})


def step(stage: str, run: Any, values: dict[str, Any]) -> None:
    pipeline = stage.removeprefix("check-")
    run_step(stage, run, {item.name: values.get(item.form_name, item.default) for item in FORMS[pipeline]})


def test_the_first_step_looks_at_what_is_named(
    small_dataset: Path,
    editor_round: Round,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    segments, storage = tmp_path / "segments.json", tmp_path / "storage"
    segments.write_text(json.dumps({"1": [0, 4]}))
    values: dict[str, Any] = {
        "data_videos_uri": str(small_dataset / "videos"),
        "data_labels_uri": str(small_dataset / "labels"),
    }
    values |= {"data_storage_uri": str(storage), "preset": "mini", "edit_source": "segments"}
    values |= {"edit_segments_uri": str(segments)}
    step("check-full", run_full, values)
    step(
        "check-finetune",
        run_finetune,
        {"data_round_uri": editor_round.uri, "data_storage_uri": str(storage), "preset": "mini"},
    )
    assert not [path for path in storage.rglob("*") if path.is_file()], "nothing is left behind"
    capsys.readouterr()
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "file").write_text("")
    for changed, said in (
        ({"report_split": "held_out"}, "report_split = 'held_out': the labels hold no videos out"),
        ({"data_labels_uri": str(tmp_path)}, "labels.json"),
        ({"edit_segments_uri": str(tmp_path / "broken.json")}, "expected"),
        ({"truth_uri": str(tmp_path / "broken.json")}, "expected"),
        ({"truth_uri": str(tmp_path / "file")}, "not an edit table of import-edits"),
        ({"data_storage_uri": str(tmp_path / "file")}, "file"),
        ({"overrides": "train.init_weights=/no/such.pt"}, "train.init_weights = '/no/such.pt': no such file"),
        ({"num_nodes": 2, "data_storage_uri": "s3://data/s"}, "num_nodes = 2: needs a Kubernetes cluster"),
    ):
        with pytest.raises(SystemExit) as ended:
            step("check-full", run_full, values | changed)
        assert ended.value.code == 2 and said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        step("check-finetune", run_finetune, {"data_round_uri": str(tmp_path), "data_storage_uri": str(storage)})
    assert str(tmp_path) in capsys.readouterr().err
    finetuned = {
        "data_round_uri": editor_round.uri,
        "data_storage_uri": str(storage),
        "report_baseline_uri": str(tmp_path / "none"),
    }
    with pytest.raises(SystemExit):
        step("check-finetune", run_finetune, finetuned)
    assert "none: no such prediction table" in capsys.readouterr().err


def test_an_editor_refuses_at_its_start_what_its_pipeline_could_not_use(editor_round: Round) -> None:
    from stabn.config import EditorConfig
    from stabn.editor.services import Services

    config = EditorConfig(
        auth="open", kfp_host="http://127.0.0.1:9", kfp_parameters="data_storage_uri=s3://data promote_metric=top-1"
    )
    with pytest.raises(StabnError, match=r"editor\.kfp_parameters: promote_metric = 'top-1': choose one of"):
        Services(editor_round.uri, config)
