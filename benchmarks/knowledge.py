"""Whether people's corrections improve the recognition: rows, controls, intervals, on videos that no choice looks at.

    python benchmarks/knowledge.py --gate      # does the dataset ask the question at all?
    python benchmarks/knowledge.py             # every row, five seeds; goes on where it was stopped
    python benchmarks/knowledge.py --anew      # the rows whose recognition is learnt anew, and those they start from

Renders the variant `knowledge` of the mini dataset (or the demo's) and trains, with each seed, the 3D ResNet, ST-ABN,
ST-ABN fine-tuned with the corrections of all training videos of the hard actions (the paper's route), and ST-ABN
trained anew with them from the first step on; each with controls that differ in the curves alone: none (gamma 0), the
same curves shifted by a random time, another video's, the network's own. And ST-ABN whose recognition, all that follows
the attention, is learnt anew by fine-tuning after the attention is right. The corrections are known segments. Every
network is that of the last epoch, and every number is of the split held_out. The gate replaces Mt by the true segments
in training and evaluation: what a perfect attention would bring.
"""

import argparse
import dataclasses
import multiprocessing
import os
import re
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import record

from stabn.attention.automatic import segment_curve
from stabn.attention.control_curves import correction_curves
from stabn.config import fingerprint
from stabn.data.edit_table import save_edit_table
from stabn.data.frames import extract_frames
from stabn.data.manifest import Manifest
from stabn.data.mini import VARIANTS, make_mini_dataset
from stabn.data.mini_motion import EASY
from stabn.data.segments import load_segments
from stabn.data.ssv2 import template_to_class
from stabn.evaluation.crossed import Interval, crossed_bootstrap
from stabn.evaluation.prediction_table import Predictions
from stabn.machine import num_cores
from stabn.presets import resolve

PRESETS = {"knowledge": "knowledge", "demo": "mini"}  # of each variant of the mini dataset
BEFORE, EDITED = "ST-ABN", "edits"
CURVES = {
    "edits": "segments",
    "gamma 0": "segments",
    "random curves": "segments_shifted",
    "another video's": "segments_other",
    "its own attention": "network",
}
MODES = ("as_is", "temporal_mean", "temporal_reversed", "temporal_other", "spatial_inverted")


@dataclasses.dataclass(frozen=True)
class Row:
    """One network of each seed: what it is called, and how it is made.

    Attributes:
        route: train: without edits; finetune, retrain: with them; anew: fine-tuned with them, but what follows the
            attention begins with random weights; gate: with the true segments in place of Mt.
        start: the row whose network is fine-tuned.
        curves: which edits, one of `CURVES`; all: the true segments of all videos.
        share: of the edits that are used, 0 to 1, drawn at random.
        noise: standard deviation of each border's error, in frames.
        wrong: share of the curves that are shifted by a random time, 0 to 1.
        misclassified: which of the videos are edited: only those that the network before gets wrong, or None: any;
            False: as many at random.
    """

    name: str
    route: str = "train"
    curves: str = ""
    start: str = BEFORE
    share: float = 1.0
    noise: float = 0.0
    wrong: float = 0.0
    misclassified: bool | None = None


RETRAINED = (EDITED, "random curves", "another video's")  # without edits it is ST-ABN itself
ROWS = (
    Row("3D ResNet"),
    Row(BEFORE),
    *(Row(f"fine-tuned, {curves}", "finetune", curves) for curves in CURVES),
    *(Row(f"trained with them, {curves}", "retrain", curves) for curves in RETRAINED),
)
# Route 3: knowledge that is learnt late is used if what follows the attention is learnt after it.
ANEW, ANEW_CONTROL = "trained with them, then recognition anew", "recognition anew, gamma 0"
ANEW_ROWS = (
    *(row for row in ROWS if row.name in (BEFORE, f"trained with them, {EDITED}")),
    Row("recognition anew, edits", "anew", EDITED),
    Row(ANEW_CONTROL, "anew", "gamma 0"),
    Row(ANEW, "anew", EDITED, start=f"trained with them, {EDITED}"),
)
PAIRS = (
    *(
        (f"{route}, {EDITED}", other)
        for route, controls in (("fine-tuned", list(CURVES)[1:]), ("trained with them", RETRAINED[1:]))
        for other in (BEFORE, *(f"{route}, {curves}" for curves in controls))
    ),
    *((f"recognition anew, {EDITED}", other) for other in (BEFORE, ANEW_CONTROL)),
    *((ANEW, other) for other in (BEFORE, f"trained with them, {EDITED}", ANEW_CONTROL)),
)
ANEW_SETTINGS = {"reinitialize": "recognition", "epochs": 30, "validate_every": 30, "unedited_share": 1.0}
GATE = (Row(BEFORE), Row("true attention", "gate", "all"))


