"""JSON lines, JSON arrays and CSV: bytes to raw rows, with the line or the very byte that is wrong.

Knows one file at a time, streamed. Does not know what a row is used for.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zlib
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, cast

from ...errors import BadRowError, EncodingError
from ..hub import first_line
from .rows import RawRow, type_name

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

_LONGEST_CSV_FIELD = (1 << 31) - 1
_PIECE_BYTES = 1 << 20
_LONGEST_ELEMENT = 1 << 28
"""Characters of one element of a JSON array: past them it is taken for a fault, and not read on."""
_LONGEST_SIGN = 16
"""Characters of the longest thing that a piece can be cut in, strings apart (a number, a word, an escape)."""


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked if it is packed; BadRowError, which no policy skips, if they end early."""
    try:
        with _open_binary(path) as opened:
            yield opened
    except (EOFError, OSError, zlib.error) as error:
        raise BadRowError(
            f"{path} cannot be read to its end ({first_line(error)}): it is damaged, or was not copied whole."
        ) from error


def _open_binary(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if path.suffix == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"), _PIECE_BYTES)
    return path.open("rb")


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield each line's number from 1, its first byte's position, and the line without a byte-order mark."""
    position = 0
    with _opened(path) as opened:
        for number, line in enumerate(opened, start=1):
            mark = 3 if number == 1 and line.startswith(b"\xef\xbb\xbf") else 0
            yield number, position + mark, line[mark:]
            position += len(line)


def not_utf8(file: str, position: int, byte: int) -> EncodingError:
    """Return the error that names the file and the first bad byte."""
    return EncodingError(f"{file} is not UTF-8: byte 0x{byte:02x} at position {position}")


def read_json(path: Path, file: str, row: int, first_row: int = 0) -> Generator[RawRow, None, int]:
    """Yield one row per line, or per element of a .json file that is one array; number them from row.

    Lines before first_row are passed over unread. Returns the number that comes next.
    """
    if ".json" in path.suffixes and _starts_with_bracket(path):
        return (yield from _read_json_array(path, file, row, first_row))
    for number, position, line in _lines(path):
        if not line.strip():
            continue
        if row >= first_row:
            values, problem = _parse_json(line, file, position)
            yield RawRow(row=row, file=file, where=f"row {row} (line {number})", values=values, problem=problem)
        row += 1
    return row


def _starts_with_bracket(path: Path) -> bool:
    with _opened(path) as opened:
        first = opened.read(_PIECE_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()
        while not first and (piece := opened.read(_PIECE_BYTES)):
            first = piece.lstrip()
    return first.startswith(b"[")


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


class _ArrayText:
    """The text of one JSON array, read on while its elements are taken; bytes that are not UTF-8 become surrogates."""

    def __init__(self, opened: IO[bytes]) -> None:
        self._opened = opened
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._json = json.JSONDecoder()
        self._text, self._place, self._position = "", 0, 0
        if self.next_sign() == "\ufeff":
            self.take_sign()

    def next_sign(self) -> str:
        """The next character that is no white space, left where it is; empty at the end."""
        while True:
            while self._place < len(self._text) and self._text[self._place] in " \t\r\n":
                self._place += 1
            if self._place < len(self._text):
                return self._text[self._place]
            if not self._more():
                return ""

    def take_sign(self) -> None:
        """Pass over it."""
        self._place += 1

    def take_element(self, file: str) -> tuple[object, EncodingError | None]:
        """The value that begins here; ValueError where none does, or it is longer than any document."""
        size = _PIECE_BYTES
        self.next_sign()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._place)
            except json.JSONDecodeError as error:
                if not self._may_go_on(error) or not self._more(size):
                    raise
            else:
                if end < len(self._text) or not self._more(size):  # at the very end a number may go on
                    break
            size *= 2  # so that a long element is not parsed over and over
        problem = self._find_not_utf8(end, file)
        self._place = end
        return value, problem

    def _may_go_on(self, error: json.JSONDecodeError) -> bool:
        length = len(self._text) - self._place
        if length > _LONGEST_ELEMENT:
            return False
        return error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _LONGEST_SIGN

    def _find_not_utf8(self, end: int, file: str) -> EncodingError | None:
        element = self._text[self._place : end]
        if element.isascii():
            return None
        content = element.encode("utf-8", "surrogateescape")
        try:
            content.decode("utf-8")
        except UnicodeDecodeError as error:
            return not_utf8(file, self._here() + error.start, content[error.start])
        return None

    def _here(self) -> int:
        """The byte of the file that the next character begins at."""
        return self._position + len(self._text[: self._place].encode("utf-8", "surrogateescape"))

    def _more(self, size: int | None = None) -> bool:
        piece = self._opened.read(size or _PIECE_BYTES)
        fresh = self._decode(piece, not piece)
        self._position = self._here()
        self._text, self._place = self._text[self._place :] + fresh, 0
        return bool(piece or fresh)


def _read_json_array(path: Path, file: str, row: int, first_row: int) -> Generator[RawRow, None, int]:
    """Element by element, so that memory holds one of them; what follows a fault in the array itself is one bad row."""
    with _opened(path) as opened:
        text = _ArrayText(opened)
        text.take_sign()  # the bracket
        is_empty = text.next_sign() == "]"
        while not is_empty:
            try:
                value, problem = text.take_element(file)
                sign = text.next_sign()
                if sign not in (",", "]") or not sign:
                    raise ValueError(f"{sign!r} stands between elements" if sign else "it has no end")
            except (ValueError, RecursionError) as error:
                bad = BadRowError(f"the file is not a JSON array from here on ({first_line(error)})")
                yield RawRow(row=row, file=file, where=f"row {row}", values={}, problem=bad)
                return row + 1
            if row >= first_row:
                values, wrong = _as_object(value)
                fault = problem or wrong
                yield RawRow(row=row, file=file, where=f"row {row}", values={} if fault else values, problem=fault)
            row += 1
            if sign == "]":
                break
            text.take_sign()
    return row


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


def read_csv(path: Path, file: str, row: int, first_row: int = 0) -> Generator[RawRow, None, int]:
    """Yield one row per record under the header, which is the first; number them from row.

    Rows before first_row are passed over. Returns the number that comes next.
    """
    lines = _DecodedLines(path, file)
    reader = csv.reader(lines, delimiter="\t" if ".tsv" in path.name else ",", strict=True)
    names: list[str] | None = None
    while True:
        first_of_row = lines.num_lines + 1
        problem: BadRowError | EncodingError | None = None
        try:
            cells = _next_record(reader)
        except StopIteration:
            return row
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
        if row >= first_row:
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
