"""The attention editor under 74 people who edit at once: latency of frames, saves and what-if, and the server's memory.

    python benchmarks/editor.py

Makes a round, starts `stabn editor` on a real S3 server, and lets a second process play the people over the loopback:
each takes the next video from the queue, loads all its frames as a page does, edits several times (what-if and autosave
after each), finishes it, and goes on. Then the same with 2,396 videos in the round, whose manifest has 220,847 videos.
The network is that of the preset `mini`; benchmarks/whatif.py has what larger ones cost. `--part rounds` measures the
list of all rounds instead: 40 rounds of 100 videos each, most of them corrected.
"""

import argparse
import asyncio
import dataclasses
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2 as httpx
import numpy as np
import psutil
import record
import simplejpeg
import torch

from stabn.attention.edit_document import Edit
from stabn.attention.rounds import Round, RoundVideo, make_round_id, save_round
from stabn.data.manifest import build_manifest
from stabn.local_services import local_object_store
from stabn.models import STABN
from stabn.presets import mini
from stabn.storage import open_storage
from stabn.training.checkpoint import dump_checkpoint

PEOPLE, SMALL, LARGE, DATASET = 74, 740, 2396, 220_847
FRAMES, WIDTH, HEIGHT = 45, 427, 240  # a video of Something-Something v2, on average
DISTINCT = 16  # different videos; the others are copies, each an object of its own
ROUNDS, VIDEOS_OF_EACH, LISTINGS = 40, 100, 50
EDITS, PAUSE_SECONDS = 4, 5.0  # edits per video, and the mean pause before each: 20 s a video and person
CLASSES = tuple(f"Action {index} of something" for index in range(174))
KINDS = ("frame", "what-if", "save", "open", "next", "queue page")


def make_round(uri: str, num_videos: int, dataset_size: int) -> Round:
    """Write a round of generated videos, with frames, manifest and network, as export-attention would leave it."""
    config, rng = mini(), np.random.default_rng(0)
    storage, target = open_storage(f"{uri}/frames"), open_storage(f"{uri}/round")
    packed = []
    for _ in range(DISTINCT):
        scene = np.repeat(np.repeat(rng.integers(0, 255, (12, 22, 3), np.uint8), 20, 0), 20, 1)[:HEIGHT, :WIDTH]
        jpegs = [simplejpeg.encode_jpeg(np.ascontiguousarray(np.roll(scene, 4 * i, 1))) for i in range(FRAMES)]
        packed.append((b"".join(jpegs), [len(jpeg) for jpeg in jpegs]))
    rows = []
    for index in range(max(num_videos, dataset_size)):
        data, sizes = packed[index % DISTINCT]
        if index < num_videos:
            storage.write(f"{index + 1}.mjpeg", data)
        row = {"video_id": str(index + 1), "split": "train", "class_index": index % len(CLASSES), "label": ""}
        row |= {"object_key": f"{index + 1}.mjpeg", "frame_sizes": sizes, "num_frames": FRAMES}
        rows.append(row | {"width": WIDTH, "height": HEIGHT, "source_sha256": "0"})
    manifest = build_manifest(rows, CLASSES, storage.uri, {})
    torch.manual_seed(0)
    model_config = dataclasses.replace(config.model, num_classes=len(CLASSES))
    model = STABN(model_config).eval()
    checkpoint = dump_checkpoint(
        model, model_config, config.data, CLASSES, manifest_fingerprint=manifest.fingerprint, stage="train", epoch=1
    )
    with tempfile.TemporaryDirectory() as folder:
        manifest.save(Path(folder) / "manifest.parquet")
        target.upload(Path(folder) / "manifest.parquet", "manifest.parquet")
    target.write("checkpoint.pt", checkpoint)
    top = [{"class_index": index, "score": 0.2} for index in range(5)]
    crop = {"left": 93, "top": 0, "side": HEIGHT}
    videos = []
    for row in rows[:num_videos]:
        curve = rng.random(FRAMES).round(4).tolist()
        content = {"temporal_attention": curve, "top5": top, "crop": crop}
        target.write(f"videos/{row['video_id']}/attention.json", json.dumps(content).encode())
        wrong = (row["class_index"] + 1) % len(CLASSES)
        videos.append(
            RoundVideo(row["video_id"], row["class_index"], "", wrong, rng.random(), FRAMES, WIDTH, HEIGHT, 0.01)
        )
    item = Round(
        uri=target.uri,
        round_id=make_round_id(manifest.fingerprint, "0", [video.video_id for video in videos]),
        created_at="2026-01-01T00:00:00+00:00",
        manifest_fingerprint=manifest.fingerprint,
        checkpoint_fingerprint="0",
        classes=CLASSES,
        selected_classes=tuple(range(len(CLASSES))),
        videos=tuple(videos),
    )
    save_round(item)
    return item