class Bench:
    """The dataset, and where each network and its predictions lie."""

    def __init__(self, folder: Path, size: int, overrides: str, variant: str) -> None:
        self.folder, self.size, self.overrides, self.variant = folder, size, overrides, variant
        self.config = resolve(PRESETS[variant], overrides)
        self.dataset, self.manifest_path = folder / "dataset", folder / "manifest.parquet"
        self.segments_path = self.dataset / "segments.json"

    def prepare(self) -> None:
        """Render the videos and extract their frames, unless they are there."""
        made = make_mini_dataset(self.dataset, self.size or "demo", variant=self.variant)
        places = (str(made.videos_dir), str(made.labels_dir), str(self.folder / "storage"))
        extract_frames(*places, self.manifest_path, self.folder / "rejects.parquet", self.config.extract)

    @property
    def helped(self) -> list[int]:
        """Classes whose videos are corrected."""
        names = {template_to_class(a.template) for a in VARIANTS[self.variant].actions if a.around is not EASY}
        classes = Manifest.load(self.manifest_path).classes
        return [index for index, name in enumerate(classes) if name in names]

    def predictions(self, row: Row, seed: int, mode: str = "as_is") -> Path:
        """Return where the predictions of a row's network lie."""
        return self.folder / f"seed-{seed}" / f"{row.name} {mode}.parquet"

    def edits(self, row: Row, seed: int, checkpoint: str) -> str:
        """Write the edit table of a row, unless it is there: the curves by video id."""
        path = self.folder / f"seed-{seed}" / f"{row.name}.edits.parquet"
        if not path.exists():
            made = self._curves(row, seed, checkpoint)
            table = [
                {"video_id": name, "edited_attention": curve, "editor": "segments", "revision": 1, "status": "edited"}
                for name, curve in made.items()
            ]
            content = fingerprint({name: np.round(curve, 4).tolist() for name, curve in made.items()})
            path.parent.mkdir(parents=True, exist_ok=True)
            save_edit_table(path, table, {"fingerprint": content, "round_id": self.variant})
        return str(path)

    def _curves(self, row: Row, seed: int, checkpoint: str) -> dict[str, np.ndarray]:
        """Return the curves of a row by video id, as they are made from the segments."""
        manifest, helped, rng = Manifest.load(self.manifest_path), set(self.helped), np.random.default_rng(seed)
        rows = manifest.indices("train")
        if row.curves != "all":
            rows = [number for number in rows if manifest.video(number).class_index in helped]
        if row.misclassified is not None:
            wrong = self._misclassified(seed, checkpoint)
            ids = {number: manifest.video(number).video_id for number in rows}
            chosen = [number for number in rows if ids[number] in wrong]
            rows = chosen if row.misclassified else sorted(rng.choice(rows, len(chosen), replace=False))
        if row.share < 1:
            rows = sorted(rng.choice(rows, max(1, round(row.share * len(rows))), replace=False))
        segments, true = load_segments(str(self.segments_path)), {}
        for number in map(int, rows):
            video = manifest.video(number)
            first, last = segments[video.video_id]
            if row.noise:
                errors = np.rint(rng.normal(0, row.noise, 2)).astype(int)
                first = int(np.clip(first + errors[0], 0, video.num_frames - 1))
                last = int(np.clip(last + errors[1], first + 1, video.num_frames))
            true[video.video_id] = segment_curve(video.num_frames, first, last)
        if row.wrong:
            for name in rng.choice(list(true), round(row.wrong * len(true)), replace=False):
                true[name] = np.roll(true[name], rng.integers(len(true[name])))
        own = own_attention(checkpoint, manifest) if row.curves == "its own attention" else true.__getitem__
        made = correction_curves(CURVES.get(row.curves, "segments"), true, own, rng)
        return {name: curve.astype(np.float32) for name, curve in made.items()}

    def _misclassified(self, seed: int, checkpoint: str) -> set[str]:
        """Return the ids of the training videos that the network before gets wrong."""
        from stabn.evaluation.predict import evaluate

        path = self.folder / f"seed-{seed}" / f"{BEFORE} train.parquet"
        if not path.exists():
            evaluate(checkpoint, str(self.manifest_path), "train", "as_is", path, self.config, name=slug(BEFORE))
        table = Predictions.load(path)
        return {name for name, right in zip(table.video_ids, table.correct, strict=True) if not right}


def slug(name: str) -> str:
    """Return a row's name as MLflow takes it."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name)


def own_attention(checkpoint: str, manifest: Manifest) -> Callable[[str], np.ndarray]:
    """Return what gives a network's temporal attention per source frame of a video."""
    from stabn.attention.export import attend
    from stabn.data.dataset import FrameReader
    from stabn.training.checkpoint import load_model
    from stabn.training.device import choose_device, prepare

    model, description = load_model(checkpoint)
    model, reader = prepare(model, choose_device("auto")), FrameReader(manifest)
    rows = {manifest.video(row).video_id: row for row in manifest.indices("train")}
    return lambda name: attend(model, reader.packed(rows[name]), description.data_config).temporal


