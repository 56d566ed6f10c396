"""Quanta as they are stored, opened for reading: units, quanta, the tree, and how rows were prepared.

Knows the run's folders and nothing of how quanta are found.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Float64, Int, Int64

from ...attribution.clustering import Tree
from ...attribution.quanta.block_choice import ChosenBlocks
from ...attribution.quanta.interference import Interference
from ...attribution.whitening import Whitener
from ...errors import RunNotFoundError
from ...storage.rowset import RowSet
from ...storage.run import Run
from .joined import AnyRows, open_rows, require_same_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """What happens to rows before they are clustered, and to a behaviour's row before it is compared with them."""

    whitener: Whitener
    blocks: ChosenBlocks | None = None
    """The blocks that count; None takes rows as they are."""

    def chosen(self, rows: Float32[np.ndarray, "unit dim"]) -> Float32[np.ndarray, "unit kept"]:
        """Rows with the chosen blocks alone, weighed; of any norm."""
        return rows if self.blocks is None else self.blocks.apply(rows)

    def apply(self, rows: Float32[np.ndarray, "unit dim"]) -> Float32[np.ndarray, "unit kept"]:
        """Chosen, whitened, of unit norm; ConfigurationError for a row whose chosen blocks are zero."""
        return self.whitener.apply(self.chosen(rows))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """By name, for storing."""
        arrays = {f"whitener_{name}": array for name, array in self.whitener.to_arrays().items()}
        if self.blocks is not None:
            arrays |= {"block_columns": self.blocks.columns, "block_factors": self.blocks.factors}
            if self.blocks.starts is not None:
                arrays["block_starts"] = self.blocks.starts
        return arrays


class Quanta:
    """Stored quanta, opened for reading; RunMismatchError if the rows that they came from changed since."""

    def __init__(self, run: Run, name: str = "main") -> None:
        self.run, self.name = run, name
        self._derived = run.derived("quanta", name)
        self.row_set: AnyRows = open_rows(run, self._derived.facts()["rows"])
        self.facts = self._derived.facts(source=self.row_set.fingerprint())

    @cached_property
    def units(self) -> pa.Table:
        """One line per clustered unit: unit, quantum, cosine, leaf, codes, x, y …; then the row set's columns."""
        table = self._derived.table("units")
        described = self.row_set.units().take(table["unit"])
        for name in described.column_names:
            if name not in table.column_names:
                table = table.append_column(name, described[name])
        return table

    @cached_property
    def table(self) -> pa.Table:
        """One line per quantum, largest first."""
        return self._derived.table("quanta")

    @cached_property
    def centroids(self) -> Float32[np.ndarray, "quantum dim"]:
        """Unit mean directions of the prepared rows."""
        return self._derived.array("centroids")

    @cached_property
    def merges(self) -> np.ndarray:
        """The tree above the quanta in scipy's convention, with mean cosines as heights."""
        return self._derived.array("merges")

    @cached_property
    def tree_table(self) -> pa.Table:
        """One line per merge of the whole tree: node, left, right, cosine, size, persistence, quantum (or −1)."""
        self._require("tree")
        return self._derived.table("tree")

    @cached_property
    def tree(self) -> Tree:
        """The whole tree, below the quanta and above; leaves are the units' `leaf`."""
        table = self.tree_table
        merges = np.stack([np.asarray(table[c], np.float64) for c in ("left", "right", "cosine", "size")], axis=1)
        return Tree(merges=merges, leaf_counts=np.bincount(self.leaves, minlength=len(merges) + 1).astype(np.int64))

    @cached_property
    def leaves(self) -> Int64[np.ndarray, " unit"]:
        """The tree's leaf that each clustered unit is in."""
        self._require("tree")
        return np.asarray(self.units["leaf"], np.int64)

    @cached_property
    def preparation(self) -> Preparation:
        """What was done to the rows."""
        names = self.facts["whitener_arrays"]
        whitener = Whitener.from_arrays({n: self._derived.array(f"whitener_{n}") for n in names})
        chosen = self.facts.get("blocks")
        if chosen is None:
            return Preparation(whitener=whitener)
        is_unit = self.facts["config"]["blocks"].get("scale") == "unit"
        return Preparation(
            whitener=whitener,
            blocks=ChosenBlocks(
                columns=self._derived.array("block_columns"),
                factors=self._derived.array("block_factors"),
                names=tuple(chosen),
                starts=self._derived.array("block_starts") if is_unit else None,
            ),
        )

    @property
    def whitener(self) -> Whitener:
        """What the rows were preconditioned with."""
        return self.preparation.whitener

    @cached_property
    def rows(self) -> Float32[np.ndarray, "unit dim"]:
        """The prepared unit rows, computed again from the stored ones."""
        kept, rows = self.row_set.unit_rows()
        clustered = np.asarray(self._derived.table("units")["unit"])
        if len(kept) != len(clustered):
            rows = rows[np.isin(kept, clustered)]
        return self.preparation.apply(rows)

    def address(self) -> Float32[np.ndarray, "quantum block"]:
        """Share of squared norm per block."""
        return self._derived.array("address")

    def interference(self) -> Interference:
        """What the mean cosines between quanta are made from, and their null."""
        self._require("interference")
        found = self.facts["interference"]
        return Interference(
            lengths=_column(self.table, "length"),
            sizes=np.asarray(self.table["size"], np.int64),
            mean=found["mean"],
            row_variance=found["row_variance"],
            pair_variance=found["pair_variance"],
        )

    def evidence(self) -> dict[str, Any] | None:
        """What `measure` stored; None if it was not run."""
        derived = self.run.derived("evidence", self.name)
        return derived.facts(source=self.fingerprint()) if derived.exists else None

    def fingerprint(self) -> str:
        """Of the clustering itself."""
        return self._derived.fingerprint()

    def _require(self, what: str) -> None:
        """RunNotFoundError for quanta that an older version stored, without the tree and what goes with it."""
        if "interference" not in self.facts:
            raise RunNotFoundError(
                f"Quanta {self.name!r} of {self.run.store.root} were stored without their {what} by an older version: "
                "`quantascope cluster` makes them again."
            )


