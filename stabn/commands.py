"""What a command of the command line is made of; packages above declare theirs, and `stabn.cli` joins them."""

from argparse import Namespace
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from stabn.config import RunConfig
from stabn.stages import REQUIRED, STAGES, File, Parameter

Argument = tuple[tuple[str, ...], dict[str, Any]]
Run = Callable[[Namespace, RunConfig], None]


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: as one types it.
        run: the function; its docstring is the help that a newcomer reads.
        arguments: names and options for argparse.
        sections: settings that become flags, `section` or `section.field`.
        preset: settings where the user names no others.
    """

    name: str
    run: Run
    arguments: tuple[Argument, ...] = ()
    sections: tuple[str, ...] = ()
    preset: str = "ssv2_r50_32"


def argument(*names: str, **options: Any) -> Argument:
    """Declare an argument; options as for argparse. A flag without a default is required."""
    if names[0].startswith("--") and "default" not in options and "action" not in options:
        options["required"] = True
    return names, options


def command(name: str, *arguments: Argument, sections: Iterable[str] = (), **options: Any) -> Callable[[Run], Command]:
    """Make a command of a function."""
    return lambda run: Command(name, run, arguments, tuple(sections), **options)


def stage_command(name: str, *arguments: Argument) -> Callable[[Run], Command]:
    """Make the command of a stage: its files and parameters are flags, then come the others, such as its outputs."""
    stage = STAGES[name]
    flags = [*map(_flag, stage.reads), *(_flag(item) for item in stage.takes if item.flag)]
    return command(name, *flags, *arguments, sections=stage.settings)


def _flag(item: File | Parameter) -> Argument:
    name = f"--{item.name.removesuffix('_uri').replace('_', '-')}"
    if isinstance(item, File):
        return argument(name, metavar="URI", help=item.help, **({"default": ""} if item.optional else {}))
    options: dict[str, Any] = {"help": item.help, "type": item.kind}
    if item.default is not REQUIRED:
        options["default"] = item.default
    if item.choices:
        options["choices"] = item.choices
    else:
        options["metavar"] = "URI" if item.name.endswith("_uri") else {str: "TEXT", int: "N", float: "X"}[item.kind]
    return argument(name, **options)
