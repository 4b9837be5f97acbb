"""Whether corrections improve the recognition on the demo's dataset, for any seed and not only the one that is shown.

    python benchmarks/demo_seeds.py            # seeds 0 to 9; goes on where it was stopped

What `stabn demo --seed N` does, with each seed another dataset, without its services and process starts: ST-ABN, the
actions that it recognises worst on validation, the known segments of their training videos as corrections, and ST-ABN
trained anew with them from the same random weights. With gamma 0 that is the first network again, so it is its own
control. Beside it: other videos' curves in place of the segments, and the paper's route, fine-tuning late, with the
segments and with gamma 0. Every number is of the split held_out, on which nothing is chosen; the dataset and the
settings were chosen on other videos of seeds 0, 1 and 2, so the tables leave these out of their means.
"""

import dataclasses
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import record
from knowledge import for_each, slug

from stabn.attention.automatic import collect_edits
from stabn.attention.edits import import_edits
from stabn.attention.export import export_round
from stabn.attention.selection import load_selection
from stabn.data.frames import extract_frames
from stabn.data.mini import make_mini_dataset
from stabn.evaluation.crossed import Interval
from stabn.evaluation.predict import evaluate
from stabn.evaluation.prediction_table import Predictions, align
from stabn.evaluation.select_classes import select_classes
from stabn.evaluation.significance import paired_bootstrap
from stabn.presets import resolve
from stabn.training.stage import finetune, train

CHOSEN_ON = (0, 1, 2)  # the seeds that were looked at when dataset and settings were chosen
BEFORE, EDITS = "without edits", "trained with the edits"
OTHERS, LATE, LATE_CONTROL = "trained with other videos' curves", "fine-tuned with the edits", "fine-tuned, gamma 0"
ROUTES = {  # the route, whose curves, and gamma as a share of the setting
    EDITS: ("retrain", "segments", 1.0),
    OTHERS: ("retrain", "segments_other", 1.0),
    LATE: ("finetune", "segments", 1.0),
    LATE_CONTROL: ("finetune", "segments", 0.0),
}
PAIRS = ((EDITS, BEFORE), (EDITS, OTHERS), (LATE, BEFORE), (LATE, LATE_CONTROL))
MODES = ("as_is", "spatial_inverted")


class Seed:
    """One seed's dataset, networks and predictions; what is there already is not made again."""

    def __init__(self, folder: Path, seed: int, size: int, overrides: str) -> None:
        self.folder, self.seed, self.size = folder / f"seed-{seed}", seed, size
        self.config = resolve("mini", overrides)
        self.manifest, self.selection = self.folder / "manifest.parquet", self.folder / "selection.json"

    def predictions(self, name: str, split: str = "held_out", mode: str = "as_is") -> Path:
        """Return where the predictions of a network lie."""
        return self.folder / f"{name} {split} {mode}.parquet"

    def make(self, names: Sequence[str]) -> None:
        """Make the dataset, the network without edits, the corrections, and the networks named."""
        os.environ["STABN_RUN_ID"] = f"demo-seeds-{self.seed}"
        wanted = [self.predictions(name, mode=mode) for name in (BEFORE, *names) for mode in MODES]
        if all(path.exists() for path in wanted):
            return
        dataset = make_mini_dataset(self.folder / "dataset", self.size or "demo", self.seed)
        places = (str(dataset.videos_dir), str(dataset.labels_dir), str(self.folder / "storage"))
        extract_frames(*places, self.manifest, self.folder / "rejects.parquet", self.config.extract)
        network = train(str(self.manifest), self.config, str(self.folder / "before")).best_uri
        self._evaluate(BEFORE, network)
        train_split, validation = (self._predict(BEFORE, network, split) for split in ("train", "validation"))
        select_classes(train_split, validation, self.config.select, self.selection)
        for name in names:
            route, source, share = ROUTES[name]
            edits = self._edits(network, source, str(dataset.segments_path))
            config = dataclasses.replace(
                self.config,
                train=dataclasses.replace(self.config.train, gamma=share * self.config.train.gamma),
                finetune=dataclasses.replace(self.config.finetune, gamma=share * self.config.finetune.gamma),
            )
            output = str(self.folder / name)
            if route == "finetune":
                made = finetune(network, str(self.manifest), edits, config, output, slug(name))
            else:
                made = train(str(self.manifest), config, output, edits_path=edits, name=slug(name))
            self._evaluate(name, made.best_uri)

    def _edits(self, network: str, source: str, segments: str) -> str:
        """Export a round, correct it, and return the table of its edits."""
        path = self.folder / f"{source}.parquet"
        if not path.exists():
            storage = str(self.folder / f"corrected-by-{source}")
            item = export_round(network, str(self.manifest), str(self.selection), storage, self.config)
            collect_edits(item.uri, source, segments, 0.0, 0.0)
            import_edits(item.uri, path)
        return str(path)

    def _predict(self, name: str, network: str, split: str, mode: str = "as_is") -> Path:
        path = self.predictions(name, split, mode)
        if not path.exists():
            evaluate(network, str(self.manifest), split, mode, path, self.config, name=slug(name))
        return path

    def _evaluate(self, name: str, network: str) -> None:
        for mode in MODES:
            self._predict(name, network, "held_out", mode)


def work(folder: Path, size: int, overrides: str, names: Sequence[str], seed: int) -> None:
    """Make one seed's networks, in a process of its own."""
    Seed(folder, seed, size, overrides).make(names)


