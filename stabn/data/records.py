"""What is known of the videos that an extraction has finished, kept beside the frames so that no work is done twice."""

import io
import time
import uuid
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stabn.errors import StabnError
from stabn.parquet import parse_table
from stabn.storage import Storage

PREFIX = "records/"
FLUSH_SECONDS = 5.0
SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("stamp", pa.string()),
        ("limits", pa.string()),
        ("reason", pa.string()),
        ("source_sha256", pa.string()),
        ("fps", pa.float64()),
        ("source_width", pa.int32()),
        ("source_height", pa.int32()),
        ("frame_sizes", pa.list_(pa.int32())),
        ("num_frames", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)


class Records:
    """Records of finished videos, by id, in Parquet objects that are only ever added; later ones win.

    A record has `reason` None for a usable video, else why it cannot be used under the settings `limits`.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        tables = [self._read(key) for key in storage.list(PREFIX)]
        self._table = pa.concat_tables(tables).combine_chunks() if tables else SCHEMA.empty_table()
        self._rows = {video_id: row for row, video_id in enumerate(self._table["video_id"].to_pylist())}
        self._pending: dict[str, dict[str, Any]] = {}
        self._written = time.monotonic()

    def get(self, video_id: str) -> dict[str, Any] | None:
        """Return the record of a video as read at the start, or None."""
        row = self._rows.get(video_id)
        return None if row is None else self._table.slice(row, 1).to_pylist()[0]

    def add(self, record: dict[str, Any]) -> None:
        """Keep a record; it is written within some seconds."""
        self._pending[record["video_id"]] = record
        if time.monotonic() - self._written > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what was added since the last time."""
        if self._pending:
            buffer = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(list(self._pending.values()), schema=SCHEMA), buffer)
            self._storage.write(f"{PREFIX}{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet", buffer.getvalue())
        self._pending = {}
        self._written = time.monotonic()

    def _read(self, key: str) -> pa.Table:
        try:
            return parse_table(self._storage.read(key), SCHEMA)
        except pa.ArrowException as error:
            raise StabnError(f"{self._storage.locate(key)}: not a record file ({error}); delete it") from None
