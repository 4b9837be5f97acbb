"""Render a small stand-in for Something-Something v2: real WebM files in its layout, actions made of motion alone.

Every video shows two objects and a camera; most show a hand. The action is a short segment `[first, last)`. Around it
there is motion that means nothing: mild in EASY actions, long and as large as other classes' actions in HARD ones.
What tells the action from the misleading motion is that the hand touches the object in the segment and only there.
"""

import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from stabn.config import fingerprint
from stabn.data.ssv2 import LABELS_FILE, SPLIT_FILES, SPLITS, template_to_class
from stabn.data.video import encode
from stabn.errors import StabnError

DEMO_VIDEOS = 580
SPLIT_SHARES = {"train": 420 / 580, "validation": 140 / 580, "test": 20 / 580}
FPS = 12
HEIGHT = 240
WIDTHS = (427, 427, 320)
MIN_FRAMES, MAX_FRAMES = 24, 72
RENDERER_VERSION = 1  # raise it when drawing changes; changes of the tables below are noticed by themselves


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Motion around an action.

    Attributes:
        action_frames: shortest and longest action, in frames.
        idle_frames: frames before and after the action together, shortest and longest.
        amplitude: size of one misleading motion, as a share of the height; 0.35 is an action's own size.
        move_frames: shortest and longest misleading motion, in frames.
        shake: camera shake, in pixels.
    """

    action_frames: tuple[int, int]
    idle_frames: tuple[int, int]
    amplitude: tuple[float, float]
    move_frames: tuple[int, int]
    shake: float = 1.2


EASY = Surroundings(action_frames=(18, 28), idle_frames=(8, 18), amplitude=(0.02, 0.07), move_frames=(5, 10))
HARD = Surroundings(action_frames=(8, 10), idle_frames=(44, 58), amplitude=(0.3, 0.45), move_frames=(6, 10))


@dataclass(frozen=True)
class Action:
    """One class.

    Attributes:
        template: the exact template of Something-Something v2.
        weight: relative number of videos.
        motion: slide, fall, spin (the object), approach, depart (to or from the other object), pan, zoom (the camera).
        direction: unit vector of the motion, x right, y down; ANY: random; IN or OUT for zoom.
        amplitude: size of the motion as a share of the height; zoom: change of log size; spin: turns.
        hand: where it touches the object, seen along the motion: behind, front, any, or none (never touches).
        around: the motion before and after.
    """

    template: str
    weight: float
    motion: str
    direction: tuple[float, float]
    amplitude: tuple[float, float]
    hand: str
    around: Surroundings


LEFT, RIGHT, UP, DOWN = (-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0)
ANY, IN, OUT = (0.0, 0.0), (1.0, 0.0), (-1.0, 0.0)
SLIDE, ZOOM, FALL, TURNS, SHORT = (0.36, 0.5), (0.5, 0.75), (0.5, 0.6), (1.0, 1.8), (0.3, 0.4)

ACTIONS = (
    Action("Pushing [something] from left to right", 3, "slide", RIGHT, SLIDE, "behind", EASY),
    Action("Pushing [something] from right to left", 3, "slide", LEFT, SLIDE, "behind", EASY),
    Action("Turning the camera left while filming [something]", 2, "pan", LEFT, SLIDE, "none", EASY),
    Action("Turning the camera right while filming [something]", 2, "pan", RIGHT, SLIDE, "none", EASY),
    Action("Approaching [something] with your camera", 2, "zoom", IN, ZOOM, "none", EASY),
    Action("Moving away from [something] with your camera", 1.5, "zoom", OUT, ZOOM, "none", EASY),
    Action("Moving [something] up", 3, "slide", UP, SLIDE, "any", EASY),
    Action("Moving [something] down", 2.5, "slide", DOWN, SLIDE, "any", EASY),
    Action("[Something] falling like a rock", 1, "fall", DOWN, FALL, "none", EASY),
    Action("Spinning [something] so it continues spinning", 1.5, "spin", ANY, TURNS, "any", EASY),
    Action("Pulling [something] from left to right", 1.5, "slide", RIGHT, SLIDE, "front", HARD),
    Action("Pulling [something] from right to left", 1.5, "slide", LEFT, SLIDE, "front", HARD),
    Action("Moving [something] closer to [something]", 1.5, "approach", ANY, SHORT, "any", HARD),
    Action("Moving [something] away from [something]", 1.5, "depart", ANY, SHORT, "any", HARD),
)

# Photographs inside the installed scikit-image package, and what an object cut from them is called.
PHOTOGRAPHS = {
    "astronaut.png": "a picture of an astronaut",
    "brick.png": "a piece of brick",
    "camera.png": "a black and white photo",
    "chelsea.png": "a cat picture",
    "coffee.png": "a coffee cup",
    "coins.png": "coins",
    "grass.png": "a tuft of grass",
    "gravel.png": "a stone",
    "hubble_deep_field.jpg": "a star map",
    "ihc.png": "a tissue sample",
    "moon.png": "a moon globe",
    "motorcycle_left.png": "a toy motorcycle",
    "retina.jpg": "an orange ball",
    "rocket.jpg": "a toy rocket",
}
SKIN_TONES = ((224, 172, 138), (198, 134, 94), (141, 92, 62), (240, 200, 170))


class MiniError(StabnError):
    """The mini dataset cannot be made as asked."""


@dataclass(frozen=True)
class MiniDataset:
    """Where a finished mini dataset lies."""

    folder: Path
    videos_dir: Path
    labels_dir: Path
    segments_path: Path
    num_videos: int


@dataclass(frozen=True)
class Plan:
    """What moves in a video, before anything is drawn; lengths in pixels at zoom 1, origin in the middle of the frame.

    Attributes:
        first, last: the action's segment, `first <= frame < last`.
        path: float (num_frames, 6): object x, y, camera x, y, log zoom, object angle in radians.
        anchor: the other object's x, y.
        radii: radius of the object and of the other one.
        hand: float (num_frames, 3): fingertip x, y, direction of the arm in radians; None: no hand in this video.
    """

    first: int
    last: int
    path: np.ndarray
    anchor: np.ndarray
    radii: tuple[float, float]
    hand: np.ndarray | None


@dataclass(frozen=True)
class Entry:
    """One video of the dataset; `index` seeds its randomness."""

    index: int
    video_id: str
    split: str
    action: Action


def make_mini_dataset(
    folder: str | os.PathLike[str],
    size: int | str = "demo",
    seed: int = 0,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> MiniDataset:
    """Render the dataset into a folder; videos that are there already are kept.

    Args:
        folder: gets `videos/<id>.webm`, `labels/*.json`, `segments.json` (id to [first, last) of the action).
        size: number of videos of all splits, or "demo" for DEMO_VIDEOS.
        seed: the same seed and size give the same content, whatever the number of workers.
        workers: processes that render; 0: one per core.
        progress: called with (videos done, videos in all).

    Raises:
        MiniError: too small a size, or the folder holds something else.
    """
    num_videos = DEMO_VIDEOS if size == "demo" else size
    if not isinstance(num_videos, int) or num_videos < 2 * len(ACTIONS) + 1:
        raise MiniError(f"mini dataset of size {size!r}: give 'demo' or a number of at least {2 * len(ACTIONS) + 1}")
    root = Path(folder)
    dataset = MiniDataset(root, root / "videos", root / "labels", root / "segments.json", num_videos)
    _claim(dataset, seed)
    entries = _entries(num_videos, seed)
    _write_labels(dataset, entries, seed)
    missing = [entry for entry in entries if not (dataset.videos_dir / f"{entry.video_id}.webm").exists()]
    done = num_videos - len(missing)
    if progress is not None:
        progress(done, num_videos)
    jobs = [(entry, seed, str(dataset.videos_dir)) for entry in missing]
    for _ in _run(jobs, workers or len(os.sched_getaffinity(0))):
        done += 1
        if progress is not None:
            progress(done, num_videos)
    return dataset


def _run(jobs: list[tuple[Entry, int, str]], workers: int) -> Iterator[None]:
    """Yield once per rendered video."""
    if workers == 1 or len(jobs) < 2:
        yield from map(_render_job, jobs)
        return
    try:
        with ProcessPoolExecutor(min(workers, len(jobs)), multiprocessing.get_context("spawn")) as pool:
            yield from pool.map(_render_job, jobs, chunksize=2)
    except BrokenProcessPool:
        raise MiniError(
            "a process that renders videos died, perhaps out of memory; run again with fewer workers, "
            "videos that are there are kept"
        ) from None


def _render_job(job: tuple[Entry, int, str]) -> None:
    entry, seed, videos_dir = job
    cv2.setNumThreads(1)
    rng = np.random.default_rng((seed, entry.index))
    plan = plan_video(entry.action, rng)
    encode(Path(videos_dir) / f"{entry.video_id}.webm", _draw(plan, _photos(entry, seed), rng), FPS, crf=36)


def _claim(dataset: MiniDataset, seed: int) -> None:
    """Mark the folder as this dataset's, or refuse it."""
    wanted = {"seed": seed, "num_videos": dataset.num_videos, "version": _version()}
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


