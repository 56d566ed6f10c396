"""Parquet, and rows in Arrow's columns: file by file and page by page, with the row whose text is not UTF-8.

Knows files and columns. Does not know what a row is used for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import BadRowError, DatasetNotFoundError, EncodingError, MissingFieldError
from ..hub import first_line
from .rows import RawRow, RawRows

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence
    from pathlib import Path

BATCH_ROWS = 256
"""Rows that are turned into Python's objects together."""
_PAGE_BYTES = 1 << 20


def open_parquet(files: list[Path], folder: Path, size: int) -> RawRows:
    """Files with the same fields as one source, in the order given; only their footers are read.

    Raises DatasetNotFoundError for a file that is not Parquet, MissingFieldError where fields differ.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields: dict[str, str] = {}
    num_rows = 0
    for path in files:
        try:
            with pq.ParquetFile(path) as opened:
                found = {item.name: str(item.type) for item in opened.schema_arrow}
                num_rows += opened.metadata.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            raise DatasetNotFoundError(f"{path} is not a readable Parquet file ({first_line(error)}).") from error
        if fields and set(found) != set(fields):
            raise MissingFieldError(
                f"{path.name} has the fields {', '.join(found)}, but {files[0].name} has {', '.join(fields)}. Files of "
                "one data set have the same fields: give the files one by one, or the folder of one split."
            )
        fields = fields or found

    def read(columns: Sequence[str], first_row: int = 0) -> Iterator[RawRow]:
        row = 0
        for path in files:
            row = yield from _read_parquet(path, path.relative_to(folder).as_posix(), columns, row, first_row)

    return RawRows(format="parquet", fields=plain_types(fields), read=read, num_rows=num_rows, size_bytes=size)


def _read_parquet(
    path: Path, name: str, columns: Sequence[str], row: int, first_row: int
) -> Generator[RawRow, None, int]:
    """The rows of one file from first_row on; whole row groups before it are passed over unread. Returns the next row.

    Column chunks are read as a stream of pages: memory holds a batch, however large the file's row groups are.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, buffer_size=_PAGE_BYTES, pre_buffer=False) as opened:
            sizes = [opened.metadata.row_group(group).num_rows for group in range(opened.metadata.num_row_groups)]
            begin = 0
            while begin < len(sizes) and row + sizes[begin] <= first_row:
                row += sizes[begin]
                begin += 1
            groups = range(begin, len(sizes))
            for batch in opened.iter_batches(batch_size=BATCH_ROWS, row_groups=groups, columns=list(columns)):
                passed = max(0, min(first_row - row, len(batch)))
                yield from arrow_rows(batch.slice(passed), name, row + passed)
                row += len(batch)
    except (pa.ArrowInvalid, OSError) as error:
        raise BadRowError(
            f"{path} cannot be read after row {row} ({first_line(error)}): it is damaged, or was not copied whole."
        ) from error
    return row


def plain_types(fields: Mapping[str, str]) -> dict[str, str]:
    """Names of types, with every kind of string called string."""
    strings = {"large_string": "string", "string_view": "string", "dictionary<values=string": "string"}
    return {name: strings.get(kind.split(",")[0], kind) for name, kind in fields.items()}


def arrow_rows(batch: Any, name: str, row: int) -> Iterator[RawRow]:  # noqa: ANN401 - pyarrow is not typed
    """Turn a pyarrow table or record batch into rows, finding the very row where a text is not UTF-8."""
    try:
        rows: Sequence[Any] = batch.to_pylist()
    except UnicodeDecodeError:
        rows = [None] * len(batch)
    for index, values in enumerate(rows):
        problem = None
        found = values
        if found is None:
            try:
                found = batch.slice(index, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                found, problem = {}, EncodingError(f"{name} is not UTF-8 at byte {error.start} of a text")
        number = row + index
        yield RawRow(row=number, file=name, where=f"row {number}", values=found, problem=problem)
