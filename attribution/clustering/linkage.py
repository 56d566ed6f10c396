"""Average linkage on cosines, from a Gram matrix of group sums.

The mean cosine over all pairs of unit rows of two groups is ⟨S_a, S_b⟩ / (n_a n_b), with S the sum of a group's rows
and n their number, so groups of any size cost as much as single rows. Knows rows and counts, not what they stand for.
"""

import numpy as np
from jaxtyping import Float, Int

from .tree import Tree

_CHUNK = 2_048


def average_linkage(sums: Float[np.ndarray, "group dim"], counts: Int[np.ndarray, " group"] | None = None) -> Tree:
    """The tree of an average linkage (UPGMA) of groups with these sums of unit rows and counts of rows (None: 1 each).

    Equals `scipy.cluster.hierarchy.linkage(method="average", metric="cosine")` where all counts are 1, up to float32
    rounding and ties. Nearest-neighbour chain (Murtagh 1983): time and memory are quadratic in the number of groups;
    the matrix is float32, 4 bytes for each pair (1.6 GB at 20,000 groups). Deterministic; needs at least one group.
    """
    num_groups = len(sums)
    sizes = np.ones(num_groups, dtype=np.int64) if counts is None else counts.astype(np.int64)
    means = sums.astype(np.float32) / sizes[:, None].astype(np.float32)
    cosines = np.empty((num_groups, num_groups), dtype=np.float32)
    for start in range(0, num_groups, _CHUNK):  # the lower half is copied, so that the matrix is exactly symmetric
        stop = min(start + _CHUNK, num_groups)
        block = means[start:stop] @ means[start:].T
        block[:, : stop - start] = np.tril(block[:, : stop - start]) + np.tril(block[:, : stop - start], -1).T
        cosines[start:stop, start:] = block
        cosines[start:, start:stop] = block.T
    return linkage_of_cosines(cosines, sizes)


def linkage_of_cosines(cosines: Float[np.ndarray, "group group"], counts: Int[np.ndarray, " group"]) -> Tree:
    """The same from a symmetric float32 matrix of mean cosines, which is overwritten."""
    merges = _nearest_neighbour_chain(cosines, counts.astype(np.float64))
    return Tree(merges=_in_order(merges, counts), leaf_counts=counts.astype(np.int64))


def _nearest_neighbour_chain(cosines: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Merges in the order in which the chain finds them: [merge, (slot, slot that lives on, mean cosine)].

    Overwrites both arrays. A slot that has been merged away keeps −∞ towards all others.
    """
    num_groups = len(sizes)
    np.fill_diagonal(cosines, -np.inf)
    merges = np.empty((max(num_groups - 1, 0), 3))
    alive = np.ones(num_groups, dtype=bool)
    chain: list[int] = []
    for merge in range(num_groups - 1):
        if not chain:
            chain.append(int(alive.argmax()))
        while True:
            tip = chain[-1]
            best = int(cosines[tip].argmax())
            # on a tie the chain turns back, or it would run in circles
            if len(chain) > 1 and cosines[tip, best] <= cosines[tip, chain[-2]]:
                break
            chain.append(best)
        gone, kept = sorted((chain.pop(), chain.pop()))
        merges[merge] = gone, kept, cosines[gone, kept]
        total = sizes[gone] + sizes[kept]
        joined = cosines[gone] * np.float32(sizes[gone] / total) + cosines[kept] * np.float32(sizes[kept] / total)
        joined[kept] = -np.inf
        cosines[kept] = joined
        cosines[:, kept] = joined
        cosines[gone] = -np.inf
        cosines[:, gone] = -np.inf
        sizes[kept] = total
        alive[gone] = False
    return merges


def _in_order(merges: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Merges from the closest to the root, with slots renamed to nodes and the number of rows under each."""
    num_groups = len(counts)
    ordered = merges[np.argsort(-merges[:, 2], kind="stable")]
    parent = list(range(2 * num_groups - 1))
    rows_under = counts.tolist() + [0] * len(merges)
    named = np.empty((len(merges), 4))
    for index, (gone, kept, cosine) in enumerate(ordered.tolist()):
        left, right = sorted((_root(parent, int(gone)), _root(parent, int(kept))))
        node = num_groups + index
        parent[left] = parent[right] = node
        rows_under[node] = rows_under[left] + rows_under[right]
        named[index] = left, right, cosine, rows_under[node]
    return named


def _root(parent: list[int], node: int) -> int:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node
