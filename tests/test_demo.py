"""The whole job on a tiny dataset: KFP's local runner, SeaweedFS, MLflow, from video files to the report."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from stabn.data.manifest import Manifest

OVERRIDES = "train.epochs=2 finetune.epochs=1 select.max_videos=6"
STAGES = {
    "extract-frames",
    "merge-frames",
    "train",
    "evaluate",
    "select-classes",
    "export-attention",
    "edits",
    "import-edits",
}


def run_demo(folder: Path, seconds: float = 540) -> str:
    """Run the demo in a process of its own, as a user does, for so long at most; return what it printed."""
    code = (
        "from pathlib import Path; from pipelines.demo import demo\n"
        f"if __name__ == '__main__': demo(Path({str(folder)!r}), size=45, overrides={OVERRIDES!r})"
    )
    script = folder.parent / "run_demo.py"
    script.write_text(code)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "MLFLOW_", "STABN_"))}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("whole-job") / "demo"
    return folder, run_demo(folder)


def test_every_stage_is_shown_and_tables_are_printed(finished: tuple[Path, str]) -> None:
    _, output = finished
    headings = re.findall(r"\[ ?(\d+)/24\] ([\w-]+)", output)
    assert [int(number) for number, _ in headings] == list(range(1, 25))
    assert {re.sub(r"-\d$", "", name) for _, name in headings} == STAGES | {
        "check-full",
        "look-at-dataset",
        "plan-parts",
        "train-baseline",
        "finetune",
        "report",
        "promote",
        "end-run",
    }
    assert "Table 2" in output and "Table 3" in output and "control" in output
    assert "mlflow ui" in output and "stabn local" in output
    assert '"inputs"' not in output, "KFP's own JSON is noise to a newcomer"


def test_kfp_keeps_no_network(finished: tuple[Path, str]) -> None:
    """KFP's store would get each of them, 219 MB in the usual size, and every step that reads one would fetch it."""
    folder, output = finished
    artifacts = folder / "kfp" / "artifacts"
    networks = [path for name in ("checkpoint", "finetuned") for path in artifacts.glob(f"*/*/{name}")]
    assert len(networks) == 4, "of train, import-edits, finetune and its control"
    for path in networks:
        content = json.loads(path.read_text())
        assert content["uri"].startswith("s3://data/") and len(content["fingerprint"]) == 16
    said = re.search(r"--checkpoint (\S+)", output)
    assert said and said[1] in {json.loads(path.read_text())["uri"] for path in networks}


def test_report_is_one_file_with_both_tables(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    page = (folder / "report.html").read_text()
    assert "Table 2" in page and "Table 3" in page and "data:image/png;base64," in page
    assert not re.search(r'(src|href)="https?://', page)
    assert list((folder / "figures").glob("*.png"))


def test_mlflow_has_one_parent_with_comparable_children(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    client = MlflowClient(f"sqlite:///{folder}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("st-abn-mini")
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_name: run for run in runs if "mlflow.parentRunId" in run.data.tags}
    assert len(parents) == 1 and parents[0].info.status == "FINISHED"
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parents[0].info.run_id}
    assert {name.split("/")[0] for name in children} == STAGES | {"retrain", "report", "promote"}
    before, after = (children[f"evaluate/{name}/held_out/as_is"] for name in ("before", "after"))
    assert set(before.data.metrics) == set(after.data.metrics) >= {"top1", "top5"}
    assert client.get_registered_model("st-abn-mini").name == "st-abn-mini"


def test_edits_are_documents_per_source_frame(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    imported = next((folder / "kfp" / "artifacts").glob("*/import-edits"))
    manifest = Manifest.load(imported / "manifest")
    code = (
        "import json, sys; from stabn.storage import open_storage; s = open_storage('s3://data')\n"
        "print(json.dumps([json.loads(s.read(k)) for k in s.list('rounds/') if '/edits/' in k]))"
    )
    command = [
        str(Path(sys.executable).parent / "stabn"),
        "local",
        "--dir",
        str(folder),
        "--",
        sys.executable,
        "-c",
        code,
    ]
    edits = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 1 <= len(edits) <= 6
    segments = json.loads((folder / "dataset" / "segments.json").read_text())
    for edit in edits:
        first, last = segments[edit["video_id"]]
        curve = edit["edited_attention"]
        assert len(curve) == manifest.video(manifest.index_of(edit["video_id"])).num_frames
        assert all(value == 1 for value in curve[first:last]) and sum(curve) < last - first + 4


def test_the_editor_opens_on_the_demos_own_round(finished: tuple[Path, str]) -> None:
    _, output = finished
    line = re.search(r"\S+/stabn local --dir \S+ -- (stabn editor .*)", output)
    assert line, output
    words = [*line[0].split(), "--editor.port", "0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        served = process.stdout.readline()
        address = re.search(r"\d+ videos: (http://\S+)", served)
        assert address, served
        with urllib.request.urlopen(address[1], timeout=10) as page:
            assert b"Attention editor" in page.read()
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_run_again_reuses_everything(finished: tuple[Path, str]) -> None:
    folder, output = finished
    again = run_demo(folder)
    assert again.count("reused: it ran before") == 19, "all but what looks at what may have changed"
    tables = output[output.index("Table 2") : output.index("Done in")]
    assert tables in again
