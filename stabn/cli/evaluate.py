"""Commands that tell how good a network is, and which is better."""

import dataclasses
import getpass
from argparse import Namespace
from pathlib import Path

from stabn.commands import argument, command, stage_command
from stabn.config import RunConfig
from stabn.stages import COMPUTING, SPLIT
from stabn.storage import open_storage, owned

OUTPUT = argument("--output", metavar="PATH", help="file to write")


@stage_command("evaluate", argument("--output", metavar="URI", help="prediction table to write, a path or s3:// URI"))
def evaluate(args: Namespace, config: RunConfig) -> None:
    """Recognise every video of a split once and write the prediction table (Parquet)."""
    from stabn.evaluation import predict

    places = (args.checkpoint, args.manifest, args.split, args.attention, args.output)
    predict.evaluate(*places, config, name=args.name, segments_uri=args.segments)


@stage_command("select-classes", OUTPUT)
def select_classes(args: Namespace, config: RunConfig) -> None:
    """Find the actions recognised badly on both splits, and their misclassified videos.

    Reads two prediction tables; writes the selection (JSON). That nothing is selected is a result, not a failure.
    """
    from stabn.evaluation import select_classes as stage

    result = stage.select_classes(args.train_predictions, args.validation_predictions, config.select, args.output)
    for chosen in result.classes:
        print(f"{chosen.train_accuracy:6.1%} train {chosen.validation_accuracy:6.1%} validation  {chosen.name}")
    print(f"{len(result.classes)} actions, {len(result.video_ids)} videos to correct: {args.output}")


@stage_command(
    "report",
    argument(
        "--faithfulness",
        metavar="URI",
        default="",
        help="faithfulness.json of `stabn faithfulness`, of one of the networks; of several, parted by commas",
    ),
    argument("--output", metavar="DIR", help="folder for report.html and the figures"),
)
def report(args: Namespace, config: RunConfig) -> None:
    """Write the before/after page: tables 2 and 3 of the paper, curves, per-class accuracy, confusion, pictures."""
    from stabn.evaluation.report import ReportInputs, tables_text, write_report

    inputs = ReportInputs(**{field.name: getattr(args, field.name) for field in dataclasses.fields(ReportInputs)})
    folder = Path(args.output)
    places = (folder / "report.html", folder / "figures")
    with owned(open_storage(folder), "report", dataclasses.asdict(inputs)):
        result = write_report(inputs, *places, promotion=config.promote, model_name=args.model_name)
    print(tables_text(result))
    print(f"report: {folder / 'report.html'}")


@command(
    "compare",
    argument("first", metavar="A", help="predictions of evaluate: a path, URI or runs:/ID; seeds parted by commas"),
    argument("second", metavar="B", help="those of the other network, on the same split"),
    argument("--output", metavar="DIR", default="", help="folder for compare.html and compare.json"),
    argument("--shown", metavar="N", type=int, default=6, help="videos won, and lost, that are shown at most"),
    argument("--checkpoints", metavar="A,B", default="", help="both networks, to draw those videos with"),
    argument("--manifest", metavar="URI", default="", help="with --checkpoints: manifest of extract-frames"),
)
def compare(args: Namespace, config: RunConfig) -> None:
    """Say in what two networks differ and how certain that is: videos won and lost, per action, with intervals.

    Reads prediction tables of the same videos; with several seeds of each, the intervals are over seeds and videos.
    Prints the comparison, and writes it as a page and as JSON, with the attention of videos that changed: their curves,
    or with the checkpoints their frames and the spatial attention too.
    """
    from stabn.evaluation.compare import compare

    compare(args.first, args.second, args.shown, args.output, args.checkpoints, args.manifest)


@command(
    "agreement",
    argument("--checkpoint", metavar="URI", help="checkpoint of train, finetune or import-checkpoint"),
    argument("--manifest", metavar="URI", help="manifest of extract-frames"),
    argument("--truth", metavar="URI", help="JSON of video id to [first, last) frame of the action, or an edit table"),
    argument("--split", default="auto", choices=SPLIT.choices, help="videos to compare on"),
    argument("--output", metavar="PATH", default="", help="JSON to write"),
    sections=COMPUTING,
)
def agreement(args: Namespace, config: RunConfig) -> None:
    """Say whether the temporal attention lies where the action is: AP, AUC, IoU and pointing game, by action.

    Reads a network and known segments, or people's corrections of videos that it was not trained with.
    """
    from stabn.evaluation.agreement import measure_agreement

    measure_agreement(args.checkpoint, args.manifest, args.split, args.truth, config, args.output)


