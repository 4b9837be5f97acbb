"""What a server keeps in memory for all its rounds, up to so many bytes; what was used least recently goes first."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, TypeVar

Value = TypeVar("Value")
Key = tuple[str, ...]  # it begins with the round's URI


class Cache(Generic[Value]):
    """Values by key; threads may use it.

    Attributes:
        size: bytes of all that is kept.
    """

    def __init__(self, room: int) -> None:
        self._values: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self._room, self.size = room, 0
        self._lock = threading.Lock()

    def get(self, *keys: Key) -> Sequence[Value] | None:
        """Return the values of some keys if all of them are there."""
        with self._lock:
            if any(key not in self._values for key in keys):
                return None
            for key in keys:
                self._values.move_to_end(key)
            return [self._values[key][0] for key in keys]

    def put(self, key: Key, value: Value, size: int) -> None:
        """Keep a value of so many bytes; the newest one is kept however large it is."""
        with self._lock:
            self._drop(key)
            self._values[key] = value, size
            self.size += size
            while self.size > self._room and len(self._values) > 1:
                self._drop(next(iter(self._values)))

    def forget(self, round_uri: str) -> None:
        """Drop what belongs to a round."""
        with self._lock:
            for key in [key for key in self._values if key[0] == round_uri]:
                self._drop(key)

    def _drop(self, key: Key) -> None:
        _, size = self._values.pop(key, (None, 0))
        self.size -= size