def run_seed(bench: Bench, rows: tuple[Row, ...], seed: int, threads: int) -> None:
    """Make the networks of one seed and their predictions, those that are not there yet."""
    import torch

    from stabn.evaluation.predict import evaluate
    from stabn.training.stage import finetune, train

    torch.set_num_threads(threads)
    os.environ["STABN_RUN_ID"] = f"{bench.variant}-{fingerprint(bench.overrides, bench.size)}-{seed}"
    os.environ["STABN_PIPELINE"] = "knowledge"
    manifest, folder = str(bench.manifest_path), bench.folder / f"seed-{seed}"
    settings, late = (dataclasses.replace(part, seed=seed) for part in (bench.config.train, bench.config.finetune))
    config = dataclasses.replace(bench.config, train=settings, finetune=late)
    before = str(folder / BEFORE / "best.pt")
    for row in rows:
        output = str(folder / row.name)
        own, path = config, bench.edits(row, seed, before) if row.curves else ""
        if row.route == "anew":
            rate = settings.learning_rate
            own = dataclasses.replace(config, finetune=dataclasses.replace(late, learning_rate=rate, **ANEW_SETTINGS))
        if row.curves == "gamma 0":
            own = dataclasses.replace(own, finetune=dataclasses.replace(own.finetune, gamma=0.0))
        if row.name == "3D ResNet":
            own = dataclasses.replace(config, model=dataclasses.replace(config.model, name="baseline"))
        if row.route == "gate":
            own = dataclasses.replace(config, train=dataclasses.replace(settings, gamma=0.0, teacher_forcing=1.0))
        modes = MODES[:1] if row.name == "3D ResNet" else ("temporal_segments",) if row.route == "gate" else MODES
        if all(bench.predictions(row, seed, mode).exists() for mode in modes):
            continue
        if row.route in ("finetune", "anew"):
            start = str(folder / row.start / "best.pt")
            result = finetune(start, manifest, path, own, output, name=slug(row.name))
        else:
            result = train(manifest, own, output, edits_path=path, name=slug(row.name))
        for mode in modes:
            where = str(bench.segments_path) if mode == "temporal_segments" else ""
            target = bench.predictions(row, seed, mode)
            evaluate(result.best_uri, manifest, "held_out", mode, target, own, name=slug(row.name), segments_uri=where)


def for_each(seeds: list[int], make: Callable[[int], None], workers: int) -> None:
    """Run the seeds, some at a time, each in a process of its own, which may start others."""
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for number, job in enumerate([pool.submit(make, seed) for seed in seeds], start=1):
            job.result()
            print(f"{number} of {len(seeds)} seeds are done", file=sys.stderr, flush=True)


class Results:
    """Who was right, by row, mode, seed and video."""

    def __init__(self, bench: Bench, seeds: list[int]) -> None:
        self._bench, self._seeds = bench, seeds
        example = Predictions.load(bench.predictions(Row(BEFORE), seeds[0]))
        edited = np.isin(example.class_index, bench.helped)
        self.groups = {"edited actions": edited, "others": ~edited, "all": np.ones_like(edited)}

    def right(self, name: str, mode: str = "as_is", k: int = 1) -> np.ndarray:
        """Return (num_seeds, num_videos) float: 1 where the true class is among the k best."""
        tables = [Predictions.load(self._bench.predictions(Row(name), seed, mode)) for seed in self._seeds]
        return np.array([(t.top5[:, :k] == t.class_index[:, None]).any(1) for t in tables], dtype=float)

    def difference(
        self, one: str, other: str, videos: np.ndarray, modes: tuple[str, str] = ("as_is", "as_is")
    ) -> Interval:
        """Return how many more videos are right with one row's network than with another's."""
        return crossed_bootstrap(self.right(one, modes[0]) - self.right(other, modes[1]), videos)


def cells(interval: Interval) -> tuple[float, float, str]:
    """Return mean, standard deviation over seeds and interval in points."""
    return 100 * interval.mean, 100 * interval.deviation, f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f}"


def gate_table(bench: Bench, seeds: list[int]) -> record.Table:
    """Return what a perfect attention would bring."""
    results, rows = Results(bench, seeds), []
    forced, modes = GATE[1].name, ("temporal_segments", "as_is")
    for name, videos in results.groups.items():
        plain = 100 * results.right(BEFORE)[:, videos].mean()
        oracle = 100 * results.right(forced, modes[0])[:, videos].mean()
        rows.append((name, int(videos.sum()), plain, oracle, *cells(results.difference(forced, BEFORE, videos, modes))))
    passed = "open" if rows[0][4] >= 10 else "closed"
    columns = (
        "held-out videos",
        "number",
        "plain",
        "true segments as Mt",
        "difference",
        "sd over seeds",
        "95% interval",
    )
    note = f"The gate is {passed}: true attention must bring at least 10 points on the edited actions."
    return record.Table(f"Top-1, %, {len(seeds)} seeds", columns, ("", "", ".1f", ".1f", "+.1f", ".1f", ""), rows, note)


