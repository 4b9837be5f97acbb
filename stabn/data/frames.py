"""Stage extract-frames: videos become packed JPEG frames in object storage, and the manifest that names them.

The work is planned from the label files and the listing of the videos, and may be shared out: part i of n takes every
n-th video, and `merge_frames` makes one manifest of the parts. The result depends on neither n nor interruptions.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.compute as pc

from stabn.config import ExtractConfig, fingerprint, to_dict
from stabn.data.extraction import extract_videos
from stabn.data.labels import Reject
from stabn.data.manifest import SCHEMA, Manifest, build_manifest
from stabn.data.presence import check_frames
from stabn.data.sources import open_source
from stabn.data.ssv2 import load_labels
from stabn.errors import StabnError
from stabn.parquet import parse_table, table_bytes
from stabn.stages import SPLITS
from stabn.storage import ObjectNotFound, Storage, open_storage, write_uri
from stabn.tracking import stage_run

FRAME_SETTINGS = ("short_side", "jpeg_quality", "decoder")  # what the stored bytes depend on
NEUTRAL_SETTINGS = ("workers", "max_rejects")
REJECT_SCHEMA = pa.schema([("video_id", pa.string()), ("split", pa.string()), ("reason", pa.string())])
PART_SCHEMA = SCHEMA.append(pa.field("reason", pa.string()))


UNLISTED, MISSING = "unlisted", "missing"
OUTSIDE = {
    UNLISTED: "videos are named by no label file and left alone",
    MISSING: "test videos are not there; nothing is learnt or chosen on them",
}


class ExtractError(StabnError):
    """Too few videos could be used, or parts of the work are missing."""


class Part(NamedTuple):
    """One share of the work: `number` of `total`, counted from 1."""

    number: int = 1
    total: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `2/3`.

        Raises:
            ExtractError: not two numbers with 1 <= i <= n.
        """
        match = re.fullmatch(r"([1-9]\d{0,4})/([1-9]\d{0,4})", text)
        if not match or int(match[1]) > int(match[2]):
            raise ExtractError(f"part {text!r}: write i/n, such as 2/3 for the second of three parts")
        return cls(int(match[1]), int(match[2]))

    def of(self, items: Sequence[Any]) -> Sequence[Any]:
        """Return this part's items."""
        return items[self.number - 1 :: self.total]

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"


def part_names(count: int) -> list[str]:
    """Return the names of all parts, `1/n` to `n/n`.

    Raises:
        ExtractError: fewer than one part.
    """
    if count < 1:
        raise ExtractError(f"{count} parts: share the work out to at least one")
    return [str(Part(number, count)) for number in range(1, count + 1)]


class _Plan:
    """What an extraction is about: the labels, where the frames go, and the settings that decide on the result."""

    def __init__(self, videos_uri: str, labels_uri: str, storage_uri: str, config: ExtractConfig) -> None:
        self.videos_uri, self.config = videos_uri, config
        self.labels = load_labels(labels_uri, config.held_out)
        values = to_dict(config)
        self.settings = {name: values[name] for name in FRAME_SETTINGS}
        self.target: Storage = open_storage(storage_uri).child(f"frames-{fingerprint(self.settings)}")
        limits = {name: value for name, value in values.items() if name not in NEUTRAL_SETTINGS}
        names = fingerprint(self.labels.classes, self.labels.videos, self.labels.rejects)
        self.fingerprint = fingerprint({"videos": videos_uri, "labels": names, **limits})

    def part_key(self, part: Part) -> str:
        return f"parts/{self.fingerprint}/{part.number}-of-{part.total}.parquet"


def extract_frames(
    videos_uri: str, labels_uri: str, storage_uri: str, manifest_path: Path, rejects_path: Path, config: ExtractConfig
) -> Manifest:
    """Decode every labelled video, store its frames as one object, and write the manifest.

    The storage keeps a record of each finished video, so that a run that was killed and started again decodes only
    what is missing or changed, and ends in the same manifest.

    Args:
        videos_uri: folder or prefix with the videos, or with their archive (see `sources.open_source`).
        labels_uri: folder or prefix with the four SSv2 label files.
        storage_uri: folder or prefix that gets the frames.
        manifest_path: Parquet file to write.
        rejects_path: Parquet file to write: the videos that cannot be used, with the reason.
        config: size and quality of the frames, limits.

    Raises:
        ExtractError: no video is usable, or more than `config.max_rejects` are not; the rejects are written first.
        SourceError: no videos there.
    """
    plan = _Plan(videos_uri, labels_uri, storage_uri, config)
    settings = {**plan.settings, "videos": videos_uri}
    with stage_run("extract-frames", settings=settings, inputs={}) as run:
        table = _extract_part(plan, Part())
        return _finish(plan, table, manifest_path, rejects_path, run)


def extract_part(videos_uri: str, labels_uri: str, storage_uri: str, part: Part, config: ExtractConfig) -> str:
    """Do one part of `extract_frames`; what came of it is kept in the storage for `merge_frames`.

    Returns:
        URI of the part's result.
    """
    plan = _Plan(videos_uri, labels_uri, storage_uri, config)
    settings = {**plan.settings, "videos": videos_uri, "part": str(part)}
    with stage_run(f"extract-frames/{part.number}-of-{part.total}", settings=settings, inputs={}) as run:
        table = _extract_part(plan, part)
        plan.target.write(plan.part_key(part), table_bytes(table, compression="zstd"))
        usable = pc.sum(pc.is_null(table["reason"])).as_py() or 0
        run.log_metrics({"videos": usable, "rejects": len(table) - usable})
        return plan.target.locate(plan.part_key(part))


