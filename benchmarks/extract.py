"""Extraction against the decode-only floor and against one ffmpeg process per video, on the same files in one run.

    python benchmarks/extract.py

Renders a mini dataset, copies it until there are enough videos, runs every method several times in turn, and prints
medians as a Markdown table. Processor time counts all processes; wall time is with two of them.
"""

import concurrent.futures
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import imageio_ffmpeg
import record
from videos import ssv2_like

from stabn.config import ExtractConfig
from stabn.data.extraction import extract_videos, pack_frames
from stabn.data.sources import open_source
from stabn.local_services import local_object_store
from stabn.machine import num_cores
from stabn.storage import open_storage

CONFIG = ExtractConfig(short_side=240)


def cpu_seconds() -> float:
    """Return the processor time of this process and of all that have ended below it."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(item.ru_utime + item.ru_stime for item in usage)


def decode_only(folder: Path, videos: list[Path], workers: int) -> int:
    """Decode with PyAV and throw the frames away: nothing that reads the videos can take less."""
    frames = 0
    for path in videos:
        with av.open(str(path)) as container:
            container.streams.video[0].thread_type = "NONE"
            frames += sum(1 for _ in container.decode(video=0))
    return frames


def in_process(folder: Path, videos: list[Path], workers: int) -> int:
    """Decode and encode without pool and storage."""
    return sum(pack_frames(path.read_bytes(), CONFIG, path.stem)[1]["num_frames"] for path in videos)


def ours(folder: Path, videos: list[Path], workers: int, target: str = "") -> int:
    """Run the stage's work: pool, time limits, records, whole objects."""
    config = ExtractConfig(short_side=240, workers=workers)
    storage = open_storage(target or folder / "objects")
    result = extract_videos(open_source(str(videos[0].parent)), storage, {path.stem for path in videos}, config, "    ")
    assert not result.rejects, result.rejects
    return sum(record["num_frames"] for record in result.records)


def ffmpeg_files(folder: Path, videos: list[Path], workers: int, program: str = "") -> int:
    """Run one ffmpeg per video that writes one JPEG per frame, as the usual scripts do."""

    def run(path: Path) -> int:
        out = folder / "files" / path.stem
        out.mkdir(parents=True)
        command = [program or imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-threads", "1", "-i", path]
        subprocess.run([*command, "-q:v", "2", "-fps_mode", "passthrough", out / "%05d.jpg"], check=True)
        return len(list(out.iterdir()))

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return sum(pool.map(run, videos))


def main() -> None:
    """Measure and print the table."""
    parser = record.parser(__doc__)
    parser.add_argument("--videos", type=int, default=960, help="videos per method and round (default: 960)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the medians are shown (default: 3)")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time (default: 2)")
    args = parser.parse_args()
    with ssv2_like(args.videos) as (folder, videos), local_object_store(folder / "store") as store:
        size = sum(path.stat().st_size for path in videos)
        methods: dict[str, Callable[[Path, list[Path], int], int]] = {
            "floor: PyAV decodes, 1 process": decode_only,
            "this project, no pool, no storage, 1 process": in_process,
            f"this project to a folder, {args.workers} processes": ours,
            f"this project to S3 on the same machine, {args.workers} processes": lambda f, v, w: ours(
                f, v, w, store.uri("data", f.name)
            ),
            f"static ffmpeg per video to files, {args.workers} at a time": ffmpeg_files,
        }
        if system := shutil.which("ffmpeg"):
            methods[f"system ffmpeg per video to files, {args.workers} at a time"] = lambda f, v, w: ffmpeg_files(
                f, v, w, system
            )
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
        frames: set[int] = set()
        for number in range(args.rounds):
            for name, method in methods.items():
                print(f"round {number + 1}/{args.rounds}: {name}", file=sys.stderr, flush=True)
                out = folder / f"out-{number}-{len(times[name])}-{list(methods).index(name)}"
                wall, cpu = time.perf_counter(), cpu_seconds()
                frames.add(method(out, videos, args.workers))
                times[name].append((time.perf_counter() - wall, cpu_seconds() - cpu))
                shutil.rmtree(out, ignore_errors=True)
        assert len(frames) == 1, f"the methods disagree about the number of frames: {frames}"
    count = frames.pop()
    cpu = {name: statistics.median(item[1] for item in values) * 1000 / count for name, values in times.items()}
    wall = {name: statistics.median(item[0] for item in values) for name, values in times.items()}
    floor = cpu["floor: PyAV decodes, 1 process"]
    own = wall[f"this project to a folder, {args.workers} processes"]
    size_text = f"{size / count / 1000:.1f} kB a frame"
    cores = num_cores()
    table = record.Table(
        f"{args.videos} videos, {count} frames, {size_text}, {cores} cores, median of {args.rounds}",
        ("method", "CPU ms per frame", "over floor", "videos/s", "time over this project to a folder"),
        ("", ".2f", ".2f", ".0f", ".2f"),
        [(name, cpu[name], cpu[name] / floor, args.videos / wall[name], wall[name] / own) for name in methods],
    )
    record.report([table], args.output)


if __name__ == "__main__":
    main()
