"""Planning, manifest and sampling for 220,847 videos, without the videos: time and memory.

    python benchmarks/scale.py

Writes label files and an (empty) file per video as Something-Something v2 has them, invents frame counts of its
distribution, runs each step in a process of its own, and prints a Markdown table.
"""

import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import record

from stabn.config import ExtractConfig
from stabn.data.frames import Part, _Plan
from stabn.data.manifest import Manifest, build_manifest
from stabn.data.records import SCHEMA as RECORD_SCHEMA
from stabn.data.records import Records
from stabn.data.sampler import EpochSampler
from stabn.data.sampling import training_sample
from stabn.data.sources import open_source
from stabn.data.ssv2 import LABELS_FILE, SPLIT_FILES
from stabn.storage import open_storage

SPLITS = {"train": 168_913, "validation": 24_777, "test": 27_157}
CLASSES = 174
FRAME_BYTES = 14_000


def lengths(count: int) -> np.ndarray:
    """Return frame counts of 45.1 on average, 8 to 170."""
    rng = np.random.default_rng(0)
    drawn = np.clip(rng.gamma(8.0, 5.64, count).round(), 8, 170).astype(np.int32)
    return drawn


def prepare(folder: Path, count: int) -> None:
    """Write label files and empty videos."""
    (folder / "labels").mkdir()
    (folder / "videos").mkdir()
    names = {f"Doing thing {number} with something": str(number) for number in range(CLASSES)}
    (folder / "labels" / LABELS_FILE).write_text(json.dumps(names))
    first = 1
    for split, size in SPLITS.items():
        size = size * count // sum(SPLITS.values())
        rows = [
            {
                "id": str(number),
                "label": f"doing thing {number % CLASSES} with a cup",
                "template": f"Doing thing {number % CLASSES} with [something]",
                "placeholders": ["a cup"],
            }
            for number in range(first, first + size)
        ]
        for number in range(first, first + size):
            (folder / "videos" / f"{number}.webm").touch()
        first += size
        text = json.dumps([{"id": row["id"]} for row in rows] if split == "test" else rows)
        (folder / "labels" / SPLIT_FILES[split]).write_text(text)


def plan(folder: Path) -> str:
    """Read the label files, list the videos, and take a part."""
    made = _Plan(str(folder / "videos"), str(folder / "labels"), str(folder / "store"), ExtractConfig())
    found = sum(1 for _ in open_source(made.videos_uri).videos(lambda video_id, stamp, size: False))
    share = len(Part(1, 8).of(made.labels.videos))
    return f"{len(made.labels.videos):,} labelled, {found:,} listed, {share:,} in part 1/8"


def write(folder: Path) -> str:
    """Build the manifest from the parts' rows and write it."""
    made = _Plan(str(folder / "videos"), str(folder / "labels"), str(folder / "store"), ExtractConfig())
    videos = made.labels.videos
    counts = lengths(len(videos))
    sizes = np.random.default_rng(1).integers(FRAME_BYTES // 2, FRAME_BYTES * 2, counts.sum(), dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    columns: dict[str, Any] = {name: [getattr(video, name) for video in videos] for name in videos[0]._fields}
    columns |= {
        "object_key": [f"{video.video_id}.mjpeg" for video in videos],
        "frame_sizes": pa.ListArray.from_arrays(offsets, sizes),
        "num_frames": counts,
        "width": np.full(len(videos), 427, np.int32),
        "height": np.full(len(videos), 240, np.int32),
        "source_sha256": [f"{number:064x}" for number in range(len(videos))],
    }
    started = time.perf_counter()
    manifest = build_manifest(pa.table(columns), made.labels.classes, str(folder / "store"), {})
    manifest.save(folder / "manifest.parquet")
    seconds = time.perf_counter() - started
    size = (folder / "manifest.parquet").stat().st_size / 1e6
    return f"building and writing alone {seconds:.1f} s; {size:.0f} MB, {counts.mean():.1f} frames a video"


def remember(folder: Path) -> str:
    """Write the records of a finished extraction and read them, as a repeated run does first."""
    manifest = Manifest.load(folder / "manifest.parquet")
    table = manifest.table
    extra = {
        "stamp": pa.array(["0"] * len(table)),
        "limits": pa.array(["0"] * len(table)),
        "reason": pa.nulls(len(table), pa.string()),
        "fps": pa.array(np.full(len(table), 12.0)),
        "source_width": table["width"],
        "source_height": table["height"],
    }
    for name, column in extra.items():
        table = table.append_column(name, column)
    table = table.select(RECORD_SCHEMA.names).cast(RECORD_SCHEMA)
    store = open_storage(folder / "store")
    (folder / "part").mkdir()
    for number, start in enumerate(range(0, len(table), 1000)):
        pq.write_table(table.slice(start, 1000), folder / "part" / "p")
        store.upload(folder / "part" / "p", f"records/{number:06}.parquet")
    started = time.perf_counter()
    records = Records(store)
    assert records.get(manifest.video_id(5)) is not None
    return f"reading {number + 1} record objects alone {time.perf_counter() - started:.2f} s"


def load(folder: Path) -> str:
    """Open the manifest, its fingerprint checked."""
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        Manifest.load(folder / "manifest.parquet")
        seconds.append(time.perf_counter() - started)
    return f"median of 5: {sorted(seconds)[2]:.2f} s"


def sample(folder: Path) -> str:
    """Draw the frames of every video of an epoch, as a worker that sees them all would; how much it grows."""
    manifest = Manifest.load(folder / "manifest.parquet")
    rows = manifest.indices("train")
    process = psutil.Process()
    manifest.video(0)
    before, started = process.memory_full_info().uss, time.perf_counter()
    for share in EpochSampler(rows, 64, seed=0, epoch=0):
        for row in share:
            video = manifest.video(row)
            training_sample(video.num_frames, 32, 1, np.random.default_rng([0, 0, row]))
    seconds = time.perf_counter() - started
    grown = (process.memory_full_info().uss - before) / 1e6
    return f"{seconds / len(rows) * 1e6:.0f} µs a video; memory grew by {grown:.1f} MB over {len(rows):,} videos"


STEPS: dict[str, Callable[[Path], str]] = {
    "plan: labels, listing, parts": plan,
    "write the manifest": write,
    "open the manifest": load,
    "records of a finished extraction": remember,
    "sample an epoch": sample,
}


def measured(name: str, folder: Path, results: Any) -> None:
    """Run one step and tell how long it took and how much memory it had at most."""
    started = time.perf_counter()
    said = STEPS[name](folder)
    results.put((time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, said))


def main() -> None:
    """Measure and print the table."""
    parser = record.parser(__doc__)
    parser.add_argument("--videos", type=int, default=sum(SPLITS.values()), help="videos (default: 220847)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stabn-scale-") as name:
        folder = Path(name)
        print("writing label files and empty videos", file=sys.stderr, flush=True)
        prepare(folder, args.videos)
        rows = []
        context = multiprocessing.get_context("spawn")
        for step in STEPS:
            results = context.Queue()
            process = context.Process(target=measured, args=(step, folder, results))
            process.start()
            seconds, memory, said = results.get()
            process.join()
            print(f"{step}: {seconds:.1f} s", file=sys.stderr, flush=True)
            rows.append((step, seconds, memory, said))
    table = record.Table(f"{args.videos:,} videos", ("step", "s", "peak memory, MB", ""), ("", ".1f", ".0f", ""), rows)
    record.report([table], args.output)


if __name__ == "__main__":
    main()
