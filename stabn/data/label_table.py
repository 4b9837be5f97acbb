"""Read a lab's own labels: one table, labels.csv, with a row for each video."""

import csv
import hashlib
import io
import re
from collections.abc import Iterable

from stabn.data.labels import LabelsError, Reject, Video
from stabn.data.sources import file_id, is_video
from stabn.storage import Storage, StorageError, check_id
from stabn.text import composed

TABLE_FILE = "labels.csv"
COLUMNS = {
    "id": ("id", "video_id"),
    "path": ("path", "file", "filename", "video"),
    "label": ("label", "class", "action"),
    "split": ("split",),
}
SPLIT_NAMES = {
    "train": "train", "training": "train", "validation": "validation", "val": "validation", "valid": "validation",
    "dev": "validation", "test": "test", "held_out": "held_out",
}  # fmt: skip
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def read_table(
    storage: Storage,
) -> tuple[tuple[str, ...], dict[str, list[Video]], list[Reject], dict[str, str]]:
    """Read labels.csv: a column `path` or `id`, a column `label`, a column `split`; others do not matter.

    UTF-8; comma, semicolon or tab; names of columns and splits in any case. The classes are the labels, in the order
    of the alphabet. A path is one below the place of the videos; the id is made from it. Accents count alike, however
    they are encoded.

    Returns:
        The classes, the entries by id, those that cannot be used, and the id by path.

    Raises:
        LabelsError: not such a table, or no video to train or to validate with.
    """
    where = storage.locate(TABLE_FILE)
    try:
        text = composed(storage.read(TABLE_FILE).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise LabelsError(f"{where}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = [name.strip().lower() for name in next(rows, [])]
        places = _columns(where, names)
        entries = [(rows.line_num, row) for row in rows if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise LabelsError(f"{where}: line {rows.line_num}: {error}; save the table as CSV again") from None
    return _entries(where, places, len(names), entries)


def _columns(where: str, names: list[str]) -> dict[str, int]:
    """Return the position of each column that is needed."""
    found = {}
    for column, spellings in COLUMNS.items():
        positions = [number for number, name in enumerate(names) if name in spellings]
        if len(positions) > 1:
            raise LabelsError(f"{where}: columns {', '.join(names[number] for number in positions)}: leave one of them")
        if positions:
            found[column] = positions[0]
    missing = [name for name in ("label", "split") if name not in found]
    if not found.keys() & {"id", "path"}:
        missing.insert(0, "path or id")
    if missing:
        raise LabelsError(
            f"{where}: no column {', '.join(missing)}; its first line has {', '.join(names) or 'nothing'}"
        )
    return found


def _entries(
    where: str, places: dict[str, int], width: int, rows: Iterable[tuple[int, list[str]]]
) -> tuple[tuple[str, ...], dict[str, list[Video]], list[Reject], dict[str, str]]:
    by_path = "path" in places
    good: list[tuple[str, str, str]] = []
    rejects: list[Reject] = []
    paths: dict[str, str] = {}
    for line, row in rows:
        if len(row) != width:
            raise LabelsError(
                f"{where}: line {line} has {len(row)} columns, the first line {width}; quote what has commas"
            )
        given, label, split = (row[places[n]].strip() for n in ("path" if by_path else "id", "label", "split"))
        if split.lower() not in SPLIT_NAMES:
            raise LabelsError(f"{where}: line {line}: split {split!r}; write one of {', '.join(SPLIT_NAMES)}")
        split = SPLIT_NAMES[split.lower()]
        try:
            video_id = check_id(_id_of(given, by_path), "video id")
        except StorageError as error:
            rejects.append(Reject(given[:200], split, f"bad id: line {line} of {where}: {error}"))
            continue
        if not label and split != "test":
            rejects.append(Reject(video_id, split, f"bad entry: line {line} of {where} has no label"))
            continue
        if by_path:
            paths[given.replace("\\", "/").removeprefix("./")] = video_id
        good.append((video_id, split, label))
    classes = tuple(sorted({label for _, split, label in good if split != "test"}))
    for split in ("train", "validation"):
        if not any(own == split for _, own, _ in good):
            raise LabelsError(f"{where}: no video of the split {split}; write {split} in that column for some")
    index = {name: number for number, name in enumerate(classes)}
    entries: dict[str, list[Video]] = {}
    for video_id, split, label in good:
        own = -1 if split == "test" else index[label]
        entries.setdefault(video_id, []).append(Video(video_id, split, own, label))
    owners: dict[str, str] = {}
    for path, video_id in paths.items():
        if owners.setdefault(video_id, path) != path:
            raise LabelsError(f"{where}: {owners[video_id]} and {path} would both be video {video_id}; rename one")
    return classes, entries, rejects, paths


def _id_of(given: str, by_path: bool) -> str:
    """Return the id of an entry: as given, or made from the path, whose folders stay apart."""
    if not by_path:
        return file_id(given) if is_video(given) else given
    stem = given.replace("\\", "/").removeprefix("./")
    if stem.startswith("/") or ".." in stem.split("/"):
        raise StorageError(f"path {given!r}: write it as it is below the videos' place, such as pour/1.mp4")
    stem = stem.rpartition(".")[0] if is_video(stem) else stem
    safe = _UNSAFE.sub("_", stem.replace("/", "--"))
    if stem.isascii():
        return safe
    return f"{safe.lstrip('_.-')}-{hashlib.sha256(stem.encode()).hexdigest()[:8]}".lstrip("-")  # what _ stands for
