"""Commands that train: from initial weights, with corrections, or not at all (released weights)."""

from argparse import Namespace

from stabn.commands import argument, command, stage_command
from stabn.config import ConfigError, RunConfig

OUTPUT = argument("--output", metavar="URI", help="folder or s3:// prefix for best.pt and the states of the run")
PROFILE = argument("--profile", metavar="PATH", default="", help="trace of a few steps, opens in ui.perfetto.dev")


@stage_command(
    "train",
    OUTPUT,
    PROFILE,
    argument("--edits", metavar="URI", default="", help="edit table of import-edits, to learn from it from the start"),
    argument("--name", default="train", help="name of the run in MLflow"),
)
def train(args: Namespace, config: RunConfig) -> None:
    """Train ST-ABN, or with a baseline preset its backbone alone, on the training split.

    Reads a manifest and the frames it names; writes best.pt (best validation top-1) and states/, from which the same
    command goes on where it was stopped or killed, also with another number of processes. With --edits people's
    corrections are learnt from the first step on (train.gamma), as an alternative to fine-tuning with them afterwards.

    1 GPU: as it is. 8 GPUs: --train.processes 0. 2 machines of 8 GPUs: start on each
      torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29400 -m stabn.cli train ...
    A step has train.batch_size videos over all processes. docs/training.md: costs, settings, when it goes wrong.
    """
    from stabn.training import stage

    result = stage.train(args.manifest, config, args.output, args.profile, args.edits, args.name, args.truth)
    print(f"best checkpoint: {result.best_uri}")


@stage_command("finetune", OUTPUT, PROFILE)
def finetune(args: Namespace, config: RunConfig) -> None:
    """Fine-tune both branches with the corrected temporal attention; the feature extractor stays frozen.

    `--finetune.gamma 0` is the control run: the same training without the corrections' influence.
    """
    from stabn.training import stage

    places = (args.checkpoint, args.manifest, args.edits)
    result = stage.finetune(*places, config, args.output, args.name, args.profile, args.truth)
    print(f"best checkpoint: {result.best_uri}")


@command(
    "import-checkpoint",
    argument("source", metavar="SOURCE", help="a folder of export-model, or a checkpoint that the authors released"),
    argument("--labels", metavar="URI", default="", help="of a released checkpoint: where the label files are"),
    argument("--output", metavar="PATH", help="file to write"),
    sections=("data",),
)
def import_checkpoint(args: Namespace, config: RunConfig) -> None:
    """Make a checkpoint of a network that export-model wrote, or of the authors' weights (ResNet-50/101 ST-ABN).

    All outputs stay the same. An exported network knows its classes; the authors' files do not, so that they need the
    label files (--labels, a folder or s3:// prefix) of the dataset that they were trained on.
    """
    from stabn.training.checkpoint import import_released
    from stabn.training.exported import import_exported, is_exported

    if is_exported(args.source):
        print(import_exported(args.source, args.output))
    elif not args.labels:
        raise ConfigError(f"{args.source}: no folder of export-model; for a released checkpoint give --labels too")
    else:
        print(import_released(args.source, args.labels, args.output, config.data))
