"""What `stabn faithfulness` has written: curves by video, and from them areas, differences and their intervals."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from stabn.attention.perturbation import FILLS, KINDS
from stabn.errors import StabnError
from stabn.evaluation.crossed import Interval, bootstrap_columns
from stabn.storage import read_uri
from stabn.text import parse_json

FORMAT = 1
MAPS = ("attention", "grad_cam", "motion", "centre", "uniform", "random")
LABELS = {
    "grad_cam": "Grad-CAM", "motion": "motion energy", "centre": "centre", "uniform": "uniform", "random": "random",
}  # fmt: skip
OWN = {"temporal": "Mt", "spatial": "Ms"}
RANDOMISED = ("Mt", "Ms", "Grad-CAM")
DELETION, INSERTION = 0, 1
GAP, OVER = "insertion − deletion", "attention over it"
Numbers = npt.NDArray[np.float64]
Table = dict[str, dict[str, Interval]]  # by row and column


class FaithfulnessError(StabnError):
    """A file is not one of `stabn faithfulness`, or of another network than the others."""


@dataclass(frozen=True)
class Faithfulness:
    """How a network's answer changed as frames and cells were deleted and inserted, of N videos.

    Attributes:
        split: of the videos.
        checkpoint_fingerprint: names the network.
        video_ids: N of them.
        shares: by kind, (S + 1,) from 0 to 1, of the frames or cells that are changed.
        curves: by kind, fill and map, (N, 2, S + 1): probabilities of the predicted class under deletion, insertion.
        alike: by kind and other map, (N,): rank correlation with the attention.
        randomised: by part of the network and map, (M,): rank correlation after random weights, of M videos.
        pictures: by video id, a PNG in base64: the attention beside Grad-CAM.
    """

    split: str
    checkpoint_fingerprint: str
    video_ids: tuple[str, ...]
    shares: Mapping[str, Numbers]
    curves: Mapping[str, Mapping[str, Mapping[str, Numbers]]]
    alike: Mapping[str, Mapping[str, Numbers]]
    randomised: Mapping[str, Mapping[str, Numbers]]
    pictures: Mapping[str, str]

    def areas(self, kind: str, fill: str, name: str) -> Numbers:
        """Return the areas under deletion and insertion, (N, 2), each 0 to 1."""
        return np.asarray(np.trapezoid(self.curves[kind][fill][name], self.shares[kind], axis=2))

    def gaps(self, kind: str, name: str) -> Numbers:
        """Return insertion minus deletion, (N,), mean over the fills: 0 by chance, negative if upside down."""
        areas = np.array([self.areas(kind, fill, name) for fill in FILLS[kind]])
        return (areas[:, :, INSERTION] - areas[:, :, DELETION]).mean(0)

    def metrics(self) -> dict[str, float]:
        """Return what is logged."""
        found = {"videos": float(len(self.video_ids))}
        for kind in KINDS:
            for name in MAPS:
                found[f"{kind}_{name}_gap"] = float(self.gaps(kind, name).mean())
                for fill in FILLS[kind]:
                    deletion, insertion = self.areas(kind, fill, name).mean(0)
                    key = f"{kind}_{name}_{fill.replace(' ', '_')}"
                    found |= {f"{key}_deletion": float(deletion), f"{key}_insertion": float(insertion)}
            over = table(self, kind)[LABELS["random"]][OVER]
            found |= {f"{kind}_over_random": over.mean, f"{kind}_over_random_low": over.low}
            found |= {f"{kind}_like_{name}": float(values.mean()) for name, values in self.alike[kind].items()}
        for part, maps in self.randomised.items():
            for name, values in maps.items():
                found[f"randomised_{part.replace(' ', '_')}_{name}"] = float(values.mean())
        return found


def load_faithfulness(uri: str | os.PathLike[str]) -> Faithfulness:
    """Read faithfulness.json.

    Raises:
        FaithfulnessError: it is no such file.
    """
    try:
        document = parse_json(read_uri(uri))
    except ValueError as error:
        raise FaithfulnessError(f"{os.fspath(uri)}: not JSON ({error}); give faithfulness.json") from None
    return parse(document, os.fspath(uri))


def parse(document: Any, where: str) -> Faithfulness:
    """Check a document of `stabn faithfulness` and return its numbers.

    Raises:
        FaithfulnessError: it is none; names `where` it is from.
    """
    try:
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']!r}, not {FORMAT}")
        videos = document["videos"]
        curves = {
            kind: {
                fill: {
                    name: np.array([
                        [video["curves"][kind][fill][name][direction] for direction in ("deletion", "insertion")]
                        for video in videos
                    ], dtype=float)
                    for name in MAPS
                }
                for fill in fills
            }
            for kind, fills in FILLS.items()
        }  # fmt: skip
        shares = {kind: np.array(videos[0]["curves"][kind]["shares"], dtype=float) for kind in KINDS}
        alike = {
            kind: {
                name: np.array([video["alike"][kind][name] for video in videos], dtype=float)
                for name in ("grad_cam", "motion", "centre")
            }
            for kind in KINDS
        }
        randomised = {
            part: {name: np.array(document["randomised"][part][name], dtype=float) for name in RANDOMISED}
            for part in document["randomised"]
        }
        for kind in KINDS:
            for fill, found in curves[kind].items():
                for name, values in found.items():
                    if values.shape[2:] != shares[kind].shape or not np.isfinite(values).all():
                        raise ValueError(f"curves of {kind}, {fill}, {name} are not whole")
        return Faithfulness(
            split=str(document["split"]),
            checkpoint_fingerprint=str(document["checkpoint_fingerprint"]),
            video_ids=tuple(str(video["video_id"]) for video in videos),
            shares=shares,
            curves=curves,
            alike=alike,
            randomised=randomised,
            pictures={str(item["video_id"]): str(item["png"]) for item in document["pictures"]},
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise FaithfulnessError(
            f"{where}: not what `stabn faithfulness` writes ({reason}); give its faithfulness.json"
        ) from None


def label(kind: str, name: str) -> str:
    """Return what a map is called: Mt, Ms, or a control's name."""
    return LABELS.get(name, OWN[kind])


