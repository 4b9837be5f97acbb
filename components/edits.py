"""Components edits and import-edits: corrections of a round's temporal attention, made and collected."""

from components.component import Step, component, write_metrics
from components.images import DATA_IMAGE


def run_edits(step: Step) -> tuple[str, str]:
    """Wait until people have corrected the round, or write corrections from known action segments."""
    from stabn.attention.automatic import collect_edits

    timeout_seconds = step.timeout_hours * 3600
    fingerprint = collect_edits(step.round_uri, step.source, step.segments_uri, step.min_share, timeout_seconds)
    return (step.round_uri, fingerprint)


def run_import(step: Step) -> None:
    """Check every correction of the round and collect them in one table, with the round's manifest and network."""
    from components.networks import leave_network
    from stabn.attention.edits import import_round
    from stabn.attention.rounds import load_round

    result = import_round(step.round_uri, step.edits.path, step.manifest.path, None, step.selection.path)
    item = load_round(step.round_uri)
    leave_network(step.checkpoint, item.network_uri, item.checkpoint_fingerprint)
    write_metrics(step.summary, result.counts())


edits = component("edits", run_edits, DATA_IMAGE)
import_edits = component("import-edits", run_import, DATA_IMAGE)
