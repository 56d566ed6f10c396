"""How quanta meet in gradient space: the mean cosine between their rows, and which groups of them don't interact.

A positive mean cosine means that a step on one quantum's units lowers the other's loss too, to first order; a negative
one that learning one unlearns the other. The null deals the units out anew to quanta of the same sizes; the mean and
the spread that this gives are computed exactly, without shuffling. Groups are communities of greatest modularity in the
graph of the pairs beyond the null, beside the modularity of random graphs with the same degrees. Knows rows, labels.

Legend: n rows in all; a, b the sizes of two quanta; μ the mean cosine of two different rows; h_i how far row i's own
mean cosine lies above μ; r_ij what is left of a pair's cosine after μ, h_i and h_j (Hoeffding 1948).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int, Int32, Int64

from ...errors import ConfigurationError
from ..clustering.base import group_sums

BEYOND = 3.0
"""Standard deviations of the null from which on a pair of quanta counts as meeting."""
_SAMPLE = 2_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Interference:
    """Mean cosines between quanta, and what chance gives quanta of such sizes."""

    lengths: Float64[np.ndarray, " quantum"]
    """Length of each quantum's mean row: with unit centroids c, the mean cosine of two quanta is l_a l_b ⟨c_a, c_b⟩."""
    sizes: Int64[np.ndarray, " quantum"]
    mean: float
    """μ: what the null has on average, for every pair."""
    row_variance: float
    """Mean square of h."""
    pair_variance: float
    """Mean square of r."""

    def cosines(
        self, centroids: Float[np.ndarray, "quantum dim"], quanta: Int[np.ndarray, " chosen"] | None = None
    ) -> Float64[np.ndarray, "chosen quantum"]:
        """Mean cosine of these quanta (None: all) with all; between a quantum and itself NaN."""
        chosen = np.arange(len(self.sizes)) if quanta is None else quanta
        found = (centroids[chosen] @ centroids.T).astype(np.float64) * self.lengths[chosen, None] * self.lengths
        found[np.arange(len(chosen)), chosen] = np.nan
        return found

    def spread(self, quanta: Int[np.ndarray, " chosen"] | None = None) -> Float64[np.ndarray, "chosen quantum"]:
        """Standard deviation of the null's mean cosine for each pair of quanta; NaN where there are under five rows.

        Exact for units dealt out without replacement: the rows' part has (n − a)/a(n − 1) + (n − b)/b(n − 1) − 2/(n−1)
        times its variance, the pairs' part 1/ab less what sharing a row takes off.
        """
        total = float(self.sizes.sum())
        if total < 5:
            return np.full((len(self.sizes) if quanta is None else len(quanta), len(self.sizes)), np.nan)
        a = (self.sizes if quanta is None else self.sizes[quanta]).astype(np.float64)[:, None]
        b = self.sizes.astype(np.float64)[None, :]
        rows = (total - a) / a + (total - b) / b - 2
        pairs = 1 - (a + b - 2) / (total - 2) + 2 * (a - 1) * (b - 1) / ((total - 2) * (total - 3))
        variance = self.row_variance * rows / (total - 1) + self.pair_variance * pairs / (a * b)
        return np.asarray(np.sqrt(np.maximum(variance, 1e-18)))

    def scores(
        self, centroids: Float[np.ndarray, "quantum dim"], quanta: Int[np.ndarray, " chosen"] | None = None
    ) -> Float64[np.ndarray, "chosen quantum"]:
        """Mean cosines as standard deviations from the null's mean."""
        return np.asarray((self.cosines(centroids, quanta) - self.mean) / self.spread(quanta))


