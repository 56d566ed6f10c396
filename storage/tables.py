"""Parquet tables as checked bytes."""

import io

import pyarrow as pa
import pyarrow.parquet as pq

from .checked import check, digest
from .local import LocalStore


def encode_table(table: pa.Table) -> bytes:
    """Parquet bytes: equal tables give equal bytes under one version of pyarrow."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def write_table(store: LocalStore, key: str, table: pa.Table) -> str:
    """Write a table, and return its digest for the record. What stands there without a record is replaced."""
    data = encode_table(table)
    store.replace(key, data)
    return digest(data)


def read_table(store: LocalStore, key: str, expected: str) -> pa.Table:
    """Read a table after checking its bytes; DamagedRunError names the file."""
    data = store.read(key)
    check(data, expected, str(store.path(key)))
    return pq.read_table(io.BytesIO(data))
