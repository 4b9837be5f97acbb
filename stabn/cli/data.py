"""Commands on data: a small dataset, and frames from videos."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from stabn.commands import argument, command, stage_command
from stabn.config import RunConfig

OUTPUTS = (
    argument("--manifest", metavar="PATH", default="manifest.parquet", help="manifest to write"),
    argument("--rejects", metavar="PATH", default="rejects.parquet", help="list of unusable videos to write"),
)


@command(
    "mini-dataset",
    argument("folder", help="folder to write videos, labels and segments.json to"),
    argument("--size", default="demo", help="`demo`: the variant's usual one; or the number of videos"),
    argument("--seed", type=int, default=0, help="the same seed gives the same videos"),
    argument("--workers", type=int, default=0, help="processes; 0: one per core"),
    argument("--variant", default="demo", help="demo; or knowledge, on which knowing when an action happens helps"),
)
def mini_dataset(args: Namespace, config: RunConfig) -> None:
    """Render a small dataset of real WebM files in exactly Something-Something v2's layout."""
    from stabn.data.mini import make_mini_dataset

    size = int(args.size) if args.size.isdigit() else args.size
    result = make_mini_dataset(args.folder, size, args.seed, args.workers, variant=args.variant)
    print(f"{result.num_videos} videos in {result.videos_dir}, labels in {result.labels_dir}")


@stage_command("extract-frames", *OUTPUTS)
def extract_frames(args: Namespace, config: RunConfig) -> None:
    """Turn videos into frames in object storage, one object per video, and write the manifest that names them.

    Reads video files and their labels: those of Something-Something v2, or a table labels.csv with the columns path (or
    id), label and split. The videos may lie in a folder or s3:// prefix, also in folders below it, or still be in the
    dataset's own archive (20bn-something-something-v2-00, -01, …), which is read without unpacking. Started again after
    an interruption, it decodes only what is missing. To share the work between machines, run it with --part 1/n to n/n
    and the same options, and then `stabn merge-frames --parts n`.
    """
    from stabn.data import frames

    if args.part:
        part = frames.Part.parse(args.part)
        print(f"part {part}: {frames.extract_part(args.videos, args.labels, args.storage, part, config.extract)}")
        return
    manifest = frames.extract_frames(
        args.videos, args.labels, args.storage, Path(args.manifest), Path(args.rejects), config.extract
    )
    _say_manifest(manifest, args.manifest)


@stage_command(
    "merge-frames",
    argument("--parts", type=int, metavar="n", help="how many parts the work was shared out to"),
    *OUTPUTS,
)
def merge_frames(args: Namespace, config: RunConfig) -> None:
    """Make one manifest of the parts that `stabn extract-frames --part i/n` did, with the same options as there.

    The result is the same as without parts, whatever their number.
    """
    from stabn.data import frames

    manifest = frames.merge_frames(
        args.videos, args.labels, args.storage, args.parts, Path(args.manifest), Path(args.rejects), config.extract
    )
    _say_manifest(manifest, args.manifest)


@command(
    "croissant",
    argument("--manifest", metavar="URI", help="manifest of extract-frames"),
    argument("--edits", metavar="URI", default="", help="edit table of import-edits, to publish with it"),
    argument("--name", metavar="TEXT", help="name of the dataset"),
    argument("--license", metavar="TEXT", help="address or SPDX name of the licence, such as CC-BY-4.0"),
    argument("--description", metavar="TEXT", default="", help="a few sentences; default: what the files tell"),
    argument("--url", metavar="URL", default="", help="page of the dataset, if it has one"),
    argument("--cite", metavar="TEXT", default="", help="how a paper cites it, such as BibTeX"),
    argument("--output", metavar="DIR", help="folder or s3:// prefix for the files, to be published"),
)
def croissant(args: Namespace, config: RunConfig) -> None:
    """Describe a dataset and its corrections for others: both tables and Croissant metadata in one folder.

    Croissant is what dataset search engines and ML libraries read (mlcroissant). The frames are named, not copied.
    """
    from stabn.data.croissant import export_dataset

    told = {name: getattr(args, name) for name in ("name", "license", "description", "url", "cite")}
    print(f"croissant: {export_dataset(args.manifest, args.edits, args.output, **told)}")


def _say_manifest(manifest: Any, path: str) -> None:
    print(f"{len(manifest)} videos, {len(manifest.classes)} classes, fingerprint {manifest.fingerprint}: {path}")
