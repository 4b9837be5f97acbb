"""The editor's own accounts: names, roles and argon2 hashes in one JSON file, made by `stabn editor-accounts`."""

import contextlib
import json
import os
import secrets
import shlex
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from stabn.errors import StabnError
from stabn.identity import check_unique, unique_object
from stabn.storage import ObjectNotFound, check_id, open_storage, owned, read_uri, write_uri
from stabn.text import parse_json

ROLES = ("annotator", "lead")
MIN_PASSWORD = 10
RELOAD_SECONDS = 5.0


class AccountError(StabnError):
    """The accounts cannot be read, or what was asked of them is impossible."""


@dataclass(frozen=True)
class Account:
    """A person who may sign in."""

    name: str
    role: str
    password_hash: str


class Accounts:
    """The accounts of a file, read again when it may have changed."""

    def __init__(self, uri: str) -> None:
        if not uri:
            raise AccountError("editor.accounts_uri is empty: name the file that `stabn editor-accounts` made")
        self.uri = uri
        self._lock = threading.Lock()
        self._accounts: dict[str, Account] = {}
        self._read_at = float("-inf")

    def is_stale(self) -> bool:
        """Tell whether `get` would read the file."""
        return time.monotonic() - self._read_at > RELOAD_SECONDS

    def get(self, name: str) -> Account | None:
        """Return an account, or None."""
        with self._lock:
            if self.is_stale():
                self._accounts = load_accounts(self.uri)
                self._read_at = time.monotonic()
            return self._accounts.get(name)

    def check(self, name: str, password: str) -> Account | None:
        """Return the account if the password is its own. Unknown names take as long as wrong passwords."""
        from argon2.exceptions import Argon2Error, InvalidHashError

        account = self.get(name)
        try:
            _hasher().verify(account.password_hash if account else _dummy_hash(), password)
        except (Argon2Error, InvalidHashError):
            return None
        return account


def load_accounts(uri: str) -> dict[str, Account]:
    """Read all accounts by name.

    Raises:
        AccountError: no such file, or not made by `stabn editor-accounts`.
    """
    try:
        entries = parse_json(read_uri(uri), object_pairs_hook=unique_object)["accounts"]
        accounts = {name: Account(name, entry["role"], entry["password_hash"]) for name, entry in entries.items()}
        if any(account.role not in ROLES for account in accounts.values()):
            raise ValueError("an unknown role")
    except ObjectNotFound:
        raise AccountError(
            f"{uri}: no such file; make it with `stabn editor-accounts --accounts {shlex.quote(uri)} add NAME`"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AccountError(f"{uri}: not a file of `stabn editor-accounts` ({error}); make it again") from None
    return accounts


def add_accounts(uri: str, names: Sequence[str], role: str, passwords: Sequence[str]) -> None:
    """Make accounts, or give those that exist another role and password.

    Raises:
        AccountError: an unknown role, a name given twice, or a password that is too short.
        StorageError: a name with other characters than an id has.
    """
    if role not in ROLES:
        raise AccountError(f"role {role!r}: choose one of {', '.join(ROLES)}")
    check_unique(names, "account", "the names given", "give each once", AccountError)
    for name, password in zip(names, passwords, strict=True):
        check_id(name, "account name")
        if len(password) < MIN_PASSWORD:
            raise AccountError(f"{name}: the password has {len(password)} characters; use at least {MIN_PASSWORD}")
    added = {name: Account(name, role, _hasher().hash(password)) for name, password in zip(names, passwords)}
    with _alone(uri):
        _save(uri, _existing(uri) | added)


def remove_accounts(uri: str, names: Sequence[str]) -> None:
    """Remove accounts; their sessions end within seconds, their corrections stay.

    Raises:
        AccountError: one of them does not exist.
    """
    with _alone(uri):
        accounts = _existing(uri)
        for name in names:
            if accounts.pop(name, None) is None:
                raise AccountError(f"{uri}: no account {name!r}; `stabn editor-accounts list` shows all")
        _save(uri, accounts)


def make_password() -> str:
    """Return a random password of 20 letters and digits that are not mistaken for each other."""
    return "-".join("".join(secrets.choice("abcdefghjkmnpqrstuvwxyz23456789") for _ in range(5)) for _ in range(4))


def _alone(uri: str) -> contextlib.AbstractContextManager[None]:
    """Let nobody else change the file meanwhile, whose changes would be lost: they wait."""
    folder, _, name = str(uri).rpartition("/")
    return owned(open_storage(f"{folder or '.'}/owners-of-{name}"), "editor-accounts", {})


def _existing(uri: str) -> dict[str, Account]:
    try:
        read_uri(uri)
    except ObjectNotFound:
        return {}
    return load_accounts(uri)


def _save(uri: str, accounts: dict[str, Account]) -> None:
    entries = {name: {"role": a.role, "password_hash": a.password_hash} for name, a in sorted(accounts.items())}
    with _for_the_owner_alone():
        write_uri(uri, json.dumps({"format": 1, "accounts": entries}, indent=1).encode())


@contextlib.contextmanager
def _for_the_owner_alone() -> Iterator[None]:
    """Let nobody else read the files that this process makes meanwhile."""
    former = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(former)


@lru_cache
def _hasher() -> Any:
    from argon2 import PasswordHasher

    return PasswordHasher()  # the library's defaults follow RFC 9106's low-memory choice


@lru_cache
def _dummy_hash() -> str:
    return _hasher().hash(secrets.token_hex(8))