def _version() -> str:
    """Name everything besides seed and size that the content depends on."""
    return f"{RENDERER_VERSION}-{fingerprint([asdict(action) for action in ACTIONS], PHOTOGRAPHS, SPLIT_SHARES)}"


def _write_json(path: Path, content: Any) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=1))
    os.replace(part, path)


def _entries(num_videos: int, seed: int) -> list[Entry]:
    """Divide the videos into splits and classes; every class is in both labelled splits."""
    rng = np.random.default_rng((seed, num_videos, 0))
    num_test = max(1, round(num_videos * SPLIT_SHARES["test"]))
    num_validation = max(len(ACTIONS), round(num_videos * SPLIT_SHARES["validation"]))
    sizes = {"train": num_videos - num_test - num_validation, "validation": num_validation, "test": num_test}
    names = rng.choice(np.arange(1, max(220_848, 2 * num_videos)), num_videos, replace=False)
    entries: list[Entry] = []
    for split in SPLITS:
        counts = _counts(sizes[split], at_least=0 if split == "test" else 1)
        for action in rng.permutation(np.repeat(np.arange(len(ACTIONS)), counts)):
            index = len(entries)
            entries.append(Entry(index, str(names[index]), split, ACTIONS[action]))
    return entries


def _counts(total: int, at_least: int) -> np.ndarray:
    """Share out videos by the actions' weights: largest remainders, but at least so many each."""
    weights = np.array([action.weight for action in ACTIONS])
    exact = at_least + weights / weights.sum() * (total - at_least * len(ACTIONS))
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    return counts


