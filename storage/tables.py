"""Parquet tables as checked bytes."""

import io

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DamagedRunError, RunNotFoundError
from .checked import MENDING, check, digest
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


def read_checked(store: LocalStore, key: str, expected: str) -> bytes:
    """The bytes of a file that a record names; DamagedRunError if they are others, or gone."""
    try:
        data = store.read(key)
    except RunNotFoundError:
        raise DamagedRunError(f"{store.path(key)} is missing, and a record names it. {MENDING}") from None
    check(data, expected, str(store.path(key)))
    return data


def read_table(store: LocalStore, key: str, expected: str) -> pa.Table:
    """Read a table after checking its bytes; DamagedRunError names the file."""
    return pq.read_table(io.BytesIO(read_checked(store, key, expected)))
