"""Stage extract-frames: videos become packed JPEG frames in object storage, and the manifest that names them."""

import hashlib
import io
import json
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from stabn.config import ExtractConfig, fingerprint, to_dict
from stabn.data.manifest import Manifest, build_manifest
from stabn.data.ssv2 import Video, load_labels
from stabn.data.video import decode
from stabn.errors import StabnError
from stabn.progress import Progress
from stabn.storage import ObjectNotFound, Storage, open_storage
from stabn.tracking import stage_run

PART_SECONDS = 5.0
REJECT_SCHEMA = pa.schema([("video_id", pa.string()), ("split", pa.string()), ("reason", pa.string())])


class ExtractError(StabnError):
    """Too few videos could be used."""


def extract_frames(
    videos_uri: str, labels_uri: str, storage_uri: str, manifest_path: Path, rejects_path: Path, config: ExtractConfig
) -> Manifest:
    """Decode every labelled video, store its frames as one object, and write the manifest.

    The storage keeps a record of each finished video, so that a run that was killed and started again decodes only
    what is missing or changed, and ends in the same manifest.

    Args:
        videos_uri: folder or prefix with `<id>.webm`.
        labels_uri: folder or prefix with the four SSv2 label files.
        storage_uri: folder or prefix that gets the frames.
        manifest_path: Parquet file to write.
        rejects_path: Parquet file to write: the videos that cannot be used, with the reason.
        config: size and quality of the frames.

    Raises:
        ExtractError: no video is usable, or more than `config.max_reject_share` are not; the rejects are written first.
    """
    settings = {
        name: value for name, value in to_dict(config).items() if name in ("short_side", "jpeg_quality", "decoder")
    }
    with stage_run("extract-frames", settings={**settings, "videos": videos_uri}, inputs={}) as run:
        labels = load_labels(labels_uri)
        target = open_storage(storage_uri).child(f"frames-{fingerprint(settings)}")
        rows, rejects = _extract_all(labels.videos, open_storage(videos_uri), target, config)
        pq.write_table(pa.Table.from_pylist(rejects, schema=REJECT_SCHEMA), rejects_path)
        run.log_metrics(
            {"videos": len(rows), "rejects": len(rejects), "frames": sum(row["num_frames"] for row in rows)}
        )
        if not rows or len(rejects) > config.max_reject_share * len(labels.videos):
            kinds = Counter(reject["reason"].split(":")[0] for reject in rejects).most_common(3)
            raise ExtractError(
                f"{len(rejects)} of {len(labels.videos)} videos of {videos_uri} cannot be used, more than "
                f"extract.max_reject_share = {config.max_reject_share:g} allows; most frequent: "
                f"{', '.join(f'{kind} ({count})' for kind, count in kinds)}; all in {rejects_path}"
            )
        manifest = build_manifest(rows, labels.classes, target.uri, settings)
        temporary = manifest_path.with_name(manifest_path.name + ".partial")
        manifest.save(temporary)
        temporary.replace(manifest_path)
        run.set_tags({"stabn.dataset_fingerprint": manifest.fingerprint})
    return manifest


def _extract_all(
    videos: Sequence[Video], source: Storage, target: Storage, config: ExtractConfig
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Return the manifest's rows and the rejects, in the order of the videos."""
    known = dict(_read_parts(target))
    rows: list[dict[str, Any]] = []
    rejects: list[dict[str, str]] = []
    parts = _PartWriter(target, known)
    progress = Progress(len(videos), "extract-frames")
    workers = config.workers or len(os.sched_getaffinity(0))
    task = _Extraction(source, target, config)
    jobs = [(video, known.get(video.video_id)) for video in videos]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(task,)) as pool:
        for video, (record, reason) in zip(videos, pool.map(_run, jobs, chunksize=4), strict=True):
            if record is None:
                rejects.append({"video_id": video.video_id, "split": video.split, "reason": reason})
            else:
                parts.add(video.video_id, record)
                rows.append({**record, **video._asdict()})
            progress.update(1, rejects=len(rejects))
    parts.flush()
    progress.close()
    return rows, rejects


class _Extraction:
    """The work of one process: a video's bytes in, its packed frames out."""

    def __init__(self, source: Storage, target: Storage, config: ExtractConfig) -> None:
        self.source, self.target, self.config = source, target, config

    def __call__(self, video: Video, known: dict[str, Any] | None) -> tuple[dict[str, Any] | None, str]:
        """Return the video's record, or None and the reason why it cannot be used."""
        key = f"{video.video_id}.mjpeg"
        try:
            data = self.source.read(f"{video.video_id}.webm")
        except ObjectNotFound:
            return None, "missing: no such file"
        if not data:
            return None, "empty: the file has no bytes"
        sha256 = hashlib.sha256(data).hexdigest()
        if known and known["source_sha256"] == sha256 and self.target.exists(key):
            return known, ""
        try:
            packed, record = pack_frames(data, self.config, video.video_id)
        except StabnError as error:
            return None, f"undecodable: {error}"
        self.target.write(key, packed)
        return {"object_key": key, "source_sha256": sha256, **record}, ""


def pack_frames(data: bytes, config: ExtractConfig, video_id: str) -> tuple[bytes, dict[str, Any]]:
    """Decode a video and lay its frames end to end as JPEGs, a raw MJPEG stream that ffmpeg plays.

    Returns:
        The stream, and the frames' sizes in bytes, number, width and height.

    Raises:
        StabnError: the video cannot be decoded or has no frame.
    """
    jpegs: list[bytes] = []
    width = height = 0
    for frame in decode(io.BytesIO(data), config.decoder, short_side=config.short_side):
        height, width = frame.shape[:2]
        jpegs.append(simplejpeg.encode_jpeg(frame, quality=config.jpeg_quality, colorspace="RGB"))
    if not jpegs:
        raise ExtractError(f"video {video_id}: it has no frame")
    sizes = [len(jpeg) for jpeg in jpegs]
    return b"".join(jpegs), {"frame_sizes": sizes, "num_frames": len(jpegs), "width": width, "height": height}


_extraction: _Extraction


def _start(extraction: _Extraction) -> None:
    global _extraction
    _extraction = extraction


def _run(job: tuple[Video, dict[str, Any] | None]) -> tuple[dict[str, Any] | None, str]:
    return _extraction(*job)


class _PartWriter:
    """Keep the records of finished videos in the storage, some seconds' worth to an object."""

    def __init__(self, storage: Storage, known: dict[str, dict[str, Any]]) -> None:
        self.storage, self.known = storage, known
        self.pending: dict[str, dict[str, Any]] = {}
        self.written = time.monotonic()

    def add(self, video_id: str, record: dict[str, Any]) -> None:
        if self.known.get(video_id) != record:
            self.pending[video_id] = record
        if time.monotonic() - self.written > PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self.pending:
            data = json.dumps(self.pending).encode()
            self.storage.write(f"records/{time.time_ns():020d}.json", data)
        self.pending = {}
        self.written = time.monotonic()


def _read_parts(storage: Storage) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the records of finished videos, newer ones after older ones."""
    for key in storage.list("records/"):
        yield from json.loads(storage.read(key)).items()