@command(
    "faithfulness",
    argument("--checkpoint", metavar="URI", help="checkpoint of train, finetune or import-checkpoint"),
    argument("--manifest", metavar="URI", help="manifest of extract-frames"),
    argument("--split", default="auto", choices=SPLIT.choices, help="videos to try it on"),
    argument("--videos", metavar="N", type=int, default=50, help="so many of them, by a hash of their id; 0: all"),
    argument("--steps", metavar="N", type=int, default=8, help="steps from nothing to all, at most"),
    argument("--seed", metavar="N", type=int, default=0, help="seed of the random orders and weights"),
    argument("--output", metavar="DIR", help="folder or s3:// prefix for the page, its numbers (JSON) and figures"),
    sections=(*COMPUTING, "train.batch_size", "train.micro_batch_size"),
)
def faithfulness(args: Namespace, config: RunConfig) -> None:
    """Say whether the network's answer depends on where its attention is high, in time and in space.

    Deletes the frames, or the parts of each frame, that the attention is highest on, and inserts them into an empty
    video, and compares that with random, uniform, centre and motion-energy orders and with Grad-CAM; then gives the
    network random weights, layer by layer, to see whether the attention is learnt. Started again, it goes on with the
    videos that are not done. `stabn report --faithfulness` takes what it writes. Whether the attention is where people
    would look is another question: `stabn agreement`.
    """
    from stabn.evaluation.faithfulness import measure_faithfulness

    places = (args.checkpoint, args.manifest, args.split, args.output)
    measure_faithfulness(*places, config, num_videos=args.videos, max_steps=args.steps, seed=args.seed)


@stage_command("promote")
def promote(args: Namespace, config: RunConfig) -> None:
    """Register the fine-tuned network in MLflow; the alias champion moves only when it wins by more than noise."""
    from stabn.evaluation import predict
    from stabn.evaluation.prediction_table import Predictions
    from stabn.evaluation.promote import promote

    def evaluate_champion(uri: str, path: Path) -> object:
        split = Predictions.load(args.after).split
        return predict.evaluate(uri, args.manifest, split, "as_is", path, config, name="champion")

    evaluate = evaluate_champion if args.manifest else None
    places = (args.before, args.after, args.checkpoint, args.model_name)
    promote(*places, config.promote, evaluate, args.approval_hours)


@command(
    "export-model",
    argument("--checkpoint", metavar="URI", help="checkpoint of train, finetune or import-checkpoint"),
    argument("--output", metavar="DIR", help="folder or s3:// prefix for the files"),
    argument("--manifest", metavar="URI", default="", help="its dataset: the card says how many videos each split has"),
    argument("--predictions", metavar="FILE", action="append", default=[], help="of evaluate, for the card; repeat it"),
    argument("--edits", metavar="URI", default="", help="edit table that it learnt from, for the card"),
    argument("--program", default="yes", choices=("yes", "no"), help="also write a program of torch.export"),
)
def export_model(args: Namespace, config: RunConfig) -> None:
    """Write a network for others: safetensors, settings and class names as JSON, a model card, a program.

    `stabn import-checkpoint DIR` reads it back, with identical outputs. The card, README.md, says what it was trained
    and measured on, with intervals, which corrections it learnt from, and its limits.
    """
    from stabn.evaluation.export_model import export_model

    given = {"manifest_uri": args.manifest, "predictions": args.predictions, "edits_path": args.edits}
    export_model(args.checkpoint, args.output, **given, program=args.program == "yes")


@command(
    "approve",
    argument("model", metavar="MODEL", help="name in the registry, such as st-abn"),
    argument("version", metavar="VERSION", help="its number, as promote says it"),
    argument("--decline", action="store_true", help="say no"),
    argument("--reason", metavar="TEXT", default="", help="why, in a few words; kept with the version"),
)
def approve(args: Namespace, config: RunConfig) -> None:
    """Say yes, or with --decline no, to a better network that waits to become the champion (approval_hours)."""
    from stabn.tracking import decide

    said = decide(args.model, args.version, not args.decline, getpass.getuser(), args.reason)
    print(f"{args.model} version {args.version}: {said}")


@command(
    "explain",
    argument("video", metavar="VIDEO", help="a video file, or with --manifest the id of a video"),
    argument("--checkpoint", metavar="URI", help="checkpoint of train, finetune or import-checkpoint"),
    argument("--manifest", metavar="URI", default="", help="manifest that VIDEO is in; its true class is shown too"),
    argument("--output", metavar="PATH", default="", help="figure to write; default: VIDEO's name with .attention.png"),
)
def explain(args: Namespace, config: RunConfig) -> None:
    """Show what a network sees in one video: its prediction, its attention, and a figure like the paper's."""
    from stabn.attention.explain import explain

    explain(args.video, args.checkpoint, args.manifest, args.output)
