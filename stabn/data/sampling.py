"""Which source frames a clip is made of (paper, section 4.1)."""

import numpy as np


def training_sample(num_source: int, num_frames: int, num_clips: int, rng: np.random.Generator) -> np.ndarray:
    """Draw one random frame from each of `num_frames` equal segments, for each clip.

    With several clips ("32x2") the video's frames are divided at random into as many parts, one clip from each, as
    far as it has enough frames; frames repeat evenly when a part is shorter than the clip.

    Args:
        num_source: frames of the video, at least 1.
        num_frames: frames per clip, T.
        num_clips: clips per video.
        rng: source of randomness.

    Returns:
        int64 (num_clips, T), ascending in time, values in [0, num_source).
    """
    if num_clips == 1:
        return _jittered(np.arange(num_source), num_frames, rng)[None]
    order = rng.permutation(num_source)
    parts = [np.sort(order[clip::num_clips]) for clip in range(num_clips)]
    everything = np.arange(num_source)
    return np.stack([_jittered(part if len(part) else everything, num_frames, rng) for part in parts])


def evaluation_sample(num_source: int, num_frames: int, num_clips: int) -> np.ndarray:
    """Take the middle frame of each of `num_frames` equal segments; further clips lie evenly between.

    Returns:
        int64 (num_clips, T), ascending in time, values in [0, num_source). The same for every call.
    """
    offsets = (np.arange(num_clips) + 0.5) / num_clips
    positions = (np.arange(num_frames)[None] + offsets[:, None]) * num_source / num_frames
    return np.minimum(positions.astype(np.int64), num_source - 1)


def covering_samples(num_source: int, num_frames: int) -> np.ndarray:
    """Shift the sampling so that over some passes every source frame is seen at least once.

    Returns:
        int64 (num_passes, T), each pass ascending in time and spread over the whole video;
        num_passes = ceil(num_source / num_frames).
    """
    num_passes = -(-num_source // num_frames)
    return evaluation_sample(num_source, num_frames, num_passes)


def _jittered(frames: np.ndarray, num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Draw one of `frames` at random from each of `num_frames` equal segments of them."""
    positions = (np.arange(num_frames) + rng.random(num_frames)) * len(frames) / num_frames
    return frames[np.minimum(positions.astype(np.int64), len(frames) - 1)]
