"""Stage faithfulness: whether a network's answer depends on where its attention is high.

That is not whether the attention agrees with people, see agreement.py: a network may look where people do and use
something else, or use what people would not.
"""

import base64
import dataclasses
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stabn.attention.fonts import class_name
from stabn.attention.gradcam import grad_cam
from stabn.attention.perturbation import FILLS, KINDS, control_maps, perturb
from stabn.attention.randomised import randomised_networks, rank_correlation
from stabn.attention.render import Panel, attention_figure
from stabn.config import DataConfig, RunConfig, check_value, fingerprint
from stabn.data.dataset import FrameReader
from stabn.data.manifest import Manifest
from stabn.data.presence import check_frames
from stabn.data.sampling import evaluation_sample
from stabn.data.slots import to_frames
from stabn.data.transforms import crop_clip, evaluation_crop, to_input
from stabn.evaluation.examples import by_hash
from stabn.evaluation.faithfulness_numbers import FORMAT, Faithfulness, parse, plain_text
from stabn.evaluation.faithfulness_section import faithfulness_page
from stabn.models import STABN
from stabn.progress import Progress
from stabn.storage import Storage, check_id, open_storage, owned
from stabn.text import parse_json
from stabn.tracking import stage_run
from stabn.training.checkpoint import check_classes, load_model, require_attention
from stabn.training.device import autocast, choose_device, choose_precision, prepare
from stabn.training.validation import evaluation_batch

RESULT_FILE, PAGE_FILE, PICTURES_DIR, PARTS_DIR = "faithfulness.json", "faithfulness.html", "figures", "parts"
RANDOMISED_VIDEOS, DRAWS = 20, 3  # that networks with random weights are shown; how often the weights are drawn
PICTURES = 3  # videos drawn
DIGITS = 6  # of a probability that are kept


@dataclass(frozen=True)
class _Network:
    """A network and how clips go through it."""

    model: STABN
    device: torch.device
    dtype: torch.dtype
    data: DataConfig
    batch_size: int

    @torch.no_grad()
    def probability(self, clips: Tensor, class_index: int) -> Tensor:
        """Return the probability (B,) of a class, of (B, 3, T, H, W)."""
        with autocast(self.device, self.dtype):
            return self.model(clips).logits.float().softmax(1)[:, class_index]

    @torch.no_grad()
    def look(self, clips: Tensor, classes: Tensor | None = None) -> "_Look":
        """Return what the network says of clips and where it looks."""
        with autocast(self.device, self.dtype):
            output = self.model(clips)
            classes = output.logits.argmax(1) if classes is None else classes
            cam = grad_cam(self.model, clips, classes)
        return _Look(
            classes=classes,
            probabilities=output.logits.float().softmax(1),
            temporal=to_frames(output.temporal_attention.float().flatten(1), clips.shape[2]).cpu(),
            spatial=to_frames(output.spatial_attention.float().squeeze(1), clips.shape[2], dim=1).cpu(),
            cam=to_frames(cam.float(), clips.shape[2], dim=1).cpu(),
        )


@dataclass(frozen=True)
class _Look:
    """What a network says of B clips: class (B,), (B, K), Mt (B, T), Ms and Grad-CAM (B, T, h, w)."""

    classes: Tensor
    probabilities: Tensor
    temporal: Tensor
    spatial: Tensor
    cam: Tensor


@dataclass(frozen=True)
class _Clip:
    """One video as the network sees it: uint8 (T, H, W, 3), and the frames it is made of."""

    row: int
    pixels: np.ndarray
    frames: np.ndarray


