"""How many quanta: the coarsest cut that explains held-out rows as well as the best one, within its standard error.

A cut that is too coarse blurs what rows have in common; one that is too fine repeats the noise of single rows. Both
show on rows that took no part in the clustering, in columns that took no part in choosing their quantum (held-out rows
and columns at once: Owen & Perry 2009, bi-cross-validation). No model of the noise is needed.

Legend: u a held-out row, S_q and n_q the sum and number of training rows of quantum q, λ the shrinkage,
ĉ_q = S_q / (n_q + λ); A and B two halves of the columns. u takes the q with the least |u_A − ĉ_qA|², and is scored by
|u_B|² − |u_B − ĉ_qB|²: 0 for no quantum at all.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.cluster.hierarchy import leaves_list

from ...errors import ConfigurationError
from .linkage import average_linkage
from .tree import Tree

_SHRINKAGES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CutChoice:
    """Which cut held-out rows ask for, and what it explains."""

    cosine: float
    """Merges at this mean cosine or above are made; −1 (one quantum) where no cut explains anything, above 1 where
    single rows explain best."""
    explained: float
    """Share of the held-out rows' squared norm that the chosen cut explains, at most 1."""
    best_explained: float
    """The same at the best cut tried."""
    num_train_quanta: int
    """Groups left in the half of the rows that was clustered."""


def choose_cut(
    rows: Float[np.ndarray, "unit dim"],
    *,
    seed: int = 0,
    num_standard_errors: float = 1.0,
    max_rows: int = 6_000,
    num_cuts: int = 40,
) -> CutChoice:
    """The mean cosine at which to cut an average linkage of rows like these unit rows.

    Half of the rows (of at most `max_rows`, drawn without replacement) are clustered, the other half is explained; of
    `num_cuts` cuts at geometric steps the coarsest one whose explained share lies within `num_standard_errors` (of the
    paired difference) of the best wins; 0 takes the best itself. λ is chosen at each cut. Rows of one document that
    fall in both halves help finer cuts. Deterministic in the seed. Raises ConfigurationError for fewer than 4 rows.
    """
    if len(rows) < 4 or rows.shape[1] < 2:
        raise ConfigurationError(f"{len(rows)} rows are too few to choose a number of quanta; name num_quanta")
    rng = np.random.default_rng(seed)
    picked = rng.permutation(len(rows))[:max_rows]
    columns = rng.permutation(rows.shape[1])
    train, held_out = rows[picked[: len(picked) // 2]], rows[picked[len(picked) // 2 :]]
    tree = average_linkage(train)
    order = _dendrogram_order(tree)
    train = train[order]
    halves = [np.sort(half) for half in np.array_split(columns, 2)]
    trained = [np.ascontiguousarray(train[:, half]) for half in halves]
    crosses = [held_out[:, half] @ part.T for half, part in zip(halves, trained, strict=True)]
    sizes = np.unique(np.geomspace(1, len(train), num_cuts).round().astype(int))
    gains = np.stack([_explained_at(tree.cut(int(size))[order], trained, crosses) for size in sizes])
    means = gains.mean(axis=1)
    best = int(means.argmax())
    errors = (gains[best] - gains).std(axis=1) / np.sqrt(len(held_out))
    chosen = int(np.flatnonzero(means >= means[best] - num_standard_errors * errors)[0])
    total = float(np.square(held_out[:, halves[1]]).sum(axis=1).mean())
    return CutChoice(
        cosine=_cut_cosine(tree, int(sizes[chosen])) if means[best] > 0 else -1.0,
        explained=float(means[chosen]) / total,
        best_explained=float(means[best]) / total,
        num_train_quanta=int(sizes[chosen]) if means[best] > 0 else 1,
    )


def _cut_cosine(tree: Tree, num_groups: int) -> float:
    """The mean cosine of the last merge made when `num_groups` are left; above 1 where none is."""
    return float(tree.cosines[tree.num_leaves - num_groups - 1]) if num_groups < tree.num_leaves else 2.0


def _dendrogram_order(tree: Tree) -> np.ndarray:
    """Leaves in the tree's order, so that each group of each cut is one run of them."""
    scipy_merges = tree.merges.copy()
    scipy_merges[:, 2] = 1 - tree.cosines
    return np.asarray(leaves_list(np.maximum(scipy_merges, 0)))


def _explained_at(labels: np.ndarray, trained: list[np.ndarray], crosses: list[np.ndarray]) -> np.ndarray:
    """Score of each held-out row under groups that are runs of training rows, at the λ with the best mean."""
    starts = np.flatnonzero(np.r_[True, labels[1:] != labels[:-1]])
    sizes = np.diff(np.r_[starts, len(labels)])
    dots = [np.add.reduceat(cross, starts, axis=1) for cross in crosses]
    squares = [np.square(np.add.reduceat(part, starts, axis=0)).sum(axis=1) for part in trained]
    held_out = np.arange(len(dots[0]))
    best = np.full(len(held_out), -np.inf)
    for shrinkage in _SHRINKAGES:
        weight = (1 / (sizes + shrinkage)).astype(np.float32)
        taken = (2 * dots[0] * weight - squares[0] * weight**2).argmax(axis=1)
        gain = 2 * dots[1][held_out, taken] * weight[taken] - squares[1][taken] * weight[taken] ** 2
        best = gain if gain.mean() > best.mean() else best
    return best
