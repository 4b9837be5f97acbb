"""The edits of a round: save one, read the newest of each video, and import them all for fine-tuning."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stabn.attention.edit_document import STATUSES, Edit, edit_key, parse_edit, parse_edit_key
from stabn.attention.rounds import (
    CHECKPOINT_FILE,
    MANIFEST_FILE,
    SELECTION_FILE,
    Round,
    check_round,
    load_round,
    model_attention,
)
from stabn.data.edit_table import EditError, save_edit_table
from stabn.storage import ObjectExists, ObjectNotFound, Storage
from stabn.text import parse_json
from stabn.tracking import stage_run

READERS = 16  # documents read at once
FINISHED_FILE = "editor/finished.json"  # who finished a round, and the revision of each video then


class EditConflict(EditError):
    """Somebody saved this revision first; `theirs` is what is there, `mine` what was to be saved."""

    def __init__(self, mine: Edit, theirs: Edit) -> None:
        super().__init__(mine, theirs)
        self.mine, self.theirs = mine, theirs

    def __str__(self) -> str:
        return (
            f"video {self.mine.video_id}: revision {self.mine.revision} was saved by {self.theirs.editor} at "
            f"{self.theirs.edited_at}; load it and save yours as a later revision"
        )


def save_edit(item: Round, edit: Edit, own: Sequence[float] | None = None) -> None:
    """Write an edit as a new revision; what is there is never overwritten.

    Saving the very same document again changes nothing, so that a request whose answer got lost may be repeated.

    Args:
        item: the round.
        edit: the correction.
        own: the network's own curve if it was read before; it never changes.

    Raises:
        EditError: the edit does not fit the round, or the revision before it is missing.
        EditConflict: somebody else's edit has this revision.
    """
    document = edit.to_json()
    parse_edit(document, edit.key)
    check_edit(item, edit, edit.key, own)
    if edit.previous_revision and not item.storage.exists(edit_key(edit.video_id, edit.previous_revision, edit.slot)):
        raise EditError(
            f"{edit.key}: there is no revision {edit.previous_revision} before it; load the newest revision and save "
            "the edit again"
        )
    try:
        item.storage.write(edit.key, document, if_absent=True)
    except ObjectExists:
        theirs = parse_edit(item.storage.read(edit.key), edit.key)
        if theirs != edit:
            raise EditConflict(edit, theirs) from None


def check_edit(item: Round, edit: Edit, where: str, own: Sequence[float] | None = None) -> None:
    """Check that an edit belongs to a round; `own` as in `save_edit`.

    Raises:
        EditError: another round, an unknown video, another length, or a changed model's curve.
    """
    if edit.round_id != item.round_id:
        raise EditError(f"{where}: belongs to round {edit.round_id}, not {item.round_id}; import it there")
    video = item.video(edit.video_id)
    if edit.num_frames != video.num_frames:
        raise EditError(
            f"{where}: {edit.num_frames} values for a video of {video.num_frames} frames; export the round again"
        )
    if not np.allclose(edit.model_attention, own or model_attention(item, edit.video_id), atol=1e-6):
        raise EditError(f"{where}: model_attention is not the network's own of this round; save the edit again")


def latest_edits(
    storage: Storage, known: Mapping[str, Edit] | None = None, chosen: Mapping[str, int] | None = None
) -> Iterator[Edit]:
    """Yield the newest revision of each edited video, by id.

    Args:
        storage: the round's.
        known: documents read before, by key; a revision never changes, so they are not read again.
        chosen: these revisions of these videos instead, and no other video.

    Raises:
        EditError: a document is unusable, lies under another's name, or a revision before it is missing.
    """
    revisions: dict[str, list[int]] = {}
    for key in storage.list("edits/"):
        if parts := parse_edit_key(key):
            video_id, _, revision = parts
            revisions.setdefault(video_id, []).append(revision)
        elif key.endswith(".json"):
            raise EditError(f"{key}: is not edits/<video id>/<revision, four digits>.json; move it elsewhere")
    newest = {video_id: max(found) for video_id, found in revisions.items()} if chosen is None else chosen
    for video_id, last in newest.items():
        if missing := sorted(set(range(1, last + 1)) - set(revisions.get(video_id, ()))):
            raise EditError(f"edits/{video_id}: revision {missing[0]} of {last} is missing; put it back")
    keys = [edit_key(video_id, last) for video_id, last in sorted(newest.items())]
    known = known or {}

    def read(key: str) -> Edit:
        edit = known.get(key) or parse_edit(storage.read(key), key)
        if edit.key != key:
            raise EditError(f"{key}: holds revision {edit.revision} of video {edit.video_id}; move it to {edit.key}")
        return edit

    with ThreadPoolExecutor(READERS) as readers:
        yield from readers.map(read, keys)


@dataclass(frozen=True, kw_only=True)
class EditSummary:
    """What became of a round's videos, by id; `missing` have no document, `fingerprint` names all the contents."""

    edited: tuple[str, ...]
    skipped: tuple[str, ...]
    second_opinion: tuple[str, ...]
    draft: tuple[str, ...]
    missing: tuple[str, ...]
    fingerprint: str

    def counts(self) -> dict[str, int]:
        """Return the number of videos of each kind."""
        return {kind: len(getattr(self, kind)) for kind in (*STATUSES, "missing")}

    def __str__(self) -> str:
        return ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in self.counts().items())


