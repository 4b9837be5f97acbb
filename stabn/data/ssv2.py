"""Read and check the label files of Something-Something v2, or a labels.csv; say what a flip does to a class."""

import hashlib
import os
import re
from collections.abc import Sequence
from typing import Any

from stabn.data.label_table import TABLE_FILE, read_table
from stabn.data.labels import Labels, LabelsError, Reject, Video
from stabn.identity import unique_object
from stabn.stages import SPLITS
from stabn.storage import ObjectNotFound, Storage, StorageError, check_id, open_storage
from stabn.text import composed, parse_json

LABELS_FILE = "something-something-v2-labels.json"
SPLIT_FILES = {split: f"something-something-v2-{split}.json" for split in SPLITS}
FILE_PREFIX = "something-something-v2-"  # the dataset's later packages leave it out: labels.json, train.json, …

OPTIONAL = ("test", "held_out")  # splits whose file may be missing: nothing is learnt from them

_SIDE = re.compile(r"\b(left|right)\b", re.IGNORECASE)


def load_labels(uri: str | os.PathLike[str], held_out: float = 0.0) -> Labels:
    """Read the label files of a folder or prefix: those of Something-Something v2, or a labels.csv.

    Of the dataset's own, the file of test videos may be missing, and one of held-out videos may be there. Entries that
    cannot be used are listed in `rejects`. Of an entry that is repeated as it is, one stays; entries of one id that
    contradict each other (two classes, two splits) are all left out.

    Args:
        uri: the folder or prefix.
        held_out: share of the training videos that are moved to the split held_out, 0 to 1; which ones is decided by
            each id alone, so that it stays the same when other videos come and go.

    Raises:
        LabelsError: a file is missing, or is neither one of Something-Something v2 nor such a table.
    """
    storage = open_storage(uri)
    if storage.exists(TABLE_FILE):
        if _is_there(storage, LABELS_FILE):
            raise LabelsError(f"{uri}: both {TABLE_FILE} and {LABELS_FILE} are there; leave the one that holds")
        classes, entries, rejects, paths = read_table(storage)
    else:
        classes, entries, rejects = _read_dataset(storage)
        paths = {}
    videos: list[Video] = []
    for group in entries.values():
        keys = {(video.split, video.class_index) for video in group}
        if len(keys) == 1:
            videos.append(group[0])
            group = group[1:]
        rejects += [Reject(video.video_id, video.split, _duplicate(video, keys, classes)) for video in group]
    return Labels(classes, tuple(_held_out(video, held_out) for video in videos), tuple(rejects), paths)


def _read_dataset(storage: Storage) -> tuple[tuple[str, ...], dict[str, list[Video]], list[Reject]]:
    """Return the classes, the entries by id, and those that cannot be used, of Something-Something v2's files."""
    where, content = _read(storage, LABELS_FILE)
    classes = _classes(where, content)
    index_of = {name: index for index, name in enumerate(classes)}
    entries: dict[str, list[Video]] = {}
    rejects: list[Reject] = []
    for split in SPLITS:
        if split in OPTIONAL and not _is_there(storage, SPLIT_FILES[split]):
            continue
        where, content = _read(storage, SPLIT_FILES[split])
        if not isinstance(content, list):
            raise LabelsError(
                f"{where}: a JSON list of videos is expected, not {_kind(content)}; is it another dataset's?"
            )
        for number, entry in enumerate(content):
            video = _video(where, number, entry, split, index_of)
            if isinstance(video, Reject):
                rejects.append(video)
            else:
                entries.setdefault(video.video_id, []).append(video)
    return classes, entries, rejects


def _held_out(video: Video, share: float) -> Video:
    """Return a training video as one of the held-out split, if its id is among that share of all ids."""
    number = int.from_bytes(hashlib.sha256(f"held out {video.video_id}".encode()).digest()[:8])
    return video._replace(split="held_out") if video.split == "train" and number < share * 2**64 else video


def template_to_class(template: str) -> str:
    """Remove the square brackets: `Moving [something] up` is the template of the class `Moving something up`."""
    return template.replace("[", "").replace("]", "")


