"""The command line: one command per stage, its flags made from the stage's declaration and the settings' own fields.

The commands of the pipelines and of the cluster are those packages' own; they join through the entry points
`stabn.commands` of pyproject.toml.
"""

import argparse
import dataclasses
import inspect
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from typing import Any

import stabn
from stabn import presets
from stabn.cli import data, edit, evaluate, services, train
from stabn.commands import Argument, Command
from stabn.config import SECTIONS, override
from stabn.errors import Interrupted
from stabn.failures import as_error
from stabn.masking import hide_secrets
from stabn.signals import exit_on_signals
from stabn.tracking import find_checkpoint

GROUPS = (data, train, evaluate, edit, services)
DEFAULTS_NOTE = "What is not given is the preset's; in brackets what it is in ssv2_r50_32."


def _commands() -> Iterator[Command]:
    for entry in entry_points(group="stabn.commands"):
        yield entry.load()
    for group in GROUPS:
        yield from (item for item in vars(group).values() if isinstance(item, Command))


COMMANDS = {item.name: item for item in _commands()}


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
            name,
            help=text.split("\n\n")[0],
            description=text,
            epilog="URI: a path, or s3://bucket/key.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for names, options in item.arguments:
            options = dict(options)
            if options.get("default") not in (None, "") and "help" in options:
                options["help"] += f" (default: {options['default']})"
            sub.add_argument(*names, **options)
        if item.sections:
            sub.add_argument(
                "--preset", default=item.preset, metavar="NAME", help=f"settings: {', '.join(presets.PRESETS)}"
            )
            sub.usage = f"%(prog)s {' '.join(map(_usage, item.arguments))} [settings]"
        sections = dict.fromkeys(name.partition(".")[0] for name in item.sections)
        for section in sections:
            fields = [name.partition(".")[2] for name in item.sections if name.startswith(section)]
            _add_settings(sub, section, [] if "" in fields else fields, short=len(sections) == 1)
    return parser


def _usage(item: Argument) -> str:
    names, options = item
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


def _kind_name(value: Any) -> str:
    if isinstance(value, tuple):
        return "A,B,…"
    return {bool: "true|false", int: "N", float: "X", str: "TEXT"}[type(value)]


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; a user's error ends with one line and exit code 2, a passing failure with 75."""
    args = build_parser().parse_args(argv)
    hide_secrets()
    with exit_on_signals(for_good=True):
        _run(args)


def _with_models_found(args: argparse.Namespace) -> argparse.Namespace:
    """Put the checkpoints of registered models, such as models:/st-abn@champion, in the place of their names.

    What an alias stands for changes; what a command records is the network that it used.
    """
    for name, value in vars(args).items():
        if isinstance(value, str) and "models:/" in value:
            found = [find_checkpoint(part) for part in value.split(",")]
            setattr(args, name, ",".join(found))
            print(f"{value}: {getattr(args, name)}", file=sys.stderr)
    return args


def _run(args: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    item = COMMANDS[args.subcommand]
    try:
        config = presets.load(getattr(args, "preset", item.preset))
        given = {key: value for key, value in vars(args).items() if "." in key and value is not None}
        item.run(_with_models_found(args), override(config, given))
    except KeyboardInterrupt:
        print(f"\nstabn {args.subcommand}: interrupted; run it again to go on", file=sys.stderr)
        sys.exit(Interrupted.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        known = as_error(error)
        if known is None:
            raise
        print(f"stabn {args.subcommand}: {known}", file=sys.stderr)
        sys.exit(known.exit_code)
