"""Saved states of a run: written whole or not at all, beside the training, and found again by the next process.

    <output>/best.pt                      the network to use, see checkpoint.py
    <output>/states/<name>.json           where the run was; names its parts; what appears last
    <output>/states/parts/<sha256>.pt     the parts: network, optimiser, averaged weights

A part is named by its own checksum, so a part that is damaged is noticed, and parts that are equal are stored once. A
state is there when its JSON is: it is written after its parts, in one piece.
"""

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from stabn.errors import StabnError
from stabn.models.weights import load_tensors
from stabn.storage import ObjectNotFound, Storage
from stabn.text import parse_json
from stabn.training.checkpoint import CheckpointError

FORMAT = 1
FOLDER, PARTS = "states", "states/parts"


@dataclass(frozen=True)
class State:
    """A saved state.

    Attributes:
        name: orders the states of a run, `00002-000000128` in epoch 2 (from 0) after 128 videos.
        uri: its JSON, for messages.
        content: JSON values: where the run was.
        parts: bytes by name.
        keys: where each part lies in the storage.
    """

    name: str
    uri: str
    content: dict[str, Any]
    parts: dict[str, bytes]
    keys: dict[str, str]


class StateStore:
    """The states below an output; one process writes."""

    def __init__(self, storage: Storage, keep: int) -> None:
        self.storage, self.keep = storage, keep

    def write(self, name: str, content: Mapping[str, Any], parts: Mapping[str, bytes]) -> None:
        """Store a state, then delete what only older states than the newest `keep` need."""
        stored = {info.key: info.size for info in self.storage.scan(f"{PARTS}/")}
        described = {}
        for part, data in parts.items():
            digest = hashlib.sha256(data).hexdigest()
            key = f"{PARTS}/{digest}.pt"
            if stored.get(key) != len(data):
                self.storage.write(key, data)
            described[part] = {"key": key, "bytes": len(data), "sha256": digest}
        state = json.loads(json.dumps({"format": FORMAT, "name": name, "content": dict(content), "parts": described}))
        checked = json.dumps({"sha256": _checksum(state), "state": state}, indent=1)
        self.storage.write(f"{FOLDER}/{name}.json", checked.encode())
        self._clean(stored)

    def newest(
        self,
        check: Callable[[dict[str, Any], str], None],
        report: Callable[[str], None],
        unusable: Callable[[dict[str, bytes], str], str] = lambda parts, uri: "",
    ) -> State | None:
        """Return the newest state that is whole; None if there is none at all.

        Args:
            check: raises if a state's content belongs to another run; gets its URI too.
            report: told of a damaged state, which is then deleted.
            unusable: says why nobody can go on from a state's parts; empty: one can. Gets its URI too.

        Raises:
            CheckpointError: there are states, but every one is damaged.
        """
        names = self._names()
        for name in reversed(names):
            try:
                return self._read(name, check, unusable)
            except _DamagedError as error:
                report(f"{error}; the state before it is used")
                self.storage.delete(f"{FOLDER}/{name}.json")
        if names:
            raise CheckpointError(
                f"{self.storage.locate(FOLDER)}: none of the {len(names)} states can be used; give another output to "
                "begin again"
            )
        return None

    def newest_key(self, *names: str) -> str:
        """Return where the newest state's part lies, the first of these names that it has."""
        parts = self._description(self._names()[-1])["parts"]
        return str(next(parts[name]["key"] for name in names if name in parts))

    def _names(self) -> list[str]:
        keys = [key for key in self.storage.list(f"{FOLDER}/") if key.endswith(".json")]
        return [key.removeprefix(f"{FOLDER}/").removesuffix(".json") for key in keys]

    def _description(self, name: str) -> dict[str, Any]:
        key = f"{FOLDER}/{name}.json"
        uri = self.storage.locate(key)
        try:
            file = parse_json(self.storage.read(key))
            state: dict[str, Any] = file["state"]
            whole = _checksum(state) == file["sha256"]
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise _DamagedError(f"{uri}: damaged")
        if state["format"] != FORMAT:
            raise CheckpointError(f"{uri}: state format {state['format']}, this version reads {FORMAT}")
        return state

    def _read(
        self,
        name: str,
        check: Callable[[dict[str, Any], str], None],
        unusable: Callable[[dict[str, bytes], str], str],
    ) -> State:
        state = self._description(name)
        uri = self.storage.locate(f"{FOLDER}/{name}.json")
        check(state["content"], uri)
        parts = {}
        for part, described in state["parts"].items():
            try:
                data = self.storage.read(described["key"])
            except ObjectNotFound:
                raise _DamagedError(f"{uri}: its {part}, {described['key']}, is missing") from None
            if hashlib.sha256(data).hexdigest() != described["sha256"]:
                self.storage.delete(described["key"])
                raise _DamagedError(
                    f"{uri}: its {part}, {described['key']}, is damaged ({len(data)} bytes of {described['bytes']})"
                )
            parts[part] = data
        if why := unusable(parts, uri):
            raise _DamagedError(f"{uri}: {why}")
        return State(name, uri, state["content"], parts, {part: d["key"] for part, d in state["parts"].items()})

    def _clean(self, stored: Mapping[str, int]) -> None:
        """Delete the states that are not kept, and of the parts that were stored before those that none needs."""
        names = self._names()
        for name in names[: -self.keep]:
            self.storage.delete(f"{FOLDER}/{name}.json")
        needed = set()
        for name in names[-self.keep :]:
            try:
                needed |= {described["key"] for described in self._description(name)["parts"].values()}
            except _DamagedError:
                continue
        for key in stored.keys() - needed:
            self.storage.delete(key)


def _checksum(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


class _DamagedError(StabnError):
    """A state is not whole."""


def dump_part(content: Any) -> bytes:
    """Return tensors and plain values as the bytes of a part."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def load_part(data: bytes) -> Any:
    """Return what `dump_part` was given, without running any code in it."""
    return load_tensors(data)