@contextmanager
def serving(*what: str) -> Iterator[tuple[str, psutil.Process, float]]:
    """Run the editor; yield its address, its process and the seconds until it answered."""
    command = [sys.executable, "-m", "stabn.cli", "editor", *what, "--editor.auth", "open"]
    started = time.monotonic()
    process = subprocess.Popen([*command, "--editor.port", "0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        match = re.search(r"http://\S+", process.stdout.readline())
        assert match, "the editor did not start"
        yield match[0], psutil.Process(process.pid), time.monotonic() - started
    finally:
        process.terminate()
        process.communicate(timeout=30)


async def person(address: str, number: int, until: float, times: dict[str, list[float]], errors: list[str]) -> None:
    """Edit video after video as one person does; the first one counts as arriving and is not measured."""
    draw, arrived = random.Random(number), False

    async def timed(kind: str, method: str, path: str, **options: object) -> httpx.Response:
        started = time.perf_counter()
        response = await client.request(method, path, **options)  # type: ignore[arg-type]
        if arrived:
            times[kind].append(time.perf_counter() - started)
        if response.status_code >= 400:
            errors.append(f"{kind}: {response.status_code} {response.text[:100]}")
        return response

    async with httpx.AsyncClient(base_url=address, headers={"Origin": address}, timeout=60) as client:
        answer = await client.post("/api/sign-in", json={"name": f"person{number}", "password": ""})
        client.headers["X-CSRF-Token"] = answer.json()["csrf"]
        round_id = (await client.get("/api/round")).json()["round_id"]
        await asyncio.sleep(draw.uniform(0, EDITS * PAUSE_SECONDS))
        passed: list[str] = []
        while time.monotonic() < until:
            await timed("queue page", "GET", "/api/videos?offset=0")
            body = {"passed": passed, "action": None}
            video_id = (await timed("next", "POST", "/api/next", json=body)).json()["video_id"]
            if video_id is None:
                return errors.append("no video is left: make the round larger")
            path = f"/api/videos/{video_id}"
            video = (await timed("open", "POST", f"{path}/open", json={"take_over": False, "slot": None})).json()
            limit = asyncio.Semaphore(6)  # what a browser sends at once

            async def fetch(index: int, video_id: str = video_id, limit: asyncio.Semaphore = limit) -> None:
                async with limit:
                    await timed("frame", "GET", f"/frames/{round_id}/{video_id}/{index}.jpg")

            await asyncio.gather(*map(fetch, range(video["num_frames"])))
            revision = video["edit"]["revision"] if video["edit"] else 0
            for step in range(EDITS):
                await asyncio.sleep(draw.expovariate(1 / PAUSE_SECONDS))
                curve = [round(draw.random(), 3) for _ in range(video["num_frames"])]
                save = {"slot": video["slot"], "based_on": revision, "edited_attention": curve, "note": ""}
                save |= {"status": "edited" if step == EDITS - 1 else "draft", "skip_reason": None, "seconds": 9.0}
                _, saved = await asyncio.gather(
                    timed("what-if", "POST", f"{path}/what-if", json={"edited_attention": curve}),
                    timed("save", "PUT", f"{path}/edit", json=save),
                )
                revision += saved.status_code == 200
            arrived = True


async def people(address: str, seconds: float) -> dict[str, object]:
    """Let everybody work; return the times by kind, and what went wrong."""
    times: dict[str, list[float]] = defaultdict(list)
    errors: list[str] = []
    until = time.monotonic() + seconds
    await asyncio.gather(*(person(address, number, until, times, errors) for number in range(PEOPLE)))
    return {"times": times, "errors": errors}


def measure(title: str, item: Round, seconds: float, folder: str) -> record.Table:
    """Serve a round to everybody and return what they waited for."""
    result_path = Path(folder) / "result.json"
    with serving("--round", item.uri) as (address, server, start_seconds):
        time.sleep(5)  # the network is loaded
        before, peak, cpu, started = server.memory_info().rss, 0, server.cpu_times(), time.monotonic()
        command = [sys.executable, __file__, "--people-of", address, "--result", str(result_path)]
        load = subprocess.Popen([*command, "--seconds", str(seconds)])
        while load.poll() is None:
            peak = max(peak, server.memory_info().rss)
            time.sleep(0.2)
        passed, used = time.monotonic() - started, server.cpu_times()
    result = json.loads(result_path.read_text())
    share = (used.user + used.system - cpu.user - cpu.system) / passed
    rows = []
    for kind in KINDS:
        found = sorted(value * 1000 for value in result["times"].get(kind, []))
        if found:
            p95 = found[int(len(found) * 0.95)]
            rows.append((kind, len(found), statistics.median(found), p95, found[-1]))
    note = (
        f"Server: starts in {start_seconds:.1f} s, {before / 2**20:.0f} MB before anybody came, at most "
        f"{peak / 2**20:.0f} MB, {share:.2f} cores; {len(result['errors'])} requests failed"
    )
    print(*sorted(set(result["errors"]))[:5], sep="\n", file=sys.stderr)
    columns = ("request", "count", "median, ms", "p95, ms", "longest, ms")
    return record.Table(
        f"{title}: {PEOPLE} people for {passed:.0f} s", columns, ("", "", ".0f", ".0f", ".0f"), rows, note
    )


def make_rounds(uri: str) -> int:
    """Write descriptions and corrections of many rounds, all that their list reads; return how many corrections."""
    storage, draw = open_storage(uri), random.Random(0)
    curve, written = (0.5,) * FRAMES, 0
    for number in range(ROUNDS):
        videos = tuple(
            RoundVideo(str(index), index % 10, "", 0, 0.5, FRAMES, WIDTH, HEIGHT) for index in range(VIDEOS_OF_EACH)
        )
        place = f"{storage.uri}/rounds/{number:016x}"
        day = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=number)
        item = Round(place, f"{number:016x}", day.isoformat(), "0", "0", CLASSES, tuple(range(10)), videos)
        save_round(item)
        for video in videos[: draw.randrange(VIDEOS_OF_EACH // 2, VIDEOS_OF_EACH)]:
            day += timedelta(seconds=30)
            edit = Edit(
                round_id=item.round_id, video_id=video.video_id, revision=1, num_frames=FRAMES, model_attention=curve,
                edited_attention=curve, status="edited", editor=f"person{draw.randrange(6)}", edited_at=day.isoformat(),
            )  # fmt: skip
            item.storage.write(edit.key, edit.to_json())
            written += 1
        if number < ROUNDS // 2:
            item.storage.write("editor/finished.json", json.dumps({"by": "lead", "at": day.isoformat()}).encode())
    return written


def measure_rounds(uri: str) -> record.Table:
    """Serve many rounds, and return how long their list takes: the first, complete, and once it is known."""
    corrections = make_rounds(uri)
    rows = []
    with (
        serving("--storage", uri) as (address, _, start_seconds),
        httpx.Client(base_url=address, headers={"Origin": address}, timeout=60) as client,
    ):
        client.post("/api/sign-in", json={"name": "person1", "password": ""})
        started = time.perf_counter()
        client.get("/api/rounds?look=1").raise_for_status()
        rows.append(("first page", 1, *[(time.perf_counter() - started) * 1000] * 3))
        while not all(row["is_counted"] for row in client.get("/api/rounds").json()["rounds"]):
            time.sleep(0.02)
        rows.append(("all corrections counted", 1, *[(time.perf_counter() - started) * 1000] * 3))
        for title, path in (("page, with a look at the storage", "/api/rounds?look=1"), ("page", "/api/rounds")):
            times = []
            for _ in range(LISTINGS):
                began = time.perf_counter()
                client.get(path)
                times.append((time.perf_counter() - began) * 1000)
            times.sort()
            rows.append((title, LISTINGS, statistics.median(times), times[int(0.95 * LISTINGS)], times[-1]))
    return record.Table(
        f"{ROUNDS} rounds, {ROUNDS * VIDEOS_OF_EACH:,} videos, {corrections:,} corrections",
        ("request", "count", "median, ms", "p95, ms", "longest, ms"),
        ("", "", ".0f", ".0f", ".0f"),
        rows,
        f"Server: starts in {start_seconds:.1f} s",
    )


def main() -> None:
    """Measure both rounds, or the list of many, or play the people of an address."""
    parser = record.parser(__doc__)
    parser.add_argument("--seconds", type=float, default=90, help="how long people go on (default: 90)")
    parser.add_argument("--part", choices=("people", "rounds"), default="people", help="what to measure")
    parser.add_argument("--people-of", default="", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.people_of:
        args.result.write_text(json.dumps(asyncio.run(people(args.people_of, args.seconds))))
        return
    with tempfile.TemporaryDirectory(prefix="stabn-editor-") as folder, local_object_store(f"{folder}/store") as store:
        if args.part == "rounds":
            return record.report([measure_rounds(store.uri("data", "many"))], args.output)
        item = make_round(store.uri("data", "small"), SMALL, 0)
        tables = [measure(f"{SMALL} videos", item, args.seconds, folder)]
        item = make_round(store.uri("data", "large"), LARGE, DATASET)
        tables.append(measure(f"{LARGE:,} videos of a dataset of {DATASET:,}", item, args.seconds, folder))
        record.report(tables, args.output)


if __name__ == "__main__":
    main()