def measure_interference(rows: Float[np.ndarray, "unit dim"], assignments: Int[np.ndarray, " unit"]) -> Interference:
    """What mean cosines between quanta 0 … k − 1 of unit rows need, and their null.

    The variance of single pairs is taken from at most 2,000 rows at equal distances; all else from all. Deterministic.
    Raises ConfigurationError where lengths differ or there are fewer than two rows.
    """
    num_rows = len(rows)
    if num_rows != len(assignments) or num_rows < 2:
        raise ConfigurationError(f"{num_rows} rows and {len(assignments)} assignments; as many of both, and at least 2")
    sizes = np.bincount(assignments)
    sums = group_sums(rows, assignments, len(sizes)).astype(np.float64)
    whole = sums.sum(axis=0)
    mine = np.concatenate([rows[i : i + 8_192] @ whole for i in range(0, num_rows, 8_192)]) - 1.0
    mean = float(mine.sum() / (num_rows * (num_rows - 1)))
    above = (mine - (num_rows - 1) * mean) / max(num_rows - 2, 1)
    picked = np.arange(min(num_rows, _SAMPLE)) * num_rows // min(num_rows, _SAMPLE)
    products = (rows[picked] @ rows[picked].T).astype(np.float64) - mean - above[picked, None] - above[picked]
    np.fill_diagonal(products, 0)
    return Interference(
        lengths=np.linalg.norm(sums, axis=1) / np.maximum(sizes, 1),
        sizes=sizes.astype(np.int64),
        mean=mean,
        row_variance=float(np.square(above).mean()),
        pair_variance=float(np.square(products).sum() / (len(picked) * (len(picked) - 1))),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Communities:
    """Groups of quanta that interact among themselves and hardly with others."""

    community: Int32[np.ndarray, " quantum"]
    """From 0, the largest first; quanta that meet no other are communities of their own."""
    modularity: float
    """Share of the weight inside communities less what chance would have there; 0 without any edge."""
    null: Float64[np.ndarray, " graph"]
    """Modularity of the communities that are found in random graphs with the same degrees and weights."""
    num_edges: int


def find_communities(
    weights: Float[np.ndarray, "quantum quantum"], *, num_nulls: int = 20, seed: int = 0
) -> Communities:
    """Communities of a symmetric graph of weights ≥ 0 (Louvain: Blondel et al. 2008), and the null of its modularity.

    Of NaN and the diagonal nothing is taken. The null joins the ends of edges at random (self-loops and double edges
    fall away) and shuffles the weights. Time is quadratic in the quanta. Deterministic in the seed.
    """
    graph = np.where(np.isfinite(weights), weights, 0.0)
    np.fill_diagonal(graph, 0)
    rng = np.random.default_rng(seed)
    labels = _louvain(graph, rng)
    first, second = np.nonzero(np.triu(graph, 1))
    null = np.empty(num_nulls if len(first) else 0)
    for turn in range(len(null)):
        ends = rng.permutation(np.concatenate([first, second])).reshape(2, -1)
        again = np.zeros_like(graph)
        again[ends[0], ends[1]] = rng.permutation(graph[first, second])
        again = np.maximum(again, again.T)
        np.fill_diagonal(again, 0)
        null[turn] = modularity(again, _louvain(again, rng))
    sizes = np.bincount(labels)
    rank = np.empty(len(sizes), dtype=np.int32)
    rank[np.lexsort((np.unique(labels, return_index=True)[1], -sizes))] = np.arange(len(sizes))
    return Communities(community=rank[labels], modularity=modularity(graph, labels), null=null, num_edges=len(first))


def modularity(graph: Float[np.ndarray, "node node"], labels: Int[np.ndarray, " node"]) -> float:
    """Newman & Girvan's modularity of a partition of a symmetric graph; 0 without edges."""
    total = graph.sum()
    if total <= 0:
        return 0.0
    same: Bool[np.ndarray, "node node"] = labels[:, None] == labels[None, :]
    degrees = graph.sum(axis=1)
    return float((graph[same].sum() - (degrees[:, None] * degrees)[same].sum() / total) / total)


def _louvain(graph: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Labels 0 … m − 1: nodes move to the neighbouring community of greatest gain, then communities become nodes."""
    labels = np.arange(len(graph))
    while True:
        moved = _local_moves(graph, rng)
        names, moved = np.unique(moved, return_inverse=True)
        labels = moved[labels]
        if len(names) == len(graph):
            return labels
        member = np.zeros((len(graph), len(names)))
        member[np.arange(len(graph)), moved] = 1
        graph = member.T @ graph @ member


def _local_moves(graph: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One level: rounds over the nodes until none gains by moving, at most twenty."""
    num_nodes, total = len(graph), graph.sum()
    labels = np.arange(num_nodes)
    degrees = graph.sum(axis=1)
    weight_of = degrees.copy()
    near = [np.flatnonzero(row) for row in graph]
    for _ in range(20 if total > 0 else 0):
        changed = False
        for node in rng.permutation(num_nodes).tolist():
            others = near[node][near[node] != node]
            if not len(others):
                continue
            own = labels[node]
            weight_of[own] -= degrees[node]
            gains = np.bincount(labels[others], weights=graph[node, others], minlength=num_nodes)
            gains -= degrees[node] * weight_of / total
            reached = np.append(labels[others], own)
            best = int(reached[gains[reached].argmax()])
            if gains[best] <= gains[own] + 1e-12 * total:
                best = int(own)
            changed |= best != own
            labels[node] = best
            weight_of[best] += degrees[node]
        if not changed:
            break
    return labels


def strongest(
    scores: Float32[np.ndarray, " quantum"] | Float64[np.ndarray, " quantum"], *, num: int, least: float
) -> Int64[np.ndarray, " found"]:
    """Places of the greatest scores at or above `least`, greatest first, at most `num`; NaN never counts."""
    ranked = np.argsort(np.where(np.isfinite(scores), -scores, np.inf), kind="stable")[:num]
    found: Int64[np.ndarray, " found"] = ranked[np.nan_to_num(scores[ranked], nan=-np.inf) >= least]
    return found
