"""Compile, submit, schedule the pipelines, or run one on this machine: python -m pipelines COMMAND."""

import argparse
import logging
import os
import sys
import tempfile
import textwrap
import uuid
from pathlib import Path
from typing import Any

import yaml

from pipelines.bridge import make_bridge
from pipelines.build import DEFINITIONS, build, compile_all
from pipelines.local import parse_parameters, run_local
from pipelines.resources import STAGES, CompileSettings
from pipelines.submit import Request, schedule, submit
from stabn.errors import Interrupted, StabnError
from stabn.masking import hide_secrets
from stabn.signals import Terminated, exit_on_signals, passed_on_to_children
from stabn.stages import FORMS, REQUIRED
from stabn.tracking import end_parent

PIPELINES = {name: build(name) for name in DEFINITIONS}


def _name_and_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise StabnError(f"--param {text!r}: write NAME=VALUE")
    return name, value


def _parameters(args: argparse.Namespace) -> dict[str, str]:
    """Return the parameters of the file and of the flags, which win, as text."""
    values: Any = {}
    if args.param_file:
        try:
            values = yaml.safe_load(args.param_file.read_text()) or {}
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise StabnError(f"--param-file {args.param_file}: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict) or any(isinstance(value, dict | list) for value in values.values()):
            raise StabnError(f"--param-file {args.param_file}: expected lines such as `preset: mini`")
    texts = {str(name): "" if value is None else str(value) for name, value in values.items()}
    return texts | dict(_name_and_value(text) for text in args.param)


def _settings(args: argparse.Namespace, commit: str = "") -> CompileSettings:
    names = ("data_image", "trainer_image", "image_pull_policy", "image_pull_secret")
    flags = {name: getattr(args, name) for name in names}
    return CompileSettings.load(args.settings, **flags, commit=commit).without_cache(args.no_cache)


def _compile(args: argparse.Namespace) -> None:
    for path in compile_all(args.output, _settings(args)):
        print(path)


def _show_parameters(args: argparse.Namespace) -> None:
    """Print a form as KFP's page has it, sorted, with the descriptions that the page does not show."""
    for item in sorted(FORMS[args.pipeline], key=lambda item: item.form_name):
        given = "required" if item.default is REQUIRED else f"default {item.default!r}"
        choices = f", one of {', '.join(item.choices)}" if item.choices else ""
        print(f"{item.form_name}   {given}{choices}\n{textwrap.indent(textwrap.fill(item.help, 100), '    ')}")


def _run(args: argparse.Namespace) -> None:
    os.environ.setdefault("STABN_PIPELINE", args.pipeline)
    os.environ.setdefault("STABN_RUN_ID", uuid.uuid4().hex)
    pipeline = PIPELINES[args.pipeline]
    parameters = parse_parameters(pipeline, _parameters(args))
    status = "FAILED"
    try:
        with passed_on_to_children():
            run_local(pipeline, parameters, args.dir)
        status = "FINISHED"
    except (KeyboardInterrupt, Terminated):
        status = "KILLED"
        raise
    finally:
        end_parent(status)


def _request(args: argparse.Namespace, folder: str) -> Request:
    return Request(
        pipeline=args.pipeline,
        parameters=_parameters(args),
        settings=_settings(args, args.commit),
        folder=Path(folder),
        endpoint=args.endpoint,
        namespace=args.namespace,
        experiment=args.experiment,
        service_account=args.service_account,
    )


def _submit(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        request = _request(args, folder)
        submit(
            request,
            name=args.name,
            once=args.once,
            wait=args.wait,
            timeout_hours=args.timeout_hours,
            summary_path=args.summary,
        )


def _schedule(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        schedule(_request(args, folder), name=args.name, cron=args.cron, hours=args.every_hours)


def _bridge(args: argparse.Namespace) -> None:
    server = make_bridge(args.repository, args.host, args.port, args.api)
    print(f"bridge to {args.repository} on port {server.server_address[1]}", flush=True)
    server.serve_forever()


def _add_compile_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("fixed when compiling")
    group.add_argument("--settings", type=Path, metavar="FILE", help="YAML of pipelines/resources.py's CompileSettings")
    group.add_argument("--data-image", default="", metavar="IMAGE", help="image of the stages without a network")
    group.add_argument("--trainer-image", default="", metavar="IMAGE", help="image of the stages with a network")
    group.add_argument("--image-pull-policy", default="", metavar="POLICY", help="Always, IfNotPresent or Never")
    group.add_argument("--image-pull-secret", default="", metavar="NAME", help="secret for a private registry")
    group.add_argument(
        "--no-cache", action="append", default=[], choices=sorted(STAGES), metavar="STAGE",
        help=f"run it anew whatever KFP's cache has; may be given again: {', '.join(STAGES)}",
    )  # fmt: skip


def _add_parameters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pipeline", choices=sorted(DEFINITIONS))
    parser.add_argument("--param", action="append", default=[], metavar="NAME=VALUE", help="a pipeline parameter")
    parser.add_argument("--param-file", type=Path, metavar="FILE", help="YAML of parameters; --param wins")


def _add_server(parser: argparse.ArgumentParser) -> None:
    _add_parameters(parser)
    _add_compile_flags(parser)
    group = parser.add_argument_group("KFP server", "credentials come from the environment, see pipelines/server.py")
    group.add_argument("--endpoint", default="", metavar="URL", help="default: KF_PIPELINES_ENDPOINT")
    group.add_argument("--namespace", default="", help="profile on a multi-user server")
    group.add_argument("--experiment", default="st-abn", help="default: %(default)s")
    group.add_argument("--service-account", default="", metavar="NAME", help="that the steps run as; default: KFP's")
    group.add_argument("--commit", default="", metavar="SHA", help="names the version; default: git's")
    group.add_argument("--name", default="", help="of the run; default: made from what it is about")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    compiling = commands.add_parser("compile", help="write one YAML per pipeline for the KFP UI")
    compiling.add_argument(
        "--output", type=Path, default=Path("build/pipelines"), metavar="DIR", help="default: %(default)s"
    )
    _add_compile_flags(compiling)
    compiling.set_defaults(action=_compile)
    showing = commands.add_parser("parameters", help="say what each parameter of a pipeline means")
    showing.add_argument("pipeline", choices=sorted(DEFINITIONS))
    showing.set_defaults(action=_show_parameters)
    running = commands.add_parser("run", help="run a pipeline on this machine with KFP's local runner")
    _add_parameters(running)
    running.add_argument(
        "--dir", type=Path, default=Path("local-run"), help="artifacts and cache; default: %(default)s"
    )
    running.set_defaults(action=_run)
    submitting = commands.add_parser("submit", help="upload a version named by git commit, and start a run of it")
    _add_server(submitting)
    submitting.add_argument("--once", action="store_true", help="not if a run of this name succeeded or is under way")
    submitting.add_argument("--wait", action="store_true", help="show the tasks' states; exit 1 if the run fails")
    submitting.add_argument("--timeout-hours", type=float, default=0.0, metavar="X", help="of --wait; 0: no limit")
    submitting.add_argument("--summary", type=Path, metavar="FILE", help="append the outcome as Markdown")
    submitting.set_defaults(action=_submit)
    scheduling = commands.add_parser("schedule", help="make a recurring run; one of the same name is replaced")
    _add_server(scheduling)
    scheduling.add_argument("--cron", default="", metavar="FIELDS", help="six fields, seconds first: '0 0 3 * * *'")
    scheduling.add_argument("--every-hours", type=float, default=0.0, metavar="X", help="instead of --cron")
    scheduling.set_defaults(action=_schedule)
    bridging = commands.add_parser("bridge", help="pass the editor's finished rounds on to GitHub")
    bridging.add_argument("--repository", required=True, metavar="OWNER/NAME")
    bridging.add_argument("--host", default="127.0.0.1", help="address to listen on; default: %(default)s")
    bridging.add_argument("--port", type=int, default=8020, help="default: %(default)s")
    bridging.add_argument("--api", default="https://api.github.com", metavar="URL", help="default: %(default)s")
    bridging.set_defaults(action=_bridge)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command line; exit 0, 1 (the run failed), 2 (bad input) or 75 (may pass by itself)."""
    args = _parser().parse_args(argv)
    hide_secrets()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with exit_on_signals(for_good=True):
        _act(args)


def _act(args: argparse.Namespace) -> None:
    try:
        args.action(args)
    except StabnError as error:
        print(f"pipelines {args.command}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        then = "run it again to go on" if args.command == "run" else "a run on a server goes on"
        print(f"\npipelines {args.command}: interrupted; {then}", file=sys.stderr)
        sys.exit(Interrupted.exit_code)


if __name__ == "__main__":
    main()
