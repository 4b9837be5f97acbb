"""What runs, where, how far it is and how long still: one screen, from what KFP, MLflow and Kubernetes know.

Each of them is asked if it is configured; one that is not, or does not answer, is named, and the others are shown.
"""

import datetime
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from pipelines.server import ENDPOINT, Server
from pipelines.tasks import ENDED, Task
from stabn.errors import StabnError
from stabn.tracking import PipelineRun, StageState, recent_runs

T = TypeVar("T")

NAME_WIDTH, STATE_WIDTH = 40, 10
PATIENCE_SECONDS = 5.0  # for Kubernetes: a person waits
MORE = 3  # finished tasks are told one by one up to so many more than there are lines of others


class Line(NamedTuple):
    """A task or stage: what it is called, its state in small letters, seconds since it began or that it took, more."""

    title: str
    state: str
    seconds: int | None = None
    more: str = ""


def status(run_id: str = "", endpoint: str = "", namespace: str = "", editor_url: str = "", number: int = 3) -> str:
    """Return the screen.

    Args:
        run_id: one run, of KFP or the local one's STABN_RUN_ID; empty: those that run, or else the newest.
        endpoint: KFP's API; empty: KF_PIPELINES_ENDPOINT.
        namespace: profile on a multi-user server.
        editor_url: where people correct rounds, as a browser sees it.
        number: how many runs at most.
    """
    missing: list[str] = []
    tracked = _ask("MLflow", missing, lambda: _tracked(run_id, number)) or []
    server = _ask("KFP", missing, lambda: _server(endpoint, namespace))
    listed = (_ask("KFP", missing, lambda: server.recent(run_id, number)) or []) if server else []
    known = {item.run_id: item for item in tracked}
    runs = [_kfp_run(server, run, known.pop(run.run_id, None), missing) for run in listed] if server else []
    runs += [_tracked_run(item) for item in known.values()]
    runs = _chosen(runs, run_id, number)
    jobs = _ask("Kubernetes", missing, lambda: _jobs([item for item in runs if item["runs"]]))
    blocks = [_block(item, (jobs or {}).get(item["run_id"], []), editor_url) for item in runs]
    if not blocks:
        blocks = [f"no run {run_id}" if run_id else "nothing runs, and nothing has"]
    return "\n\n".join([*blocks, *[f"not reached: {text}" for text in dict.fromkeys(missing)]])


def watch(screen: Callable[[], str], seconds: float, show: Callable[[str], None]) -> None:
    """Show the screen again and again, each time in the place of the one before, until somebody interrupts."""
    while True:
        text = screen()
        show(f"\033[H\033[2J{datetime.datetime.now():%H:%M:%S}, every {seconds:g} s; Ctrl+C ends\n\n{text}\n")
        time.sleep(seconds)


def _ask(who: str, missing: list[str], question: Callable[[], T]) -> T | None:
    try:
        return question()
    except StabnError as error:
        missing.append(f"{who}: {error}")
        return None


def _tracked(run_id: str, number: int) -> list[PipelineRun]:
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise StabnError("MLFLOW_TRACKING_URI is not set; for a demo: stabn local -- stabn status")
    return recent_runs(number, run_id)


def _server(endpoint: str, namespace: str) -> Server:
    if not endpoint and not os.environ.get(ENDPOINT):
        raise StabnError(f"{ENDPOINT} is not set")
    return Server(endpoint, namespace)


def _kfp_run(server: Server, run: Any, tracked: PipelineRun | None, missing: list[str]) -> dict[str, Any]:
    from pipelines.follow import tasks_of

    run = _ask("KFP", missing, lambda: server.get_run(run.run_id)) or run
    tasks = _ask("KFP", missing, lambda: tasks_of(server, run, {})) or []
    state = run.state or "PENDING"
    return {
        "run_id": run.run_id,
        "name": run.display_name or run.run_id,
        "state": state.lower(),
        "runs": state not in ENDED,
        "began": run.created_at.timestamp() if run.created_at else 0.0,
        "ended": run.finished_at.timestamp() if run.finished_at and state in ENDED else None,
        "links": {"KFP": server.link(run.run_id), "MLflow": tracked.link if tracked else ""},
        "lines": [_of_task(task) for task in tasks],
        "stages": tracked.stages if tracked else [],
    }


def _tracked_run(item: PipelineRun) -> dict[str, Any]:
    return {
        "run_id": item.run_id,
        "name": item.name,
        "state": item.status.lower(),
        "runs": item.status == "RUNNING",
        "began": item.began,
        "ended": item.ended,
        "links": {"MLflow": item.link},
        "lines": [_of_stage(stage) for stage in item.stages],
        "stages": item.stages,
    }


