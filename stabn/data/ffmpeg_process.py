"""The process of ffmpeg that decodes or encodes a video."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import ffmpeg
import imageio_ffmpeg

from stabn.data.video_structure import VideoError
from stabn.signals import deaf_program

MESSAGE_BYTES = 2000  # of what ffmpeg says about a damaged file, without end


@contextmanager
def run_ffmpeg(stream: object, path: object, **pipes: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run an ffmpeg-python stream; the first line that ffmpeg says on stderr becomes the error when it fails."""
    command = ffmpeg.compile(stream, cmd=[imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-y"])
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(command, stderr=stderr, preexec_fn=deaf_program(), **pipes)  # type: ignore[call-overload]
        finished, gave_up = False, False
        try:
            yield process
            finished = True
        except BrokenPipeError:  # ffmpeg's own message says why
            finished = gave_up = True
        finally:
            if not finished:
                process.kill()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):
                        pipe.close()
            process.wait()
        stderr.seek(0)
        said = stderr.read(MESSAGE_BYTES).decode(errors="replace").strip().partition("\n")[0].strip()
    if process.returncode or gave_up:
        raise VideoError(f"{path}: ffmpeg failed with code {process.returncode}: {said or 'no message'}")
