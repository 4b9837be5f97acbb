"""Parquet tables from and to bytes, read in the calling thread."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def parse_table(data: bytes, schema: pa.Schema | None = None) -> pa.Table:
    """Return the table of a Parquet file's bytes.

    Not with pyarrow's own threads: in a process that ends soon afterwards one in ten to one in three aborts at its exit
    (pyarrow 25), after all its work is done.

    Raises:
        pyarrow.ArrowException: not a Parquet file, or truncated.
    """
    return pq.read_table(pa.BufferReader(data), schema=schema, use_threads=False)


def table_bytes(table: pa.Table, **options: Any) -> bytes:
    """Return the Parquet file of a table; the same content gives the same bytes."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()
