"""The tasks of a run that people know, whatever KFP and Argo make of them: one each, with the pipeline's own names.

KFP's API tells of tasks until the workflow's node status passes 1 MB: then Argo compresses it, and the API has none.
The workflow itself, which the server's older API hands out, has all nodes, compressed or not.
"""

import base64
import datetime
import gzip
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

# Nodes of KFP's own beside each task: drivers, executors, loops and their turns, conditions, exit handlers.
INTERNAL = re.compile(r"root|executor|.*-driver|(for-loop|condition|condition-branches|exit-handler)-\d+|iteration.*")
ATTEMPT = re.compile(r"\(\d+\)$")  # what a node that may be tried again has at the end of its name
TURN = re.compile(r"\((\d+):.*\)$")  # of a loop
PHASES = {"Pending": "PENDING", "Running": "RUNNING", "Succeeded": "SUCCEEDED", "Skipped": "SKIPPED",
          "Omitted": "SKIPPED", "Failed": "FAILED", "Error": "FAILED"}  # fmt: skip
WORST = ("FAILED", "RUNNING", "PENDING", "SUCCEEDED", "SKIPPED")  # of several nodes of one task, which state counts
ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")


class Task(NamedTuple):
    """A task as people know it.

    Attributes:
        title: the pipeline's name for it; of a loop's task with its number, `extract frames 3/8`.
        state: PENDING, RUNNING, SUCCEEDED, SKIPPED, FAILED or CANCELED.
        seconds: that it took; None: it has not ended, or nobody knows.
        reason: why it failed; empty: it did not, or nothing is said.
    """

    title: str
    state: str
    seconds: int | None = None
    reason: str = ""


def titles_of(spec: Mapping[str, Any]) -> dict[str, str]:
    """Return the display names of a compiled pipeline's tasks by their keys, those of its groups too."""
    dags = [spec["root"], *spec["components"].values()]
    return {
        key: task["taskInfo"]["name"]
        for dag in dags
        for key, task in dag.get("dag", {}).get("tasks", {}).items()
        if not INTERNAL.fullmatch(key)
    }


def tasks_of_workflow(workflow: Mapping[str, Any], titles: Mapping[str, str]) -> list[Task] | None:
    """Return the tasks of an Argo workflow, in the order in which they began; None: their nodes are kept elsewhere.

    Args:
        workflow: the manifest as the server has it, with its status.
        titles: see `titles_of`; a task that is not in it has its key.
    """
    status = workflow.get("status") or {}
    nodes: dict[str, Any] = status.get("nodes") or {}
    if packed := status.get("compressedNodes"):
        nodes = json.loads(gzip.decompress(base64.b64decode(packed)))
    if not nodes:
        return None if status.get("offloadNodeStatusVersion") else []
    turns = {key: _turn(node, nodes) for key, node in nodes.items()}
    total = 1 + max((turn for turn in turns.values() if turn is not None), default=0)
    found: dict[tuple[str, int | None], list[Any]] = {}
    for key, node in sorted(nodes.items(), key=lambda item: item[1].get("startedAt") or "~"):
        name = ATTEMPT.sub("", node.get("displayName", ""))
        if name and not INTERNAL.fullmatch(name) and not TURN.search(name) and "." not in name:
            found.setdefault((name, turns[key]), []).append(node)
    return [
        _task(titles.get(name, name) + ("" if turn is None else f" {turn + 1}/{total}"), own, nodes)
        for (name, turn), own in found.items()
        if name in titles or not titles
    ]


def tasks_of_details(details: Iterable[Any], titles: Mapping[str, str]) -> list[Task]:
    """Return the tasks as KFP's API tells of them; loops' turns cannot be told apart there."""
    found: dict[str, Any] = {}
    for item in details:
        name = ATTEMPT.sub("", item.display_name or "")
        if not name or INTERNAL.fullmatch(name):
            continue
        if name not in found or not ATTEMPT.search(item.display_name):
            found[name] = item
    return [
        Task(
            titles.get(name, name),
            item.state or "PENDING",
            _seconds(item.start_time, item.end_time) if item.state in ENDED else None,
            item.error.message if item.error and item.error.message else "",
        )
        for name, item in found.items()
    ]


def _turn(node: Mapping[str, Any], nodes: Mapping[str, Any]) -> int | None:
    """Return the number of the loop's turn that a node is in, from 0; None: it is in no loop."""
    seen = 0
    while node and seen < len(nodes):
        if match := TURN.search(node.get("displayName", "")):
            return int(match[1])
        node, seen = nodes.get(node.get("boundaryID", ""), {}), seen + 1
    return None


def _task(title: str, own: list[Any], nodes: Mapping[str, Any]) -> Task:
    """Make one task of its nodes: of one that may be tried again there is one for all tries and one for each."""
    whole = [node for node in own if not ATTEMPT.search(node["displayName"])] or own
    states = {PHASES.get(node.get("phase", ""), "PENDING") for node in whole}
    state = next(name for name in WORST if name in states)
    seconds = None
    if state in ENDED:
        seconds = _seconds(*(_time(whole[0].get(name)) for name in ("startedAt", "finishedAt")))
    reason = "; ".join(dict.fromkeys(_messages(own, nodes))) if state == "FAILED" else ""
    return Task(title, state, seconds, reason)


def _messages(own: list[Any], nodes: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the nodes of a failed task say, those of its pods first: `main: Error (exit code 2)`."""
    inside = {node["id"] for node in own if "id" in node}
    pods = [node for node in nodes.values() if node.get("type") == "Pod" and node.get("boundaryID") in inside]
    for node in [*pods, *own]:
        if node.get("message") and PHASES.get(node.get("phase", "")) == "FAILED" and "child" not in node["message"]:
            yield str(node["message"])


def _time(text: str | None) -> datetime.datetime | None:
    return datetime.datetime.fromisoformat(text) if text else None


def _seconds(start: datetime.datetime | None, end: datetime.datetime | None) -> int | None:
    if not start or not end:
        return None
    seconds = int((end - start).total_seconds())
    return seconds if 0 <= seconds < 10**8 else None
