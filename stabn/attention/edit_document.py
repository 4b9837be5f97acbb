"""The document of one correction: its fields, its name in the round, and the checks it must pass on its own."""

import json
import re
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from importlib.resources import files
from typing import Any

import jsonschema

from stabn.data.edit_table import EditError
from stabn.storage import check_id
from stabn.text import parse_json

FORMAT = 1
STATUSES = ("edited", "skipped", "second_opinion", "draft")
DONE = ("edited", "skipped")
_KEY = re.compile(r"edits/(?P<video_id>[^/]+)/(?P<revision>\d{4})\.json")
_OPINION_KEY = re.compile(r"opinions/(?P<video_id>[^/]+)/(?P<slot>[2-9])/(?P<revision>\d{4})\.json")


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
        content = parse_json(data, parse_constant=_refuse_constant)
    except ValueError as error:
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


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


@lru_cache
def _validator() -> Any:
    schema = json.loads(files("stabn.attention").joinpath("edit.schema.json").read_text())
    return jsonschema.Draft202012Validator(schema)
