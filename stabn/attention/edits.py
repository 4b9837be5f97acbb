"""Edits of temporal attention: one JSON document per video per revision, and their import for fine-tuning."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stabn.attention.rounds import (
    CHECKPOINT_FILE,
    MANIFEST_FILE,
    SELECTION_FILE,
    Round,
    load_round,
    model_attention,
)
from stabn.errors import StabnError
from stabn.parquet import parse_table
from stabn.storage import ObjectExists, ObjectNotFound, Storage, check_id, read_uri
from stabn.tracking import stage_run

FORMAT = 1
STATUSES = ("edited", "skipped", "second_opinion", "draft")
DONE = ("edited", "skipped")
READERS = 16  # documents read at once
_KEY = re.compile(r"edits/(?P<video_id>[^/]+)/(?P<revision>\d{4})\.json")
_OPINION_KEY = re.compile(r"opinions/(?P<video_id>[^/]+)/(?P<slot>[2-9])/(?P<revision>\d{4})\.json")
EDIT_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("edited_attention", pa.list_(pa.float32())),
        ("editor", pa.string()),
        ("revision", pa.int32()),
        ("status", pa.string()),
    ]
)


class EditError(StabnError):
    """An edit does not fit its round."""


class EditConflict(EditError):
    """Somebody saved this revision first; `theirs` is what is there, `mine` what was to be saved."""

    def __init__(self, mine: "Edit", theirs: "Edit") -> None:
        super().__init__(mine, theirs)
        self.mine, self.theirs = mine, theirs

    def __str__(self) -> str:
        return (
            f"video {self.mine.video_id}: revision {self.mine.revision} was saved by {self.theirs.editor} at "
            f"{self.theirs.edited_at}; load it and save yours as a later revision"
        )


@dataclass(frozen=True, kw_only=True)
class Review:
    """A lead's word on a correction: `accepted`, or `sent_back` to its editor."""

    verdict: str
    reviewer: str
    reviewed_at: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A person's correction of one video; see edit.schema.json for the meaning of each field."""

    round_id: str
    video_id: str
    revision: int
    num_frames: int
    model_attention: tuple[float, ...]
    edited_attention: tuple[float | None, ...]
    status: str
    editor: str
    edited_at: str
    skip_reason: str | None = None
    slot: int = 1
    note: str = ""
    seconds: float = 0.0
    review: Review | None = None
    format: int = FORMAT

    @property
    def key(self) -> str:
        """The document's key in its round."""
        return edit_key(self.video_id, self.revision, self.slot)

    @property
    def previous_revision(self) -> int | None:
        """The revision that this one replaces; None for the first."""
        return self.revision - 1 or None

    def to_json(self) -> bytes:
        """Return the document."""
        content = asdict(self) | {"previous_revision": self.previous_revision}
        return json.dumps(content, indent=1, ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> "Edit":
        """Read a document; see `parse_edit`."""
        return parse_edit(data, where)


def edit_key(video_id: str, revision: int, slot: int = 1) -> str:
    """Return the key of a document in its round: slot 1 is what is learnt from, the others are second opinions."""
    return f"{edit_folder(video_id, slot)}{revision:04d}.json"


def edit_folder(video_id: str, slot: int = 1) -> str:
    """Return the prefix of a video's revisions in its round, with a slash at the end."""
    check_id(video_id, "video id")
    return f"edits/{video_id}/" if slot == 1 else f"opinions/{video_id}/{slot}/"


def parse_edit_key(key: str) -> tuple[str, int, int] | None:
    """Return the video id, slot and revision that a key names; None if it names no edit."""
    if match := _KEY.fullmatch(key) or _OPINION_KEY.fullmatch(key):
        parts = match.groupdict()
        return parts["video_id"], int(parts.get("slot", 1)), int(parts["revision"])
    return None


def parse_edit(data: bytes, where: str) -> Edit:
    """Read a document and check it against the schema and itself.

    Args:
        data: the document.
        where: its name in error messages.

    Raises:
        EditError: not JSON, against the schema, with curves of another length than the video, or contradicting itself.
    """
    try:
        content = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise EditError(f"{where}: not JSON ({error}); save the edit again") from None
    problem = next(iter(_validator().iter_errors(content)), None)
    if problem is not None:
        raise EditError(f"{where}: {problem.json_path[2:] or 'document'}: {problem.message[:200]}; save the edit again")
    for name in ("revision", "num_frames", "slot"):
        if name in content:
            content[name] = int(content[name])  # 1.0 is an integer in JSON
    if content.get("review") is not None:
        content["review"] = Review(**content["review"])
    for name in ("model_attention", "edited_attention"):
        if len(content[name]) != content["num_frames"]:
            raise EditError(
                f"{where}: {name} has {len(content[name])} values for a video of {content['num_frames']} frames; "
                "export the round again"
            )
        content[name] = tuple(content[name])
    if (content["status"] == "skipped") != (content["skip_reason"] is not None):
        raise EditError(
            f"{where}: status {content['status']} with skip_reason {content['skip_reason']}; give a reason "
            "with skipped, and with nothing else"
        )
    if content["status"] == "edited" and all(value is None for value in content["edited_attention"]):
        raise EditError(f"{where}: edited, but without a value on any frame; set one, or skip the video")
    try:
        offset = datetime.fromisoformat(content["edited_at"]).utcoffset()
    except ValueError:
        offset = None
    if offset != timedelta(0):
        raise EditError(f"{where}: edited_at {content['edited_at']!r} is not an ISO 8601 time in UTC")
    previous = content.pop("previous_revision", content["revision"] - 1 or None)
    edit = Edit(**content)
    if previous != edit.previous_revision:
        raise EditError(
            f"{where}: revision {edit.revision} says that it follows {previous}, not {edit.previous_revision}; "
            "load the newest revision and save the edit again"
        )
    return edit


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


def latest_edits(storage: Storage, known: Mapping[str, Edit] | None = None) -> Iterator[Edit]:
    """Yield the newest revision of each edited video, by id.

    Args:
        storage: the round's.
        known: documents read before, by key; a revision never changes, so they are not read again.

    Raises:
        EditError: a document is unusable, lies under another's name, or a revision before it is missing.
    """
    revisions: dict[str, list[int]] = {}
    for key in storage.list("edits/"):
        if match := _KEY.fullmatch(key):
            revisions.setdefault(match["video_id"], []).append(int(match["revision"]))
        elif key.endswith(".json"):
            raise EditError(f"{key}: is not edits/<video id>/<revision, four digits>.json; move it elsewhere")
    for video_id, found in revisions.items():
        if missing := sorted(set(range(1, max(found))) - set(found)):
            raise EditError(f"edits/{video_id}: revision {missing[0]} of {max(found)} is missing; put it back")
    keys = [edit_key(video_id, max(found)) for video_id, found in sorted(revisions.items())]
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


def read_edits(item: Round) -> dict[str, Edit]:
    """Return the newest edit of each video, all checked.

    Raises:
        EditError: a document does not fit the round; names it.
    """
    edits = list(latest_edits(item.storage))
    with ThreadPoolExecutor(READERS) as readers:
        list(readers.map(lambda edit: check_edit(item, edit, edit.key), edits))
    return {edit.video_id: edit for edit in edits}


class EditTable(dict[str, np.ndarray]):
    """Edited curves by video id: float32 (num_source,) in [0, 1], NaN where there is no opinion.

    Attributes:
        fingerprint: names the content.
        round_id: the round that was edited.
    """

    fingerprint: str
    round_id: str


def import_edits(round_uri: str, output_path: str | Path) -> EditSummary:
    """Stage import-edits: check all edits of a round and write them as one table.

    Args:
        round_uri: the round.
        output_path: Parquet file to write, one row per video that has a document, whatever its status.

    Raises:
        EditError: an edit does not fit the round, or there is none to learn from.
    """
    item = load_round(round_uri)
    inputs = {"dataset": item.manifest_fingerprint, "checkpoint": item.checkpoint_fingerprint}
    with stage_run("import-edits", settings={"round": round_uri}, inputs=inputs) as run:
        edits = read_edits(item)
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
            "format": FORMAT,
            "round_id": item.round_id,
            "fingerprint": summary.fingerprint,
            "manifest_fingerprint": item.manifest_fingerprint,
            "checkpoint_fingerprint": item.checkpoint_fingerprint,
        }
        table = pa.Table.from_pylist(rows, schema=EDIT_SCHEMA.with_metadata({b"stabn": json.dumps(header).encode()}))
        partial = f"{output_path}.partial"
        pq.write_table(table, partial)
        os.replace(partial, output_path)
        run.log_metrics(summary.counts())
    print(f"import-edits: {summary}", flush=True)
    return summary


