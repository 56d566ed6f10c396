"""Quanta at another grain: any cut of the stored tree, described as quanta are, and the nodes above a unit.

Knows stored quanta; reads rows again only where a cut has to be described.
"""

from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from ...attribution.clustering import cut_clustering
from ...attribution.quanta.labels import label_quanta
from ...errors import ConfigurationError, RunNotFoundError
from .clustered import Quanta, steps_down, units_of
from .contexts import Contexts
from .table import describe, quantum_nodes

_CONTEXT_TOKENS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One node on the way from the root to what was asked for."""

    node: int
    """Its number in the tree: leaves first, then merges."""
    size: int
    """Clustered units under it."""
    cosine: float | None
    """Mean cosine at which its two sides join; None for a leaf."""
    persistence: float | None
    """Share of resamples in which it comes back; None for a leaf, or where it was never asked for."""
    quantum: int | None
    """The quantum that it is, if it is one."""
    held: int
    """Of the units asked for, how many lie under it."""
    label: str


def groups_at(quanta: Quanta, grain: float) -> int:
    """How many groups a grain leaves: a whole number is their number, a fraction the mean cosine of the cut.

    Raises ConfigurationError for a grain that the tree does not have.
    """
    tree = quanta.tree
    if isinstance(grain, float) and not grain.is_integer() and isfinite(grain) and -1 < grain < 1:
        return tree.num_leaves_at(grain)
    if not isfinite(grain) or grain != int(grain) or not 1 <= grain <= tree.num_leaves:
        raise ConfigurationError(
            f"The tree of {quanta.name!r} has no grain {grain}: give a number of groups from 1 to {tree.num_leaves}, "
            "or a mean cosine between -1 and 1 that is no whole number."
        )
    return int(grain)


def at_grain(quanta: Quanta, grain: float) -> pa.Table:
    """The groups that a grain leaves, as a table like that of the quanta, largest first, with `node`, `persistence`.

    Raises ConfigurationError for a grain that the tree does not have.
    """
    num_groups = groups_at(quanta, grain)
    if num_groups == len(quanta.table):
        return quanta.table
    tree, rows = quanta.tree, quanta.rows
    clustering = cut_clustering(rows, quanta.leaves, tree, num_groups)
    kept = np.asarray(quanta.units["unit"])
    norms = quanta.row_set.block_norms()[kept]
    columns, _ = describe(quanta.run, quanta.units, kept, rows, clustering, norms)
    nodes = quantum_nodes(clustering)
    columns |= {"node": nodes.tolist(), "persistence": _persistence(quanta)[nodes].tolist()}
    return pa.table(columns)


def groups_of_units(quanta: Quanta, grain: float) -> Int[np.ndarray, " unit"]:
    """Which of the groups at a grain each clustered unit is in; numbered as `at_grain` has them."""
    num_groups = groups_at(quanta, grain)
    labels = quanta.tree.cut(num_groups)[quanta.leaves]
    if num_groups == len(quanta.table):
        return np.asarray(quanta.units["quantum"])
    _, first, inverse, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(sizes), np.int64)
    rank[np.lexsort((first, -sizes))] = np.arange(len(sizes))
    return np.asarray(rank[inverse])


def ancestors(
    quanta: Quanta,
    *,
    unit: int | None = None,
    document: int | None = None,
    group: tuple[str, str] | None = None,
    quantum: int | None = None,
) -> tuple[list[Step], int]:
    """The same skill at every grain: nodes from the narrowest that was asked for up to the root, and how many units.

    Of several units (a document's, or those with a label's value) the way down always takes the side that holds more
    of them, and stops where it would hold fewer than half. Exactly one argument is given, or ConfigurationError.
    """
    given = [name for name, value in locals().items() if name != "quanta" and value is not None]
    if len(given) != 1:
        raise ConfigurationError(f"give one of unit, document, group and quantum, not {', '.join(given) or 'none'}")
    if quantum is not None:
        if not 0 <= quantum < len(quanta.table):
            raise RunNotFoundError(f"There is no quantum {quantum}; they are numbered 0 to {len(quanta.table) - 1}.")
        places = np.flatnonzero(np.asarray(quanta.units["quantum"]) == quantum)
    else:
        places = units_of(quanta, unit=unit, document=document, group=group)
    path = steps_down(quanta.tree, quanta.leaves[places])
    stop = 1 + max(i for i, (_, held) in enumerate(path) if 2 * held > len(places) or i == 0)
    wanted = path[:stop]
    if quantum is not None:
        own = int(quanta.table["node"][quantum].as_py())
        wanted = path[: 1 + next(i for i, (node, _) in enumerate(path) if node == own)]
    labels = _labels(quanta, [node for node, _ in wanted])
    return [_step(quanta, node, held, labels[node]) for node, held in reversed(wanted)], len(places)


def tree_nodes(quanta: Quanta, *, fine: bool) -> list[dict[str, Any]]:
    """Nodes from the root down to the quanta, or to the leaves: node, sides, size, cosine, persistence, quantum."""
    own = {int(node): quantum for quantum, node in enumerate(quanta.table["node"].to_pylist())}
    tree = quanta.tree
    lines = {row["node"]: row for row in quanta.tree_table.to_pylist()}
    found, waiting = [], [tree.num_leaves + len(tree.merges) - 1]
    while waiting:
        node = waiting.pop()
        row = lines.get(node)
        ends = row is None or (not fine and node in own)
        persistence = row["persistence"] if row else None
        found.append(
            {
                "node": node,
                "sides": None if ends or row is None else (row["left"], row["right"]),
                "size": row["size"] if row else int(tree.leaf_counts[node]),
                "cosine": row["cosine"] if row else None,
                "persistence": persistence if persistence is not None and isfinite(persistence) else None,
                "quantum": own.get(node),
            }
        )
        if not ends and row is not None:
            waiting += [row["right"], row["left"]]
    return found


def _step(quanta: Quanta, node: int, held: int, label: str) -> Step:
    tree = quanta.tree
    merge = node - tree.num_leaves
    row: dict[str, Any] = quanta.tree_table.slice(merge, 1).to_pylist()[0] if merge >= 0 else {}
    persistence = row.get("persistence")
    nodes = quanta.table["node"].to_pylist()
    return Step(
        node=node,
        size=int(row["size"]) if row else int(tree.leaf_counts[node]),
        cosine=row.get("cosine"),
        persistence=persistence if persistence is not None and isfinite(persistence) else None,
        quantum=nodes.index(node) if node in nodes else None,
        held=held,
        label=label,
    )


def _labels(quanta: Quanta, nodes: list[int]) -> dict[int, str]:
    """A label for each of some nodes that contain each other, from all units under it."""
    members = _under(quanta, nodes)
    contexts = Contexts(quanta.run)
    widest = np.flatnonzero(members.any(axis=0))
    lines = quanta.units.take(pa.array(widest))
    before, targets = contexts.before(lines, _CONTEXT_TOKENS), contexts.targets(lines)
    found = {}
    for node, held in zip(nodes, members[:, widest], strict=True):
        chosen = np.flatnonzero(held)
        one = label_quanta([before[i] for i in chosen], [targets[i] for i in chosen], np.zeros(len(chosen), np.int64))
        found[node] = one[0].phrase
    return found


def _under(quanta: Quanta, nodes: list[int]) -> np.ndarray:
    """Whether each unit lies under each node, [node, unit]."""
    tree = quanta.tree
    sides = tree.merges[:, :2].astype(np.int64)
    found = np.zeros((len(nodes), len(quanta.leaves)), bool)
    for row, node in zip(found, nodes, strict=True):
        inside = np.zeros(tree.num_leaves + len(sides), bool)
        inside[node] = True
        for merge in range(node - tree.num_leaves, -1, -1):
            if inside[tree.num_leaves + merge]:
                inside[sides[merge]] = True
        row[:] = inside[quanta.leaves]
    return found


def _persistence(quanta: Quanta) -> np.ndarray:
    """Of each node, leaves first (NaN)."""
    return np.concatenate([np.full(quanta.tree.num_leaves, np.nan), np.asarray(quanta.tree_table["persistence"])])
