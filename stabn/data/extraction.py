"""Decode many videos in parallel processes, each with a time limit, and never twice."""

import hashlib
import io
import multiprocessing
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cv2
import numpy as np
import psutil
import simplejpeg
from pebble import ProcessExpired, ProcessFuture, ProcessPool

from stabn.config import ExtractConfig, fingerprint, to_dict
from stabn.data.frame_target import FrameTarget
from stabn.data.mjpeg import pack, unpack
from stabn.data.records import Records
from stabn.data.sources import SourceVideo, VideoSource
from stabn.data.video import Planes, open_video
from stabn.data.video_structure import VideoError
from stabn.machine import limit_memory, num_cores
from stabn.progress import Progress
from stabn.signals import deaf_children, exit_on_signals, leave_signals_to_parent
from stabn.storage import ObjectNotFound, Storage

LIMITS = ("fps", "min_frames", "max_frames", "max_pixels", "max_mb", "time_limit")
FPS_TOLERANCE = 0.05
JOBS_PER_WORKER = 8  # in flight: enough that no process waits, few enough to hold in memory
MEMORY_BYTES = 4 << 30  # that a process may take beyond what it has at its start
SUFFIX = ".mjpeg"


@dataclass
class Extracted:
    """What came of some videos.

    Attributes:
        records: of the usable ones, see `records.SCHEMA`, with `object_key`.
        rejects: reason by id of the others.
        seen: path by id of all videos at the source, wanted or not; the first, where several have one id.
        num_decoded: how many were not there from earlier.
        num_copies: files that are another one's, byte for byte, under the same id.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    rejects: dict[str, str] = field(default_factory=dict)
    seen: dict[str, str] = field(default_factory=dict)
    num_decoded: int = 0
    num_copies: int = 0


class Job(NamedTuple):
    """One video for a worker process: its record of an earlier run, and whether its object is there."""

    video: SourceVideo
    known: dict[str, Any] | None
    stored: bool


class Done(NamedTuple):
    """A worker's answer: the video's record, whether it was decoded, and the bytes stored."""

    record: dict[str, Any]
    decoded: bool
    num_bytes: int


def extract_videos(
    source: VideoSource, target: Storage, video_ids: set[str], config: ExtractConfig, what: str = "extract-frames"
) -> Extracted:
    """Store the frames of some videos of a source, one object each.

    Frames that are there are replaced only where no other source than this has put frames there: a video of another
    dataset may have the same name.

    Args:
        source: where the videos are.
        target: gets `<id>.mjpeg` and the records of what is done.
        video_ids: the videos wanted, checked ids.
        config: size and quality of the frames, limits.
        what: begins the progress lines.

    Raises:
        RetryableError: the storage failed for good; what is done is kept.
        StorageError: the store cannot be relied on.
        ForeignFrames: another source's frames are there under a video's name.
    """
    return _Extraction(source, target, video_ids, config, what).run()


class _Extraction:
    def __init__(
        self, source: VideoSource, target: Storage, video_ids: set[str], config: ExtractConfig, what: str
    ) -> None:
        self.source, self.target, self.video_ids, self.config, self.what = source, target, video_ids, config, what
        self.limits = _limits(config)
        self.worker = _Worker(source, FrameTarget(target, source.uri), config)
        self.records = Records(target)
        self.stored = {info.key for info in target.scan() if info.key.endswith(SUFFIX)}
        self.result = Extracted()
        self.pending: deque[tuple[str, ProcessFuture]] = deque()
        self.namesakes: dict[str, dict[str, str]] = {}  # by id: path and SHA-256 of files after the first
        self.frames = self.bytes = 0

    def run(self) -> Extracted:
        workers = self.config.workers or num_cores()
        context = multiprocessing.get_context("spawn")
        with exit_on_signals(), Progress(len(self.video_ids), self.what) as self.progress:
            pool = ProcessPool(workers, initializer=_start, initargs=[self.worker], context=context)
            try:
                for video in self.source.videos(self._is_needed):
                    if video.video_id in self.video_ids:
                        self._look_at(video, pool)
                    self.result.seen.setdefault(video.video_id, video.path)
                    while len(self.pending) > JOBS_PER_WORKER * workers:
                        self._collect()
                while self.pending:
                    self._collect()
            except BaseException:
                pool.stop()
                raise
            else:
                pool.close()
            finally:
                pool.join()
                self.records.flush()
            for video_id in sorted(self.video_ids.difference(self.result.seen)):
                self._reject(video_id, "missing: no such file")
            self._settle_namesakes()
        reused = len(self.result.records) - self.result.num_decoded
        if reused:
            print(f"{self.what}: {reused} of {len(self.result.records)} videos were there already", flush=True)
        return self.result

    def _is_needed(self, video_id: str, stamp: str, size: int) -> bool:
        if video_id not in self.video_ids or self._is_too_large(size):
            return False
        if video_id in self.result.seen:  # another file of that id: is it the same?
            return True
        record = self.records.get(video_id)
        return record is None or not self._is_settled(video_id, record, stamp)

    def _is_too_large(self, size: int) -> bool:
        return size > self.config.max_mb << 20

    def _is_settled(self, video_id: str, record: dict[str, Any], stamp: str) -> bool:
        """Tell whether a record of an earlier run still holds."""
        if record["stamp"] != stamp:
            return False
        if record["reason"] is not None:
            return bool(record["limits"] == self.limits)
        return video_id + SUFFIX in self.stored

    def _look_at(self, video: SourceVideo, pool: ProcessPool) -> None:
        if video.video_id not in self.result.seen:
            self._take(video, pool)
            return
        digest = f"too large: {video.size}"
        if not self._is_too_large(video.size):
            data = self.source.read(video.path) if video.data is None else video.data
            digest = hashlib.sha256(data).hexdigest()
        self.namesakes.setdefault(video.video_id, {})[video.path] = digest

    def _settle_namesakes(self) -> None:
        """Reject videos whose id several different files have; of copies of one file the first is used."""
        known = {record["video_id"]: record["source_sha256"] for record in self.result.records}
        for video_id, others in self.namesakes.items():
            different = [path for path, sha256 in others.items() if sha256 != known.get(video_id, sha256)]
            self.result.num_copies += len(others) - len(different)
            if different:
                self.result.records = [item for item in self.result.records if item["video_id"] != video_id]
                self.result.rejects[video_id] = (
                    f"ambiguous: {self.result.seen[video_id]} and {different[0]} differ and have one id; "
                    "name one of them otherwise, or list the videos by path in labels.csv"
                )

    def _take(self, video: SourceVideo, pool: ProcessPool) -> None:
        known = self.records.get(video.video_id)
        if video.size == 0:
            self._reject(video.video_id, "empty: the file has no bytes")
        elif self._is_too_large(video.size):
            self._reject(video.video_id, f"too large: {video.size >> 20} MB, more than {self.config.max_mb} MB")
        elif known and self._is_settled(video.video_id, known, video.stamp):
            self._accept(Done(known, False, 0))  # its record is there already
        else:
            job = Job(video, known, video.video_id + SUFFIX in self.stored)
            with deaf_children():  # the first one starts the pool
                future = pool.schedule(_run, args=[job], timeout=self.config.time_limit)
            self.pending.append((video.video_id, future))

    def _collect(self) -> None:
        video_id, future = self.pending.popleft()
        try:
            done = future.result()
        except TimeoutError:
            self._reject(video_id, f"timeout: not decoded within {self.config.time_limit:g} s")
        except ProcessExpired as error:
            self._reject(video_id, f"crashed: the decoder's process ended with {error.exitcode}")
        else:
            self.records.add(done.record)
            self._accept(done)

    def _accept(self, done: Done) -> None:
        record = done.record
        reason = record["reason"] or _limit_reason(record, self.config)
        if reason:
            self._reject(record["video_id"], reason)
            return
        sizes = np.array(record["frame_sizes"], np.int32)  # a list of Python numbers takes ten times the memory
        self.result.records.append({**record, "frame_sizes": sizes, "object_key": record["video_id"] + SUFFIX})
        self.result.num_decoded += done.decoded
        self.frames += record["num_frames"] if done.decoded else 0
        self.bytes += done.num_bytes
        self._show()

    def _reject(self, video_id: str, reason: str) -> None:
        self.result.rejects[video_id] = reason
        self._show()

    def _show(self) -> None:
        seconds = max(self.progress.seconds, 1e-3)
        self.progress.update(
            1, rejects=len(self.result.rejects), **{"frames/s": self.frames / seconds, "MB": self.bytes >> 20}
        )


class _Worker:
    """The work of one process: a video's bytes in, its packed frames out."""

    def __init__(self, source: VideoSource, target: FrameTarget, config: ExtractConfig) -> None:
        self.source, self.target, self.config = source, target, config
        self.limits = _limits(config)

    def __call__(self, job: Job) -> Done:
        video_id, key = job.video.video_id, job.video.video_id + SUFFIX
        record: dict[str, Any] = {"video_id": video_id, "stamp": job.video.stamp, "limits": self.limits, "reason": None}
        try:
            data = self.source.read(job.video.path) if job.video.data is None else job.video.data
        except ObjectNotFound:
            return Done({**record, "stamp": "", "reason": "missing: gone since the videos were listed"}, False, 0)
        record["source_sha256"] = sha256 = hashlib.sha256(data).hexdigest()
        known = job.known
        if job.stored and known and known["reason"] is None and known["source_sha256"] == sha256:
            return Done({**known, **record}, False, 0)
        file = io.BytesIO(data)
        file.name = job.video.path
        try:
            with open_video(file, self.config.max_pixels) as video:
                record |= {"fps": video.info.fps, "source_width": video.info.width, "source_height": video.info.height}
                if reason := _rate_reason(video.info.fps, self.config):
                    return Done({**record, "reason": reason}, False, 0)
                stored = unpack(self.target.storage.read(key)) if job.stored else None
                if stored and stored[0] == sha256:  # written just before an interruption, its record was not
                    _, sizes, (width, height) = stored
                    frames = {"frame_sizes": sizes, "num_frames": len(sizes), "width": width, "height": height}
                    return Done({**record, **frames}, False, 0)
                packed, frames = _pack(video.planes(self.config.decoder, self.config.short_side), sha256, self.config)
        except VideoError as error:
            return Done({**record, "reason": f"{error.kind}: {error}"}, False, 0)
        except MemoryError:
            return Done({**record, "reason": "too large: decoding takes too much memory"}, False, 0)
        record |= frames
        record["reason"] = _limit_reason(record, self.config)
        if record["reason"] is None:
            record |= self.target.store(key, packed, sha256, job.stored)
        return Done(record, True, len(packed))


