"""A height that means the same everywhere in a tree: the cosine of the centres of the two sides of a merge.

The mean cosine of a merge depends on how noisy rows are: two halves of a loose skill join at 0.1, two skills of a tight
family at 0.3, and no single cut is right for both. Here each merge's mean cosine across is divided by the geometric
mean of the mean cosines within its two sides (Spearman 1904: a correlation corrected for attenuation by noise): 1 where
both sides are one skill seen twice, 0 where they have nothing in common, whatever the noise. Knows trees only.
"""

import numpy as np
from jaxtyping import Float

from .tree import Tree

_PRIOR_PAIRS = 3.0
_LEAST = 1e-4


def centre_cosines(tree: Tree, leaf_pairs: Float[np.ndarray, " leaf"] | None = None) -> Float[np.ndarray, " merge"]:
    """Estimated cosine of the two sides' centres at each merge, in [−1, 1], float64.

    `leaf_pairs` holds each leaf's sum of cosines over its pairs of rows, for leaves that are micro-clusters; None where
    leaves are rows. A side of one row has no pairs of its own, so the mean cosine within a side is taken with three
    more pairs, at the geometric mean of the other side's and of the cosine at which leaves usually first join.
    """
    counts = np.concatenate([tree.leaf_counts, tree.merges[:, 3]]).astype(np.float64)
    sums = np.concatenate([np.zeros(tree.num_leaves) if leaf_pairs is None else leaf_pairs, np.zeros(len(tree.merges))])
    sides = tree.merges[:, :2].astype(np.int64)
    for merge, (left, right) in enumerate(sides.tolist()):
        across = counts[left] * counts[right] * tree.merges[merge, 2]
        sums[tree.num_leaves + merge] = sums[left] + sums[right] + across
    pairs = (counts * (counts - 1) / 2)[sides]
    typical = max(_typical_pair(tree, sides), _LEAST)
    within = np.maximum((sums[sides] + _PRIOR_PAIRS * typical) / (pairs + _PRIOR_PAIRS), _LEAST)
    prior = np.sqrt(typical * within[:, ::-1])
    scale = np.sqrt(np.maximum((sums[sides] + _PRIOR_PAIRS * prior) / (pairs + _PRIOR_PAIRS), _LEAST).prod(axis=1))
    return np.asarray(np.clip(tree.merges[:, 2] / scale, -1, 1))


def _typical_pair(tree: Tree, sides: np.ndarray) -> float:
    """The median, over leaves, of the mean cosine of the first merge that each takes part in."""
    if not len(sides):
        return 1.0
    first = np.zeros(tree.num_leaves)
    heights = np.broadcast_to(tree.merges[:, [2]], sides.shape)
    is_leaf = sides < tree.num_leaves
    first[sides[is_leaf]] = heights[is_leaf]
    return float(np.median(first))


def by_centre_cosine(tree: Tree, leaf_pairs: Float[np.ndarray, " leaf"] | None = None) -> Tree:
    """The same tree with centre cosines as heights, merges in their order.

    Where a merge joins two sides that are less alike than those of a merge above it, it takes that one's height: once
    two groups count as one, so does all that is in them. Cut from the root, a branch thus stays whole from the first
    merge on whose sides are alike enough.
    """
    heights = centre_cosines(tree, leaf_pairs)
    sides = tree.merges[:, :2].astype(np.int64)
    raised = heights.tolist()
    for merge in range(len(sides) - 1, -1, -1):
        for side in sides[merge].tolist():
            if side >= tree.num_leaves:
                raised[side - tree.num_leaves] = max(raised[side - tree.num_leaves], raised[merge])
    heights = np.array(raised)
    order = np.argsort(-heights, kind="stable")  # stable: a child stays before a parent of equal height
    names = np.arange(tree.num_leaves + len(sides))
    names[tree.num_leaves + order] = tree.num_leaves + np.arange(len(sides))
    merges = tree.merges[order]
    merges[:, :2] = np.sort(names[merges[:, :2].astype(np.int64)], axis=1)
    merges[:, 2] = heights[order]
    return Tree(merges=merges, leaf_counts=tree.leaf_counts)