def _chosen(runs: list[dict[str, Any]], run_id: str, number: int) -> list[dict[str, Any]]:
    runs = sorted(runs, key=lambda item: item["began"], reverse=True)
    running = [item for item in runs if item["runs"]]
    return runs[:number] if run_id else (running or runs[:1])[:number]


def _jobs(runs: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Return a line for each TrainJob of the runs, by run."""
    from components.cluster.api import KubeApi, cluster_is_reachable
    from components.cluster.config import ClusterConfig
    from components.cluster.manifest import run_selector
    from components.cluster.progress import describe_job

    if not runs:
        return {}
    if not cluster_is_reachable():
        raise StabnError("no KUBECONFIG, so TrainJobs are not shown")
    api = KubeApi(ClusterConfig.load().namespace, PATIENCE_SECONDS)
    found: dict[str, list[str]] = {}
    for item in runs:
        for name in api.names("trainjobs", run_selector(item["run_id"])):
            if job := api.get("trainjobs", name):
                found.setdefault(item["run_id"], []).append(f"TrainJob {api.namespace}/{name}: {describe_job(job)}")
    return found


def _block(item: dict[str, Any], jobs: list[str], editor_url: str) -> str:
    took = (item["ended"] or time.time()) - item["began"]
    lines = [f"{item['name']}  {item['state']}  {clock(took)}"]
    lines += [f"  {name:7} {link}" for name, link in item["links"].items() if link]
    lines += [f"  {text}" for text in jobs]
    lines += [_row(line) for line in _shortened(item["lines"])]
    told = {line.title for line in item["lines"] if line.more}  # a task of KFP does not say how far it is
    for stage in item["stages"]:
        if stage.status == "RUNNING" and (more := how_far(stage)):
            lines += [] if stage.key in told else [f"    {stage.key}: {more}"]
        if stage.status == "RUNNING" and stage.stage == "edits":
            uri = stage.params.get("round", "")
            lines.append(f"    round {uri}{_people(stage)}")
            lines += [f"  editor  {editor_url.rstrip('/')}/rounds/{uri.rpartition('/')[2]}/"] if editor_url else []
    return "\n".join(lines)


def _people(stage: StageState) -> str:
    """Return how many videos of the round people have done, if its storage can be read from here."""
    from stabn.attention.edits import read_edits, summarize
    from stabn.attention.rounds import load_round

    try:
        item = load_round(stage.params.get("round", ""))
        counts = summarize(item, read_edits(item)).counts()
    except StabnError as error:
        return f": {error}"
    return ": " + ", ".join(f"{name} {value}" for name, value in counts.items())


def _shortened(lines: list[Line]) -> list[Line]:
    """Return the lines with those that succeeded put into one, if they are many."""
    done = [line for line in lines if line.state in ("succeeded", "finished")]
    shown = [line for line in lines if line.state != "skipped"]
    rest = [line for line in shown if line not in done]
    if len(done) <= MORE:
        return shown
    return [Line(f"{len(done)} done, the last: {done[-1].title}", "", None), *rest]


def _row(line: Line) -> str:
    took = "" if line.seconds is None else clock(line.seconds)
    return f"    {line.title:{NAME_WIDTH}} {line.state:{STATE_WIDTH}} {took:>8}  {line.more}".rstrip()


def _of_task(task: Task) -> Line:
    return Line(task.title, task.state.lower(), task.seconds, task.reason)


def _of_stage(stage: StageState) -> Line:
    more = how_far(stage) if stage.status == "RUNNING" else stage.error
    return Line(stage.key, stage.status.lower(), round((stage.ended or time.time()) - stage.began), more)


def how_far(stage: StageState) -> str:
    """Return the epoch of a training that runs, its newest numbers, and the time left at this pace; or nothing."""
    if not stage.epochs:
        return ""
    parts = [f"epoch {min(stage.epoch + 1, stage.epochs)} of {stage.epochs}"]
    parts += [f"{name} {stage.metrics[name]:.3g}" for name in ("loss", "validation_top1") if name in stage.metrics]
    if stage.epoch and stage.reached:
        pace = (stage.reached - stage.began) / stage.epoch
        left = max(0.0, pace * stage.epochs - (time.time() - stage.began))
        parts.append(f"about {clock(left)} left, if it takes all epochs")
    return ", ".join(parts)


def clock(seconds: float) -> str:
    """Return a duration, "1:02:03" or "2:03"."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
