"""The command line: one command per stage, its flags made from the settings' own fields."""

import argparse
import dataclasses
import inspect
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import stabn
from stabn import presets
from stabn.config import LOADING as LOADING_NAMES
from stabn.config import SECTIONS, RunConfig, override
from stabn.errors import StabnError

Arguments = argparse.Namespace
COMMANDS: dict[str, "Command"] = {}


@dataclasses.dataclass(frozen=True)
class Command:
    """One command: its function, the settings it takes as flags, and how its arguments are added."""

    run: Callable[[Arguments, RunConfig], None]
    sections: tuple[str, ...]
    arguments: tuple[tuple[tuple[str, ...], dict[str, Any]], ...]
    default_preset: str = "ssv2_r50_32"


def argument(*names: str, **options: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Declare an argument; options as for argparse. A name without a default is required."""
    if names[0].startswith("--") and "default" not in options and "action" not in options:
        options["required"] = True
    return names, options


def command(name: str, *arguments: Any, sections: Sequence[str] = (), preset: str = "ssv2_r50_32") -> Callable:
    """Register a function as a command; its docstring is the help that a newcomer reads."""

    def register(run: Callable[[Arguments, RunConfig], None]) -> Callable[[Arguments, RunConfig], None]:
        COMMANDS[name] = Command(run, tuple(sections), arguments, preset)
        return run

    return register


MANIFEST = argument("--manifest", metavar="URI", help="manifest of extract-frames, a path or s3:// URI")
CHECKPOINT = argument("--checkpoint", metavar="URI", help="checkpoint of train, finetune or import-checkpoint")
LOADING = tuple(f"data.{name}" for name in LOADING_NAMES)
COMPUTING = ("train.device", "train.precision")
EVALUATING = (*LOADING, *COMPUTING, "train.batch_size", "train.micro_batch_size", "train.processes")
PROFILE = argument("--profile", metavar="PATH", default="", help="trace of a few steps, opens in ui.perfetto.dev")
OUTPUT = argument("--output", metavar="PATH", help="file to write")


@command(
    "demo",
    argument("--dir", metavar="D", default="demo", help="folder that gets everything the demo makes"),
    argument("--size", type=int, default=0, help="videos of the mini dataset; 0: the size the demo is tuned for"),
    argument("--seed", type=int, default=0, help="seed of the mini dataset"),
    preset="mini",
)
def _demo(args: Arguments, config: RunConfig) -> None:
    """Run the whole job on a generated mini dataset: no cluster, no GPU, no account, about six minutes.

    Renders a small video dataset, starts a local S3 server and an MLflow database, and runs the KFP pipeline `full`
    with KFP's local runner. Run again, it goes on where it was interrupted and reuses what is done.
    """
    from pipelines.demo import demo

    demo(Path(args.dir), size=args.size, seed=args.seed)


@command(
    "local",
    argument("--dir", metavar="D", default="demo", help="folder of the demo"),
    argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what to run"),
)
def _local(args: Arguments, config: RunConfig) -> None:
    """Run a command with the demo's object storage and MLflow at hand: `stabn local -- stabn evaluate …`.

    Starts the local S3 server on the demo's data, sets the AWS_* and MLFLOW_* variables, runs the command, and stops
    the server when it ends.
    """
    import subprocess

    from stabn.local_services import local_object_store, prepare_mlflow

    words = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not words:
        raise StabnError("local: name a command to run, such as: stabn local -- stabn explain --help")
    folder = Path(args.dir)
    if not folder.is_dir():
        raise StabnError(f"{folder}: no such folder; run `stabn demo --dir {folder}` first")
    environment = {"MLFLOW_TRACKING_URI": prepare_mlflow(folder / "mlflow")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    with local_object_store(folder / "storage"):
        sys.exit(subprocess.run(words, env={**os.environ, **environment, "PATH": path}).returncode)


@command(
    "doctor",
    argument("--storage", metavar="URI", default="", help="folder or s3:// prefix; else STABN_STORAGE_URI"),
    argument("--kfp", metavar="URL", default="", help="KFP API; else KF_PIPELINES_ENDPOINT"),
    argument("--namespace", default="", help="of TrainJobs; else STABN_TRAINJOB_NAMESPACE, else this one"),
)
def _doctor(args: Arguments, config: RunConfig) -> None:
    """Try every connection that a run needs and say what to fix: S3, MLflow, KFP, Kubernetes, Trainer, GPU.

    One line for each: ok, failed or skipped, with the reason and the remedy; exit code 1 if something failed. What to
    check comes from the variables that a run has (AWS_*, MLFLOW_TRACKING_URI, KUBECONFIG); what is not set is skipped.
    """
    from components.doctor import Places, examine

    given = {"storage_uri": args.storage, "kfp_host": args.kfp, "namespace": args.namespace}
    places = dataclasses.replace(Places.from_environment(), **{name: text for name, text in given.items() if text})
    if not examine(places, lambda line: print(line, flush=True)):
        sys.exit(1)


@command(
    "mini-dataset",
    argument("folder", help="folder to write videos, labels and segments.json to"),
    argument("--size", default="demo", help="`demo`, or the number of videos"),
    argument("--seed", type=int, default=0, help="the same seed gives the same videos"),
    argument("--workers", type=int, default=0, help="processes; 0: one per core"),
)
def _mini_dataset(args: Arguments, config: RunConfig) -> None:
    """Render a small dataset of real WebM files in exactly Something-Something v2's layout."""
    from stabn.data.mini import make_mini_dataset

    size = int(args.size) if args.size.isdigit() else args.size
    result = make_mini_dataset(args.folder, size, args.seed, args.workers)
    print(f"{result.num_videos} videos in {result.videos_dir}, labels in {result.labels_dir}")


VIDEOS = (
    argument("--videos", metavar="URI", help="folder or s3:// prefix with <id>.webm, or with the dataset's archive"),
    argument("--labels", metavar="URI", help="folder or s3:// prefix with something-something-v2-*.json"),
    argument("--storage", metavar="URI", help="folder or s3:// prefix that gets the frames"),
    argument("--manifest", metavar="PATH", default="manifest.parquet", help="manifest to write"),
    argument("--rejects", metavar="PATH", default="rejects.parquet", help="list of unusable videos to write"),
)


@command(
    "extract-frames",
    *VIDEOS,
    argument("--part", metavar="i/n", default="", help="do only the i-th of n parts; then `stabn merge-frames`"),
    sections=["extract"],
)
def _extract_frames(args: Arguments, config: RunConfig) -> None:
    """Turn videos into frames in object storage, one object per video, and write the manifest that names them.

    Reads WebM files and the four Something-Something v2 label files. The videos may lie in a folder or s3:// prefix,
    or still be in the dataset's own archive (20bn-something-something-v2-00, -01, …), which is read without unpacking.
    Started again after an interruption, it decodes only what is missing. To share the work between machines, run it
    with --part 1/n to n/n and the same options, and then `stabn merge-frames --parts n`.
    """
    from stabn.data.frames import Part, extract_frames, extract_part

    if args.part:
        part = Part.parse(args.part)
        print(f"part {part}: {extract_part(args.videos, args.labels, args.storage, part, config.extract)}")
        return
    manifest = extract_frames(
        args.videos, args.labels, args.storage, Path(args.manifest), Path(args.rejects), config.extract
    )
    _say_manifest(manifest, args.manifest)


@command(
    "merge-frames",
    *VIDEOS,
    argument("--parts", type=int, metavar="n", help="how many parts the work was shared out to"),
    sections=["extract"],
)
def _merge_frames(args: Arguments, config: RunConfig) -> None:
    """Make one manifest of the parts that `stabn extract-frames --part i/n` did, with the same options as there.

    The result is the same as without parts, whatever their number.
    """
    from stabn.data.frames import merge_frames

    manifest = merge_frames(
        args.videos, args.labels, args.storage, args.parts, Path(args.manifest), Path(args.rejects), config.extract
    )
    _say_manifest(manifest, args.manifest)


def _say_manifest(manifest: Any, path: str) -> None:
    print(f"{len(manifest)} videos, {len(manifest.classes)} classes, fingerprint {manifest.fingerprint}: {path}")


@command(
    "train",
    MANIFEST,
    argument("--output", metavar="URI", help="folder or s3:// prefix for best.pt and the states of the run"),
    PROFILE,
    sections=["data", "model", "train"],
)
def _train(args: Arguments, config: RunConfig) -> None:
    """Train ST-ABN, or with a baseline preset the 3D ResNet, on the training split.

    Reads a manifest and the frames it names; writes best.pt (best validation top-1) and states/, from which the same
    command goes on where it was stopped or killed, also with another number of processes.

    1 GPU: as it is. 8 GPUs: --train.processes 0. 2 machines of 8 GPUs: start on each
      torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29400 -m stabn.cli train ...
    A step has train.batch_size videos over all processes. docs/training.md: costs, settings, when it goes wrong.
    """
    from stabn.training.stages import train

    print(f"best checkpoint: {train(args.manifest, config, args.output, args.profile).best_uri}")


@command(
    "evaluate",
    CHECKPOINT,
    MANIFEST,
    argument("--split", default="validation", choices=("train", "validation", "test"), help="videos to recognise"),
    argument(
        "--attention",
        default="as_is",
        choices=("as_is", "spatial_inverted", "temporal_inverted"),
        help="use the attention as it is, or 1 - attention (eq. 7)",
    ),
    argument("--name", default="baseline", help="which network this is, in MLflow, such as before or after"),
    argument("--output", metavar="URI", help="prediction table to write, a path or s3:// URI"),
    sections=EVALUATING,
)
def _evaluate(args: Arguments, config: RunConfig) -> None:
    """Recognise every video of a split once and write the prediction table (Parquet)."""
    from stabn.evaluation.predict import evaluate

    evaluate(args.checkpoint, args.manifest, args.split, args.attention, args.output, config, name=args.name)


@command(
    "select-classes",
    argument("--train-predictions", metavar="PATH", help="predictions of evaluate on the training split"),
    argument("--validation-predictions", metavar="PATH", help="predictions of evaluate on the validation split"),
    OUTPUT,
    sections=["select"],
)
def _select_classes(args: Arguments, config: RunConfig) -> None:
    """Find the actions recognised badly on BOTH splits, and their misclassified videos.

    Reads two prediction tables; writes the selection (JSON). That nothing is selected is a result, not a failure.
    """
    from stabn.evaluation.selection import select_classes

    result = select_classes(args.train_predictions, args.validation_predictions, config.select, args.output)
    for chosen in result.classes:
        print(f"{chosen.train_accuracy:6.1%} train {chosen.validation_accuracy:6.1%} validation  {chosen.name}")
    print(f"{len(result.classes)} actions, {len(result.video_ids)} videos to correct: {args.output}")


@command(
    "export-attention",
    CHECKPOINT,
    MANIFEST,
    argument("--selection", metavar="PATH", help="selection of select-classes"),
    argument("--storage", metavar="URI", help="folder or s3:// prefix under which the round is written"),
    sections=COMPUTING,
)
def _export_attention(args: Arguments, config: RunConfig) -> None:
    """Write an editing round: for every selected video its attention per source frame, pictures and a preview."""
    from stabn.attention.export import export_round

    print(f"round: {export_round(args.checkpoint, args.manifest, args.selection, args.storage, config).uri}")


@command(
    "edits",
    argument("--round", metavar="URI", help="the editing round"),
    argument("--source", choices=("people", "segments"), help="wait for people, or write from known segments"),
    argument("--segments", metavar="URI", default="", help="JSON of video id to [first, last) frame of the action"),
    argument("--min-share", type=float, default=1.0, help="people: share of videos to wait for, 0 to 1"),
    argument("--timeout-hours", type=float, default=168.0, help="people: hours to wait at most"),
)
def _edits(args: Arguments, config: RunConfig) -> None:
    """Wait until people have corrected a round, or write corrections from known action segments."""
    from stabn.attention.automatic import collect_edits

    collect_edits(args.round, args.source, args.segments, args.min_share, args.timeout_hours * 3600)


@command(
    "editor",
    argument("--round", metavar="URI", help="the editing round, of export-attention"),
    sections=["editor"],
)
def _editor(args: Arguments, config: RunConfig) -> None:
    """Serve the web page in which people correct a round's temporal attention.

    Reads the round's videos, curves and network; writes the corrections, one document per video and revision, beside
    them. Any number of servers may serve one round. Make accounts with `stabn editor-accounts`, or see docs/editor.md.
    """
    from stabn.editor.app import serve

    serve(args.round, config.editor)


@command(
    "editor-accounts",
    argument("action", choices=("add", "remove", "list"), help="add also changes the role and password of those there"),
    argument("names", nargs="*", metavar="NAME", help="accounts to add or remove"),
    argument("--accounts", metavar="URI", help="file of the accounts, a path or s3:// URI"),
    argument("--role", default="annotator", choices=("annotator", "lead"), help="what the added ones may do"),
    argument("--generate", action="store_true", help="make the passwords and print them, once"),
)
def _editor_accounts(args: Arguments, config: RunConfig) -> None:
    """Make, change, remove or list the accounts of the editor; passwords are kept as argon2 hashes.

    A password is asked for, or read from standard input when that is not a terminal; with --generate it is made.
    """
    import getpass

    from stabn.editor.accounts import AccountError, add_accounts, load_accounts, make_password, remove_accounts

    if args.action == "list":
        for account in load_accounts(args.accounts).values():
            print(f"{account.role:10} {account.name}")
        return
    if not args.names:
        raise AccountError(f"editor-accounts {args.action}: name at least one account")
    if args.action == "remove":
        remove_accounts(args.accounts, args.names)
    elif args.generate:
        passwords = [make_password() for _ in args.names]
        add_accounts(args.accounts, args.names, args.role, passwords)
        for name, password in zip(args.names, passwords):
            print(f"{name} {password}")
    elif len(args.names) > 1:
        raise AccountError("one password is asked for at a time; add several accounts with --generate")
    else:
        terminal = sys.stdin.isatty()
        password = getpass.getpass(f"Password of {args.names[0]}: ") if terminal else sys.stdin.readline().rstrip("\n")
        add_accounts(args.accounts, args.names, args.role, [password])


@command(
    "import-edits",
    argument("--round", metavar="URI", help="the editing round"),
    argument(
        "--output", metavar="DIR", help="folder for edits.parquet, manifest.parquet, checkpoint.pt, selection.json"
    ),
)
def _import_edits(args: Arguments, config: RunConfig) -> None:
    """Check every correction of a round and collect them in one table, beside the round's network and manifest."""
    from stabn.attention.edits import import_round

    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    names = ("edits.parquet", "manifest.parquet", "checkpoint.pt", "selection.json")
    summary = import_round(args.round, *(folder / name for name in names))
    print(", ".join(f"{name} {value}" for name, value in summary.counts().items()))


@command(
    "finetune",
    CHECKPOINT,
    MANIFEST,
    argument("--edits", metavar="URI", help="edit table of import-edits, a path or s3:// URI"),
    argument("--output", metavar="URI", help="folder or s3:// prefix for best.pt and the states of the run"),
    argument("--name", default="finetune", help="name of the run in MLflow"),
    PROFILE,
    sections=[*LOADING, "finetune"],
)
def _finetune(args: Arguments, config: RunConfig) -> None:
    """Fine-tune both branches with the corrected temporal attention; the feature extractor stays frozen.

    `--finetune.gamma 0` is the control run: the same training without the corrections' influence.
    """
    from stabn.training.stages import finetune

    result = finetune(args.checkpoint, args.manifest, args.edits, config, args.output, args.name, args.profile)
    print(f"best checkpoint: {result.best_uri}")


@command(
    "report",
    *(
        argument(f"--{name}", metavar="PATH", help=f"validation predictions {text}")
        for name, text in (
            ("before", "before fine-tuning"),
            ("before-inverted", "before, spatial attention inverted"),
            ("after", "after fine-tuning"),
            ("after-inverted", "after, spatial attention inverted"),
            ("control", "after fine-tuning with gamma 0"),
        )
    ),
    *(
        argument(f"--{name}-checkpoint", metavar="URI", help=f"the network {text}")
        for name, text in (("before", "before"), ("after", "after"), ("control", "of the control run"))
    ),
    MANIFEST,
    argument("--selection", metavar="PATH", help="selection of select-classes"),
    argument("--edits", metavar="PATH", help="edit table of import-edits"),
    argument("--output", metavar="DIR", help="folder for report.html and the figures"),
)
def _report(args: Arguments, config: RunConfig) -> None:
    """Write the before/after page: tables 2 and 3 of the paper, curves, per-class accuracy, confusion, pictures."""
    from stabn.evaluation.report import ReportInputs, tables_text, write_report

    inputs = ReportInputs(**{field.name: getattr(args, field.name) for field in dataclasses.fields(ReportInputs)})
    folder = Path(args.output)
    result = write_report(inputs, folder / "report.html", folder / "figures")
    print(tables_text(result))
    print(f"report: {folder / 'report.html'}")


@command(
    "promote",
    argument("--before", metavar="PATH", help="validation predictions before fine-tuning"),
    argument("--after", metavar="PATH", help="validation predictions after fine-tuning"),
    CHECKPOINT,
    argument("--model-name", default="st-abn", help="name in MLflow's model registry"),
    argument("--manifest", metavar="URI", default="", help="the videos, to evaluate a champion on that never was"),
    sections=["promote"],
)
def _promote(args: Arguments, config: RunConfig) -> None:
    """Register the fine-tuned network in MLflow; the alias champion moves only when it wins by more than noise."""
    from stabn.evaluation.promote import promote

    def evaluate_champion(uri: str, path: Path) -> object:
        from stabn.evaluation.predict import evaluate

        return evaluate(uri, args.manifest, "validation", "as_is", path, config, name="champion")

    evaluate = evaluate_champion if args.manifest else None
    promote(args.before, args.after, args.checkpoint, args.model_name, config.promote, evaluate)


@command(
    "explain",
    argument("video", metavar="VIDEO", help="a video file, or with --manifest the id of a video"),
    CHECKPOINT,
    argument("--manifest", metavar="URI", default="", help="manifest that VIDEO is in; its true class is shown too"),
    argument("--output", metavar="PATH", default="", help="figure to write; default: VIDEO's name with .attention.png"),
)
def _explain(args: Arguments, config: RunConfig) -> None:
    """Show what a network sees in one video: its prediction, its attention, and a figure like the paper's."""
    from stabn.attention.explain import explain

    explain(args.video, args.checkpoint, args.manifest, args.output)


@command(
    "import-checkpoint",
    argument("released", metavar="FILE", help="a checkpoint that the authors released (ResNet-50/101 ST-ABN)"),
    argument("--labels", metavar="URI", help="folder or s3:// prefix with the label files; gives the class names"),
    OUTPUT,
    sections=["data"],
)
def _import_checkpoint(args: Arguments, config: RunConfig) -> None:
    """Convert the authors' released weights to a checkpoint of this product; all four outputs stay the same."""
    from stabn.training.checkpoint import import_released

    print(import_released(args.released, args.labels, args.output, config.data))


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="stabn", description=stabn.__doc__, epilog="`stabn COMMAND --help` tells what a command reads and writes."
    )
    parser.add_argument("--version", action="version", version=f"stabn {stabn.__version__}")
    commands = parser.add_subparsers(dest="subcommand", metavar="COMMAND", required=True)
    for name, item in COMMANDS.items():
        text = inspect.cleandoc(item.run.__doc__ or "")
        sub = commands.add_parser(
            name, help=text.split("\n\n")[0], description=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        for names, options in item.arguments:
            options = dict(options)
            if options.get("default") not in (None, "") and "help" in options:
                options["help"] += f" (default: {options['default']})"
            sub.add_argument(*names, **options)
        if item.sections:
            sub.add_argument(
                "--preset", default=item.default_preset, metavar="NAME", help=f"settings: {', '.join(presets.PRESETS)}"
            )
            sub.usage = f"%(prog)s {' '.join(_usage(names, options) for names, options in item.arguments)} [settings]"
        sections = dict.fromkeys(name.partition(".")[0] for name in item.sections)
        for section in sections:
            fields = [name.partition(".")[2] for name in item.sections if name.startswith(section)]
            _add_settings(sub, section, [] if "" in fields else fields, short=len(sections) == 1)
    return parser


def _usage(names: tuple[str, ...], options: dict[str, Any]) -> str:
    value = options.get("metavar") or "VALUE"
    text = f"{names[0]} {value}" if names[0].startswith("--") else value
    return text if options.get("required") or not names[0].startswith("--") else f"[{text}]"


def _add_settings(parser: argparse.ArgumentParser, section: str, names: Sequence[str], short: bool) -> None:
    """Add a flag per setting, `--extract.max_rejects`; with `short` also `--max-rejects`."""
    kind = SECTIONS[section]
    description = f"{(kind.__doc__ or '').strip()}\n{DEFAULTS_NOTE}"
    group = parser.add_argument_group(f"settings of {section}", description)
    for item in dataclasses.fields(kind):
        if names and item.name not in names:
            continue
        choices = item.metadata["choices"]
        metavar = "{" + ",".join(map(str, choices)) + "}" if choices else _kind_name(item.default)
        default = ",".join(map(str, item.default)) if isinstance(item.default, tuple) else item.default
        shown = str(default).lower() if isinstance(default, bool) else default
        text = f"{item.metadata['help']} [{shown if shown != '' else 'none'}]".replace("%", "%%")
        flags = [f"--{section}.{item.name}"] + [f"--{item.name.replace('_', '-')}"] * short
        group.add_argument(*flags, dest=f"{section}.{item.name}", metavar=metavar, help=text)


DEFAULTS_NOTE = "What is not given is the preset's; in brackets what it is in ssv2_r50_32."


def _kind_name(value: Any) -> str:
    if isinstance(value, tuple):
        return "A,B,…"
    return {bool: "true|false", int: "N", float: "X", str: "TEXT"}[type(value)]


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; a user's error ends with one line and exit code 2, a passing failure with 75."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    item = COMMANDS[args.subcommand]
    try:
        config = presets.load(getattr(args, "preset", item.default_preset))
        given = {key: value for key, value in vars(args).items() if "." in key and value is not None}
        item.run(args, override(config, given))
    except StabnError as error:
        print(f"stabn {args.subcommand}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print(f"\nstabn {args.subcommand}: interrupted; run it again to go on", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
