"""Editing rounds: the videos handed to people, with all that correcting and fine-tuning need, under one URI."""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from stabn.config import fingerprint
from stabn.endpoint import without_user
from stabn.errors import StabnError
from stabn.identity import check_unique
from stabn.storage import ObjectNotFound, Storage, StorageError, check_id, open_storage
from stabn.text import parse_json
from stabn.tracking import StageRun

EDITOR_VARIABLE = "STABN_EDITOR_PUBLIC_URL"  # the editor's address as browsers see it
FORMAT = 1
ROUND_FILE = "round.json"
MANIFEST_FILE, CHECKPOINT_FILE, SELECTION_FILE = "manifest.parquet", "checkpoint.pt", "selection.json"
MAX_SIZE = 1 << 20  # frames of a video, or pixels of its side, above any that extraction keeps
SAMPLE = 16  # videos looked at
REMEDY = (
    "run export-attention again with the same inputs; on a KFP server add `--no-cache export` to `python -m pipelines "
    "submit`"
)


class RoundError(StabnError):
    """A round is missing, unfinished, or does not hold what was asked of it."""


@dataclass(frozen=True)
class RoundVideo:
    """A video to correct.

    Attributes:
        predicted: class index the network gave it.
        score: probability of that class, 0 to 1.
        true_score: probability of the true class; None in rounds of earlier versions.
        num_frames: source frames; an edited curve has as many values.
    """

    video_id: str
    class_index: int
    label: str
    predicted: int
    score: float
    num_frames: int
    width: int
    height: int
    true_score: float | None = None


@dataclass(frozen=True)
class Round:
    """An editing round as its `round.json` describes it."""

    uri: str
    round_id: str
    created_at: str
    manifest_fingerprint: str
    checkpoint_fingerprint: str
    classes: tuple[str, ...]
    selected_classes: tuple[int, ...]
    videos: tuple[RoundVideo, ...]

    @property
    def storage(self) -> Storage:
        """Where the round's documents are."""
        return open_storage(self.uri)

    @property
    def network_uri(self) -> str:
        """Where its network is."""
        return self.storage.locate(CHECKPOINT_FILE)

    def video(self, video_id: str) -> RoundVideo:
        """Return a video of the round.

        Raises:
            RoundError: the round does not have it.
        """
        if video_id not in self._by_id:
            raise RoundError(f"video {video_id!r} is not in round {self.round_id} ({len(self.videos)} videos)")
        return self._by_id[video_id]

    @cached_property
    def _by_id(self) -> dict[str, RoundVideo]:
        return {video.video_id: video for video in self.videos}


def round_link(round_id: str) -> str:
    """Return the address of a round in the editor; "": the environment does not name the editor's address."""
    address = os.environ.get(EDITOR_VARIABLE, "")
    return f"{without_user(address).rstrip('/')}/rounds/{round_id}/" if address.startswith("http") else ""


def tell_link(round_id: str, run: StageRun, stage: str) -> None:
    """Say in a stage's log and in its MLflow run where the round is corrected, if that is known."""
    if link := round_link(round_id):
        print(f"{stage}: round {round_id} in the editor: {link}", flush=True)
        run.set_tags({"stabn.round": round_id, "stabn.editor": link})


def make_round_id(manifest_fingerprint: str, checkpoint_fingerprint: str, video_ids: Sequence[str]) -> str:
    """Return the id that the same network, dataset and videos always get, so that an export never splits the edits."""
    return fingerprint(manifest_fingerprint, checkpoint_fingerprint, sorted(video_ids))


def save_round(item: Round) -> None:
    """Write `round.json`; last of an export, so that a round appears whole.

    Raises:
        RoundError: a video comes twice.
    """
    _check_ids(item.videos, item.uri)
    content: dict[str, Any] = {"format": FORMAT, **asdict(item)}
    del content["uri"]
    item.storage.write(ROUND_FILE, json.dumps(content, indent=1).encode())


