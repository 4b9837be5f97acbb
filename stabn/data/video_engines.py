"""The two engines that decode: PyAV in this process, and a process of ffmpeg. They give the same planes.

Planes are luma and two of chroma at half the resolution, 8 bit in the limited range of BT.601, as videos have them.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, Any

import av
import ffmpeg
import numpy as np

from stabn.data.ffmpeg_process import run_ffmpeg
from stabn.data.video_display import Projector, Size, chain, fit
from stabn.data.video_structure import CONTAINERS, VideoError, reason


def decoded(container: Any, stream: Any, lead: int, name: str) -> Iterator[Any]:
    """Yield the frames that are shown, as PyAV has them.

    Args:
        container, stream: just opened.
        lead: packets at the beginning that may be undecodable.
        name: for messages.
    """
    number = place = 0
    try:
        for packet in container.demux(stream):
            if not packet.size and packet.dts is not None:  # no picture: the last one stays
                continue
            try:
                frames = packet.decode()
            except av.FFmpegError:
                if place >= lead:
                    raise
                frames = []
            for frame in frames:
                yield frame
                number += 1
            place += 1
    except (av.FFmpegError, OSError) as error:
        raise VideoError(
            f"{name}: damaged after frame {number} ({reason(error)}); get the file again or leave it out"
        ) from None


def decode_pyav(frames: Iterator[Any], projector: Projector, name: str) -> Iterator[list[np.ndarray]]:
    """Yield the planes of decoded frames."""
    for number, frame in enumerate(frames):
        try:
            planes = projector.planes(frame)
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"{name}: frame {number} cannot be shown ({reason(error)}); leave it out") from None
        yield planes


def decode_ffmpeg(
    file: IO[bytes], name: str, path: str | None, index: int, error_rate: float, size: Size, max_pixels: int
) -> Iterator[list[np.ndarray]]:
    """Yield the planes that a process of ffmpeg makes.

    Args:
        file, name: the video.
        path: where it lies; None: nowhere under a name, its bytes are copied to a file for a while.
        index: its stream.
        error_rate: share of packets that may be undecodable.
        size: of every frame.
        max_pixels: of a frame; a larger one is an error.
    """
    with ExitStack() as stack:
        if path is None:
            copy = stack.enter_context(tempfile.NamedTemporaryFile(suffix=".video"))
            file.seek(0)
            shutil.copyfileobj(file, copy)
            copy.flush()
            path = copy.name
        stream = ffmpeg.input(
            f"file:{path}",
            threads=1,
            max_error_rate=error_rate,
            max_pixels=max_pixels,
            protocol_whitelist="file",
            format_whitelist=CONTAINERS,
        ).output(
            "pipe:", map=f"0:{index}", format="rawvideo", pix_fmt="yuv420p", fps_mode="passthrough", vf=chain(fit(size))
        )
        shapes = [(size.height, size.width)] + [((size.height + 1) // 2, (size.width + 1) // 2)] * 2
        ends = np.cumsum([rows * columns for rows, columns in shapes])
        process = stack.enter_context(run_ffmpeg(stream, name, stdout=subprocess.PIPE))
        assert process.stdout is not None
        while len(data := np.frombuffer(process.stdout.read(ends[-1]), np.uint8)) == ends[-1]:
            yield [part.reshape(shape) for part, shape in zip(np.split(data, ends[:-1]), shapes, strict=True)]
