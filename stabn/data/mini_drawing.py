"""How the mini dataset looks: photographs, sprites cut from them, and the frames of a plan."""

import math
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from stabn.data.mini_motion import HEIGHT, MiniError, Plan

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


def draw(plan: Plan, photos: list[str], widths: tuple[int, ...], rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the frames of a plan, uint8 (HEIGHT, width, 3) RGB, of one of the widths."""
    width = int(rng.choice(widths))
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
