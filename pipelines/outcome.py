"""What a pipeline run came to, as MLflow has it: the before/after table, the promotion, the links."""

from stabn.tracking import Stage, compare_link, stages_of
from stabn.tracking.names import ERROR

BESIDE = "baseline"  # in few runs
ROWS = ((BESIDE, BESIDE), ("before", "before"), ("after", "after"), ("control", "control (gamma 0)"))


def summary(run_id: str, link: str, state: str = "", experiment: str = "") -> str:
    """Return the outcome of a run as Markdown, for people and for a CI job's page.

    Args:
        run_id: the run in KFP.
        link: its page there.
        state: how it ended; empty: it has not.
        experiment: where in MLflow its stages are; empty: in the usual one.

    Raises:
        RetryableError: MLflow does not answer.
    """
    stages = {stage.key: stage for stage in stages_of(run_id, experiment)}
    lines = [f"**Run {state.lower() or 'started'}**: {link}", ""]
    evaluations = {name: _evaluation(stages, name) for name, _ in ROWS}
    rows = [(title, evaluations[name]) for name, title in ROWS]
    if any(stage for _, stage in rows):
        lines += [f"| {_split(stages)} | top-1, % | top-5, % |", "|---|---|---|"]
        shown = [(title, stage) for title, stage in rows if stage or title != BESIDE]
        lines += [f"| {title} | {_percent(stage, 'top1')} | {_percent(stage, 'top5')} |" for title, stage in shown]
        lines.append("")
    failed = [(stage.key, stage.tags[ERROR]) for stage in stages.values() if stage.tags.get(ERROR)]
    if failed and state == "FAILED":
        lines += [f"**{key}** failed: {reason}\n" for key, reason in failed]
    if promotion := stages.get("promote"):
        moved = promotion.tags.get("promoted") == "True"
        title = "The alias `champion` moved" if moved else "The alias `champion` did not move"
        lines += [f"**{title}.** {promotion.tags.get('reason', '')}", ""]
    compared = [evaluations[name].run_id for name in ("before", "after") if evaluations[name]]  # type: ignore[union-attr]
    if comparison := compare_link(compared):
        lines += [f"Comparison in MLflow: {comparison}", ""]
    return "\n".join(lines)


def _evaluation(stages: dict[str, Stage], name: str) -> Stage | None:
    return stages.get(f"evaluate/{name}/{_split(stages)}/as_is")


def _split(stages: dict[str, Stage]) -> str:
    """Return the split that the run reports on."""
    return "held_out" if "evaluate/before/held_out/as_is" in stages else "validation"


def _percent(stage: Stage | None, metric: str) -> str:
    return f"{100 * stage.metrics[metric]:.1f}" if stage and metric in stage.metrics else "–"