def flip_map(classes: Sequence[str]) -> tuple[int, ...]:
    """Return the index of each class after a horizontal flip.

    A class changes exactly when the list has its counterpart, the name with the words left and right swapped; names
    that merely contain such a word ("upright", "pulling it right out") have none and keep their class.
    """
    index_of = {name: index for index, name in enumerate(classes)}
    return tuple(index_of.get(_SIDE.sub(_other_side, name), index) for index, name in enumerate(classes))


def _other_side(match: re.Match[str]) -> str:
    word = match.group()
    other = "right" if word.lower() == "left" else "left"
    if word.isupper():
        return other.upper()
    return other.capitalize() if word[0].isupper() else other


def _is_there(storage: Storage, name: str) -> bool:
    return storage.exists(name) or storage.exists(name.removeprefix(FILE_PREFIX))


def _read(storage: Storage, name: str) -> tuple[str, Any]:
    """Return where a file is and its JSON content; the names without the dataset's prefix serve too."""
    for key in (name, name.removeprefix(FILE_PREFIX)):
        where = storage.locate(key)
        try:
            return where, parse_json(storage.read(key), object_pairs_hook=unique_object)
        except ObjectNotFound:
            continue
        except ValueError as error:
            raise LabelsError(f"{where}: not valid JSON ({error}); get the file again") from None
    raise LabelsError(f"{storage.locate(name)}: no such file; give the folder with the label files of the dataset")


def _classes(where: str, content: Any) -> tuple[str, ...]:
    """Order the classes by their index."""
    if not isinstance(content, dict) or not content:
        raise LabelsError(f"{where}: a JSON object of class names and indices is expected, not {_kind(content)}")
    by_index: dict[int, str] = {}
    for name, text in content.items():
        if not (isinstance(text, str) and text.isascii() and text.isdigit()) or int(text) >= len(content):
            raise LabelsError(f'{where}: {name!r} has index {text!r}; expected "0" to "{len(content) - 1}" as a string')
        if int(text) in by_index:
            raise LabelsError(f"{where}: {name!r} and {by_index[int(text)]!r} both have index {text}")
        by_index[int(text)] = composed(name)
    return tuple(by_index[index] for index in range(len(by_index)))


def _video(where: str, number: int, entry: Any, split: str, index_of: dict[str, int]) -> Video | Reject:
    """Check one entry of a split file."""
    if not isinstance(entry, dict) or "id" not in entry:
        raise LabelsError(f"{where}: entry {number} is {_kind(entry)} without an id; is it another dataset's?")
    given = entry["id"]
    name = str(given)[:200]
    try:
        video_id = check_id(str(given) if type(given) is int else given, "video id")
    except StorageError as error:
        return Reject(name, split, f"bad id: entry {number} of {where}: {error}")
    if split == "test":
        return Video(video_id, split, -1, "")
    template, label = entry.get("template"), entry.get("label", "")
    if not isinstance(template, str) or not isinstance(label, str):
        return Reject(name, split, f"bad entry: template {template!r}, label {label!r} in {where}; both must be text")
    class_name = composed(template_to_class(template))
    if class_name not in index_of:
        return Reject(
            name,
            split,
            f"unknown template: {class_name!r} is not among the {len(index_of)} classes of {LABELS_FILE}; "
            "use label files of one dataset",
        )
    return Video(video_id, split, index_of[class_name], label)


def _duplicate(video: Video, keys: set[tuple[str, int]], classes: tuple[str, ...]) -> str:
    if len(keys) == 1:
        return f"duplicate: comes more than once in the split {video.split}; the first is used"
    places = [f"the split {split} ({classes[index] if index >= 0 else 'no class'})" for split, index in sorted(keys)]
    return f"duplicate: its entries contradict each other, in {' and in '.join(places)}; remove all but one"


def _kind(content: Any) -> str:
    """Describe a JSON value for a message."""
    if isinstance(content, dict):
        return "an empty object" if not content else f"an object with {', '.join(sorted(content)[:4])}"
    return {list: "a list", str: "text", type(None): "null"}.get(type(content), "a number")