def _write_labels(dataset: MiniDataset, entries: list[Entry], seed: int) -> None:
    """Write the label files of Something-Something v2 and the segments beside them."""
    classes = sorted(template_to_class(action.template) for action in ACTIONS)
    _write_json(dataset.labels_dir / LABELS_FILE, {name: str(i) for i, name in enumerate(classes)})
    for split in SPLITS:
        rows = [_row(entry, seed) for entry in entries if entry.split == split]
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


# What moves


def plan_video(action: Action, rng: np.random.Generator) -> Plan:
    """Draw the motion of one video of an action."""
    around = action.around
    num_action = int(rng.integers(around.action_frames[0], around.action_frames[1] + 1))
    if action.motion == "fall":
        num_action = int(rng.integers(6, 10))
    num_idle = int(rng.integers(around.idle_frames[0], around.idle_frames[1] + 1))
    num_idle += max(0, MIN_FRAMES - num_action - num_idle)
    num_idle -= max(0, num_action + num_idle - MAX_FRAMES)
    first = round(num_idle * rng.uniform(0.25, 0.75))
    last = first + num_action
    radii = (float(rng.uniform(28, 38)), float(rng.uniform(26, 34)))

    angle = rng.uniform(0, 2 * math.pi)
    direction = np.array(action.direction if any(action.direction) else (math.cos(angle), math.sin(angle)))
    segment, anchor = _action_path(action, direction, num_action, radii, rng)
    before = _misleading_path(segment[0], first, around, rng)[::-1]
    after = _misleading_path(segment[-1], num_idle - first, around, rng)
    path = np.concatenate([before, segment, after])
    shake = cv2.GaussianBlur(rng.normal(size=(len(path), 2)), (1, 9), 2) * around.shake * 2
    path[:, 2:4] += shake.reshape(-1, 2)
    return Plan(first, last, path, anchor, radii, _hand_path(action, direction, path, (first, last), radii[0], rng))


