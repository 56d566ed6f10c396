"""Which quanta are parts of one skill, although their gradients point in opposite directions.

Where a skill has been learned, its gradients cancel: at an optimum the mean gradient of all of its units is zero, for
otherwise a step would still help. Its parts (the bit patterns of a parity, the two answers of one question) then have
mean gradients m that are linearly dependent, Σ n m ≈ 0 over the parts, and their cosines are of either sign and small.
Signed affinities keep them apart and squared cosines see only pairs. What shows a dependency among several is the
partial correlation of two means given all the others: −Θ_ij / √(Θ_ii Θ_jj) with Θ the inverse of the means' (damped)
Gram matrix. Its size, whatever the sign, is near 1 within a skill of two parts, and clearly above zero within one of
several. Knows arrays only.
"""

import numpy as np
from jaxtyping import Float, Int, Int64

from ...errors import ConfigurationError
from ..clustering import group_sums, order_by_size
from ..clustering.tree import Tree
from ..whitening import unit_rows


def partial_correlations(
    means: Float[np.ndarray, "quantum dim"], *, damping: float = 1e-3
) -> Float[np.ndarray, "quantum quantum"]:
    """Partial correlation of each pair of rows given the others, float64 in [−1, 1], zero on the diagonal.

    Rows are made unit; their Gram matrix gets `damping` (above 0) added to its diagonal before it is inverted. There
    should be more dimensions than rows. Raises ConfigurationError for zero or non-finite rows.
    """
    if not damping > 0:
        raise ConfigurationError(f"damping is {damping}; it must be above 0")
    unit = unit_rows(means).astype(np.float64)
    inverse = np.linalg.inv(unit @ unit.T + damping * np.eye(len(unit)))
    scale = np.sqrt(np.diag(inverse))
    found = -inverse / np.outer(scale, scale)
    np.fill_diagonal(found, 0.0)
    return np.asarray(np.clip(found, -1, 1))


def group_by_opposition(
    rows: Float[np.ndarray, "unit dim"],
    quanta: Int[np.ndarray, " unit"],
    num_groups: int,
    *,
    damping: float = 1e-3,
) -> Int64[np.ndarray, " unit"]:
    """Group of each unit (0 is the largest) when quanta are joined by the size of their partial correlations.

    Rows should not be whitened: whitening undoes that gradients cancel. They are made unit, and each quantum stands for
    its mean; average linkage joins what is most dependent, till `num_groups` are left. `quanta` may be any integers.
    Raises ConfigurationError where there are fewer quanta than groups, or for zero or non-finite rows.
    """
    names, codes = np.unique(quanta, return_inverse=True)
    if not 1 <= num_groups <= len(names):
        raise ConfigurationError(f"{num_groups} groups asked of {len(names)} quanta; ask for at most that many")
    means = group_sums(unit_rows(rows), codes, len(names))
    strength = np.abs(partial_correlations(means, damping=damping))
    return order_by_size(_linkage_of(strength).cut(num_groups)[codes]).astype(np.int64)


def _linkage_of(affinity: Float[np.ndarray, "quantum quantum"]) -> Tree:
    """Average linkage of a matrix of affinities."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    num = len(affinity)
    if num == 1:
        return Tree(merges=np.zeros((0, 4)), leaf_counts=np.ones(1, dtype=np.int64))
    distances = 1 - (affinity + affinity.T) / 2
    np.fill_diagonal(distances, 0)
    merges = linkage(squareform(distances, checks=False), method="average")
    merges[:, 2] = 1 - merges[:, 2]
    return Tree(merges=merges, leaf_counts=np.ones(num, dtype=np.int64))
