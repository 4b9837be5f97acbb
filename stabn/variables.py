"""Environment variables for as long as a block runs."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping


@contextlib.contextmanager
def variables(values: Mapping[str, str], without: Iterable[str] = ()) -> Iterator[None]:
    """Set some variables of this process, take others away, and put everything back afterwards."""
    without = tuple(without)
    before = {name: os.environ.get(name) for name in (*values, *without)}
    for name in without:
        os.environ.pop(name, None)
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