def pack_frames(data: bytes, config: ExtractConfig, video_id: str) -> tuple[bytes, dict[str, Any]]:
    """Decode a video and lay its frames end to end as JPEGs.

    Returns:
        The stream, and the frames' sizes in bytes, number, width and height.

    Raises:
        VideoError: the video cannot be decoded or is too long.
    """
    file = io.BytesIO(data)
    file.name = video_id + ".webm"
    with open_video(file, config.max_pixels) as video:
        return _pack(video.planes(config.decoder, config.short_side), hashlib.sha256(data).hexdigest(), config)


def _pack(frames: Iterable[Planes], sha256: str, config: ExtractConfig) -> tuple[bytes, dict[str, Any]]:
    jpegs: list[bytes] = []
    width = height = 0
    for frame in frames:
        if len(jpegs) == config.max_frames:
            raise VideoError(f"more than {config.max_frames} frames; raise extract.max_frames to take it", "too long")
        height, width = frame.luma.shape
        jpegs.append(encode_jpeg(frame, config.jpeg_quality))
    packed, sizes = pack(jpegs, sha256)
    return packed, {"frame_sizes": sizes, "num_frames": len(sizes), "width": width, "height": height}


def encode_jpeg(frame: Planes, quality: int) -> bytes:
    """Encode a frame as JPEG, 4:2:0; the same frame gives the same bytes.

    libjpeg-turbo reads luma up to even sizes: beyond an odd last row or column it would read whatever memory has there.
    """
    height, width = frame.luma.shape
    even = cv2.copyMakeBorder(frame.luma, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    return simplejpeg.encode_jpeg_yuv_planes(even[:height, :width], frame.blue, frame.red, quality=quality)


def _limits(config: ExtractConfig) -> str:
    values = to_dict(config)
    return fingerprint({name: values[name] for name in LIMITS})


def _rate_reason(fps: float, config: ExtractConfig) -> str | None:
    if config.fps and fps and abs(fps - config.fps) > FPS_TOLERANCE * config.fps:
        return f"wrong frame rate: {fps:.4g} frames per second, not extract.fps = {config.fps:g} (0: any)"
    return None


def _limit_reason(record: dict[str, Any], config: ExtractConfig) -> str | None:
    """Say why a decoded video cannot be used with these limits; None if it can."""
    count, width, height = (record[name] for name in ("num_frames", "source_width", "source_height"))
    if count < config.min_frames:
        return f"too short: {count} frame{'s' * (count != 1)}, fewer than extract.min_frames = {config.min_frames}"
    if count > config.max_frames:
        return f"too long: {count} frames, more than extract.max_frames = {config.max_frames}"
    if width * height > config.max_pixels:
        return f"too large: {width} x {height} pixels, more than extract.max_pixels = {config.max_pixels}"
    return _rate_reason(record["fps"], config)


_worker: _Worker


def _start(worker: _Worker) -> None:
    global _worker
    _worker = worker
    leave_signals_to_parent()
    limit = psutil.Process().memory_info().vms + MEMORY_BYTES  # a bomb ends this process' work, not the machine's
    limit_memory(limit)


def _run(job: Job) -> Done:
    return _worker(job)
