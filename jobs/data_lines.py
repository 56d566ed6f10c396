"""JSON lines, JSON arrays and CSV: bytes to raw rows, with the line or the very byte that is wrong.

Knows one file at a time, streamed. Does not know what a row is used for.
"""

from __future__ import annotations

import csv
import gzip
import json
from typing import IO, TYPE_CHECKING, Any, cast

from ..errors import BadRowError, EncodingError
from .data_rows import RawRow, type_name
from .hub import first_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LONGEST_CSV_FIELD = (1 << 31) - 1


def _open_binary(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield each line's number from 1, its first byte's position, and the line without a byte-order mark."""
    position = 0
    with _open_binary(path) as opened:
        for number, line in enumerate(opened, start=1):
            mark = 3 if number == 1 and line.startswith(b"\xef\xbb\xbf") else 0
            yield number, position + mark, line[mark:]
            position += len(line)


def not_utf8(file: str, position: int, byte: int) -> EncodingError:
    """Return the error that names the file and the first bad byte."""
    return EncodingError(f"{file} is not UTF-8: byte 0x{byte:02x} at position {position}")


def read_json(path: Path, file: str, row: int) -> Iterator[RawRow]:
    """Yield one row per line, or per element of a .json file that is one array; number them from row."""
    if path.name.endswith((".json", ".json.gz")) and _starts_with_bracket(path):
        yield from _read_json_array(path, file, row)
        return
    for number, position, line in _lines(path):
        if not line.strip():
            continue
        values, problem = _parse_json(line, file, position)
        yield RawRow(row=row, file=file, where=f"row {row} (line {number})", values=values, problem=problem)
        row += 1


def _starts_with_bracket(path: Path) -> bool:
    return next((line.lstrip()[:1] == b"[" for _, _, line in _lines(path) if line.strip()), False)


def _parse_json(line: bytes, file: str, position: int) -> tuple[dict[str, Any], BadRowError | EncodingError | None]:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return {}, not_utf8(file, position + error.start, line[error.start])
    except (ValueError, RecursionError) as error:
        return {}, BadRowError(f"it is not one JSON object on one line ({first_line(error)})")
    return _as_object(value)


def _as_object(value: object) -> tuple[dict[str, Any], BadRowError | None]:
    if isinstance(value, dict):
        return value, None
    return {}, BadRowError(f"it is a {type_name(value)} and not an object with fields")


def _read_json_array(path: Path, file: str, row: int) -> Iterator[RawRow]:
    with _open_binary(path) as opened:
        content = opened.read()
    try:
        items = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        problem: BadRowError | EncodingError = not_utf8(file, error.start, content[error.start])
        yield RawRow(row=row, file=file, where=f"row {row}", values={}, problem=problem)
        return
    except (ValueError, RecursionError) as error:
        problem = BadRowError(f"the file is not a JSON array ({first_line(error)})")
        yield RawRow(row=row, file=file, where=f"row {row}", values={}, problem=problem)
        return
    for number, item in enumerate(items, start=row):
        values, bad = _as_object(item)
        yield RawRow(row=number, file=file, where=f"row {number}", values=values, problem=bad)


class _DecodedLines:
    """Lines for the csv reader, which wants text; remembers where the first byte that is not UTF-8 stood."""

    def __init__(self, path: Path, file: str) -> None:
        self._lines = _lines(path)
        self._file = file
        self.problem: EncodingError | None = None
        self.num_lines = 0

    def __iter__(self) -> _DecodedLines:
        return self

    def __next__(self) -> str:
        self.num_lines, position, line = next(self._lines)
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            self.problem = self.problem or not_utf8(self._file, position + error.start, line[error.start])
            return line.decode("utf-8", errors="replace")


def read_csv(path: Path, file: str, row: int) -> Iterator[RawRow]:
    """Yield one row per record under the header, which is the first; number them from row."""
    lines = _DecodedLines(path, file)
    reader = csv.reader(lines, delimiter="\t" if ".tsv" in path.name else ",", strict=True)
    names: list[str] | None = None
    while True:
        first_of_row = lines.num_lines + 1
        problem: BadRowError | EncodingError | None = None
        try:
            cells = _next_record(reader)
        except StopIteration:
            return
        except csv.Error as error:
            cells, problem = [], BadRowError(f"it is not valid CSV ({first_line(error)})")
        if not cells and problem is None:
            continue
        if names is None:
            broken = lines.problem or problem
            if broken is not None:
                raise broken
            names = cells
            continue
        if problem is None and len(cells) != len(names):
            problem = BadRowError(f"it has {len(cells)} fields where the header has {len(names)}")
        problem = lines.problem or problem
        lines.problem = None
        values = {} if problem else dict(zip(names, cells, strict=True))
        yield RawRow(row=row, file=file, where=f"row {row} (line {first_of_row})", values=values, problem=problem)
        row += 1


def _next_record(reader: Any) -> list[str]:  # noqa: ANN401 - csv's reader has no public type
    # The limit belongs to the process, and its default is shorter than many documents: lift it for this call alone.
    before = csv.field_size_limit(_LONGEST_CSV_FIELD)
    try:
        return cast("list[str]", next(reader))
    finally:
        csv.field_size_limit(before)
