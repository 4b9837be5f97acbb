"""A round's edits as one file, JSON Lines of edit documents, and the desktop tool's arrays."""

import dataclasses
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from stabn.attention.automatic import EDITOR as AUTOMATIC
from stabn.attention.edit_document import Edit, parse_edit
from stabn.attention.edits import EditConflict, check_edit, save_edit
from stabn.attention.rounds import RoundError
from stabn.data.edit_table import EditError
from stabn.editor.board import Board

MAX_ERRORS = 20
MAX_ARRAY_BYTES = 1 << 20


class AlreadyCorrected(EditError):
    """A person corrected the video here, which an array, having no date, must not replace unasked."""


@dataclass
class ImportResult:
    """What became of the lines of a file, by video id; with errors nothing was written.

    `kept` are newer here; of `others` another person's independent curve has the place here, and stays.
    """

    imported: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def export_lines(board: Board) -> Iterator[bytes]:
    """Yield the newest revision of every curve as one line of JSON, each a document of edit.schema.json."""
    for video in board.round.videos:
        for _, edit in sorted(board.edits(video.video_id).items()):
            yield json.dumps(json.loads(edit.to_json()), ensure_ascii=False).encode() + b"\n"


def import_lines(board: Board, data: bytes) -> ImportResult:
    """Save the edits of a file as new revisions; nothing is overwritten, and what is newer here stays the newest.

    Args:
        board: the round's state; refreshed before.
        data: JSON Lines; of several lines for one curve the highest revision counts, and two that differ in content but
            not in revision are an error.
    """
    result = ImportResult()
    edits: dict[tuple[str, int], Edit] = {}
    places: dict[tuple[str, int, int], tuple[str, Edit]] = {}
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            edit = parse_edit(line, where)
            check_edit(board.round, edit, where, board.info(board.video(edit.video_id).video_id).curve)
        except (EditError, RoundError) as error:
            result.errors.append(str(error))
            if len(result.errors) >= MAX_ERRORS:
                break
            continue
        first, same = places.setdefault((edit.video_id, edit.slot, edit.revision), (where, edit))
        if _content(same) != _content(edit):
            result.errors.append(
                f"{where}: another revision {edit.revision} of video {edit.video_id} is in {first}; leave one of them"
            )
        known = edits.get((edit.video_id, edit.slot))
        if known is None or known.revision < edit.revision:
            edits[edit.video_id, edit.slot] = edit
    if not result.errors:
        for (video_id, slot), edit in edits.items():
            latest = board.load(video_id, slot)
            if latest is not None and _content(latest) == _content(edit):
                result.unchanged.append(video_id)
            elif latest is not None and _time(latest) >= _time(edit):
                result.kept.append(video_id)
            elif latest is not None and _is_anothers(board, latest, edit):
                result.others.append(video_id)
            else:
                _save(board, dataclasses.replace(edit, revision=latest.revision + 1 if latest else 1))
                result.imported.append(video_id)
    return result


def import_array(board: Board, video_id: str, data: bytes, person: str, replace: bool = False) -> Edit:
    """Save an array of the desktop tool, one float per frame, as an edit; a frame that is not a number has no opinion.

    Args:
        board: the round's state.
        video_id: the video.
        data: the file, at most MAX_ARRAY_BYTES.
        person: who imports it.
        replace: make it the newest revision also where a person corrected the video; theirs stays in the history.

    Raises:
        EditError: not such an array, or of another length than the video.
        AlreadyCorrected: a person did, with another curve.
    """
    video = board.video(video_id)
    name = f"{video_id}.npy"
    try:
        values = np.squeeze(np.lib.format.read_array(io.BytesIO(data), allow_pickle=False))
    except (ValueError, EOFError, OSError, MemoryError) as error:  # MemoryError: a header that promises too much
        raise EditError(f"{name}: not an array of numbers ({str(error)[:100]}); save it with numpy.save") from None
    if values.ndim == 0:
        values = values[None]
    if values.ndim != 1 or values.dtype.kind not in "fiu":
        raise EditError(f"{name}: shape {values.shape}, type {values.dtype}; it must be one number per frame")
    if len(values) != video.num_frames:
        raise EditError(f"{name}: {len(values)} values for a video of {video.num_frames} frames; was it cut to fit?")
    curve = [None if np.isnan(value) else round(float(value), 5) for value in values.astype(np.float64)]
    bad = next((index for index, value in enumerate(curve) if value is not None and not 0 <= value <= 1), None)
    if bad is not None:
        raise EditError(f"{name}: {curve[bad]} at frame {bad}; values go from 0 to 1")
    latest = board.load(video_id, 1)
    edit = Edit(
        round_id=board.round.round_id,
        video_id=video_id,
        revision=latest.revision + 1 if latest else 1,
        num_frames=video.num_frames,
        model_attention=board.info(video_id).curve,
        edited_attention=tuple(curve),
        status="edited",
        editor=person,
        edited_at=now(),
        note=f"imported from {name}",
    )
    parse_edit(edit.to_json(), name)  # a file that can't be saved says so before anybody is asked about replacing
    if latest is not None and latest.editor != AUTOMATIC:
        if latest.status == "edited" and latest.edited_attention == edit.edited_attention:
            return latest
        if not replace:
            raise AlreadyCorrected(f"{name}: {latest.editor} worked on this video at {latest.edited_at}")
    _save(board, edit)
    return edit


def now() -> str:
    """Return the time as edits carry it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _save(board: Board, edit: Edit) -> None:
    try:
        save_edit(board.round, edit, board.info(edit.video_id).curve)
    except EditConflict as error:
        raise EditError(f"{error}; import the file again") from None
    board.put(edit)


def _is_anothers(board: Board, latest: Edit, edit: Edit) -> bool:
    """Tell whether a curve would replace one that another person made independently, and not a lead's change of it."""
    several = latest.slot > 1 or any(slot > 1 for slot in board.edits(latest.video_id))
    people = {latest.editor, board.beginner(latest.video_id, latest.slot)}
    return several and latest.editor != AUTOMATIC and edit.editor not in people and edit.review is None


def _content(edit: Edit) -> tuple[object, ...]:
    return edit.edited_attention, edit.status, edit.skip_reason, edit.note


def _time(edit: Edit) -> datetime:
    return datetime.fromisoformat(edit.edited_at)
