"""Ids that come twice: wherever rows or names are kept by id, each id is there once, or the file is refused."""

from collections.abc import Sequence
from typing import Any


def repeated(names: Sequence[Any]) -> tuple[Any, int, int] | None:
    """Return the first id that comes again, and its first two places, counted from 1; None: each comes once."""
    if len(set(names)) == len(names):
        return None
    places: dict[Any, int] = {}
    for place, name in enumerate(names, start=1):
        if name in places:
            return name, places[name], place
        places[name] = place
    return None


def check_unique(names: Sequence[Any], what: str, where: str, remedy: str, error: type[Exception]) -> None:
    """Refuse ids of which one comes twice.

    Args:
        names: the ids, in the order of their rows.
        what: what an id names, such as "video".
        where: the table, for the message.
        remedy: what to do about it.
        error: what is raised; names the id and both rows.
    """
    if found := repeated(names):
        name, first, second = found
        raise error(f"{where}: {what} {name!r} comes twice, in rows {first} and {second}; {remedy}")


def unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict, for `json.loads(object_pairs_hook=…)`, which else keeps the last of one name.

    Raises:
        ValueError: a name comes twice; says at which places of its object.
    """
    if found := repeated([name for name, _ in pairs]):
        name, first, second = found
        raise ValueError(f"{name!r} comes twice in one object, at places {first} and {second}")
    return dict(pairs)
