"""What moves in the mini dataset: its actions, and the paths of object, hand and camera in one video.

Every video shows two objects and a camera; most show a hand. The action is a short segment `[first, last)`. Around it
there is motion that means nothing: mild in EASY actions, long and as large as other classes' actions in HELPED ones,
and in AMONG_OTHERS each of the other classes' actions once. What tells the action from the misleading motion is that
the hand touches the object in the segment and only there. In HELPED and AMONG_OTHERS it comes into view for that.
"""

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np

from stabn.errors import StabnError

HEIGHT = 240  # of the frames, in pixels
MIN_FRAMES, MAX_FRAMES = 24, 72  # of a video


class MiniError(StabnError):
    """The mini dataset cannot be made as asked."""


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Motion around an action.

    Attributes:
        action_frames: shortest and longest action, in frames.
        idle_frames: frames before and after the action together, shortest and longest.
        amplitude: size of one misleading motion, as a share of the height; 0.35 is an action's own size.
        move_frames: shortest and longest misleading motion, in frames.
        shake: camera shake, in pixels.
        kinds: probabilities of a misleading motion: of the object, of the camera, a zoom, a turn of the object.
        hand_away: how far the hand rests from the object, shortest and longest, in pixels; from about 130 out of view.
        each_way: the misleading motions are slides of the object, one in each direction but the action's own, in any
            order. Then every video shows all four: which ones it has tells nothing, only when each of them is. These
            three take the place of `idle_frames` and `kinds`.
    """

    action_frames: tuple[int, int]
    idle_frames: tuple[int, int]
    amplitude: tuple[float, float]
    move_frames: tuple[int, int]
    shake: float = 1.2
    kinds: tuple[float, float, float, float] = (0.5, 0.25, 0.15, 0.1)
    hand_away: tuple[float, float] = (70, 105)
    each_way: bool = False


EASY = Surroundings(action_frames=(18, 28), idle_frames=(8, 18), amplitude=(0.02, 0.07), move_frames=(5, 10))
# Hard, but with about three of 9 sampled frames in the action: who knows the segment can tell the class.
HELPED = Surroundings(
    action_frames=(15, 17),
    idle_frames=(26, 34),
    amplitude=(0.3, 0.45),
    move_frames=(8, 12),
    kinds=(0.9, 0.04, 0.03, 0.03),
    hand_away=(150, 190),
)
AMONG_OTHERS = replace(HELPED, each_way=True)


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
WAYS = (LEFT, RIGHT, UP, DOWN)
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
    Action("Pulling [something] from left to right", 1.5, "slide", RIGHT, SLIDE, "front", HELPED),
    Action("Pulling [something] from right to left", 1.5, "slide", LEFT, SLIDE, "front", HELPED),
    Action("Moving [something] closer to [something]", 1.5, "approach", ANY, SHORT, "any", HELPED),
    Action("Moving [something] away from [something]", 1.5, "depart", ANY, SHORT, "any", HELPED),
)


# Here nothing but the time tells the hard actions: each is a slide in one of four directions, among the three others.
_TOLD_BY_TIME = {
    "Pulling [something] from left to right",
    "Pulling [something] from right to left",
    "Moving [something] up",
    "Moving [something] down",
}
_TOLD_AT_ONCE = ("pan", "zoom", "fall")  # motions
DEMO_ACTIONS = tuple(
    replace(action, weight=1.3, around=AMONG_OTHERS) if action.template in _TOLD_BY_TIME else replace(action, weight=1)
    for action in ACTIONS
    if action.template in _TOLD_BY_TIME or action.motion in _TOLD_AT_ONCE
)


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


def plan_video(action: Action, rng: np.random.Generator) -> Plan:
    """Draw the motion of one video of an action."""
    around = action.around
    num_action = int(rng.integers(around.action_frames[0], around.action_frames[1] + 1))
    if action.motion == "fall":
        num_action = int(rng.integers(6, 10))
    if around.each_way:
        return _plan_among_others(action, num_action, rng)
    num_idle = int(rng.integers(around.idle_frames[0], around.idle_frames[1] + 1))
    num_idle += max(0, MIN_FRAMES - num_action - num_idle)
    num_idle -= max(0, num_action + num_idle - MAX_FRAMES)
    first = round(num_idle * rng.uniform(0.25, 0.75))
    last = first + num_action
    radii = _radii(rng)

    angle = rng.uniform(0, 2 * math.pi)
    direction = np.array(action.direction if any(action.direction) else (math.cos(angle), math.sin(angle)))
    segment, anchor = _action_path(action, direction, num_action, radii, rng)
    before = _misleading_path(segment[0], first, around, rng)[::-1]
    after = _misleading_path(segment[-1], num_idle - first, around, rng)
    path = np.concatenate([before, segment, after])
    _shake(path, around, rng)
    return Plan(first, last, path, anchor, radii, _hand_path(action, direction, path, (first, last), radii[0], rng))


def _plan_among_others(action: Action, num_action: int, rng: np.random.Generator) -> Plan:
    """Draw one video of a slide that lies among slides in the three other directions, anywhere in time."""
    radii, direction = _radii(rng), np.array(action.direction)
    segment, _ = _action_path(action, direction, num_action, radii, rng)
    others = [np.array(way) for way in rng.permutation([way for way in WAYS if way != action.direction])]
    earlier = int(rng.integers(0, len(others) + 1))
    before = _slides(segment[0], [-way for way in others[:earlier]], action.around, rng)[::-1]
    after = _slides(segment[-1], others[earlier:], action.around, rng)
    first, last = len(before), len(before) + num_action
    path = np.concatenate([before, segment, after])
    path[:, :2] += rng.uniform((-16, -10), (16, 10)) - (path[:, :2].min(0) + path[:, :2].max(0)) / 2
    _shake(path, action.around, rng)
    anchor = _place_anchor(path, radii, rng)
    return Plan(first, last, path, anchor, radii, _hand_path(action, direction, path, (first, last), radii[0], rng))


def _slides(
    start: np.ndarray, directions: list[np.ndarray], around: Surroundings, rng: np.random.Generator
) -> np.ndarray:
    """Continue from a state with one slide of the object in each direction; (num_frames, 6)."""
    states = [start]
    for direction in directions:
        target = states[-1].copy()
        target[:2] += direction * rng.uniform(*around.amplitude) * HEIGHT
        states.extend(_move(states[-1], target, around, rng))
    return np.array(states[1:]).reshape(-1, 6)


def _radii(rng: np.random.Generator) -> tuple[float, float]:
    return float(rng.uniform(28, 38)), float(rng.uniform(26, 34))


def _shake(path: np.ndarray, around: Surroundings, rng: np.random.Generator) -> None:
    """Let the hand that holds the camera tremble."""
    shake = cv2.GaussianBlur(rng.normal(size=(len(path), 2)), (1, 9), 2) * around.shake * 2
    path[:, 2:4] += shake.reshape(-1, 2)


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
            kind = rng.choice(4, p=around.kinds)
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
        states.extend(_move(states[-1], target, around, rng))
    return np.array(states[1 : num_frames + 1]).reshape(-1, 6)


def _move(start: np.ndarray, target: np.ndarray, around: Surroundings, rng: np.random.Generator) -> list[np.ndarray]:
    """Return the states of one smooth misleading motion, and of a short rest after it."""
    length = int(rng.integers(around.move_frames[0], around.move_frames[1] + 1))
    u = np.linspace(0, 1, length + 1)[1:, None]
    states = list(start + (target - start) * u * u * (3 - 2 * u))
    return states + [states[-1]] * int(rng.integers(0, 3))


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
    away = rng.uniform(*action.around.hand_away)
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