def summarize(item: Round, edits: Mapping[str, Edit]) -> EditSummary:
    """Return what became of each video of a round."""
    groups: dict[str, list[str]] = {kind: [] for kind in (*STATUSES, "missing")}
    digest = hashlib.sha256(item.round_id.encode())
    for video in item.videos:
        edit = edits.get(video.video_id)
        groups[edit.status if edit else "missing"].append(video.video_id)
        if edit is not None:
            digest.update(json.dumps([edit.video_id, edit.status, edit.edited_attention]).encode())
    return EditSummary(**{kind: tuple(ids) for kind, ids in groups.items()}, fingerprint=digest.hexdigest()[:16])  # type: ignore[arg-type]


def read_finished(storage: Storage) -> dict[str, Any] | None:
    """Return who finished a round, when, the revisions then, and what was started; None: it is not finished."""
    try:
        return parse_json(storage.read(FINISHED_FILE))
    except ObjectNotFound:
        return None


def read_learnt(item: Round) -> dict[str, Edit]:
    """Return the edits that are learnt from: of a finished round those of that moment, whatever was saved since.

    Raises:
        EditError: a document does not fit the round; names it.
    """
    return read_edits(item, (read_finished(item.storage) or {}).get("revisions"))


def read_edits(item: Round, chosen: Mapping[str, int] | None = None) -> dict[str, Edit]:
    """Return the newest edit of each video, or the chosen revisions, all checked.

    Raises:
        EditError: a document does not fit the round; names it.
    """
    edits = list(latest_edits(item.storage, chosen=chosen))
    with ThreadPoolExecutor(READERS) as readers:
        list(readers.map(lambda edit: check_edit(item, edit, edit.key), edits))
    return {edit.video_id: edit for edit in edits}


def import_edits(round_uri: str, output_path: str | Path) -> EditSummary:
    """Stage import-edits: check the edits of a round that are learnt from and write them as one table.

    Args:
        round_uri: the round.
        output_path: Parquet file to write, one row per video that has a document, whatever its status.

    Raises:
        EditError: an edit does not fit the round, or there is none to learn from.
    """
    item = load_round(round_uri)
    check_round(item)
    inputs = {"dataset": item.manifest_fingerprint, "checkpoint": item.checkpoint_fingerprint}
    with stage_run("import-edits", settings={"round": round_uri}, inputs=inputs) as run:
        edits = read_learnt(item)
        summary = summarize(item, edits)
        if not summary.edited:
            raise EditError(
                f"{round_uri}: no edited video to learn from ({summary}); let people correct the round first"
            )
        rows = [
            {
                "video_id": edit.video_id,
                "edited_attention": [np.nan if value is None else value for value in edit.edited_attention],
                "editor": edit.editor,
                "revision": edit.revision,
                "status": edit.status,
            }
            for edit in edits.values()
        ]
        header = {
            "round_id": item.round_id,
            "fingerprint": summary.fingerprint,
            "manifest_fingerprint": item.manifest_fingerprint,
            "checkpoint_fingerprint": item.checkpoint_fingerprint,
        }
        save_edit_table(output_path, rows, header)
        run.log_metrics(summary.counts())
    print(f"import-edits: {summary}", flush=True)
    return summary


def import_round(
    round_uri: str,
    edits_path: str | Path,
    manifest_path: str | Path,
    checkpoint_path: str | Path | None,
    selection_path: str | Path,
) -> EditSummary:
    """Import a round's edits, and copy manifest, network (unless None) and selection it was made from beside them."""
    summary = import_edits(round_uri, edits_path)
    storage = load_round(round_uri).storage
    for key, path in (
        (MANIFEST_FILE, manifest_path),
        (CHECKPOINT_FILE, checkpoint_path),
        (SELECTION_FILE, selection_path),
    ):
        if path is not None:
            storage.download(key, path)
    return summary