def measure_faithfulness(
    checkpoint_uri: str,
    manifest_uri: str,
    split: str,
    output_uri: str,
    config: RunConfig,
    *,
    num_videos: int = 50,
    max_steps: int = 8,
    seed: int = 0,
) -> Faithfulness:
    """Delete and insert frames and cells in the order of the attention and of controls, print it, and keep it.

    Asked about is the class that the network itself predicts, of one clip a video, that of evaluation. A video that is
    done is kept in the output's folder, and not done again by a later call with the same network and options.

    Args:
        checkpoint_uri: ST-ABN.
        manifest_uri: the videos.
        split: one of SPLITS, or auto.
        output_uri: folder or s3:// prefix for faithfulness.json, faithfulness.html and figures.
        config: device, precision and clips at once.
        num_videos: of the split, in the order of a hash of their id; 0: all.
        max_steps: from nothing to all, at most.
        seed: of the random orders and weights.

    Raises:
        CheckpointError: the network has no attention, or other classes.
        ConfigError: a number out of range.
        ManifestError: the split has no video.
    """
    check_value("videos", num_videos, low=0)
    check_value("steps", max_steps, low=1)
    check_value("seed", seed, low=0)
    manifest = Manifest.load(manifest_uri)
    model, checkpoint = load_model(checkpoint_uri)
    check_classes(checkpoint, manifest.classes, manifest_uri)
    require_attention(checkpoint, checkpoint_uri, " to measure")
    assert isinstance(model, STABN)
    split = manifest.reported_split if split == "auto" else split
    rows = sorted(map(int, manifest.indices(split)), key=lambda row: by_hash(manifest.video_id(row)))
    rows = rows[: num_videos or len(rows)]
    check_frames(manifest, rows)
    device = choose_device(config.train.device)
    network = _Network(
        model=prepare(model.eval(), device),  # type: ignore[arg-type]
        device=device,
        dtype=choose_precision(config.train.precision, device),
        data=checkpoint.data_config,
        batch_size=evaluation_batch(config.train, 1),
    )
    storage = open_storage(output_uri)
    inputs = {"dataset": manifest.fingerprint, "checkpoint": checkpoint.fingerprint}
    settings = {"split": split, "videos": num_videos, "steps": max_steps, "seed": seed}
    with (
        stage_run(f"faithfulness/{split}", settings=settings, inputs=inputs) as run,
        owned(storage, "faithfulness", settings | inputs),
    ):
        clips = _Clips(manifest, checkpoint.data_config)
        key = fingerprint(FORMAT, inputs, max_steps, seed)
        videos = list(_videos(network, clips, rows, storage.child(PARTS_DIR), key, max_steps, seed))
        document = {
            "format": FORMAT,
            "split": split,
            "checkpoint_fingerprint": checkpoint.fingerprint,
            "manifest_fingerprint": manifest.fingerprint,
            "steps": max_steps,
            "seed": seed,
            "videos": videos,
            "randomised": _randomised(network, clips, rows[:RANDOMISED_VIDEOS], seed),
            "pictures": _pictures(network, clips, rows[:PICTURES], manifest, storage),
        }
        found = parse(document, RESULT_FILE)
        text, page = plain_text(found), faithfulness_page(found)
        storage.write(PAGE_FILE, page.encode())
        storage.write(RESULT_FILE, json.dumps(document).encode())
        print(text, flush=True)
        run.log_metrics(found.metrics())
        run.log_text(json.dumps(document), RESULT_FILE)
        run.log_text(page, PAGE_FILE)
        run.log_text(text, "faithfulness.txt")
        print(f"faithfulness: {storage.locate(PAGE_FILE)}", flush=True)
    return found


class _Clips:
    """The clip of evaluation of each video of a manifest."""

    def __init__(self, manifest: Manifest, data: DataConfig) -> None:
        self.manifest, self.data = manifest, data
        self.reader = FrameReader(manifest)

    def __getitem__(self, row: int) -> _Clip:
        video, data = self.manifest.video(row), self.data
        crop = evaluation_crop(video.width, video.height, data)
        frames = evaluation_sample(video.num_frames, data.num_frames, 1)[0]
        seen, places = np.unique(frames, return_inverse=True)
        return _Clip(row, crop_clip(self.reader.packed(row)[seen], crop, data.crop_size)[places], frames)

    def tensor(self, clips: Iterable[_Clip], device: torch.device) -> Tensor:
        """Return the network's input, float (B, 3, T, H, W)."""
        return to_input(torch.from_numpy(np.stack([clip.pixels for clip in clips])), self.data, device)


def _videos(
    network: _Network, clips: _Clips, rows: list[int], storage: Storage, key: str, max_steps: int, seed: int
) -> Iterable[dict[str, Any]]:
    """Yield what is found of each video; what a former call has found is read."""
    for row in Progress(len(rows), "faithfulness").track(rows):
        video_id = check_id(clips.manifest.video_id(row), "video id")
        part = f"{video_id}.json"
        found = _former(storage, part, key)
        if found is None:
            found = {"key": key, "video_id": video_id, **_measure(network, clips, row, max_steps, seed)}
            storage.write(part, json.dumps(found).encode())
        yield {name: value for name, value in found.items() if name != "key"}


def _former(storage: Storage, part: str, key: str) -> dict[str, Any] | None:
    """Return what a former call wrote about a video, if it was asked the same."""
    if not storage.exists(part):
        return None
    try:
        found = parse_json(storage.read(part))
        return found if found["key"] == key else None
    except (ValueError, KeyError, TypeError):
        return None


