"""Which branches of a tree come back: each is looked for in the trees of resampled documents.

Half of the documents are drawn, their rows are joined by average linkage, and a branch has come back where some branch
of that tree has nearly the same rows. A skill comes back; so do the branch that holds most of it, and the branch that
holds it and its nearest relative. So this says which grains are real, and not which of them to call quanta: that is the
cut's affair (choose.py). Knows unit rows and their documents.
"""

import numpy as np
from jaxtyping import Float, Int

from .linkage import linkage_of_cosines
from .tree import Tree

COMES_BACK = 0.8
"""Share of resamples from which on a branch counts as one that comes back."""
LEAST_JACCARD = 0.6
"""Rows in common over rows in either, from which on two branches are the same."""
_CHUNK_CELLS = 4_000_000


def branch_persistence(
    rows: Float[np.ndarray, "unit dim"],
    tree: Tree,
    groups: Int[np.ndarray, " unit"],
    documents: Int[np.ndarray, " unit"] | None = None,
    *,
    num_resamples: int = 20,
    max_rows: int = 6_000,
    seed: int = 0,
) -> Float[np.ndarray, " merge"]:
    """For each merge: the share of resamples in which its branch comes back, 0 to 1.

    Rows are unit; `groups` names each row's leaf of the tree. Without `documents` every row is one. At most `max_rows`
    rows are looked at. A branch of which a resample has rows of one document only has not come back; one of which it
    has fewer than two rows is not asked for there: NaN where that is so in all of them. Deterministic in the seed.
    Memory: 4 bytes for each pair of those rows, twice.
    """
    rng = np.random.default_rng(seed)
    documents = np.arange(len(rows)) if documents is None else documents
    picked = np.sort(rng.permutation(len(rows))[:max_rows])
    place = np.argsort(tree.leaf_order)[groups[picked]]
    picked = picked[np.argsort(place, kind="stable")]
    starts, ends = _runs(tree, np.sort(place))
    cosines = (rows[picked] @ rows[picked].T).astype(np.float32, copy=False)
    cosines = np.triu(cosines) + np.triu(cosines, 1).T
    named = np.unique(documents[picked], return_inverse=True)[1]
    back, asked = np.zeros(len(tree.merges)), np.zeros(len(tree.merges))
    for _ in range(num_resamples):
        drawn = np.isin(named, rng.permutation(int(named.max()) + 1)[: (int(named.max()) + 2) // 2])
        before = np.concatenate([[0], np.cumsum(drawn)])
        sampled = np.flatnonzero(drawn)
        if len(sampled) < 2:
            continue
        again = linkage_of_cosines(cosines[np.ix_(sampled, sampled)], np.ones(len(sampled), np.int64))
        first, last = before[starts], before[ends]
        asked += last - first > 1
        changes = np.concatenate([[0, 0], np.cumsum(np.diff(named[sampled]) != 0)])
        spread = (last - first > 1) & (changes[last] > changes[np.minimum(first + 1, len(sampled))])
        back[spread] += _best_jaccard(first[spread], last[spread], again) >= LEAST_JACCARD
    return np.where(asked > 0, back / np.maximum(asked, 1), np.nan)


def _runs(tree: Tree, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each branch's rows begin and end among rows whose leaves' places in the leaf order these are, sorted."""
    first = np.argsort(tree.leaf_order).tolist()
    count = [1] * tree.num_leaves
    for left, right in tree.merges[:, :2].astype(np.int64).tolist():
        first.append(min(first[left], first[right]))
        count.append(count[left] + count[right])
    begin = np.array(first[tree.num_leaves :], dtype=np.int64)
    end = begin + np.array(count[tree.num_leaves :], dtype=np.int64)
    return np.searchsorted(places, begin), np.searchsorted(places, end)


def _best_jaccard(first: np.ndarray, last: np.ndarray, again: Tree) -> np.ndarray:
    """The greatest Jaccard index of each run of rows [first, last) with any branch of the other tree of those rows."""
    num_rows = again.num_leaves
    starts, ends = _runs(again, np.arange(num_rows))
    best = np.empty(len(first))
    step = max(_CHUNK_CELLS // num_rows, 1)
    for start in range(0, len(first), step):
        low, high = first[start : start + step, None], last[start : start + step, None]
        inside = (again.leaf_order >= low) & (again.leaf_order < high)
        counts = np.zeros((len(low), num_rows + 1), dtype=np.int32)
        np.cumsum(inside, axis=1, out=counts[:, 1:])
        common = counts[:, ends] - counts[:, starts]
        union = (high - low) + (ends - starts) - common
        best[start : start + step] = (common / union).max(axis=1)
    return best
