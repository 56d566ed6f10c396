"""Parquet tables as checked bytes."""

import io

import pyarrow as pa
import pyarrow.parquet as pq

from .checked import digest
from .store import Store


def encode_table(table: pa.Table) -> bytes:
    """Parquet bytes: equal tables give equal bytes under one version of pyarrow."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def write_table(store: Store, key: str, table: pa.Table) -> str:
    """Write a table, and return its digest for the record. What stands there without a record is replaced."""
    data = encode_table(table)
    store.replace(key, data)
    return digest(data)


def read_checked(store: Store, key: str, expected: str) -> bytes:
    """The bytes of a file that a record names; DamagedRunError if they are others, or gone."""
    return store.read_checked(key, expected)


def read_table(store: Store, key: str, expected: str, columns: list[str] | None = None) -> pa.Table:
    """Read a table, or some columns of it, after checking its bytes; DamagedRunError names the file."""
    return pq.read_table(io.BytesIO(read_checked(store, key, expected)), columns=columns)
