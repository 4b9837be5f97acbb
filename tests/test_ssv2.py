"""Label files: the real layout, everything that can be wrong with one, and left and right."""

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from stabn.data.ssv2 import LABELS_FILE, SPLIT_FILES, LabelsError, Video, flip_map, load_labels, template_to_class
from stabn.storage import open_storage

TEMPLATES = [
    "Pushing [something] from left to right",
    "Pushing [something] from right to left",
    "Putting [number of] [something] onto [something]",
    "[Something] falling like a rock",
]


def content() -> dict[str, Any]:
    """Return the four files of a small dataset, in the form of the real one."""
    rows = [
        {"id": str(100 + i), "label": f"label {i}", "template": template, "placeholders": ["cup"]}
        for i, template in enumerate(TEMPLATES)
    ]
    return {
        LABELS_FILE: {template_to_class(template): str(i) for i, template in reversed(list(enumerate(TEMPLATES)))},
        SPLIT_FILES["train"]: rows[:3],
        SPLIT_FILES["validation"]: rows[3:],
        SPLIT_FILES["test"]: [{"id": "1420"}],
    }


def write(folder: Path, files: dict[str, Any]) -> Path:
    for name, value in files.items():
        (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


def test_reads_classes_by_index_and_videos_by_split(tmp_path: Path) -> None:
    labels = load_labels(write(tmp_path, content()))
    assert labels.classes == (
        "Pushing something from left to right",
        "Pushing something from right to left",
        "Putting number of something onto something",
        "Something falling like a rock",
    )
    assert labels.videos[0] == Video("100", "train", 0, "label 0")
    assert labels.videos[3:] == (Video("103", "validation", 3, "label 3"), Video("1420", "test", -1, ""))


def test_reads_from_object_storage_and_under_the_short_names(storage_uri: str) -> None:
    storage = open_storage(storage_uri)
    for name, value in content().items():
        storage.write(name.removeprefix("something-something-v2-"), json.dumps(value).encode())
    assert len(load_labels(storage_uri).videos) == 5


@pytest.mark.parametrize("name", [LABELS_FILE, *SPLIT_FILES.values()])
def test_missing_and_malformed_files_are_named(tmp_path: Path, name: str) -> None:
    write(tmp_path, content())
    for text, message in (('{"a": ', "not valid JSON"), ("7", "is expected, not a number"), ("\xff", "not valid JSON")):
        (tmp_path / name).write_bytes(text.encode("latin-1"))
        with pytest.raises(LabelsError, match=message) as error:
            load_labels(tmp_path)
        assert name in str(error.value)
    (tmp_path / name).unlink()
    if name in (SPLIT_FILES["test"], SPLIT_FILES["held_out"]):  # nothing is learnt from them
        load_labels(tmp_path)
        return
    with pytest.raises(LabelsError, match="no such file") as error:
        load_labels(tmp_path)
    assert name in str(error.value)


def test_ids_may_be_whole_numbers(tmp_path: Path) -> None:
    files = content()
    for split in SPLIT_FILES.values():
        for entry in files.get(split, []):
            entry["id"] = int(entry["id"])
    labels = load_labels(write(tmp_path, files))
    assert [video.video_id for video in labels.videos] == ["100", "101", "102", "103", "1420"] and not labels.rejects


TABLE = "id,label,split\n1,a,train\n2,b,validation\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label,split\n", r"labels\.csv: no column path or id; its first line has name, label, split"),
        ("", r"no column path or id, label, split; its first line has nothing"),
        ("id,video_id,label,split\n", r"columns id, video_id: leave one"),
        ("id,label,split\n1,a,trian\n", r"line 2: split 'trian'; write one of train, training, validation"),
        ("id,label,split\n1,a,b,train\n", r"line 2 has 4 columns, the first line 3; quote what has commas"),
        ("id,label,split\n1,a,train\n", r"no video of the split validation"),
        ('id,label,split\n1,"a,train\n', r"line 2: unexpected end of data"),
        ("path,label,split\na/1.mp4,a,train\na/1.webm,b,val\n", r"a/1\.mp4 and a/1\.webm would both be video a--1"),
        (b"id,label,split\n1,\xe4,train\n", r"not UTF-8 .* byte 17\); save it as UTF-8"),
    ],
)
def test_a_table_that_is_none_is_named(tmp_path: Path, text: str | bytes, message: str) -> None:
    (tmp_path / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(LabelsError, match=message):
        load_labels(tmp_path)


def test_paths_of_a_table_need_no_suffix_and_lie_below_the_videos(tmp_path: Path) -> None:
    rows = "pour/1,a,train\npour/2.mp4,a,val\n/data/pour/3.mp4,a,train\n../4.mp4,a,train\n"
    (tmp_path / "labels.csv").write_text("path,label,split\n" + rows)
    labels = load_labels(tmp_path)
    assert [labels.id_of(path) for path in ("pour/1.webm", "pour/2.mp4", "x/9.mp4")] == [
        "pour--1",
        "pour--2",
        "x/9.mp4",
    ]
    assert len(labels.rejects) == 2
    assert all("write it as it is below the videos' place" in reject.reason for reject in labels.rejects)


@pytest.mark.parametrize(("table", "disk"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_count_alike_however_they_are_encoded(tmp_path: Path, table: str, disk: str) -> None:
    rows = "path,label,split\nété/1.mp4,café,train\nête/1.mp4,caf\u00e9,val\nça.mp4,cafe\u0301,val\n"
    (tmp_path / "labels.csv").write_text(unicodedata.normalize(table, rows))
    labels = load_labels(tmp_path)
    paths = [unicodedata.normalize(disk, path) for path in ("été/1.mp4", "ête/1.mp4", "ça.mp4")]
    assert [labels.id_of(path) for path in paths] == [video.video_id for video in labels.videos]
    assert labels.classes == ("café",)


def test_templates_and_classes_may_encode_accents_differently(tmp_path: Path) -> None:
    files = content()
    files[LABELS_FILE]["Pouring caf\u00e9"] = str(len(files[LABELS_FILE]))
    files[SPLIT_FILES["train"]].append({"id": "777", "label": "x", "template": "Pouring cafe\u0301"})
    labels = load_labels(write(tmp_path, files))
    assert "777" in [video.video_id for video in labels.videos]


def test_paths_in_any_script_have_ids_of_their_own(tmp_path: Path) -> None:
    paths = ["注ぐ/1.mp4", "混ぜる/1.mp4", "видео.mp4"]
    rows = "".join(f"{path},注ぐ,{split}\n" for path, split in zip(paths, ("train", "train", "val")))
    (tmp_path / "labels.csv").write_text("path,label,split\n" + rows)
    labels = load_labels(tmp_path)
    ids = [video.video_id for video in labels.videos]
    assert not labels.rejects and len(set(ids)) == 3 and [labels.id_of(path) for path in paths] == ids


def test_bad_rows_of_a_table_are_listed_and_its_splits_hold(tmp_path: Path) -> None:
    rows = "../3,a,train\n4,,train\n5,c,test\n6,,test\n1,a,train\n2,a,train\n"
    (tmp_path / "labels.csv").write_text(TABLE + rows)
    labels = load_labels(tmp_path)
    assert labels.classes == ("a", "b")
    assert [(v.video_id, v.split, v.class_index) for v in labels.videos] == [
        ("1", "train", 0), ("5", "test", -1), ("6", "test", -1)
    ]  # fmt: skip
    reasons = {reject.video_id: reject.reason.split(":")[0] for reject in labels.rejects}
    assert reasons == {"../3": "bad id", "4": "bad entry", "1": "duplicate", "2": "duplicate"}
    (tmp_path / LABELS_FILE).write_text("{}")
    with pytest.raises(LabelsError, match=r"both labels\.csv and .*labels\.json are there"):
        load_labels(tmp_path)


def test_videos_are_held_out_by_their_id_alone(tmp_path: Path) -> None:
    rows = [{"id": str(number), "label": "x", "template": "Holding [something]"} for number in range(2000)]
    files = {LABELS_FILE: {"Holding something": "0"}, SPLIT_FILES["train"]: rows}
    files |= {SPLIT_FILES[split]: [] for split in ("validation", "test")}
    (tmp_path / "all").mkdir()
    (tmp_path / "half").mkdir()

    def held(folder: Path, share: float) -> set[str]:
        return {video.video_id for video in load_labels(folder, share).videos if video.split == "held_out"}

    every = held(write(tmp_path / "all", files), 0.1)
    assert 150 < len(every) < 250 and not held(tmp_path / "all", 0.0)
    assert every < held(tmp_path / "all", 0.2), "a larger share keeps what is held out"
    half = held(write(tmp_path / "half", files | {SPLIT_FILES["train"]: rows[::2]}), 0.1)
    assert half == {name for name in every if int(name) % 2 == 0}
    write(tmp_path / "half", {SPLIT_FILES["held_out"]: rows[1::2]})
    assert len(held(tmp_path / "half", 0.0)) == 1000, "a dataset may have a file of its own"


@pytest.mark.parametrize(
    ("split", "change", "name", "reason"),
    [
        (
            "train",
            {"template": "Dancing with [something]"},
            "100",
            "unknown template: 'Dancing with something' ",
        ),
        ("train", {"id": "101", "template": TEMPLATES[1]}, "101", "duplicate: comes more than once in the split train"),
        ("train", {"id": "../100"}, "../100", "bad id: entry 0 of .*train.json: video id '../100'"),
        ("train", {"id": 100.5}, "100.5", "bad id: entry 0 of .*train.json: video id 100.5"),
        ("train", {"id": True}, "True", "bad id: entry 0 of .*train.json: video id True"),
        ("train", {"template": None}, "100", "bad entry: template None"),
        ("validation", {"label": 3}, "103", "bad entry: template .* label 3"),
        ("test", {"id": ""}, "", "bad id: entry 0 of .*test.json: video id ''"),
    ],
)
def test_bad_entries_are_listed(tmp_path: Path, split: str, change: dict[str, Any], name: str, reason: str) -> None:
    files = content()
    files[SPLIT_FILES[split]][0].update(change)
    labels = load_labels(write(tmp_path, files))
    assert len(labels.videos) == 4
    (reject,) = labels.rejects
    assert (reject.video_id, reject.split) == (name, split) and re.match(reason, reject.reason)


@pytest.mark.parametrize(
    ("split", "change"),
    [("train", {"id": "101"}), ("train", {"id": "103", "template": TEMPLATES[3]}), ("test", {"id": "100"})],
)
def test_entries_that_contradict_each_other_are_all_left_out(
    tmp_path: Path, split: str, change: dict[str, Any]
) -> None:
    files = content()
    files[SPLIT_FILES[split]][0].update(change)
    labels = load_labels(write(tmp_path, files))
    assert [reject.video_id for reject in labels.rejects] == [change["id"]] * 2
    assert change["id"] not in {video.video_id for video in labels.videos} and len(labels.videos) == 3
    assert all("contradict each other, in the split" in reject.reason for reject in labels.rejects)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"A": "0", "B": "0"}, "'B' and 'A' both have index 0"),
        ({"A": "0", "B": "2"}, "'B' has index '2'"),
        ({"A": 0}, "'A' has index 0; expected"),
        ({"A": "one"}, "'A' has index 'one'"),
        ({}, "not an empty object"),
        ('{"A": "0", "A": "1"}', "'A' comes twice"),
    ],
)
def test_bad_class_indices_are_named(tmp_path: Path, labels: Any, message: str) -> None:
    with pytest.raises(LabelsError, match=message) as error:
        load_labels(write(tmp_path, content() | {LABELS_FILE: labels}))
    assert LABELS_FILE in str(error.value)


