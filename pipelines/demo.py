"""The whole job on the mini dataset: what `make demo` and `stabn demo` run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipelines.by_hand import correct_by_hand
from stabn.config import fingerprint
from stabn.errors import StabnError
from stabn.local_mlflow import prepare_mlflow
from stabn.local_services import local_object_store
from stabn.progress import Progress

# The tasks of the pipeline `full` and about how long each takes on two cores, in seconds: only their proportions count,
# for the time left.
TASKS = {
    "check-full": 4,
    "look-at-dataset": 1,
    "plan-parts": 1,
    "extract-frames": 16,
    "merge-frames": 6,
    "train": 85,
    "train-baseline": 4,
    "evaluate": 9,
    "evaluate-2": 8,
    "select-classes": 4,
    "export-attention": 22,
    "edits": 6,
    "import-edits": 5,
    "finetune": 90,
    "finetune-2": 9,
    "evaluate-3": 9,
    "evaluate-4": 9,
    "evaluate-5": 9,
    "evaluate-6": 9,
    "evaluate-7": 9,
    "evaluate-8": 9,
    "report": 15,
    "promote": 8,
    "end-run": 3,
}
_AGAIN = ("import-edits", "finetune", "finetune-2", "report", "promote", "end-run")
FINETUNE_TASKS = {"check-finetune": 4, **{name: TASKS[name] for name in _AGAIN}, "evaluate": 9} | {
    f"evaluate-{number}": 9 for number in range(2, 7)
}
SETTINGS = {
    "preset": "mini",
    "select_max_classes": "4",
    "edit_source": "segments",
    "route": "retrain",
    "model_name": "st-abn-mini",
}
STARTED = re.compile(r"Executing task \S*?'([\w-]+)'")
FINISHED = re.compile(r"INFO - Task \S*?'([\w-]+)'\S* (finished|outputs)")
REUSED = re.compile(r"Task ([\w-]+) cache hit")


def demo(folder: Path, size: int = 0, seed: int = 0, overrides: str = "", by_hand: bool = False) -> None:
    """Make the mini dataset and run the pipeline `full` on it with KFP's local runner.

    Everything lies in one folder. Run again, it goes on where it was interrupted and reuses what is done.

    Args:
        folder: gets the dataset, the S3 server's data, MLflow's database, KFP's artifacts, and the report.
        size: videos of the dataset; 0: the size the demo is tuned for.
        seed: seed of the dataset.
        overrides: settings that differ from the preset `mini`, section.name=value.
        by_hand: then let a person correct three videos of the round in the editor, and fine-tune with them.

    Raises:
        StabnError: a stage failed; the end of its log is shown.
    """
    from stabn.data.mini import DEMO_VIDEOS, make_mini_dataset

    started = time.monotonic()
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    print(f"The whole job on generated videos; everything goes into {folder}\n")
    progress = Progress(size or DEMO_VIDEOS, "mini dataset")
    done = 0

    def show(now: int, total: int) -> None:
        nonlocal done
        progress.update(now - done)
        done = now

    dataset = make_mini_dataset(folder / "dataset", size or "demo", seed, progress=show)
    progress.close()
    tracking_uri = prepare_mlflow(folder / "mlflow")
    with local_object_store(folder / "storage") as store:
        parameters = {
            "data_videos_uri": dataset.videos_dir,
            "data_labels_uri": dataset.labels_dir,
            "dataset_version": f"{dataset.num_videos}-{seed}",
            "edit_segments_uri": dataset.segments_path,
            "truth_uri": dataset.segments_path,
            "data_storage_uri": store.uri("data"),
            "overrides": overrides,
            **SETTINGS,
        }
        environment = {
            **os.environ,
            "MLFLOW_TRACKING_URI": tracking_uri,
            "STABN_EXPERIMENT": "st-abn-mini",
            "PYTHONUNBUFFERED": "1",
        }
        storage_uri = store.uri("data")
        _run("full", parameters, environment, folder)
        if by_hand and (round_uri := _round_uri(folder, storage_uri)):
            correct_by_hand(round_uri)
            same = ("data_storage_uri", "truth_uri", "overrides", "preset", "route", "model_name")
            given = {name: parameters[name] for name in same}
            _run("finetune", {"data_round_uri": round_uri, **given}, environment, folder)
    _finish(folder, storage_uri, time.monotonic() - started)


def _run(pipeline: str, parameters: dict[str, Any], environment: dict[str, str], folder: Path) -> None:
    """Run a pipeline as a process; show its stages and their progress, and keep the whole output in a log."""
    command = [sys.executable, "-m", "pipelines", "run", pipeline, "--dir", str(folder / "kfp")]
    for name, value in parameters.items():
        command += ["--param", f"{name}={value}"]
    run_id = f"demo-{fingerprint({name: str(value) for name, value in parameters.items()})}"
    environment, log_path = {**environment, "STABN_RUN_ID": run_id}, folder / "demo.log"
    with log_path.open("a") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        assert process.stdout is not None
        try:
            tasks = TASKS if pipeline == "full" else FINETUNE_TASKS
            for line in readable(_logged(process.stdout, log), tasks):
                print(line, flush=True)
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait(timeout=30)
            raise
    if code:
        tail = [line.rstrip() for line in log_path.read_text(errors="replace").splitlines() if line.strip()][-12:]
        raise StabnError("the pipeline failed:\n" + "\n".join(tail) + f"\nwhole log: {log_path}; run again to go on")


def _logged(lines: Iterable[str], log: object) -> Iterator[str]:
    for line in lines:
        log.write(line)  # type: ignore[attr-defined]
        yield line.rstrip("\n")


def readable(lines: Iterable[str], tasks: dict[str, int] = TASKS) -> Iterator[str]:
    """Turn the output of KFP's local runner into a heading per stage and the stage's own lines.

    KFP's own lines and the executor's input in JSON are left out.
    """
    started = time.monotonic()
    done: list[str] = []
    in_json = running = False
    for line in lines:
        if match := STARTED.search(line):
            elapsed = time.monotonic() - started
            passed = f"{_clock(elapsed)} so far{_left(done, elapsed, tasks)}"
            yield f"\n[{len(done) + 1:2}/{len(tasks)}] {match[1]}   ({passed})"
            done.append(match[1])
            running = True
        elif match := REUSED.search(line):
            done.append(match[1])
            yield f"[{len(done):2}/{len(tasks)}] {match[1]}   reused: it ran before with the same inputs and code"
        elif FINISHED.search(line):
            running = False
        elif "Got executor_input" in line:
            in_json = True
        elif in_json:
            in_json = line != "    }"
        elif running and line.startswith("    ") and "[KFP Executor" not in line and line.strip():
            yield line


def _left(done: list[str], elapsed: float, tasks: dict[str, int]) -> str:
    """Estimate the time left from the tasks done, by what tasks usually take."""
    usual = sum(tasks.get(name, 0) for name in done)
    if elapsed < 5 or not usual:
        return ""
    return f", about {_clock(elapsed / usual * (sum(tasks.values()) - usual))} left"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def _imported(folder: Path) -> Path:
    """Return the folder of what the newest stage import-edits wrote."""
    manifests = (folder / "kfp" / "artifacts").glob("*/import-edits/manifest")
    return max(manifests, key=lambda path: path.stat().st_mtime).parent


def _round_uri(folder: Path, storage_uri: str) -> str:
    """Return the demo's round; empty: no action was below the threshold, so there is none."""
    from stabn.data.edit_table import load_edit_table

    if not any((folder / "kfp" / "artifacts").glob("*/report/page")):
        return ""
    return f"{storage_uri}/rounds/{load_edit_table(_imported(folder) / 'edits').round_id}"