def import_round(
    round_uri: str,
    edits_path: str | Path,
    manifest_path: str | Path,
    checkpoint_path: str | Path,
    selection_path: str | Path,
) -> EditSummary:
    """Import a round's edits, and copy the manifest, network and selection it was made from beside them."""
    summary = import_edits(round_uri, edits_path)
    storage = load_round(round_uri).storage
    for key, path in (
        (MANIFEST_FILE, manifest_path),
        (CHECKPOINT_FILE, checkpoint_path),
        (SELECTION_FILE, selection_path),
    ):
        storage.download(key, path)
    return summary


def load_edit_table(path: str | os.PathLike[str]) -> EditTable:
    """Read the edited videos of the table of `import_edits`, a path or URI; the others are there for the record.

    Raises:
        EditError: the file is no such table.
    """
    try:
        table = parse_table(read_uri(path))
        header = json.loads((table.schema.metadata or {})[b"stabn"])
        rows = table.select(["video_id", "edited_attention", "status"]).to_pylist()
        result = EditTable(
            {
                row["video_id"]: np.array(row["edited_attention"], np.float32)
                for row in rows
                if row["status"] == "edited"
            }
        )
        result.fingerprint, result.round_id = header["fingerprint"], header["round_id"]
    except (pa.ArrowException, ObjectNotFound, OSError, KeyError, ValueError) as error:
        raise EditError(f"{path}: not an edit table of import-edits ({error}); import the round again") from None
    return result


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


@lru_cache
def _validator() -> Any:
    import jsonschema

    schema = json.loads(files("stabn.attention").joinpath("edit.schema.json").read_text())
    return jsonschema.Draft202012Validator(schema)
