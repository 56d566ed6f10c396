"""What every source gives: raw rows, or why one could not be read.

Knows no format and no use of a field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ...errors import BadRowError, EncodingError


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRow:
    """One row as the source has it, or why it could not be read."""

    row: int
    """Number in the source, from 0; blank lines are not rows."""
    file: str
    """File name within the source, or the data set's name."""
    where: str
    """For messages: the row's number, and its line where it has one."""
    values: Mapping[str, Any]
    problem: BadRowError | EncodingError | None = None
    name: str | None = None
    """The source's own name for the row: a text file's path."""


class ReadRows(Protocol):
    """Reads an opened source, in its order."""

    def __call__(self, columns: Sequence[str], first_row: int = 0, /) -> Iterator[RawRow]:
        """Rows from first_row on, with the columns that are needed and perhaps more; earlier ones are not built."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRows:
    """An opened source: its fields, and a function that reads it from the start."""

    format: str
    fields: Mapping[str, str]
    """Name of each field → its type, such as "string"; for JSON and CSV, from the first 100 rows."""
    read: ReadRows
    num_rows: int | None = None
    size_bytes: int | None = None
    revision: str | None = None
    """On the hub: the commit that is read, whatever its branch does meanwhile."""
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """For fields that hold numbers of named classes: the names."""


def type_name(value: object) -> str:
    """Return the name of a JSON value's type as the messages spell it."""
    if isinstance(value, str):
        return "string"
    return "object" if isinstance(value, dict) else type(value).__name__