def differences(seed: Seed, one: str, other: str) -> tuple[np.ndarray, np.ndarray]:
    """Return by how much more often one network is right than another, -1 to 1 per video, and which are edited."""
    reference = Predictions.load(seed.predictions(other))
    change = align(reference, Predictions.load(seed.predictions(one))).correct.astype(float) - reference.correct
    return change, np.isin(reference.class_index, load_selection(seed.selection).class_indices)


def nested_bootstrap(values: list[np.ndarray], samples: int = 2000) -> Interval:
    """Estimate the mean of seeds that each have videos of their own: resample seeds, and the videos within each."""
    rng, means = np.random.default_rng(0), np.empty(samples)
    for number in range(samples):
        drawn = (values[index] for index in rng.integers(len(values), size=len(values)))
        means[number] = np.mean([rng.choice(of_seed, len(of_seed)).mean() for of_seed in drawn])
    low, high = np.percentile(means, [2.5, 97.5])
    each = np.array([of_seed.mean() for of_seed in values])
    return Interval(float(each.mean()), float(each.std(ddof=1)) if len(each) > 1 else float("nan"), low, high)


def interval(low: float, high: float) -> str:
    """Return an interval in points."""
    return f"{100 * low:+.1f} to {100 * high:+.1f}"


def seeds_table(seeds: list[Seed]) -> record.Table:
    """Return what the report of `stabn demo` says with each seed: all held-out videos, and the edited actions."""
    rows, shown = [], 0
    for seed in seeds:
        before, after = (Predictions.load(seed.predictions(name)) for name in (BEFORE, EDITS))
        edited = np.flatnonzero(differences(seed, EDITS, BEFORE)[1])
        cells: list[object] = []
        for one, other in ((before, after), (before.take(edited), after.take(edited))):
            change = paired_bootstrap(one, other)
            accuracies = (100 * float(table.correct.mean()) for table in (one, other))
            cells += [len(one), *accuracies, 100 * change.mean, interval(change.low, change.high)]
        shown += paired_bootstrap(before, after).low > 0
        rows.append((seed.seed, *cells))
    group = ("videos", "top-1 without", "with edits", "difference", "95% interval")
    columns = ("seed", *(f"all: {name}" for name in group), *(f"edited actions: {name}" for name in group))
    title = "Top-1, %, held-out videos; intervals by a paired bootstrap over videos"
    note = f"{shown} of {len(seeds)} seeds show the effect over all held-out videos beyond noise."
    return record.Table(title, columns, ("", *(("", ".1f", ".1f", "+.1f", "") * 2)), rows, note)


def routes_table(seeds: list[Seed]) -> record.Table:
    """Return the routes and their controls over the seeds that no choice looked at."""
    fresh = [seed for seed in seeds if seed.seed not in CHOSEN_ON]
    rows = []
    for one, other in PAIRS:
        if not all(seed.predictions(name).exists() for seed in fresh for name in (one, other)):
            continue
        made = [differences(seed, one, other) for seed in fresh]
        for group, kept in (("edited actions", True), ("others", False)):
            values = [change[edited == kept] for change, edited in made]
            found = nested_bootstrap(values)
            rows.append(
                (one, other, group, sum(map(len, values)), 100 * found.mean, 100 * found.deviation,
                 interval(found.low, found.high))
            )  # fmt: skip
    columns = ("network", "over", "held-out", "videos", "difference of top-1", "sd over seeds", "95% interval")
    left_out = ", ".join(map(str, CHOSEN_ON))
    title = f"Points, {len(fresh)} seeds without {left_out}; intervals by resampling seeds and videos"
    return record.Table(title, columns, ("", "", "", "", "+.1f", ".1f", ""), rows)


def inverted_table(seeds: list[Seed]) -> record.Table:
    """Return by how much top-1 over all held-out videos drops when the spatial attention is inverted (eq. 7)."""
    rows = []
    for name in (BEFORE, *ROUTES):
        if not all(seed.predictions(name, mode=mode).exists() for seed in seeds for mode in MODES):
            continue
        tables = [[Predictions.load(seed.predictions(name, mode=mode)) for mode in MODES] for seed in seeds]
        values = [as_is.correct - align(as_is, inverted).correct.astype(float) for as_is, inverted in tables]
        found = nested_bootstrap(values)
        rows.append((name, 100 * found.mean, 100 * found.deviation, interval(found.low, found.high)))
    columns = ("network", "drop of top-1", "sd over seeds", "95% interval")
    return record.Table(
        f"Points, {len(seeds)} seeds, spatial attention inverted", columns, ("", ".1f", ".1f", ""), rows
    )


def main() -> None:
    """Run the command line."""
    flags = record.parser(__doc__)
    flags.add_argument("--dir", type=Path, default=Path("build/demo-seeds"), metavar="D", help="default: %(default)s")
    flags.add_argument("--seeds", type=int, default=10, metavar="N", help="datasets; default: %(default)s")
    flags.add_argument("--size", type=int, default=0, metavar="N", help="videos of each dataset; 0: the demo's number")
    flags.add_argument("--workers", type=int, default=1, metavar="N", help="seeds at a time; default: %(default)s")
    flags.add_argument("--overrides", default="", help="settings that differ, section.name=value")
    flags.add_argument("--edits-only", action="store_true", help="without the controls and the paper's route")
    args = flags.parse_args()
    folder, names = args.dir.absolute(), (EDITS,) if args.edits_only else tuple(ROUTES)
    for_each(list(range(args.seeds)), partial(work, folder, args.size, args.overrides, names), args.workers)
    seeds = [Seed(folder, number, args.size, args.overrides) for number in range(args.seeds)]
    record.report([make(seeds) for make in (seeds_table, routes_table, inverted_table)], args.output)


if __name__ == "__main__":
    main()
