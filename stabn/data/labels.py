"""What label files say, whatever their form: the classes, the videos, and the entries that cannot be used."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from stabn.data.sources import file_id
from stabn.errors import StabnError
from stabn.text import composed


class LabelsError(StabnError):
    """The label files are not of a form that is known, or contradict each other."""


class Video(NamedTuple):
    """One video of the dataset.

    Attributes:
        video_id: names the video everywhere; see `Labels.id_of`.
        split: train, validation, test or held_out.
        class_index: index into Labels.classes, -1 in the test split.
        label: the action with its objects named, empty in the test split.
    """

    video_id: str
    split: str
    class_index: int
    label: str


class Reject(NamedTuple):
    """A video that cannot be used, and why: a word or two for counting, a colon, and the details."""

    video_id: str
    split: str
    reason: str


@dataclass(frozen=True)
class Labels:
    """The classes and videos of the dataset.

    Attributes:
        classes: templates without brackets, ordered by index.
        videos: in the order of the files.
        rejects: entries that cannot be used.
        paths: id by path below the videos' place, see `composed`, where the labels are by path; empty: a file's name
            is its id.
    """

    classes: tuple[str, ...]
    videos: tuple[Video, ...]
    rejects: tuple[Reject, ...] = ()
    paths: Mapping[str, str] = field(default_factory=dict)

    def id_of(self, path: str) -> str:
        """Return the id of the video at a path; of one that no label names something that is no id of ours."""
        if not self.paths:
            return file_id(path)
        path = composed(path)
        return self.paths.get(path) or self.paths.get(path.rpartition(".")[0]) or path