def units_of(
    quanta: Quanta, *, unit: int | None, document: int | None, group: tuple[str, str] | None
) -> Int64[np.ndarray, " place"]:
    """Places (in `quanta.units`) of one unit, of a document's units, or of those with a label's value.

    Exactly one is given. RunNotFoundError where it names nothing that was clustered.
    """
    units = quanta.units
    if group is not None:
        column, value = f"label_{group[0]}", group[1]
        labels = [n.removeprefix("label_") for n in units.column_names if n.startswith("label_")]
        if column not in units.column_names:
            raise RunNotFoundError(f"The units have no label {group[0]!r}; they have {', '.join(labels) or 'none'}.")
        found = np.flatnonzero(np.array([entry == value for entry in units[column].to_pylist()]))
        what = f"no clustered unit with the label {group[0]}: {value}"
    else:
        name, wanted = ("unit", unit) if unit is not None else ("document", document)
        found = np.flatnonzero(np.asarray(units[name]) == wanted)
        what = f"no clustered unit {wanted}" if name == "unit" else f"no clustered unit of document {wanted}"
    if not len(found):
        raise RunNotFoundError(f"There is {what}.")
    return found.astype(np.int64)


def require_comparable(quanta: Quanta, other: RowSet) -> None:
    """RunMismatchError unless another row set has the same checkpoint, projection and preconditioner."""
    require_same_rows(quanta.row_set, other)


def _column(table: pa.Table, name: str) -> Float64[np.ndarray, " quantum"]:
    return np.asarray(table[name], np.float64)


def steps_down(tree: Tree, leaves: Int[np.ndarray, " chosen"]) -> list[tuple[int, int]]:
    """From the root down, always into the side with more of these leaves: each node, and how many it holds.

    `leaves` may name a leaf several times. Of equal sides the larger is taken. Ends at a leaf.
    """
    num_leaves = tree.num_leaves
    held = np.concatenate([np.bincount(leaves, minlength=num_leaves), np.zeros(len(tree.merges), np.int64)])
    rows = np.concatenate([tree.leaf_counts, tree.merges[:, 3].astype(np.int64)])
    sides = tree.merges[:, :2].astype(np.int64)
    for merge, (left, right) in enumerate(sides.tolist()):
        held[num_leaves + merge] = held[left] + held[right]
    node = num_leaves + len(sides) - 1 if len(sides) else 0
    path = [(int(node), int(held[node]))]
    while node >= num_leaves:
        node = int(max(sides[node - num_leaves].tolist(), key=lambda side: (held[side], rows[side], -side)))
        path.append((node, int(held[node])))
    return path