def accuracy_table(bench: Bench, seeds: list[int], rows_made: tuple[Row, ...]) -> record.Table:
    """Return Tables 1 and 2 over seeds: top-1 of the edited actions, the others and all, and top-5."""
    results, rows = Results(bench, seeds), []
    for row in rows_made:
        right = results.right(row.name)
        values = [100 * right[:, videos].mean() for videos in results.groups.values()]
        deviation = 100 * crossed_bootstrap(right, results.groups["edited actions"]).deviation
        rows.append((row.name, *values, deviation, 100 * results.right(row.name, k=5).mean()))
    counts = ", ".join(f"{int(videos.sum())} of {name}" for name, videos in results.groups.items())
    columns = ("network", *(f"top-1, {name}" for name in results.groups), "sd over seeds, edited actions", "top-5, all")
    return record.Table(f"%, {len(seeds)} seeds, held-out videos: {counts}", columns, ("", *[".1f"] * 5), rows)


def difference_table(bench: Bench, seeds: list[int], rows_made: tuple[Row, ...]) -> record.Table:
    """Return what each route brings over the network before and over its controls."""
    results, rows = Results(bench, seeds), []
    names = [row.name for row in rows_made]
    for one, other in ((one, other) for one, other in PAIRS if one in names and other in names):
        for group, videos in list(results.groups.items())[:2]:
            rows.append((one, other, group, *cells(results.difference(one, other, videos))))
    columns = ("network", "over", "held-out videos", "difference of top-1", "sd over seeds", "95% interval")
    title = "Points; intervals by a crossed bootstrap over seeds and videos"
    return record.Table(title, columns, ("", "", "", "+.1f", ".1f", ""), rows)


def attention_table(bench: Bench, seeds: list[int], rows_made: tuple[Row, ...]) -> record.Table:
    """Return Table 3 with controls: how much top-1 of the edited actions drops under other attention."""
    results, rows = Results(bench, seeds), []
    edited = results.groups["edited actions"]
    for row in (row for row in rows_made if row.name != "3D ResNet"):
        drops = [results.difference(row.name, row.name, edited, ("as_is", mode)) for mode in MODES[1:]]
        rows.append((row.name, 100 * results.right(row.name)[:, edited].mean(), *(100 * drop.mean for drop in drops)))
    columns = ("network", "as is", *(mode.replace("_", " ") for mode in MODES[1:]))
    title = "Top-1 of the edited actions, %, and how many points it drops under other attention"
    return record.Table(title, columns, ("", *[".1f"] * 5), rows)


def parser(description: str) -> argparse.ArgumentParser:
    """Return the flags that say where, how large and how often."""
    parser = record.parser(description)
    parser.add_argument("--dir", type=Path, metavar="D", help="default: build/ and the variant's name")
    parser.add_argument("--variant", default="knowledge", choices=list(PRESETS), help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="trainings of each row; default: %(default)s")
    parser.add_argument("--size", type=int, default=0, metavar="N", help="videos of the dataset; 0: the usual number")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="seeds at a time; default: %(default)s")
    parser.add_argument("--overrides", default="", help="settings that differ, section.name=value")
    return parser


def run(args: argparse.Namespace, rows: tuple[Row, ...]) -> tuple[Bench, list[int]]:
    """Make what is not there yet of some rows; return where it lies, and the seeds."""
    folder = args.dir or Path("build") / args.variant
    bench = Bench(folder.absolute(), args.size, args.overrides, args.variant)
    bench.prepare()
    seeds = list(range(args.seeds))
    threads = max(1, num_cores() // args.workers)
    for_each(seeds, partial(run_seed, bench, rows, threads=threads), args.workers)
    return bench, seeds


def main() -> None:
    """Run the command line."""
    flags = parser(__doc__)
    flags.add_argument("--gate", action="store_true", help="only whether true attention would help")
    flags.add_argument("--anew", action="store_true", help="networks whose recognition is learnt anew")
    args = flags.parse_args()
    rows = GATE if args.gate else ANEW_ROWS if args.anew else ROWS
    bench, seeds = run(args, rows)
    if args.gate:
        tables = [gate_table(bench, seeds)]
    else:
        tables = [make(bench, seeds, rows) for make in (accuracy_table, difference_table, attention_table)]
    record.report(tables, args.output)


if __name__ == "__main__":
    main()