def test_a_file_of_another_dataset_is_not_read_as_this_one(tmp_path: Path) -> None:
    kinetics = {"abc": {"annotations": {"label": "dancing"}, "subset": "train"}}
    with pytest.raises(LabelsError, match=r"train\.json: a JSON list of videos is expected, not an object with abc"):
        load_labels(write(tmp_path, content() | {SPLIT_FILES["train"]: kinetics}))
    with pytest.raises(LabelsError, match="entry 0 is an object with file without an id"):
        load_labels(write(tmp_path, content() | {SPLIT_FILES["train"]: [{"file": "a.mp4"}]}))


# Every class of the real dataset with left or right in it, as a part of a word too.
SIDED = [
    "Plugging something into something but pulling it right out as you remove your hand",
    "Pulling something from left to right",
    "Pulling something from right to left",
    "Pushing something from left to right",
    "Pushing something from right to left",
    "Putting something that cannot actually stand upright upright on the table, so it falls on its side",
    "Putting something upright on the table",
    "Laying something on the table on its side, not upright",
    "Turning the camera left while filming something",
    "Turning the camera right while filming something",
    "Turning the camera upwards while filming something",
]


def test_flip_changes_exactly_the_classes_with_a_counterpart() -> None:
    assert flip_map(SIDED) == (0, 2, 1, 4, 3, 5, 6, 7, 9, 8, 10)


def test_flipping_twice_is_identity() -> None:
    flipped = flip_map(SIDED)
    assert [flipped[index] for index in flipped] == list(range(len(SIDED)))


def test_flip_keeps_case_and_a_class_without_counterpart() -> None:
    assert flip_map(["Left turn", "Right turn", "right turn", "GO LEFT", "GO RIGHT", "keep left"]) == (1, 0, 2, 4, 3, 5)
