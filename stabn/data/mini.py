"""Render a small stand-in for Something-Something v2: real WebM files in its layout, actions made of motion alone.

`mini_motion` says what moves, `mini_drawing` how it looks; this module decides which videos there are, and writes them.
"""

import itertools
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from stabn.config import fingerprint
from stabn.data.mini_drawing import PHOTOGRAPHS, draw
from stabn.data.mini_motion import ACTIONS, DEMO_ACTIONS, EASY, Action, MiniError, plan_video
from stabn.data.ssv2 import LABELS_FILE, SPLIT_FILES, template_to_class
from stabn.data.video_encoding import encode
from stabn.machine import num_cores
from stabn.signals import deaf_children, leave_signals_to_parent
from stabn.stages import SPLITS

FPS = 12
RENDERER_VERSION = 1  # raise it when drawing changes; changes of the tables are noticed by themselves


@dataclass(frozen=True)
class Variant:
    """A kind of mini dataset.

    Attributes:
        actions: its classes.
        videos: of each split, at its usual size; other sizes have the same shares.
        held_out_weight: how much more often the actions that knowledge helps are held out than they are trained on.
        widths: of the videos, in pixels. A random crop of a wide one misses much of the action.
    """

    actions: tuple[Action, ...]
    videos: dict[str, int]
    held_out_weight: float = 1.0
    widths: tuple[int, ...] = (427, 427, 320)

    @property
    def size(self) -> int:
        """The usual number of videos."""
        return sum(self.videos.values())


VARIANTS = {
    # Few training videos: that is where people's knowledge pays.
    "demo": Variant(DEMO_ACTIONS, {"train": 240, "validation": 80, "test": 10, "held_out": 190}, 2.5, (240, 256, 280)),
    # Harder to help, and many videos held out, since differences are small.
    "knowledge": Variant(ACTIONS, {"train": 300, "validation": 140, "test": 20, "held_out": 1020}, 4.0),
}
DEMO_VIDEOS = VARIANTS["demo"].size


@dataclass(frozen=True)
class MiniDataset:
    """Where a finished mini dataset lies."""

    folder: Path
    videos_dir: Path
    labels_dir: Path
    segments_path: Path
    num_videos: int


@dataclass(frozen=True)
class Entry:
    """One video of the dataset; `index` seeds its randomness."""

    index: int
    video_id: str
    split: str
    action: Action


Job = tuple[Entry, int, tuple[int, ...], str]  # what to render, the seed, the widths, and where to


def make_mini_dataset(
    folder: str | os.PathLike[str],
    size: int | str = "demo",
    seed: int = 0,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
    variant: str = "demo",
) -> MiniDataset:
    """Render the dataset into a folder; videos that are there already are kept.

    Args:
        folder: gets `videos/<id>.webm`, `labels/*.json`, `segments.json` (id to [first, last) of the action).
        size: number of videos of all splits, or "demo" for the variant's usual number.
        seed: the same seed and size give the same content, whatever the number of workers.
        workers: processes that render; 0: one per core.
        progress: called with (videos done, videos in all).
        variant: demo; or knowledge, on which knowing the segments of the actions helps to tell them.

    Raises:
        MiniError: too small a size, or the folder holds something else.
    """
    if variant not in VARIANTS:
        raise MiniError(f"mini dataset of variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    kind = VARIANTS[variant]
    num_videos = kind.size if size == "demo" else size
    if not isinstance(num_videos, int) or num_videos < smallest(kind):
        raise MiniError(f"mini dataset of size {size!r}: give 'demo' or a number of at least {smallest(kind)}")
    root = Path(folder)
    dataset = MiniDataset(root, root / "videos", root / "labels", root / "segments.json", num_videos)
    _claim(dataset, seed, kind)
    entries = entries_of(num_videos, seed, kind)
    _write_labels(dataset, entries, seed, kind)
    missing = [entry for entry in entries if not (dataset.videos_dir / f"{entry.video_id}.webm").exists()]
    done = num_videos - len(missing)
    if progress is not None:
        progress(done, num_videos)
    jobs = [(entry, seed, kind.widths, str(dataset.videos_dir)) for entry in missing]
    for _ in _run(jobs, workers or num_cores()):
        done += 1
        if progress is not None:
            progress(done, num_videos)
    return dataset


def _run(jobs: list[Job], workers: int) -> Iterator[None]:
    """Yield once per rendered video."""
    if workers == 1 or len(jobs) < 2:
        yield from map(_render_job, jobs)
        return
    try:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=leave_signals_to_parent) as pool:
            try:
                with deaf_children():
                    done = pool.map(_render_job, jobs, chunksize=2)
                yield from done
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except BrokenProcessPool:
        raise MiniError(
            "a process that renders videos died, perhaps out of memory; run again with fewer workers, "
            "videos that are there are kept"
        ) from None


def _render_job(job: Job) -> None:
    entry, seed, widths, videos_dir = job
    cv2.setNumThreads(1)
    rng = np.random.default_rng((seed, entry.index))
    plan = plan_video(entry.action, rng)
    encode(Path(videos_dir) / f"{entry.video_id}.webm", draw(plan, _photos(entry, seed), widths, rng), FPS, crf=36)