def table(found: Faithfulness, kind: str) -> Table:
    """Return by map the areas under deletion and insertion of each fill, their gap, and what Mt or Ms has over it.

    Intervals are over the videos; the attention over itself is 0.
    """
    own, columns = found.gaps(kind, "attention"), {}
    for name in MAPS:
        for number, direction in enumerate(("deletion", "insertion")):
            for fill in FILLS[kind]:
                columns[label(kind, name), f"{direction}, {fill}"] = found.areas(kind, fill, name)[:, number]
        columns[label(kind, name), GAP] = found.gaps(kind, name)
        columns[label(kind, name), OVER] = own - found.gaps(kind, name)
    return _intervals(columns)


def randomised_table(found: Faithfulness) -> Table:
    """Return by part, from the top down, and map the mean rank correlation with the trained network's map."""
    return _intervals({(part, name): row for part, maps in found.randomised.items() for name, row in maps.items()})


def _intervals(columns: Mapping[tuple[str, str], Numbers]) -> Table:
    rows: Table = {}
    intervals = bootstrap_columns(np.stack(list(columns.values()), 1))
    for (row, column), interval in zip(columns, intervals, strict=True):
        rows.setdefault(row, {})[column] = interval
    return rows


def verdict(found: Faithfulness, kind: str) -> tuple[str, str, str]:
    """Return the kind's answer: a tone (good, bad, neutral), one line, and a sentence with the numbers."""
    own, what = OWN[kind], "frames" if kind == "temporal" else "parts of a frame"
    rows = table(found, kind)
    chance, gap = rows[LABELS["random"]][OVER], rows[own][GAP]
    numbers = f"Insertion − deletion {signed(gap.mean)}, over a random order {with_range(chance)}"
    if chance.low > 0:
        tone, line = "good", f"{own} is faithful: the answer depends on the {what} where it is high"
    elif chance.high < 0:
        tone, line = "bad", f"{own} is faithful upside down: the answer depends on the {what} where it is low"
    else:
        tone, line = "neutral", f"That the answer depends on the {what} where {own} is high is not seen beyond noise"
    others = {LABELS[name]: rows[LABELS[name]][OVER] for name in ("motion", "centre", "grad_cam")}
    behind = [name for name, over in others.items() if over.high < 0]
    ahead = [name for name, over in others.items() if over.low > 0]
    parts = [f"it is more faithful than {_listed(ahead)}"] if ahead else []
    parts += [f"{'' if ahead else 'it is '}less faithful than {_listed(behind)}"] if behind else []
    words = ", ".join(parts) or "motion energy, centre and Grad-CAM do as well, as far as is seen"
    return tone, line, f"{numbers}; {words}."


def _listed(names: list[str]) -> str:
    """Return `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def plain_text(found: Faithfulness) -> str:
    """Return the tables and what follows from them, for a terminal."""
    videos = f"{len(found.video_ids):,} videos of split {found.split}"
    lines = [f"{videos}; area under the predicted class's probability, 95% intervals over videos"]
    for kind in KINDS:
        cells = {
            name: {
                column: with_range(cell, plain=column not in (GAP, OVER)) if (name, column) != (OWN[kind], OVER) else ""
                for column, cell in row.items()
            }
            for name, row in table(found, kind).items()
        }
        _, line, sentence = verdict(found, kind)
        lines += ["", f"{kind}: {line}", f"  {sentence}", pd.DataFrame.from_dict(cells, orient="index").to_string()]
    means = {
        part: {k: signed(cell.mean, 2) for k, cell in row.items()} for part, row in randomised_table(found).items()
    }
    lines += ["", "rank correlation with the trained network's map, all weights random from the top down to"]
    lines.append(pd.DataFrame.from_dict(means, orient="index").to_string())
    return "\n".join(lines)


def signed(value: float, digits: int = 3) -> str:
    """Return a number with its sign, `+0.120` or `−0.004`."""
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}".replace("-", "−") if rounded else f"{0:.{digits}f}"


def with_range(cell: Interval, plain: bool = False) -> str:
    """Return a mean and its interval, `+0.120 (+0.080 to +0.160)`; plain: without signs."""
    show = (lambda value: f"{value:.3f}") if plain else signed
    return f"{show(cell.mean)} ({show(cell.low)} to {show(cell.high)})"
