"""The commands that run pipelines: the demo, and all of `python -m pipelines`."""

import argparse
from argparse import Namespace
from pathlib import Path

from stabn.commands import argument, command
from stabn.config import RunConfig


@command(
    "demo",
    argument("--dir", metavar="D", default="demo", help="folder that gets everything the demo makes"),
    argument("--size", type=int, default=0, help="videos of the mini dataset; 0: the size the demo is tuned for"),
    argument("--seed", type=int, default=0, help="seed of the mini dataset"),
    preset="mini",
)
def demo(args: Namespace, config: RunConfig) -> None:
    """Run the whole job on a generated mini dataset: no cluster, no GPU, no account, about six minutes.

    Renders a small video dataset, starts a local S3 server and an MLflow database, and runs the KFP pipeline `full`
    with KFP's local runner. Run again, it goes on where it was interrupted and reuses what is done.
    """
    from pipelines.demo import demo

    demo(Path(args.dir), size=args.size, seed=args.seed)


@command(
    "pipelines",
    argument("words", nargs=argparse.REMAINDER, metavar="COMMAND …", help="compile, run, submit, schedule or bridge"),
)
def pipelines(args: Namespace, config: RunConfig) -> None:
    """Compile, submit or schedule the pipelines, or run one here; `stabn pipelines COMMAND --help` tells more.

    The same as `python -m pipelines`.
    """
    from pipelines.__main__ import main

    main(args.words)