def _claim(dataset: MiniDataset, seed: int, kind: Variant) -> None:
    """Mark the folder as this dataset's, or refuse it."""
    wanted = {"seed": seed, "num_videos": dataset.num_videos, "version": _version(kind)}
    marker = dataset.folder / "mini.json"
    if marker.exists():
        found = json.loads(marker.read_text())
        if found != wanted:
            raise MiniError(
                f"{marker}: the folder holds another mini dataset, {found}, not {wanted}; "
                "delete it or choose another folder"
            )
    elif dataset.folder.exists() and any(dataset.folder.iterdir()):
        raise MiniError(f"{dataset.folder}: the folder is not empty and not a mini dataset; choose another one")
    dataset.videos_dir.mkdir(parents=True, exist_ok=True)
    dataset.labels_dir.mkdir(parents=True, exist_ok=True)
    _write_json(marker, wanted)


def _version(kind: Variant) -> str:
    """Name everything besides seed and size that the content depends on."""
    return f"{RENDERER_VERSION}-{fingerprint(asdict(kind), PHOTOGRAPHS)}"


def _write_json(path: Path, content: Any) -> None:
    """Write a file whole; one that has this content keeps its time, by which stages tell whether it changed."""
    text = json.dumps(content, indent=1)
    if path.exists() and path.read_text() == text:
        return
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text)
    os.replace(part, path)


def _sizes(num_videos: int, kind: Variant) -> dict[str, int]:
    """Return the number of videos of each split."""
    shares = {split: videos / kind.size for split, videos in kind.videos.items()}
    sizes = {
        "validation": max(len(kind.actions), round(num_videos * shares["validation"])),
        "test": max(1, round(num_videos * shares["test"])),
        "held_out": round(num_videos * shares["held_out"]),
    }
    return {**sizes, "train": num_videos - sum(sizes.values())}


def smallest(kind: Variant) -> int:
    """Return the smallest number of videos with each action in training and in validation."""
    return next(number for number in itertools.count(1) if _sizes(number, kind)["train"] >= len(kind.actions))


def entries_of(num_videos: int, seed: int, kind: Variant = VARIANTS["demo"]) -> list[Entry]:
    """Divide the videos into splits and classes; every class is in each labelled split."""
    rng = np.random.default_rng((seed, num_videos, 0))
    sizes = _sizes(num_videos, kind)
    if sizes["train"] < len(kind.actions):
        raise MiniError(f"{num_videos} videos leave none of some actions to train on; make more")
    names = rng.choice(np.arange(1, max(220_848, 2 * num_videos)), num_videos, replace=False)
    entries: list[Entry] = []
    for split in SPLITS:
        weights = [
            action.weight * (kind.held_out_weight if split == "held_out" and action.around is not EASY else 1)
            for action in kind.actions
        ]
        counts = _counts(sizes[split], weights, at_least=1 if split in ("train", "validation") else 0)
        for action in rng.permutation(np.repeat(np.arange(len(kind.actions)), counts)):
            index = len(entries)
            entries.append(Entry(index, str(names[index]), split, kind.actions[action]))
    return entries


def _counts(total: int, weights: Sequence[float], at_least: int) -> np.ndarray:
    """Share out videos by weights: largest remainders, but at least so many each."""
    shares = np.array(weights) / np.sum(weights)
    exact = at_least + shares * (total - at_least * len(shares))
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    return counts


def _write_labels(dataset: MiniDataset, entries: list[Entry], seed: int, kind: Variant) -> None:
    """Write the label files of Something-Something v2 and the segments beside them."""
    classes = sorted(template_to_class(action.template) for action in kind.actions)
    _write_json(dataset.labels_dir / LABELS_FILE, {name: str(i) for i, name in enumerate(classes)})
    for split in SPLITS:
        rows = [_row(entry, seed) for entry in entries if entry.split == split]
        if split == "held_out" and not rows:
            continue  # the dataset's own layout has no such file
        _write_json(dataset.labels_dir / SPLIT_FILES[split], rows)
    plans = [plan_video(entry.action, np.random.default_rng((seed, entry.index))) for entry in entries]
    segments = {entry.video_id: [plan.first, plan.last] for entry, plan in zip(entries, plans, strict=True)}
    _write_json(dataset.segments_path, segments)


def _row(entry: Entry, seed: int) -> dict[str, Any]:
    if entry.split == "test":
        return {"id": entry.video_id}
    template = entry.action.template
    placeholders = [PHOTOGRAPHS[name] for name in _photos(entry, seed)[1:]][: template.lower().count("[something]")]
    label = template[0].lower() + template[1:]
    for name in placeholders:
        start = label.lower().index("[something]")
        label = label[:start] + name + label[start + len("[something]") :]
    label = label[0].lower() + label[1:]
    return {"id": entry.video_id, "label": label, "template": template, "placeholders": placeholders}


def _photos(entry: Entry, seed: int) -> list[str]:
    """Choose the photographs of background, object and other object: three different ones, independent of the class."""
    rng = np.random.default_rng((seed, entry.index, 1))
    return [str(name) for name in rng.choice(sorted(PHOTOGRAPHS), 3, replace=False)]
