"""Files as an attacker or a bad disk makes them: how a good one is spoilt, and what may come of reading it.

What may come: the file is read, or one `StabnError` says what is wrong. Nothing else: no other exception, no code that
runs, no file outside, no memory beyond `MEMORY`, no hang.
"""

import copy
import io
import json
import os
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from stabn.errors import StabnError

MEMORY = 2 << 30  # that reading one file may add, in bytes
SIZE = float(os.environ.get("STABN_DRILL_SIZE", "1"))

NASTY: list[Any] = [
    None, True, False, 0, -1, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "\x00",
    "../../../etc/passwd", "/etc/passwd", "s3://elsewhere/x", "file:///etc/passwd", "\ud800", "é", "1", "-1", "1e9999",
    "x" * 300, [], {}, [[]], [None], {"": None}, ["x"], [1] * 100, {"a": {"b": {"c": []}}}, "<script>alert(1)</script>",
    "${jndi:ldap://x}", "%s%n", "\u202e", "nan",
]  # fmt: skip


def spoilt_bytes(good: bytes) -> st.SearchStrategy[bytes]:
    """Return a file with one to four faults: bits turned, cut off, parts left out, repeated, zeroed or foreign."""
    place = st.integers(0, max(0, len(good) - 1))
    length = st.sampled_from([1, 2, 4, 8, 64, 1000])
    fault = st.tuples(st.sampled_from(["flip", "cut", "drop", "repeat", "zero", "ones", "foreign"]), place, length)

    def apply(faults: list[tuple[str, int, int]], foreign: bytes) -> bytes:
        data = bytearray(good)
        for kind, start, count in faults:
            end = min(start + count, len(data))
            if start >= len(data):
                continue
            if kind == "flip":
                data[start] ^= 1 << count % 8
            elif kind == "cut":
                del data[start:]
            elif kind == "drop":
                del data[start:end]
            elif kind == "repeat":
                data[end:end] = data[start:end]
            elif kind == "foreign":
                data[start:start] = foreign
            else:
                data[start:end] = (b"\0" if kind == "zero" else b"\xff") * (end - start)
        return bytes(data)

    return st.builds(apply, st.lists(fault, min_size=1, max_size=4), st.binary(max_size=16))


def spoilt_document(good: Any) -> st.SearchStrategy[Any]:
    """Return a JSON-like value in which one to three places hold something else, are gone, or come twice."""
    paths = list(_paths(good))
    change = st.tuples(st.sampled_from(paths), st.sampled_from(["replace", "remove", "add"]), st.sampled_from(NASTY))

    def apply(changes: list[tuple[tuple[Any, ...], str, Any]]) -> Any:
        value = copy.deepcopy(good)
        for path, kind, new in changes:
            value = _changed(value, path, kind, new)
        return value

    return st.builds(apply, st.lists(change, min_size=1, max_size=3))


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from _paths(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(min(len(value), 3)):
            yield from _paths(value[index], (*path, index))


def _changed(value: Any, path: tuple[Any, ...], kind: str, new: Any) -> Any:
    if not path:
        return copy.deepcopy(new) if kind == "replace" else value
    holder = value
    try:
        for key in path[:-1]:
            holder = holder[key]
        if kind == "replace":
            holder[path[-1]] = copy.deepcopy(new)
        elif kind == "remove":
            del holder[path[-1]]
        elif isinstance(holder, list):
            holder.insert(path[-1], copy.deepcopy(holder[path[-1]]))
        else:
            holder["unheard of"] = copy.deepcopy(new)
    except (KeyError, IndexError, TypeError):  # another change removed the place
        pass
    return value


def spoilt_json(good: Any) -> st.SearchStrategy[bytes]:
    """Return a spoilt JSON document, well-formed or not."""
    whole = spoilt_document(good).map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))
    return whole | spoilt_bytes(json.dumps(good).encode()) | st.sampled_from(TEXTS)


TEXTS = [
    b"", b"null", b"[]", b"{}", b"7", b'"x"', b"\xff\xfe{}", b"[" * 100_000, b'{"a":' * 100_000, b"\0" * 100,
    b"9" * 5000, b"[1e99999]", b"{\"a\": NaN}", b"\xef\xbb\xbf{}",
]  # fmt: skip


def spoilt_table(good: bytes) -> st.SearchStrategy[bytes]:
    """Return a Parquet file spoilt in its bytes, its header, or its columns."""
    table = pq.read_table(pa.BufferReader(good))
    header = json.loads(table.schema.metadata[b"stabn"])
    rows = table.to_pylist()[:4]

    def with_header(value: Any) -> bytes:
        text = json.dumps(value).encode("utf-8", "surrogatepass")
        return _write(table.replace_schema_metadata({b"stabn": text}))

    def with_rows(changed: Any) -> bytes:
        for schema in (table.schema, None):
            try:
                return _write(
                    pa.Table.from_pylist(changed, schema=schema).replace_schema_metadata(table.schema.metadata)
                )
            except Exception:  # not a table in this way
                continue
        return b""

    return spoilt_bytes(good) | spoilt_document(header).map(with_header) | spoilt_document(rows).map(with_rows)


def _write(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def try_many(
    spoilt: st.SearchStrategy[Any], read: Callable[[Any], object], examples: int, refuses: bool = True
) -> None:
    """Read that many spoilt files; every one is read or refused, as this module's text says."""
    outcomes = {"read": 0, "refused": 0}

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=SIZE <= 1,
        database=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(spoilt)
    def each(data: Any) -> None:
        try:
            read(data)
            outcomes["read"] += 1
        except StabnError as error:
            outcomes["refused"] += 1
            assert str(error).strip() and "\n" not in str(error).strip(), repr(str(error))
            str(error).encode()  # it can be printed

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with no_escape():
        each()
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert added < MEMORY, f"{added >> 20} MiB more"
    assert outcomes["refused"] or not refuses, "nothing was refused: was anything spoilt?"


@contextmanager
def no_escape() -> Iterator[None]:
    """Fail if Python opens a file that only a foreign name leads to, starts a process, or looks up a host."""
    watched = threading.get_ident()
    seen: list[str] = []
    active = True

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if not active or threading.get_ident() != watched:
            return
        if event == "open" and str(args[0]) == "/etc/passwd":
            seen.append(f"opened {args[0]}")
        elif event in ("os.system", "socket.getaddrinfo", "pty.spawn"):
            seen.append(event)

    sys.addaudithook(hook)
    try:
        yield
    finally:
        active = False
    assert not seen, seen
