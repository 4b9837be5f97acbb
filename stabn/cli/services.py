"""Commands that serve: the editor and its accounts, and the demo's storage and MLflow."""

import argparse
import getpass
import os
import shlex
import sys
from argparse import Namespace
from pathlib import Path

from stabn.commands import argument, command
from stabn.config import RunConfig
from stabn.errors import StabnError
from stabn.signals import passed_on_to_children


@command(
    "editor",
    argument("--storage", metavar="URI", default="", help="the storage whose rounds are shown, all of them"),
    argument("--round", metavar="URI", default="", help="one editing round, of export-attention, and no other"),
    sections=("editor",),
)
def editor(args: Namespace, config: RunConfig) -> None:
    """Serve the web page in which people correct the temporal attention of editing rounds.

    Reads a round's videos, curves and network; writes the corrections, one document per video and revision, beside
    them. Any number of servers may serve one storage. Make accounts with `stabn editor-accounts`; see docs/editor.md.
    """
    from stabn.editor.app import serve

    serve(args.round, args.storage, config.editor)


@command(
    "editor-accounts",
    argument("action", choices=("add", "remove", "list"), help="add also changes the role and password of those there"),
    argument("names", nargs="*", metavar="NAME", help="accounts to add or remove"),
    argument("--accounts", metavar="URI", help="file of the accounts, a path or s3:// URI"),
    argument("--role", default="annotator", choices=("annotator", "lead"), help="what the added ones may do"),
    argument("--generate", action="store_true", help="make the passwords and print them, once"),
)
def editor_accounts(args: Namespace, config: RunConfig) -> None:
    """Make, change, remove or list the accounts of the editor; passwords are kept as argon2 hashes.

    A password is asked for, or read from standard input when that is not a terminal; with --generate it is made.
    """
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
    "local",
    argument("--dir", metavar="D", default="demo", help="folder of the demo"),
    argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what to run"),
)
def local(args: Namespace, config: RunConfig) -> None:
    """Run a command with the demo's object storage and MLflow at hand: `stabn local -- stabn evaluate …`.

    Starts the local S3 server on the demo's data, sets the AWS_* and MLFLOW_* variables, runs the command, and stops
    the server when it ends.
    """
    import subprocess

    from stabn.local_mlflow import prepare_mlflow
    from stabn.local_services import local_object_store

    words = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not words:
        raise StabnError("local: name a command to run, such as: stabn local -- stabn explain --help")
    folder = Path(args.dir)
    if not folder.is_dir():
        raise StabnError(f"{folder}: no such folder; run `stabn demo --dir {shlex.quote(str(folder))}` first")
    environment = {"MLFLOW_TRACKING_URI": prepare_mlflow(folder / "mlflow")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    with local_object_store(folder / "storage"), passed_on_to_children():
        sys.exit(subprocess.Popen(words, env={**os.environ, **environment, "PATH": path}).wait())
