"""Compile the pipelines, or run one on this machine: python -m pipelines compile | run."""

import argparse
import logging
import os
import sys
import uuid
from pathlib import Path

from kfp import compiler

from pipelines.baseline import baseline
from pipelines.finetune import finetune
from pipelines.full import full
from pipelines.local import parse_parameters, run_local
from stabn.errors import StabnError
from stabn.tracking import end_parent

PIPELINES = {"baseline": baseline, "finetune": finetune, "full": full}


def compile_all(folder: Path) -> list[Path]:
    """Write one YAML per pipeline, ready to upload in the KFP UI."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, pipeline in PIPELINES.items():
        paths.append(folder / f"{name}.yaml")
        compiler.Compiler().compile(pipeline, str(paths[-1]))
    return paths


def _name_and_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise StabnError(f"--param {text!r}: write NAME=VALUE")
    return name, value


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m pipelines", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    compiling = commands.add_parser("compile", help="write one YAML per pipeline for the KFP UI")
    compiling.add_argument(
        "--output", type=Path, default=Path("build/pipelines"), metavar="DIR", help="default: %(default)s"
    )
    running = commands.add_parser("run", help="run a pipeline on this machine with KFP's local runner")
    running.add_argument("pipeline", choices=sorted(PIPELINES))
    running.add_argument(
        "--dir", type=Path, default=Path("local-run"), help="artifacts and cache; default: %(default)s"
    )
    running.add_argument("--param", action="append", default=[], metavar="NAME=VALUE", help="a pipeline parameter")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if args.command == "compile":
            for path in compile_all(args.output):
                print(path)
        else:
            os.environ.setdefault("STABN_PIPELINE", args.pipeline)
            os.environ.setdefault("STABN_RUN_ID", uuid.uuid4().hex)
            pipeline = PIPELINES[args.pipeline]
            parameters = parse_parameters(pipeline, dict(_name_and_value(text) for text in args.param))
            status = "FAILED"
            try:
                run_local(pipeline, parameters, args.dir)
                status = "FINISHED"
            finally:
                end_parent(status)
    except StabnError as error:
        print(f"pipelines {args.command}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
