"""Components edits and import-edits: corrections of a round's temporal attention, made and collected."""

from typing import NamedTuple

from kfp import dsl

from components.images import DATA_IMAGE


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
def edits(round_uri: str, source: str, segments_uri: str, min_share: float, timeout_hours: float) -> NamedTuple(
    "Outputs", [("edited_round_uri", str), ("edits_fingerprint", str)]
):
    """Wait until people have corrected the round, or write corrections from known action segments.

    Args:
        round_uri: The editing round.
        source: people, or segments.
        segments_uri: With segments: JSON of video id to [first, last) frame of the action.
        min_share: With people: share of the round's videos that must be edited or skipped, 0 to 1.
        timeout_hours: With people: hours to wait at most.

    Returns:
        edited_round_uri: The same round, edited.
        edits_fingerprint: Names the content of the corrections.
    """
    from stabn.attention.automatic import collect_edits

    fingerprint = collect_edits(round_uri, source, segments_uri, min_share, timeout_hours * 3600)
    return (round_uri, fingerprint)


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
def import_edits(
    round_uri: str,
    edits_fingerprint: str,
    edits: dsl.Output[dsl.Dataset],
    manifest: dsl.Output[dsl.Dataset],
    checkpoint: dsl.Output[dsl.Model],
    selection: dsl.Output[dsl.Dataset],
    summary: dsl.Output[dsl.Metrics],
):
    """Check every correction of the round and collect them in one table, with the round's manifest and network.

    Args:
        round_uri: The edited round.
        edits_fingerprint: Names the content of the corrections, so that KFP's cache sees when they change.
        edits: The corrected curves, one row per video.
        manifest: The round's manifest.
        checkpoint: The round's network.
        selection: The chosen actions and videos of the round.
        summary: Videos edited, skipped and missing.
    """
    import json

    from stabn.attention.edits import import_round

    result = import_round(round_uri, edits.path, manifest.path, checkpoint.path, selection.path)
    for name, value in result.counts().items():
        summary.log_metric(name, value)
    with open(summary.path, "w") as file:  # KFP's cache takes an output without a file for a lost one
        json.dump(result.counts(), file)
