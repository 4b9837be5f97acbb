"""The commands that run pipelines: the demo, and all of `python -m pipelines`."""

import argparse
import os
from argparse import Namespace
from pathlib import Path

from stabn.commands import argument, command
from stabn.config import RunConfig
from stabn.masking import masked


@command(
    "demo",
    argument("--dir", metavar="D", default="demo", help="folder that gets everything the demo makes"),
    argument("--size", type=int, default=0, help="videos of the mini dataset; 0: the size the demo is tuned for"),
    argument("--seed", type=int, default=0, help="seed of the mini dataset"),
    argument("--by-hand", action="store_true", help="then correct three videos yourself, and fine-tune with them"),
    preset="mini",
)
def demo(args: Namespace, config: RunConfig) -> None:
    """Run the whole job on a generated mini dataset: no cluster, no GPU, no account, about five minutes.

    Renders a small video dataset, starts a local S3 server and an MLflow database, and runs the KFP pipeline `full`
    with KFP's local runner. Run again, it goes on where it was interrupted and reuses what is done.
    """
    from pipelines.demo import demo

    demo(Path(args.dir), size=args.size, seed=args.seed, by_hand=args.by_hand)


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


@command(
    "status",
    argument("--run", metavar="ID", default="", help="of KFP or of a local run; default: what runs, or the newest"),
    argument("--watch", action="store_true", help="show it anew every few seconds, until Ctrl+C"),
    argument("--seconds", type=float, default=10.0, metavar="X", help="with --watch: between two screens"),
    argument("--endpoint", default="", metavar="URL", help="KFP's API; else KF_PIPELINES_ENDPOINT"),
    argument("--namespace", default="", help="profile on a multi-user KFP"),
    argument("--editor", default="", metavar="URL", help="the editor's address; else STABN_EDITOR_PUBLIC_URL"),
)
def status(args: Namespace, config: RunConfig) -> None:
    """Say what runs, where, how far it is and how long still, with links to KFP, MLflow and the editor.

    Asks KFP (KF_PIPELINES_ENDPOINT), MLflow (MLFLOW_TRACKING_URI) and Kubernetes (KUBECONFIG), each if it is set, and
    names what it could not reach. A run without a cluster, as the demo's: `stabn local -- stabn status`.
    """
    from pipelines import status as screen

    editor = args.editor or os.environ.get("STABN_EDITOR_PUBLIC_URL", "")

    def text() -> str:
        return masked(screen.status(args.run, args.endpoint, args.namespace, editor))

    if args.watch:
        screen.watch(text, args.seconds, lambda shown: print(shown, end="", flush=True))
    print(text())
