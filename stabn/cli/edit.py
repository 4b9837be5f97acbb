"""Commands around a round of corrections: make it, wait for it, collect it."""

from argparse import Namespace
from pathlib import Path

from stabn.commands import argument, stage_command
from stabn.config import RunConfig
from stabn.storage import open_storage, owned

IMPORTED = ("edits.parquet", "manifest.parquet", "checkpoint.pt", "selection.json")


@stage_command("export-attention")
def export_attention(args: Namespace, config: RunConfig) -> None:
    """Write an editing round: for every selected video its attention per source frame, pictures and a preview."""
    from stabn.attention.export import export_round

    print(f"round: {export_round(args.checkpoint, args.manifest, args.selection, args.storage, config).uri}")


@stage_command("edits")
def edits(args: Namespace, config: RunConfig) -> None:
    """Wait until people have corrected a round, or write corrections from known action segments."""
    from stabn.attention.automatic import collect_edits

    collect_edits(args.round, args.source, args.segments, args.min_share, args.timeout_hours * 3600)


@stage_command("import-edits", argument("--output", metavar="DIR", help=f"folder for {', '.join(IMPORTED)}"))
def import_edits(args: Namespace, config: RunConfig) -> None:
    """Check every correction of a round and collect them in one table, beside the round's network and manifest."""
    from stabn.attention.edits import import_round

    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    with owned(open_storage(folder), "import-edits", {"round": args.round}):
        summary = import_round(args.round, *(folder / name for name in IMPORTED))
    print(", ".join(f"{name} {value}" for name, value in summary.counts().items()))
