"""Several row sets of one run as one: units of different types (tokens, spans, documents) in one tree.

Rows can be compared where checkpoint, projection, blocks and preconditioner are the same; only the units differ. The
units are numbered through, those of the first set first, and each line says which set and type it comes from. Knows
stored row sets; changes nothing in them.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int64

from ...errors import ConfigurationError, RunMismatchError
from ...storage.checked import fingerprint
from ...storage.rowset import RowSet
from ...storage.run import Run
from ..collecting.config import MARGIN

TOKEN_LOSS, MIXED = "token-loss", "mixed"
"""The paper's unit type; the unit type of several."""
_SAME = ("projection", "blocks", "dim", "preconditioner", "files")


class JoinedRows:
    """What clustering reads of a row set, of several at once."""

    def __init__(self, sets: Sequence[RowSet]) -> None:
        self.sets = tuple(sets)
        self.name = ",".join(part.name for part in sets)
        if len({part.name for part in sets}) < len(sets):
            raise ConfigurationError(f"{self.name!r} names a row set twice.")
        for part in sets[1:]:
            require_same_rows(sets[0], part)

    @property
    def plan(self) -> dict[str, Any]:
        """The first set's, with the unit type that all of them have, or `mixed`; the longest window."""
        plans = [part.plan for part in self.sets]
        types = list(dict.fromkeys(plan["unit_type"] for plan in plans))
        return plans[0] | {
            "unit_type": types[0] if len(types) == 1 else MIXED,
            "window_tokens": max(plan["window_tokens"] for plan in plans),
            "selection_sha256": fingerprint([plan["selection_sha256"] for plan in plans]),
        }

    def __len__(self) -> int:
        return sum(len(part) for part in self.sets)

    def fingerprint(self) -> str:
        """Of all of them, in their order."""
        return fingerprint([part.fingerprint() for part in self.sets])

    def units(self) -> pa.Table:
        """Lines of all units; `unit` numbers them through, `rows` names the set and `unit_type` the type of each.

        Columns that only some sets have (labels, say) are null in the others.
        """
        parts = []
        for part, start in self._starts():
            table = part.units()
            unit = pa.array(np.arange(start, start + len(table)), pa.int64())
            table = table.set_column(table.column_names.index("unit"), "unit", unit)
            for name, value in (("rows", part.name), ("unit_type", part.plan["unit_type"])):
                table = table.append_column(name, pa.array([value] * len(table)))
            parts.append(table)
        return pa.concat_tables(parts, promote_options="permissive").combine_chunks()

    def unit_rows(self) -> tuple[Int64[np.ndarray, " row"], Float32[np.ndarray, "row dim"]]:
        """Numbers and unit rows of all units that have one."""
        found = [part.unit_rows() for part in self.sets]
        starts = [start for _, start in self._starts()]
        kept = np.concatenate([own + start for (own, _), start in zip(found, starts, strict=True)])
        return kept, np.concatenate([rows for _, rows in found])

    def block_norms(self) -> Float32[np.ndarray, "unit block"]:
        """Raw norm of each block of every unit."""
        return np.concatenate([part.block_norms() for part in self.sets])

    def missing_blocks(self) -> list[int]:
        """Blocks that are still to be collected, of any of them."""
        return [block for part in self.sets for block in part.missing_blocks()]

    def require_current(self) -> None:
        """RunMismatchError where this version cannot make such rows."""
        for part in self.sets:
            part.require_current()

    def _starts(self) -> Iterator[tuple[RowSet, int]]:
        lengths = [len(part) for part in self.sets]
        return zip(self.sets, [0, *accumulate(lengths)][: len(lengths)], strict=True)


AnyRows = RowSet | JoinedRows


def open_rows(run: Run, name: str | None) -> AnyRows:
    """A row set, or several whose names are parted by commas; None takes the token rows.

    ConfigurationError for a name given twice, RunMismatchError for rows that cannot be compared.
    """
    if name is None or "," not in name or name in run.row_sets():
        return run.row_set(name)
    return JoinedRows([run.row_set(part.strip()) for part in name.split(",")])


def first_set(rows: AnyRows) -> RowSet:
    """The row set itself, or the first of several: a behaviour's row is made as its rows were."""
    return rows.sets[0] if isinstance(rows, JoinedRows) else rows


def is_token_loss(units: pa.Table, plan: dict[str, Any]) -> Bool[np.ndarray, " unit"]:
    """Which units are token losses: of rows of several types those of that type, else all or none."""
    if "unit_type" in units.column_names:
        return np.array([kind == TOKEN_LOSS for kind in units["unit_type"].to_pylist()], dtype=bool)
    return np.full(len(units), plan["unit_type"] == TOKEN_LOSS)


def require_same_rows(one: AnyRows, other: AnyRows) -> None:
    """RunMismatchError unless two row sets have the same checkpoint, projection and preconditioner."""
    for key in _SAME:
        if one.plan[key] != other.plan[key]:
            raise RunMismatchError(
                f"Row sets {one.name!r} and {other.name!r} differ in {key}: their rows cannot be compared."
            )
    if (one.plan["loss"] == MARGIN) != (other.plan["loss"] == MARGIN):
        raise RunMismatchError(
            f"Row sets {one.name!r} and {other.name!r} hold gradients of losses and of margins: their rows cannot be "
            "compared."
        )
    if one.plan["model"]["fingerprint"] != other.plan["model"]["fingerprint"]:
        raise RunMismatchError(f"Row sets {one.name!r} and {other.name!r} are of different checkpoints.")