def _action_path(
    action: Action, direction: np.ndarray, num_frames: int, radii: tuple[float, float], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the action itself, (num_frames, 6) as in Plan.path, and where the other object lies."""
    size = rng.uniform(*action.amplitude)
    u = np.linspace(0, 1, num_frames)
    smooth = 0.5 * u + 0.5 * u * u * (3 - 2 * u)
    path = np.zeros((num_frames, 6))
    path[:, 5] = rng.uniform(0, 2 * math.pi)
    middle = rng.uniform((-24, -16), (24, 16))
    path[:, :2] = middle
    anchor = None
    if action.motion in ("slide", "fall"):
        progress = u * u if action.motion == "fall" else smooth
        path[:, :2] += direction * (progress[:, None] - 0.5) * size * HEIGHT
    elif action.motion in ("approach", "depart"):
        # The two lie symmetrically around the middle, touching or nearly so at the near end.
        distance = radii[0] + radii[1] + 2 + (1 - smooth if action.motion == "approach" else smooth) * size * HEIGHT
        anchor = middle / 2 + direction * distance.max() / 2
        path[:, :2] = anchor - direction * distance[:, None]
    elif action.motion == "pan":
        path[:, 2:4] = direction * (smooth[:, None] - 0.5) * size * HEIGHT
    elif action.motion == "zoom":
        path[:, 2:4] = middle * 0.7
        path[:, 4] = direction[0] * (smooth - 0.5) * size
    elif action.motion == "spin":
        turns = np.where(u < 0.25, 2 * u * u, u - 0.125) / 0.875
        path[:, 5] += turns * size * 2 * math.pi * rng.choice((-1, 1))
    else:
        raise MiniError(f"action {action.template!r}: motion {action.motion!r} is not known; see Action")
    return path, _place_anchor(path, radii, rng) if anchor is None else anchor


def _place_anchor(path: np.ndarray, radii: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Find a place for the other object off the object's way, in view."""
    places = rng.uniform((-105, -80), (105, 80), (24, 2))
    distances = np.linalg.norm(places[:, None] - path[None, :, :2], axis=2).min(axis=1)
    free = np.flatnonzero(distances > radii[0] + radii[1] + 6)
    return places[free[0] if len(free) else np.argmax(distances)]


def _misleading_path(start: np.ndarray, num_frames: int, around: Surroundings, rng: np.random.Generator) -> np.ndarray:
    """Continue from a state with motions that mean nothing: slides, pans, zooms, turns; (num_frames, 6)."""
    states = [start]
    while len(states) <= num_frames:
        target = states[-1]
        for _ in range(8):
            move = np.zeros(6)
            size = rng.uniform(*around.amplitude)
            sign = rng.choice((-1, 1))
            kind = rng.choice(4, p=(0.5, 0.25, 0.15, 0.1))
            if kind < 2:
                move[2 * kind + int(rng.random() < 0.35)] = sign * size * HEIGHT
            else:
                move[kind + 2] = sign * size * (1.2 if kind == 2 else 5.0)
            target = states[-1] + move
            seen = np.exp(target[4]) * (target[:2] - target[2:4])
            if abs(seen[0]) < 85 and abs(seen[1]) < 62 and abs(target[4]) < 0.4 and np.abs(target[2:4]).max() < 110:
                break
        else:
            target = states[-1]
        length = int(rng.integers(around.move_frames[0], around.move_frames[1] + 1))
        u = np.linspace(0, 1, length + 1)[1:, None]
        states.extend(states[-1] + (target - states[-1]) * u * u * (3 - 2 * u))
        states.extend([states[-1]] * int(rng.integers(0, 3)))
    return np.array(states[1 : num_frames + 1]).reshape(-1, 6)


def _hand_path(
    action: Action,
    direction: np.ndarray,
    path: np.ndarray,
    segment: tuple[int, int],
    radius: float,
    rng: np.random.Generator,
) -> np.ndarray | None:
    """Let the hand touch the object in the segment and stay clear of it elsewhere; (num_frames, 3) as in Plan.hand."""
    first, last = segment
    touches = action.hand != "none"
    spread = 2 * math.pi if action.hand in ("any", "none") else 0.9
    angle = math.atan2(direction[1], direction[0]) + rng.uniform(-0.5, 0.5) * spread
    angle += math.pi if action.hand == "behind" else 0.0
    side = np.array((math.cos(angle), math.sin(angle)))
    arm = angle + rng.uniform(-0.6, 0.6)
    away = rng.uniform(70, 105)
    if not touches and rng.random() < 0.35:
        return None
    released = first + max(4, (last - first) // 3) if action.motion == "spin" else last
    frames = np.arange(len(path))
    out = np.maximum(np.maximum(first - frames, frames - released + 1), 0) if touches else np.full(len(path), 99)
    near = np.clip(out / 3, 0, 1)
    near = near * near * (3 - 2 * near)
    wobble = 6 * np.stack([np.sin(frames * 0.31 + arm), np.sin(frames * 0.23 + 2 * arm)], axis=1)
    at_contact = path[np.clip(frames, first, last - 1), :2]
    tip = at_contact + side * (radius * 0.6 + near[:, None] * (away + radius * 0.4)) + wobble * near[:, None]
    # Away from the object the hand rests, and draws back along `side`, smoothly, where the object would come near it.
    offset, clear = tip - path[:, :2], radius + 34
    along, distance = offset @ side, np.linalg.norm(offset, axis=1)
    back = np.sqrt(np.maximum(along**2 - distance**2 + clear**2, 0)) - along
    back = np.where((distance < clear) & (out >= 3), back, 0.0)
    back = cv2.blur(cv2.dilate(back, np.ones((9, 1))), (1, 9), borderType=cv2.BORDER_REPLICATE).ravel()
    tip += (near * back)[:, None] * side
    return np.column_stack([tip, arm + 0.08 * np.sin(frames * 0.19 + arm)])


# How it looks


@lru_cache(maxsize=len(PHOTOGRAPHS))
def _photograph(name: str) -> np.ndarray:
    """Read a photograph that scikit-image ships inside its package; uint8 (H, W, 3) RGB, short side at most 512."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise MiniError("the mini dataset is cut from photographs of scikit-image; install stabn[demo]")
    image = cv2.imread(str(Path(spec.origin).parent / "data" / name), cv2.IMREAD_COLOR)
    if image is None:
        raise MiniError(f"scikit-image: no photograph {name} in its data folder; install stabn[demo] again")
    scale = min(1.0, 512 / min(image.shape[:2]))
    return cv2.cvtColor(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)


def _background(name: str, rng: np.random.Generator) -> np.ndarray:
    """Make a calm surface of a photograph: softer and with less contrast than the objects; uint8 (H, W, 4).

    The fourth channel means nothing: OpenCV warps four channels in half the time of three.
    """
    image = cv2.GaussianBlur(_photograph(name), (0, 0), rng.uniform(0.8, 1.6)).astype(np.float32)
    tint = rng.uniform(0.85, 1.15, 3).astype(np.float32)
    image = (image - image.mean()) * rng.uniform(0.5, 0.75) + rng.uniform(85, 150)
    return cv2.cvtColor(np.clip(image * tint, 0, 255).astype(np.uint8), cv2.COLOR_RGB2RGBA)


def _object_sprite(name: str, radius: float, rng: np.random.Generator) -> np.ndarray:
    """Cut an irregular, longish object with a soft edge and a shadow out of a photograph; uint8 (S, S, 4)."""
    side = 2 * math.ceil(radius * 1.35) + 9
    photo = _photograph(name)
    crop = round(min(photo.shape[:2]) * rng.uniform(0.3, 0.6))
    top, left = (int(rng.integers(0, length - crop + 1)) for length in photo.shape[:2])
    image = cv2.resize(photo[top : top + crop, left : left + crop], (side, side), interpolation=cv2.INTER_AREA)
    y, x = (np.mgrid[:side, :side] - side // 2) / radius
    stretch = rng.uniform(1.05, 1.22)
    angle = np.arctan2(y * stretch, x / stretch)
    edge = 1 + sum(rng.uniform(0, 0.16 / k) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in (2, 3, 4, 5))
    depth = edge - np.hypot(y * stretch, x / stretch)
    alpha = np.clip(depth * radius / 2 + 0.5, 0, 1)
    texture = image.astype(np.float32)
    texture = (texture - texture.mean()) * min(2.0, 52 / (texture.std() + 1)) + rng.choice((70, 190))
    texture *= rng.uniform(0.65, 1.3, 3)
    texture *= np.clip(0.6 + 0.9 * depth - 0.15 * (x + y), 0.45, 1.15)[..., None]
    shadow = 0.45 * cv2.GaussianBlur(np.roll(alpha, (4, 3), (0, 1)), (0, 0), 3.0)
    total = alpha + shadow * (1 - alpha)
    return np.dstack([np.clip(texture, 0, 255) * alpha[..., None], total * 255]).astype(np.uint8)


def _hand_sprite(rng: np.random.Generator) -> np.ndarray:
    """Draw a hand, pointing up from a long sleeved arm, fingertips at (60, 30); uint8 (420, 120, 4)."""
    mask = np.zeros((420, 120), np.uint8)
    gaps = np.zeros_like(mask)
    for x, y in ((40, 42), (53, 31), (67, 30), (80, 40)):
        cv2.line(mask, (round(60 + (x - 60) * 0.8), 90), (x, y), 255, 13, cv2.LINE_AA)
    for x, y in ((46, 42), (60, 38), (73, 42)):
        cv2.line(gaps, (round(60 + (x - 60) * 0.85), 88), (x, y), 255, 2, cv2.LINE_AA)
    cv2.line(mask, (36, 108), (17, 72), 255, 14, cv2.LINE_AA)
    cv2.ellipse(mask, (60, 102), (29, 32), 0, 0, 360, 255, -1, cv2.LINE_AA)
    cv2.fillPoly(mask, [np.array([(40, 120), (80, 120), (84, 210), (90, 420), (30, 420), (36, 210)])], 255, cv2.LINE_AA)
    relief = cv2.GaussianBlur(mask, (0, 0), 9).astype(np.float32) / 255
    shade = 0.55 + 0.55 * relief - 0.3 * gaps.astype(np.float32) / 255
    shade += cv2.GaussianBlur(rng.normal(size=mask.shape).astype(np.float32), (0, 0), 2.0) * 0.12
    tone = np.array(SKIN_TONES[rng.integers(len(SKIN_TONES))]) * rng.uniform(0.92, 1.06)
    color = shade[..., None] * tone
    cuff = int(rng.integers(175, 240))
    color[cuff:] = shade[cuff:, :, None] * rng.uniform(40, 200, 3)
    alpha = cv2.GaussianBlur(mask, (0, 0), 0.8)[..., None].astype(np.float32)
    return np.dstack([np.clip(color, 0, 255) * alpha / 255, alpha]).astype(np.uint8)


def _draw(plan: Plan, photos: list[str], rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the frames of a plan, uint8 (HEIGHT, width, 3) RGB."""
    width = int(rng.choice(WIDTHS))
    centre = np.array((width, HEIGHT)) / 2
    background = _background(photos[0], rng)
    surface_scale, surface_angle = rng.uniform(0.7, 1.2), rng.uniform(-0.5, 0.5)
    surface_middle = np.array(background.shape[1::-1]) * rng.uniform(0.35, 0.65, 2)
    sprite, other = (_object_sprite(name, r, rng) for name, r in zip(photos[1:], plan.radii, strict=True))
    other_angle = rng.uniform(0, 2 * math.pi)
    hand, hand_scale = _hand_sprite(rng), rng.uniform(0.8, 1.0)
    noise = rng.normal(0, rng.uniform(1.5, 3.5), (HEIGHT + 32, width + 32, 3)).astype(np.int16)
    gain, flicker, phase = rng.uniform(0.92, 1.05), rng.uniform(0.03, 0.09), rng.uniform(0, 6.3)
    for number, (x, y, camera_x, camera_y, log_zoom, angle) in enumerate(plan.path):
        zoom, camera = math.exp(log_zoom), np.array((camera_x, camera_y))
        cos, sin = (f(surface_angle) / (zoom * surface_scale) for f in (math.cos, math.sin))
        linear = np.array(((cos, -sin), (sin, cos)))
        from_screen = np.column_stack([linear, surface_middle + linear @ (camera * zoom - centre)])
        surface = cv2.warpAffine(
            background,
            from_screen,
            (width, HEIGHT),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        frame = cv2.cvtColor(surface, cv2.COLOR_RGBA2RGB)
        for image, position, turned in ((other, plan.anchor, other_angle), (sprite, np.array((x, y)), angle)):
            middle = (image.shape[1] // 2, image.shape[0] // 2)
            _paste(frame, image, middle, centre + zoom * (position - camera), turned, zoom)
        if plan.hand is not None:
            tip = centre + zoom * (plan.hand[number, :2] - camera)
            _paste(frame, hand, (60, 30), tip, plan.hand[number, 2] - math.pi / 2, zoom * hand_scale)
        top, left = rng.integers(0, 32, 2)
        frame = cv2.convertScaleAbs(frame, alpha=gain + flicker * math.sin(number * 0.12 + phase))
        yield cv2.add(frame, noise[top : top + HEIGHT, left : left + width], dtype=cv2.CV_8U)


def _paste(
    frame: np.ndarray, sprite: np.ndarray, pivot: tuple[int, int], position: np.ndarray, angle: float, scale: float
) -> None:
    """Blend a sprite into a frame, turned and scaled about its pivot, which comes to lie at `position`.

    Args:
        frame: uint8 (H, W, 3), changed in place.
        sprite: uint8 (h, w, 4): colour multiplied by alpha, alpha.
        pivot: x, y in the sprite.
        position: x, y in the frame.
        angle: clockwise, in radians.
        scale: size in the frame over size in the sprite.
    """
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    linear = np.array(((cos, -sin), (sin, cos)))
    offset = position - linear @ np.array(pivot)
    height, width = sprite.shape[:2]
    corners = np.array(((0, 0), (width, 0), (0, height), (width, height))) @ linear.T + offset
    left, top = np.maximum(np.floor(corners.min(axis=0)).astype(int), 0)
    right, bottom = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + 1, frame.shape[1::-1])
    if left >= right or top >= bottom:
        return
    matrix = np.column_stack([linear, offset - (left, top)])
    part = cv2.warpAffine(sprite, matrix, (int(right - left), int(bottom - top)), flags=cv2.INTER_LINEAR)
    clear = cv2.cvtColor(cv2.bitwise_not(cv2.extractChannel(part, 3)), cv2.COLOR_GRAY2RGB)
    under = cv2.multiply(frame[top:bottom, left:right], clear, scale=1 / 255)
    cv2.add(under, cv2.cvtColor(part, cv2.COLOR_RGBA2RGB), dst=frame[top:bottom, left:right])
