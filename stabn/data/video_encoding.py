"""Encode frames as video files."""

import itertools
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

import ffmpeg
import numpy as np

from stabn.data.ffmpeg_process import run_ffmpeg
from stabn.data.video_structure import VideoError

CODECS: dict[str, dict[str, object]] = {
    "vp9": {
        "format": "webm", "vcodec": "libvpx-vp9", "pix_fmt": "yuv420p", "crf": 34, "video_bitrate": 0,
        "deadline": "realtime", "cpu-used": 8, "row-mt": 0, "lag-in-frames": 0,
    },
    "h264": {"format": "mp4", "vcodec": "libx264", "pix_fmt": "yuv420p", "crf": 23, "preset": "veryfast"},
}  # fmt: skip


def encode(
    path: str | os.PathLike[str],
    frames: Iterable[np.ndarray],
    fps: float,
    *,
    codec: str = "vp9",
    crf: int | None = None,
) -> None:
    """Write frames as a video file, whole or not at all; the same frames give the same bytes.

    Args:
        path: file to write; its folder must exist.
        frames: uint8 (H, W, 3) RGB, all of one size. h264 cuts an odd last row or column, which it cannot hold.
        fps: frames per second.
        codec: vp9 (WebM, as in Something-Something v2) or h264 (MP4).
        crf: quality, lower is better; None: the codec's default here.

    Raises:
        VideoError: no frames, a frame of another shape or type, or ffmpeg's own message.
    """
    if codec not in CODECS:
        raise VideoError(f"{path}: codec {codec!r}: choose one of {', '.join(CODECS)}")
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise VideoError(f"{path}: no frames to write; give at least one")
    height, width = first.shape[:2]
    settings = CODECS[codec] | ({} if crf is None else {"crf": crf})
    if codec == "h264":
        settings["vf"] = "crop=trunc(iw/2)*2:trunc(ih/2)*2"
    part = Path(f"{path}.{os.getpid()}.part")
    stream = ffmpeg.input("pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}", framerate=fps).output(
        f"file:{part}", threads=1, fflags="+bitexact", flags="+bitexact", map_metadata=-1, **settings
    )
    try:
        with run_ffmpeg(stream, path, stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            for number, frame in enumerate(itertools.chain([first], frames)):
                if frame.shape != (height, width, 3) or frame.dtype != np.uint8:
                    raise VideoError(
                        f"{path}: frame {number} is {frame.dtype} {frame.shape}; expected uint8 {(height, width, 3)}"
                    )
                process.stdin.write(np.ascontiguousarray(frame).data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