def _measure(network: _Network, clips: _Clips, row: int, max_steps: int, seed: int) -> dict[str, Any]:
    """Return the curves of one video, and how alike its attention is to other maps."""
    video_id = clips.manifest.video_id(row)
    source = hashlib.sha256(f"{seed}/{video_id}".encode()).digest()[:8]
    generator = torch.Generator().manual_seed(int.from_bytes(source, "big") >> 1)
    batch = clips.tensor([clips[row]], network.device)
    look = network.look(batch)
    class_index = int(look.classes[0])
    own = {
        "temporal": {"attention": look.temporal[0], "grad_cam": look.cam[0].mean((1, 2))},
        "spatial": {"attention": look.spatial[0], "grad_cam": look.cam[0]},
    }
    controls = control_maps(batch[0].cpu(), tuple(look.spatial.shape[-2:]), generator)  # type: ignore[arg-type]
    curves: dict[str, Any] = {}
    alike: dict[str, Any] = {}
    for kind in KINDS:
        maps = own[kind] | controls[kind]
        curves[kind] = {}
        for fill_name, fill in FILLS[kind].items():
            counts, found = perturb(
                lambda part: network.probability(part, class_index),
                batch[0],
                maps,
                fill,
                max_steps=max_steps,
                batch_size=network.batch_size,
                generator=generator,
            )
            curves[kind][fill_name] = {
                name: {direction: values.round(DIGITS).tolist() for direction, values in pair._asdict().items()}
                for name, pair in found.items()
            }
        curves[kind]["shares"] = (counts / counts[-1]).round(DIGITS).tolist()
        alike[kind] = {
            name: rank_correlation(maps["attention"].numpy(), maps[name].numpy())
            for name in ("grad_cam", "motion", "centre")
        }
    return {
        "predicted": class_index,
        "probability": float(look.probabilities[0, class_index]),
        "curves": curves,
        "alike": alike,
    }


def _randomised(network: _Network, clips: _Clips, rows: list[int], seed: int) -> dict[str, dict[str, list[float]]]:
    """Return by part of the network and map the rank correlation with the trained network's map, mean over DRAWS.

    From the part named first on down to it all weights are random.
    """
    chosen = [clips[row] for row in rows]

    def looks(model: STABN, classes: Tensor | None) -> Iterable[_Look]:
        changed = dataclasses.replace(network, model=model)
        for start in range(0, len(chosen), network.batch_size):
            some = slice(start, start + network.batch_size)
            batch = clips.tensor(chosen[some], network.device)
            yield changed.look(batch, None if classes is None else classes[some])

    def maps(found: Iterable[_Look]) -> dict[str, np.ndarray]:
        parts = list(found)
        names = {"Mt": "temporal", "Ms": "spatial", "Grad-CAM": "cam"}
        return {name: torch.cat([getattr(part, field) for part in parts]).numpy() for name, field in names.items()}

    first = list(looks(network.model, None))
    classes, own = torch.cat([part.classes for part in first]), maps(first)
    sums: dict[str, dict[str, np.ndarray]] = {}
    for draw in Progress(DRAWS, "random weights", "networks").track(range(DRAWS)):
        for name, model in randomised_networks(network.model, seed + draw):
            for kind, values in maps(looks(model, classes)).items():
                alike = [rank_correlation(a, b) for a, b in zip(own[kind], values, strict=True)]
                row = sums.setdefault(name, {})
                row[kind] = row.get(kind, 0) + np.array(alike) / DRAWS
    return {name: {kind: values.round(DIGITS).tolist() for kind, values in row.items()} for name, row in sums.items()}


def _pictures(
    network: _Network, clips: _Clips, rows: list[int], manifest: Manifest, storage: Storage
) -> list[dict[str, str]]:
    """Draw the attention beside Grad-CAM, at the frames that the network sees; write the PNGs too."""
    pictures = []
    for row in rows:
        clip, video = clips[row], manifest.video(row)
        look = network.look(clips.tensor([clip], network.device))
        predicted, cam = int(look.classes[0]), look.cam[0].numpy()
        known = video.class_index >= 0
        title = f"{class_name(manifest.classes, predicted)}, {float(look.probabilities[0, predicted]):.0%}"
        correct = predicted == video.class_index if known else None
        over_time = cam.mean((1, 2))
        panels = [
            Panel(f"attention: {title}", correct, look.temporal[0].numpy(), look.spatial[0].numpy()),
            Panel(f"Grad-CAM: {title}", correct, over_time / max(float(over_time.max()), 1e-12), cam),
        ]
        true = f": {class_name(manifest.classes, video.class_index)}" if known else ""
        picture = attention_figure(
            clip.pixels, panels, heading=f"Video {video.video_id}{true}", over="frames that the network sees"
        )
        storage.write(f"{PICTURES_DIR}/{check_id(video.video_id, 'video id')}.png", picture)
        pictures.append({"video_id": video.video_id, "png": base64.b64encode(picture).decode()})
    return pictures
