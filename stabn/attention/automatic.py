"""Stage edits: wait for people's corrections, or write them from known action segments."""

import contextlib
import math
import time
from datetime import UTC, datetime

import numpy as np

from stabn.attention.control_curves import correction_curves
from stabn.attention.edit_document import DONE, Edit
from stabn.attention.edits import EditSummary, latest_edits, read_edits, save_edit, summarize
from stabn.attention.rounds import Round, RoundVideo, check_round, load_round, model_attention, tell_link
from stabn.attention.waiting import WaitingRecord
from stabn.config import ConfigError
from stabn.data.segments import check_segment, load_segments
from stabn.errors import Overdue, RetryableError, StabnError
from stabn.stages import EDIT_SOURCES, check_correction
from stabn.storage import sole_writer
from stabn.tracking import stage_run

EDITOR = "automatic"
RAMP_FRAMES = 2
POLL_SECONDS = 30.0


def collect_edits(round_uri: str, source: str, segments_uri: str, min_share: float, timeout_seconds: float) -> str:
    """Get a round's corrections from people, or from known segments.

    Args:
        round_uri: the round.
        source: `people`, `segments`, or a control: see `stabn.stages.EDIT_SOURCES`.
        segments_uri: without people: JSON of video id to [first, last) frame of the action.
        min_share: with people: share of videos that must be edited or skipped, 0 to 1.
        timeout_seconds: with people: how long to wait.

    Returns:
        Fingerprint of the corrections.

    Raises:
        ConfigError: no such source, or segments without a file.
        RetryableError: people were not done in time.
    """
    check_correction(source, segments_uri)
    item = load_round(round_uri)
    check_round(item)
    inputs = {"dataset": item.manifest_fingerprint, "checkpoint": item.checkpoint_fingerprint}
    with stage_run("edits", settings={"source": source, "round": round_uri}, inputs=inputs) as run:
        tell_link(item.round_id, run, "edits")
        if source in EDIT_SOURCES:
            with sole_writer(item.storage, "stage edits") or contextlib.nullcontext():
                summary = automatic_edits(item, segments_uri, source)
        else:
            summary = wait_for_edits(item, min_share, timeout_seconds)
        run.log_metrics(summary.counts())
    print(f"edits: {summary}", flush=True)
    return summary.fingerprint


def automatic_edits(
    item: Round, segments_uri: str, source: str = "segments", editor: str = EDITOR, ramp_frames: int = RAMP_FRAMES
) -> EditSummary:
    """Write an edit for each video of a round: high on the frames of the action, low elsewhere; or a control's curve.

    Documents go through the same function as people's, and a person's edit is never replaced. One that is there with
    the same content is not written again; a video whose segment is not known is saved as skipped, and listed.

    Args:
        item: the round.
        segments_uri: JSON of video id to [first, last) frame of the action.
        source: one of `stabn.stages.EDIT_SOURCES`.
        editor: name in the documents.
        ramp_frames: frames over which the attention rises before and falls after the action.

    Raises:
        SegmentsError: the file is not JSON of [first, last) segments, or one lies outside its video.
    """
    known = load_segments(segments_uri)
    before = read_edits(item)
    true = {}
    for video in item.videos:
        if (segment := known.get(video.video_id)) is None:
            continue
        check_segment(segments_uri, video.video_id, segment, video.num_frames)
        true[video.video_id] = segment_curve(video.num_frames, *segment, ramp_frames)
    rng = np.random.default_rng(list(item.round_id.encode()))  # the same curves whenever it runs again
    curves = correction_curves(source, true, lambda name: np.asarray(model_attention(item, name)), rng)
    for video in item.videos:
        latest = before.get(video.video_id)
        if latest is not None and latest.editor != editor:
            continue
        curve = curves.get(video.video_id)
        edit = _edit(item, video, curve, editor, latest)
        if latest is None or (edit.edited_attention, edit.status) != (latest.edited_attention, latest.status):
            save_edit(item, edit)
    summary = summarize(item, read_edits(item))
    if unknown := [video.video_id for video in item.videos if video.video_id not in known]:
        print(f"edits: {segments_uri} has no segment for {len(unknown)} videos: {', '.join(unknown[:20])}", flush=True)
    return summary


def segment_curve(num_frames: int, first: int, last: int, ramp_frames: int = RAMP_FRAMES) -> np.ndarray:
    """Return float64 (num_frames,): 1 on first <= frame < last, a linear ramp beside it, 0 elsewhere."""
    frames = np.arange(num_frames)
    distance = np.maximum(np.maximum(first - frames, frames - (last - 1)), 0)
    return np.clip(1 - distance / (ramp_frames + 1), 0, 1)


def wait_for_edits(
    item: Round, min_share: float, timeout_seconds: float, poll_seconds: float = POLL_SECONDS
) -> EditSummary:
    """Wait until a share of the round's videos is edited or skipped; the round says meanwhile that somebody waits.

    Storage that is away for a while does not end the wait.

    Raises:
        ConfigError: a share outside 0 to 1.
        EditError: a document does not fit the round.
        RetryableError: the time is up; names what is missing.
    """
    if not 0 <= min_share <= 1:
        raise ConfigError(f"min_share = {min_share}: must be from 0 to 1")
    needed = math.ceil(min_share * len(item.videos) - 1e-9)
    record = WaitingRecord(item.storage, needed, timeout_seconds)
    try:
        return _wait(item, needed, timeout_seconds, poll_seconds, record)
    finally:
        with contextlib.suppress(StabnError):  # it is out of date soon
            record.remove()


def _wait(item: Round, needed: int, timeout_seconds: float, poll_seconds: float, record: WaitingRecord) -> EditSummary:
    deadline = time.monotonic() + timeout_seconds
    total = len(item.videos)
    known: dict[str, Edit] = {}
    done, shown = 0, -1
    while True:
        try:
            known = {edit.key: edit for edit in latest_edits(item.storage, known)}
            ids = {video.video_id for video in item.videos}
            done = sum(edit.status in DONE and edit.video_id in ids for edit in known.values())
            if done >= needed:
                print(f"edits: {done} of {total} videos are done", flush=True)
                return summarize(item, read_edits(item))
            record.tell()
        except RetryableError as error:
            print(f"edits: {error}; trying again", flush=True)
        if done != shown:
            print(f"edits: {done} of {total} videos are done, going on at {needed}", flush=True)
            shown = done
        if time.monotonic() > deadline:
            raise Overdue(
                f"{item.uri}: {done} of {total} videos are edited or skipped after {timeout_seconds / 3600:g} hours, "
                f"{needed} are needed; run it again to go on waiting"
            )
        time.sleep(min(poll_seconds, max(0.0, deadline - time.monotonic()) + 0.01))


def _edit(item: Round, video: RoundVideo, curve: np.ndarray | None, editor: str, latest: Edit | None) -> Edit:
    """Return the next revision of a video with a curve, or skipped without one."""
    values = [None] * video.num_frames if curve is None else [round(float(value), 4) for value in curve]
    return Edit(
        round_id=item.round_id,
        video_id=video.video_id,
        revision=latest.revision + 1 if latest else 1,
        num_frames=video.num_frames,
        model_attention=tuple(model_attention(item, video.video_id)),
        edited_attention=tuple(values),
        status="skipped" if curve is None else "edited",
        skip_reason="unsure" if curve is None else None,
        editor=editor,
        edited_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
