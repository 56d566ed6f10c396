"""A tree for quanta that no single cut of a linkage gives: linkage inside each quantum, linkage of the quanta above.

Any partition of the rows becomes a `Clustering` here, so that each way of clustering offers every grain. Knows unit
rows and labels, not who made them.
"""

import numpy as np
from jaxtyping import Float, Int

from .base import Clustering, cut_clustering, group_sums, order_by_size
from .linkage import average_linkage
from .tree import Tree

MAX_PAIRS_ROWS = 20_000
"""Up to this many rows the tree's leaves are rows."""


def nested_clustering(
    rows: Float[np.ndarray, "unit dim"],
    labels: Int[np.ndarray, " unit"],
    groups: Int[np.ndarray, " unit"] | None = None,
) -> Clustering:
    """The clustering whose quanta are these labels (any integers), with a tree below and above them.

    Rows are unit. Leaves of the tree are the parts of `groups` inside each quantum; without `groups` they are the rows,
    or above 20,000 rows the quanta themselves. Inside a quantum the tree is the average linkage of its leaves, above
    it that of the quanta. Merges inside come before merges above: where their mean cosine is the lower one, they carry
    that of the first merge above, so that cosines fall from first to last. Needs at least one row.
    """
    quanta = order_by_size(labels)
    if groups is None:
        groups = np.arange(len(rows)) if len(rows) <= MAX_PAIRS_ROWS else quanta
    keys = quanta.astype(np.int64) * (int(groups.max()) + 1) + groups
    _, first, leaves = np.unique(keys, return_index=True, return_inverse=True)
    counts = np.bincount(leaves)
    sums = rows[first] if len(first) == len(rows) else group_sums(rows, leaves, len(first))
    ends = np.cumsum(np.bincount(quanta[first]))
    parts = zip(np.split(sums, ends[:-1]), np.split(counts, ends[:-1]), strict=True)
    inside = [average_linkage(part, sizes) for part, sizes in parts]
    above = average_linkage(group_sums(rows, quanta, len(ends)), np.bincount(quanta))
    tree = _joined(inside, above, ends - np.diff(ends, prepend=0))
    return cut_clustering(rows, leaves.astype(np.int32), tree, len(ends))


def _joined(inside: list[Tree], above: Tree, starts: np.ndarray) -> Tree:
    """One tree: the trees inside (leaves numbered on from `starts`), then the one above their roots."""
    counts = np.concatenate([tree.leaf_counts for tree in inside])
    merges, roots = [], []
    made = len(counts)
    for tree, start in zip(inside, starts.tolist(), strict=True):
        part = tree.merges.copy()
        is_leaf = part[:, :2] < tree.num_leaves
        part[:, :2] += np.where(is_leaf, start, made - tree.num_leaves)
        part[:, 2] = tree.cosines
        made += len(part)
        merges.append(part)
        roots.append(made - 1 if len(part) else start)
    below = np.concatenate(merges)
    order = np.argsort(-below[:, 2], kind="stable")  # a parent never comes before its child: cosines fall in each tree
    names = np.arange(made)
    names[len(counts) + order] = np.arange(len(counts), made)
    below = below[order]
    below[:, :2] = np.sort(names[below[:, :2].astype(np.int64)], axis=1)
    top = above.merges.copy()
    nodes = np.concatenate([names[np.array(roots)], made + np.arange(len(top))])
    top[:, :2] = np.sort(nodes[top[:, :2].astype(np.int64)], axis=1)
    if len(top):
        below[:, 2] = np.maximum(below[:, 2], top[0, 2])
    return Tree(merges=np.concatenate([below, top]), leaf_counts=counts)
