"""Parquet tables from and to bytes, read in the calling thread, and the header that each of ours carries."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stabn.text import parse_json

MAX_ROWS = 20_000_000  # a few bytes can stand for any number of equal rows
HEADER = b"stabn"  # the key of the file's metadata


def parse_table(data: bytes, schema: pa.Schema | None = None) -> pa.Table:
    """Return the table of a Parquet file's bytes.

    Not with pyarrow's own threads: in a process that ends soon afterwards one in ten to one in three aborts at its exit
    (pyarrow 25), after all its work is done.

    Raises:
        pyarrow.ArrowException: not a Parquet file, or truncated.
    """
    try:
        if (rows := pq.read_metadata(pa.BufferReader(data)).num_rows) > MAX_ROWS:
            raise pa.ArrowInvalid(f"it has {rows} rows, more than {MAX_ROWS}")
        table = pq.read_table(pa.BufferReader(data), schema=schema, use_threads=False)
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise pa.ArrowInvalid(" ".join(str(error).split())) from None
    return table


def parse_header(table: pa.Table) -> dict[str, Any]:
    """Return the JSON object in a table's metadata.

    Raises:
        ValueError: there is none.
    """
    text = (table.schema.metadata or {}).get(HEADER)
    header = None if text is None else parse_json(text)
    if not isinstance(header, dict):
        raise ValueError(f"it has no header of stabn; its columns are {', '.join(table.column_names)}")
    return header


def table_bytes(table: pa.Table, **options: Any) -> bytes:
    """Return the Parquet file of a table; the same content gives the same bytes."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()