def merge_frames(
    videos_uri: str,
    labels_uri: str,
    storage_uri: str,
    num_parts: int,
    manifest_path: Path,
    rejects_path: Path,
    config: ExtractConfig,
) -> Manifest:
    """Make one manifest of all parts; the same as `extract_frames` would, whatever their number.

    Args:
        num_parts: how many parts the work was shared out to.
        videos_uri, labels_uri, storage_uri, manifest_path, rejects_path, config: as for `extract_frames`.

    Raises:
        ExtractError: a part has not finished with these settings; or as for `extract_frames`.
    """
    plan = _Plan(videos_uri, labels_uri, storage_uri, config)
    with stage_run("merge-frames", settings={**plan.settings, "videos": videos_uri}, inputs={}) as run:
        tables = []
        for part in map(Part.parse, part_names(num_parts)):
            try:
                data = plan.target.read(plan.part_key(part))
            except ObjectNotFound:
                raise ExtractError(
                    f"part {part} of {videos_uri} has not finished with these labels and settings, or what it left was "
                    f"deleted; run: stabn extract-frames --part {part} … with the same options, or on a KFP server add "
                    "`--no-cache extract` to `python -m pipelines submit`"
                ) from None
            tables.append(parse_table(data, PART_SCHEMA))
        return _finish(plan, pa.concat_tables(tables), manifest_path, rejects_path, run)


def _extract_part(plan: _Plan, part: Part) -> pa.Table:
    """Return one row per video of the part: the manifest's columns, or the reason why it cannot be used."""
    source = open_source(plan.videos_uri, plan.labels.id_of)
    everything = sorted(plan.labels.videos, key=lambda video: (len(video.video_id), video.video_id))
    listed = {video.video_id for video in everything} | {reject.video_id for reject in plan.labels.rejects}
    mine = {video.video_id: video for video in part.of(everything)}
    name = "extract-frames" if part.total == 1 else f"extract-frames {part}"
    result = extract_videos(source, plan.target, set(mine), plan.config, name)
    rejects = [Reject(id, mine[id].split, reason) for id, reason in result.rejects.items()]
    rejects += part.of(plan.labels.rejects)
    unlisted = sorted(set(result.seen) - listed)
    rejects += [Reject(id, "", f"{UNLISTED}: no label file names this video") for id in part.of(unlisted)]
    if result.num_copies:
        print(
            f"{name}: {result.num_copies} files are copies of others of the same id; each video counts once", flush=True
        )
    rows = [{**record, **mine[record["video_id"]]._asdict(), "reason": None} for record in result.records]
    rows += [reject._asdict() for reject in rejects]
    return pa.Table.from_pylist(rows, schema=PART_SCHEMA)


def _finish(plan: _Plan, table: pa.Table, manifest_path: Path, rejects_path: Path, run: Any) -> Manifest:
    """Write the rejects and, unless they are too many, the manifest."""
    usable = table.filter(pc.is_null(table["reason"])).select(SCHEMA.names)
    found = table.filter(pc.is_valid(table["reason"])).select(REJECT_SCHEMA.names).to_pylist()
    rejects = [row for row in found if not _is_outside(row)]
    total = len(table) - len(found) + len(rejects)
    outside = Counter(str(row["reason"]).split(":")[0] for row in found if _is_outside(row))
    for kind, what in OUTSIDE.items():
        if outside[kind]:
            print(f"{outside[kind]} {what}", flush=True)
    run.log_metrics({f"outside_{kind}": count for kind, count in outside.items()})
    order = {split: number for number, split in enumerate(SPLITS)}
    rejects.sort(key=lambda row: (order.get(row["split"], len(order)), row["video_id"], row["reason"]))
    write_uri(rejects_path, table_bytes(pa.Table.from_pylist(rejects, schema=REJECT_SCHEMA)))
    kinds = Counter(reject["reason"].split(":")[0] for reject in rejects)
    summary = ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common())
    if rejects:
        example = next(item for item in rejects if item["reason"].startswith(f"{kinds.most_common(1)[0][0]}:"))
        summary += f", such as {example['video_id']} ({example['reason']})"
    num_frames = pc.sum(usable["num_frames"]).as_py() or 0
    run.log_metrics({"videos": len(usable), "rejects": len(rejects), "frames": num_frames})
    run.log_metrics({f"rejects_{re.sub('[^a-z0-9]+', '_', kind)}": count for kind, count in kinds.items()})
    if not len(usable):
        raise ExtractError(f"{plan.videos_uri}: no video can be used: {summary}; all are listed in {rejects_path}")
    if len(rejects) > plan.config.max_rejects * total:
        raise ExtractError(
            f"{len(rejects)} of {total} videos of {plan.videos_uri} cannot be used, more than --max-rejects "
            f"{plan.config.max_rejects:g} allows: {summary}; all are listed in {rejects_path}"
        )
    if rejects:
        print(f"{len(rejects)} of {total} videos are left out: {summary}; see {rejects_path}", flush=True)
    manifest = build_manifest(usable, plan.labels.classes, plan.target.uri, plan.settings)
    run.log_dataset(manifest.dataset, "extract-frames")
    check_frames(manifest)  # a part that KFP's cache calls done may have lost them
    manifest.save(manifest_path)
    run.set_tags({"stabn.dataset_fingerprint": manifest.fingerprint})
    return manifest


def _is_outside(row: dict[str, Any]) -> bool:
    """Tell what is no part of the dataset from its damage: files without a label, test videos that nobody has."""
    kind = str(row["reason"]).split(":")[0]
    return kind == UNLISTED or (kind == MISSING and row["split"] == "test")