def load_round(uri: str) -> Round:
    """Read a round's description.

    Raises:
        RoundError: there is no finished round, its description cannot be read, or a video comes twice.
    """
    try:
        content = parse_json(open_storage(uri).read(ROUND_FILE))
    except ObjectNotFound:
        raise RoundError(
            f"{uri}: no {ROUND_FILE} there: no finished round, or one that was deleted; {REMEDY}"
        ) from None
    except ValueError as error:
        raise RoundError(f"{uri}/{ROUND_FILE}: not JSON ({error}); export the round again") from None
    try:
        if content["format"] != FORMAT:
            raise RoundError(f"{uri}: round format {content['format']}, this version reads {FORMAT}")
        videos = tuple(_video(video, len(content["classes"])) for video in content["videos"])
        _check_ids(videos, uri)
        return Round(
            uri=uri,
            round_id=check_id(content["round_id"], "round id"),
            created_at=_text(content["created_at"]),
            manifest_fingerprint=_text(content["manifest_fingerprint"]),
            checkpoint_fingerprint=_text(content["checkpoint_fingerprint"]),
            classes=tuple(map(_text, content["classes"])),
            selected_classes=tuple(_index(number, len(content["classes"])) for number in content["selected_classes"]),
            videos=videos,
        )
    except (KeyError, TypeError, ValueError, StorageError) as error:
        raise RoundError(f"{uri}/{ROUND_FILE}: incomplete ({error}); export the round again") from None


def _video(content: dict[str, Any], num_classes: int) -> RoundVideo:
    """Return a video of a round's description, each of its values checked."""
    video = RoundVideo(**content)
    check_id(video.video_id, "video id")
    _text(video.label)
    for number in (video.class_index, video.predicted):
        _index(number, num_classes)
    for size in (video.num_frames, video.width, video.height):
        _index(size, MAX_SIZE)
    for score in (video.score, 0.0 if video.true_score is None else video.true_score):
        if not isinstance(score, int | float) or not 0 <= score <= 1:
            raise ValueError(f"a probability of {score!r:.100}")
    return video


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.100} where a text is expected")
    return value


def _index(value: Any, end: int) -> int:
    if type(value) is not int or not 0 <= value < end:
        raise ValueError(f"{value!r:.100} where a whole number below {end} is expected")
    return value


def check_round(item: Round) -> None:
    """Look for what a round holds besides its description: its three files, and the attention of some videos.

    Raises:
        RoundError: something is gone; says how to have it again.
    """
    step = max(1, len(item.videos) // SAMPLE)
    keys = [MANIFEST_FILE, CHECKPOINT_FILE, SELECTION_FILE]
    keys += [f"videos/{video.video_id}/attention.json" for video in item.videos[::step]]
    with ThreadPoolExecutor(8, thread_name_prefix="stabn-presence") as readers:
        missing = [key for key, found in zip(keys, readers.map(item.storage.exists, keys), strict=True) if not found]
    if missing:
        raise RoundError(
            f"{item.storage.locate(missing[0])}: gone, which {ROUND_FILE} says was written (and of {len(missing)} of "
            f"the {len(keys)} objects looked at); {REMEDY}"
        )


def model_attention(item: Round, video_id: str) -> list[float]:
    """Return the network's own temporal attention of a video, per source frame, in [0, 1].

    Raises:
        RoundError: the video's document is unusable.
    """
    key = f"videos/{check_id(video_id, 'video id')}/attention.json"
    try:
        values = [float(value) for value in parse_json(item.storage.read(key))["temporal_attention"]]
        if not all(0 <= value <= 1 for value in values):
            raise ValueError("values outside 0 to 1")
    except (ValueError, KeyError, TypeError) as error:
        raise RoundError(f"{item.storage.locate(key)}: unreadable ({error}); export the round again") from None
    if len(values) != item.video(video_id).num_frames:
        raise RoundError(
            f"{item.storage.locate(key)}: {len(values)} values for a video of {item.video(video_id).num_frames} "
            "frames; export the round again"
        )
    return values


def _check_ids(videos: Sequence[RoundVideo], uri: str) -> None:
    ids = [video.video_id for video in videos]
    check_unique(ids, "video", f"{uri}/{ROUND_FILE}", "select the videos and export the round again", RoundError)
