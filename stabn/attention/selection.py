"""The selection: the actions chosen for correction and their videos, as the JSON that select-classes writes."""

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stabn.config import SelectConfig, fingerprint, from_dict, to_dict
from stabn.errors import StabnError
from stabn.identity import check_unique
from stabn.storage import ObjectNotFound, check_id, read_uri, write_uri
from stabn.text import parse_json

FORMAT = 1


class SelectionError(StabnError):
    """The inputs of a selection do not belong together, or a selection file is unusable."""


@dataclass(frozen=True)
class SelectedClass:
    """An action chosen for correction; accuracies are top-1, 0 to 1, supports are numbers of videos."""

    class_index: int
    name: str
    train_accuracy: float
    validation_accuracy: float
    train_support: int
    validation_support: int


@dataclass(frozen=True)
class Selection:
    """Hold the chosen actions, worst first, and their videos to edit.

    Attributes:
        classes: the chosen actions, worst first.
        video_ids: training videos to edit, one action after the other in turn, so that people who stop
            early have covered all actions evenly.
        validation_video_ids: misclassified validation videos in the same order; never edited.
        num_misclassified: misclassified training videos of the chosen actions, whatever is edited.
        reason: one sentence that says what was found.
        settings: the settings that made this selection.
        inputs: fingerprints of what it was made from.
    """

    classes: list[SelectedClass]
    video_ids: list[str]
    validation_video_ids: list[str]
    num_misclassified: int = 0
    reason: str = ""
    settings: SelectConfig = field(default_factory=SelectConfig)
    inputs: dict[str, Any] = field(default_factory=dict)

    @property
    def outcome(self) -> str:
        """`selected`, or `nothing` when there is nothing to edit: no action, or none with a video to edit."""
        return "selected" if self.video_ids else "nothing"

    @property
    def class_indices(self) -> list[int]:
        """Class indices of the chosen actions, worst first."""
        return [item.class_index for item in self.classes]

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that name the content."""
        return fingerprint(_document(self))


def save_selection(selection: Selection, path: str | os.PathLike[str]) -> None:
    """Write a selection as JSON, to a path or URI.

    Raises:
        SelectionError: an action or a video comes twice.
    """
    _check_ids(selection, path)
    write_uri(path, json.dumps(_document(selection), indent=1, ensure_ascii=False).encode())


def load_selection(path: str | os.PathLike[str]) -> Selection:
    """Read what `save_selection` wrote, from a path or URI.

    Raises:
        SelectionError: the file is absent, not a selection of this format, or an action or a video comes twice.
    """
    try:
        document = parse_json(read_uri(path))
    except ObjectNotFound:
        raise SelectionError(f"{path}: no such selection; run select-classes first") from None
    except ValueError as error:
        raise SelectionError(f"{path}: not JSON ({error}); run select-classes again") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise SelectionError(f"{path}: not a selection of format {FORMAT}; run select-classes again")
    try:
        selection = Selection(
            classes=[SelectedClass(**item) for item in document["classes"]],
            video_ids=_ids(document["video_ids"]),
            validation_video_ids=_ids(document["validation_video_ids"]),
            num_misclassified=int(document["num_misclassified"]),
            reason=str(document["reason"]),
            settings=from_dict(SelectConfig, document["settings"]),
            inputs=dict(document["inputs"]),
        )
        if not all(type(index) is int and index >= 0 for index in selection.class_indices):
            raise ValueError(f"actions {selection.class_indices}")
    except (KeyError, TypeError, ValueError, OverflowError, StabnError) as error:
        raise SelectionError(f"{path}: incomplete selection ({error}); run select-classes again") from None
    _check_ids(selection, path)
    return selection


def _ids(names: Any) -> list[str]:
    return [check_id(name, "video id") for name in names]


def _check_ids(selection: Selection, path: str | os.PathLike[str]) -> None:
    lists: dict[str, Sequence[Any]] = {
        "action": selection.class_indices,
        "video": selection.video_ids,
        "validation video": selection.validation_video_ids,
    }
    for what, ids in lists.items():
        check_unique(ids, what, f"selection {path}", "run select-classes again", SelectionError)


def _document(selection: Selection) -> dict[str, Any]:
    document = {item.name: getattr(selection, item.name) for item in dataclasses.fields(selection)}
    document["classes"] = [dataclasses.asdict(item) for item in selection.classes]
    document["settings"] = to_dict(selection.settings)
    return {"format": FORMAT, "outcome": selection.outcome, **document}