def _finish(folder: Path, storage_uri: str, seconds: float) -> None:
    """Put the report where people find it, print the two tables, and say what to do next."""
    pages = sorted((folder / "kfp" / "artifacts").glob("*/report/page"), key=lambda path: path.stat().st_mtime)
    if not pages:
        print(
            f"\nNo action was below the threshold on both splits, so there was nothing to correct; "
            f"the networks and predictions are in {folder}"
        )
        return
    from stabn.attention.rounds import CHECKPOINT_FILE

    newest = pages[-1].parent
    shutil.copyfile(newest / "page", folder / "report.html")
    shutil.copytree(newest / "figures", folder / "figures", dirs_exist_ok=True)
    print("\n" + (newest / "tables").read_text().replace("```", "").strip())
    imported, round_uri = os.path.relpath(_imported(folder)), _round_uri(folder, storage_uri)
    bin_dir = Path(sys.executable).parent
    where = bin_dir.relative_to(Path.cwd()) if bin_dir.is_relative_to(Path.cwd()) else bin_dir
    folder = Path(os.path.relpath(folder))
    stabn, mlflow = (shlex.quote(str(where / name)) for name in ("stabn", "mlflow"))
    own = shlex.quote(str(folder))
    database = shlex.quote(f"sqlite:///{folder}/mlflow/mlflow.db")
    checkpoint, manifest = shlex.quote(f"{round_uri}/{CHECKPOINT_FILE}"), shlex.quote(f"{imported}/manifest")
    predictions, faithful = (shlex.quote(f"{folder}/{name}") for name in ("predictions.parquet", "faithfulness"))
    print(
        f"""
Done in {_clock(seconds)}.
  report    {folder}/report.html   (open it in a browser)
  figures   {folder}/figures/
  log       {folder}/demo.log

Correct the attention of the demo's videos yourself, in a web page (`stabn demo --by-hand` then learns from three):
  {stabn} local --dir {own} -- stabn editor --editor.auth open --round {shlex.quote(round_uri)}
See whether the recognition depends on its attention, beside Grad-CAM:
  {stabn} local --dir {own} -- stabn faithfulness --preset mini --checkpoint {checkpoint} --manifest {manifest} \\
    --output {faithful}
Compare the runs in MLflow:
  {mlflow} ui --backend-store-uri {database}
Rerun a stage, for example the evaluation with inverted temporal attention:
  {stabn} local --dir {own} -- stabn evaluate --preset mini --attention temporal_inverted \\
    --checkpoint {checkpoint} --manifest {manifest} --output {predictions}"""
    )
