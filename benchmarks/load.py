"""Loading clips against the JPEG decode floor and against what other loaders do, on the same frames in one run.

    python benchmarks/load.py

Extracts a mini dataset, loads the same clips (32 frames, 224 x 224) with every method in turn on one core, and prints
the medians of the processor time per clip, and the wall time, as a Markdown table.
"""

import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import record
import simplejpeg
import torch
from PIL import Image
from videos import ssv2_like

from stabn.config import DataConfig, ExtractConfig
from stabn.data.dataset import ClipDataset, FrameReader
from stabn.data.extraction import extract_videos
from stabn.data.manifest import Manifest, build_manifest
from stabn.data.sampling import evaluation_sample
from stabn.data.sources import open_source
from stabn.data.transforms import crop_clip, evaluation_crop
from stabn.local_services import local_object_store
from stabn.storage import open_storage

CONFIG = DataConfig(num_frames=32, crop_size=224, workers=0)


def extracted(videos: list[Path], target: str) -> Manifest:
    """Extract the videos and return their manifest."""
    storage = open_storage(target)
    ids = {path.stem for path in videos}
    result = extract_videos(open_source(str(videos[0].parent)), storage, ids, ExtractConfig(short_side=240), "    ")
    rows = [{**record, "split": "validation", "class_index": 0, "label": ""} for record in result.records]
    return build_manifest(rows, ["one"], storage.uri, {})


def main() -> None:
    """Measure and print the table."""
    parser = record.parser(__doc__)
    parser.add_argument("--videos", type=int, default=60, help="clips per method and round (default: 60)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; the medians are shown (default: 5)")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with (
        ssv2_like(args.videos) as (folder, videos),
        local_object_store(folder / "store") as store,
        tempfile.TemporaryDirectory(prefix="stabn-frames-") as files,
    ):
        manifest = extracted(videos, str(folder / "objects"))
        remote = Manifest(manifest.table, manifest.classes, store.uri("data", "frames"), {})
        source, target = open_storage(manifest.storage_uri), open_storage(remote.storage_uri)
        for row in range(len(manifest)):
            target.write(manifest.video(row).object_key, source.read(manifest.video(row).object_key))
        cached = DataConfig(num_frames=32, crop_size=224, workers=0, cache_dir=str(folder / "cache"))
        local, over_s3, by_cache = (
            ClipDataset(m, np.arange(len(m)), config, train=False)
            for m, config in ((manifest, CONFIG), (remote, CONFIG), (remote, cached))
        )
        samples = [evaluation_sample(manifest.video(i).num_frames, 32, 1)[0] for i in range(len(manifest))]
        crops = [
            evaluation_crop(manifest.video(i).width, manifest.video(i).height, CONFIG) for i in range(len(manifest))
        ]
        reader = FrameReader(manifest)
        jpegs = []
        for i, sample in enumerate(samples):
            found = reader.jpegs(i, sample)
            jpegs.append([found[int(number)] for number in sorted(set(sample.tolist()))])
            for number, data in reader.jpegs(i, np.arange(manifest.video(i).num_frames)).items():
                (Path(files) / str(i)).mkdir(exist_ok=True)
                (Path(files) / str(i) / f"{number:05}.jpg").write_bytes(data)
        mean, std = (torch.tensor(values)[:, None, None] for values in (CONFIG.mean, CONFIG.std))

        def floor(i: int) -> None:
            for data in jpegs[i]:
                simplejpeg.decode_jpeg(data, colorspace="RGB")

        def raw_frames(i: int) -> torch.Tensor:
            crop, frames = crops[i], []
            box = (crop.left, crop.top, crop.left + crop.side, crop.top + crop.side)
            for number in samples[i]:
                image = Image.open(Path(files) / str(i) / f"{number:05}.jpg").convert("RGB")
                image = image.crop(box).resize((224, 224), Image.Resampling.BILINEAR)
                tensor = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float().div(255)
                frames.append((tensor - mean) / std)
            return torch.stack(frames, 1)

        def on_the_fly(i: int) -> np.ndarray:
            data = (folder / "videos" / f"{manifest.video_id(i)}.webm").read_bytes()
            wanted = set(samples[i].tolist())
            found = {}
            with av.open(io.BytesIO(data)) as container:
                container.streams.video[0].thread_type = "NONE"
                for number, frame in enumerate(container.decode(video=0)):
                    if number in wanted:
                        found[number] = frame.to_ndarray(format="rgb24")
                    if number >= samples[i][-1]:
                        break
            return crop_clip(np.stack([found[number] for number in samples[i].tolist()]), crops[i], 224)

        methods: dict[str, Callable[[int], object]] = {
            "floor: libjpeg-turbo decodes the frames": floor,
            "this project, objects in a folder": local.__getitem__,
            "this project, objects in S3 on the same machine": over_s3.__getitem__,
            "this project, S3 with the node's cache, filled": by_cache.__getitem__,
            "one file per frame, PIL, float normalisation": raw_frames,
            "WebM decoded on the fly (PyAV), uint8": on_the_fly,
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
        for number in range(-1, args.rounds):  # the round before the first warms up and fills the cache
            for name, method in methods.items():
                if number >= 0:
                    print(f"round {number + 1}/{args.rounds}: {name}", file=sys.stderr, flush=True)
                wall, cpu = time.perf_counter(), time.process_time()
                for i in range(len(manifest)):
                    method(i)
                if number >= 0:
                    times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    cpu = {name: statistics.median(item[0] for item in values) * 1000 / args.videos for name, values in times.items()}
    wall = {name: statistics.median(item[1] for item in values) * 1000 / args.videos for name, values in times.items()}
    base, own = cpu["floor: libjpeg-turbo decodes the frames"], cpu["this project, objects in a folder"]
    table = record.Table(
        f"{args.videos} clips of 32 frames, one core used, median of {args.rounds}",
        ("method", "CPU ms per clip", "over floor", "over this project", "wall ms per clip"),
        ("", ".1f", ".2f", ".2f", ".1f"),
        [(name, cpu[name], cpu[name] / base, cpu[name] / own, wall[name]) for name in methods],
    )
    record.report([table], args.output)


if __name__ == "__main__":
    main()
