"""What a TrainJob says of itself: its conditions, its jobs, and how far its trainer is (`status.trainerStatus`)."""

from collections.abc import Mapping
from typing import Any

from components.cluster.logs import clock


def describe_job(job: Mapping[str, Any]) -> str:
    """Return a TrainJob's state in one phrase, with its trainer's own words if it reports them."""
    status = job.get("status") or {}
    conditions = {item["type"]: item for item in status.get("conditions") or []}
    for kind in ("Failed", "Complete", "Suspended"):
        if conditions.get(kind, {}).get("status") == "True":
            said = " ".join(str(conditions[kind].get("message", "")).split())
            return f"{kind.lower()}{': ' + said if said and kind != 'Complete' else ''}"
    jobs = status.get("jobsStatus") or []
    counts = {name: sum(int(item.get(name) or 0) for item in jobs) for name in ("ready", "active", "failed")}
    state = "runs" if counts["ready"] else "its pods start" if counts["active"] else "waits for its pods"
    told = describe_trainer(status.get("trainerStatus"))
    return f"{state}, {told}" if told else state


def describe_trainer(told: Mapping[str, Any] | None) -> str:
    """Return what a trainer reports of its progress, such as "37%, about 1:10:00 left, loss 2.31"; or nothing."""
    told = told or {}
    parts = []
    if told.get("progressPercentage") is not None:
        parts.append(f"{told['progressPercentage']}%")
    if told.get("estimatedRemainingSeconds") is not None:
        parts.append(f"about {clock(float(told['estimatedRemainingSeconds']))} left")
    parts += [f"{item.get('name', '')} {item.get('value', '')}" for item in told.get("metrics") or []]
    return ", ".join(parts)
