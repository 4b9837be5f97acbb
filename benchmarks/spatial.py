"""Where the spatial attention is high: on the moving object or beside it, and what decides that.

    python benchmarks/spatial.py                                # four seeds of each; goes on where it was stopped
    python benchmarks/spatial.py --networks random-0,equal-0    # one

Ms is made of the class maps by a convolution to one channel. The networks of one half of the rows begin with random
weights there, as the released code does; the others with equal ones, so that Ms begins as the mean of the maps. What
is measured, on the validation videos: rank correlation, within each frame and averaged, of Ms with the class maps' mean
and with the share of each cell that the object covers, which the mini dataset knows; top-1 as is and with Ms inverted.
"""

import argparse
import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import record
import torch

from stabn.attention.randomised import rank_correlation
from stabn.data.dataset import ClipDataset
from stabn.data.frames import extract_frames
from stabn.data.manifest import Manifest
from stabn.data.mini import VARIANTS, entries_of, make_mini_dataset
from stabn.data.mini_motion import HEIGHT, Plan, plan_video
from stabn.data.sampling import evaluation_sample
from stabn.data.transforms import to_input
from stabn.models.st_abn import STABN, AttentionBranch, invert
from stabn.presets import resolve
from stabn.training.checkpoint import load_model
from stabn.training.stage import train

STARTS = ("random", "equal")
FINE = 16  # points a cell's coverage is measured at, along each side


@contextmanager
def equal_start() -> Iterator[None]:
    """Let new networks begin with equal weights of Ms's convolution, the other weights as they are."""
    usual = AttentionBranch.initialize_temporal

    def start(branch: AttentionBranch) -> None:
        usual(branch)
        torch.nn.init.constant_(branch.spatial[0].weight, 1 / branch.spatial[0].weight.shape[1])  # type: ignore[arg-type]

    with patch.object(AttentionBranch, "initialize_temporal", start):
        yield


def covered(plan: Plan, frames: np.ndarray, cells: int) -> np.ndarray:
    """Return the share of each cell of the middle square that the object covers, float (len(frames), cells, cells)."""
    place = ((np.arange(cells * FINE) + 0.5) / (cells * FINE) - 0.5) * HEIGHT
    found = []
    for x, y, camera_x, camera_y, log_zoom, _ in plan.path[frames]:
        zoom = math.exp(log_zoom)
        away = np.hypot(place[None] - zoom * (x - camera_x), place[:, None] - zoom * (y - camera_y))
        inside = away < zoom * plan.radii[0]
        found.append(inside.reshape(cells, FINE, cells, FINE).mean((1, 3)))
    return np.array(found)


def within_frames(one: np.ndarray, other: np.ndarray) -> float:
    """Return the mean rank correlation of two maps (T, h, w) within the frames where both vary; NaN: there is none."""
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if np.ptp(a) and np.ptp(b)]
    return float(np.mean([rank_correlation(a, b) for a, b in pairs])) if pairs else math.nan


@torch.inference_mode()
def look(model: STABN, manifest: Manifest, data: object, plans: dict[str, Plan]) -> list[float]:
    """Return a row's numbers of one trained network."""
    numbers = []
    dataset = ClipDataset(manifest, manifest.indices("validation"), data, train=False)  # type: ignore[arg-type]
    branch = model.attention_branch
    for item in dataset:
        video = manifest.video(int(item["index"]))
        features = model.extract_features(to_input(item["clips"], data, "cpu"))  # type: ignore[arg-type]
        maps = branch.class_maps(branch.trunk(features))[0].mean(0).numpy()
        own, inverted = model(features=features), model(features=features, spatial_transform=invert)
        spatial = own.spatial_attention[0, 0].numpy()
        frames = evaluation_sample(video.num_frames, len(spatial), 1)[0]
        where = covered(plans[video.video_id], frames, spatial.shape[-1])
        right = [100.0 * (output.logits.argmax(1).item() == video.class_index) for output in (own, inverted)]
        numbers.append(
            [within_frames(spatial, maps), within_frames(maps, where), within_frames(spatial, where), *right]
        )
    return np.nanmean(numbers, axis=0).tolist()


def main() -> None:
    """Run the command line."""
    flags = record.parser(__doc__)
    flags.add_argument("--dir", type=Path, default=Path("build/spatial"), help="work folder; default: %(default)s")
    usual = ",".join(f"{start}-{seed}" for start in STARTS for seed in range(4))
    flags.add_argument("--networks", default=usual, help="first weights and seed of each; default: %(default)s")
    args: argparse.Namespace = flags.parse_args()
    config = resolve("mini")
    made = make_mini_dataset(args.dir / "dataset", "demo")
    path = args.dir / "manifest.parquet"
    places = (str(made.videos_dir), str(made.labels_dir), str(args.dir / "storage"))
    extract_frames(*places, path, args.dir / "rejects.parquet", config.extract)
    manifest = Manifest.load(path)
    plans = {
        entry.video_id: plan_video(entry.action, np.random.default_rng((0, entry.index)))
        for entry in entries_of(made.num_videos, 0, VARIANTS["demo"])
    }
    rows = []
    classes = len(manifest.classes)
    for name in args.networks.split(","):
        start, _, seed = name.partition("-")
        with equal_start() if start == "equal" else nullcontext():
            torch.manual_seed(int(seed))
            first = STABN(dataclasses.replace(config.model, num_classes=classes)).attention_branch.spatial[0].weight
            settings = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=int(seed)))
            trained = train(str(path), settings, str(args.dir / name))
        model, checkpoint = load_model(trained.best_uri)
        assert isinstance(model, STABN)
        kept = int((first.sign() == model.attention_branch.spatial[0].weight.sign()).sum())
        numbers = look(model.eval(), manifest, checkpoint.data_config, plans)
        rows.append((start, int(seed), float(first.detach().sum()), f"{kept} of {classes}", *numbers))
    columns = (
        "first weights", "seed", "their sum", "signs kept", "Ms with class maps", "class maps with object",
        "Ms with object", "top-1, %", "Ms inverted, %",
    )  # fmt: skip
    formats = ("", "d", "+.1f", "", "+.2f", "+.2f", "+.2f", ".1f", ".1f")
    videos = len(manifest.indices("validation"))
    title = f"Rank correlation within a frame, mean over {videos} validation videos of the demo's dataset"
    record.report([record.Table(title, columns, formats, rows)], args.output)


if __name__ == "__main__":
    main()
