"""A row set's units in one Parquet file, written and read in groups, so that no process need hold all of them."""

import io
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from .store import Store

GROUP_UNITS = 1 << 16
"""Units of one row group: a few megabytes for whoever reads a block's units."""


def encode_groups(tables: Iterable[pa.Table]) -> Iterator[bytes]:
    """A Parquet file, piece by piece, of tables of whatever sizes, in groups of GROUP_UNITS lines.

    The bytes do not depend on how the units are cut into tables.
    """
    sink = _Pieces()
    writer: pq.ParquetWriter | None = None
    for group in _groups(tables):
        writer = writer or pq.ParquetWriter(sink, group.schema, compression="zstd")
        writer.write_table(group, row_group_size=GROUP_UNITS)
        yield sink.take()
    assert writer is not None, "there is a table, if only an empty one"
    writer.close()
    yield sink.take()


class StoredSelection:
    """The units of one row set, read where they are asked for."""

    def __init__(self, store: Store, key: str, sha256: str) -> None:
        self._store, self._key, self._sha256 = store, key, sha256
        self._group = lru_cache(maxsize=1)(self._read_group)

    @property
    def column_names(self) -> list[str]:
        """In the file's order."""
        return list(self._file.schema_arrow.names)

    def slice(self, first: int, last: int) -> pa.Table:
        """The units from `first` to before `last`; what lies outside the selection is left out."""
        edges = self._edges
        first, last = max(0, first), min(last, len(self))
        begin, end = int(np.searchsorted(edges, first, side="right")) - 1, int(np.searchsorted(edges, last))
        parts = []
        for group in range(begin, end if first < last else begin):
            start = int(edges[group])
            place = max(first, start)
            parts.append(self._group(group).slice(place - start, min(last, int(edges[group + 1])) - place))
        return pa.concat_tables(parts) if parts else self._file.schema_arrow.empty_table()

    def __len__(self) -> int:
        return int(self._edges[-1])

    def take(self, places: Int[np.ndarray, " some"]) -> pa.Table:
        """Some units, their places rising."""
        group = np.searchsorted(self._edges, places, side="right") - 1
        parts = [self._group(int(g)).take(pa.array(places[group == g] - self._edges[g])) for g in np.unique(group)]
        return pa.concat_tables(parts)

    def groups(self, columns: list[str]) -> Iterator[pa.Table]:
        """All units, group by group, of some columns."""
        for group in range(len(self._edges) - 1):
            yield self._file.read_row_group(group, columns=columns)

    def _read_group(self, number: int) -> pa.Table:
        return self._file.read_row_group(number)

    @cached_property
    def _edges(self) -> Int[np.ndarray, " edge"]:
        """First unit of each group, and the one after the last."""
        metadata = self._file.metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    @cached_property
    def _file(self) -> pq.ParquetFile:
        """The file, memory-mapped, and checked once."""
        return pq.ParquetFile(pa.BufferReader(pa.py_buffer(self._store.mapped(self._key, self._sha256))))


def _groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Tables of GROUP_UNITS lines, the last one shorter; each in one piece, since the pieces show in the bytes."""
    waiting: list[pa.Table] = []
    count = 0
    for table in tables:
        waiting, count = [*waiting, table], count + len(table)
        while count > GROUP_UNITS:  # the last one is held back: it may be short
            whole = pa.concat_tables(waiting)
            yield whole.slice(0, GROUP_UNITS).combine_chunks()
            waiting, count = [whole.slice(GROUP_UNITS)], count - GROUP_UNITS
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


class _Pieces(io.RawIOBase):
    """A file that is handed on while it is written."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []
        self._position = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def write(self, data: bytes) -> int:  # type: ignore[override]  # any buffer
        part = bytes(data)
        self._parts.append(part)
        self._position += len(part)
        return len(part)

    def take(self) -> bytes:
        """What was written since the last time."""
        parts, self._parts = self._parts, []
        return b"".join(parts)
