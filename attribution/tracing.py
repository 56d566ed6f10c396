"""From a behaviour's gradient row to the quanta that it uses, the units behind it, and how novel it is.

All rows here are preconditioned alike and have unit norm. Knows rows and centroids; no models, no text.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import nnls

_CANDIDATES = 10
_RESAMPLES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantumWeights:
    """A row as a non-negative combination of its nearest centroids, largest weight first."""

    quantum: Int[np.ndarray, " used"]
    weight: Float[np.ndarray, " used"]
    low: Float[np.ndarray, " used"]
    """Lower end of the 95 % interval over resamples of the row's coordinates (the projection's own noise)."""
    high: Float[np.ndarray, " used"]


def quantum_weights(
    query: Float[np.ndarray, " dim"], centroids: Float[np.ndarray, "quantum dim"], *, seed: int = 0
) -> QuantumWeights:
    """Weights w ≥ 0 that minimise ‖query − Σ w_q centroid_q‖ over the ten nearest centroids.

    Weights below √(2 ln k / dim) are left out: about the greatest cosine that a random row has with any of k centroids.
    """
    candidates = np.argsort(-(centroids @ query), kind="stable")[:_CANDIDATES]
    basis = centroids[candidates].T.astype(np.float64)
    weight = nnls(basis, query.astype(np.float64))[0]
    generator = np.random.default_rng(seed)
    samples = np.empty((_RESAMPLES, len(candidates)))
    for sample in samples:
        drawn = np.sqrt(generator.multinomial(len(query), np.full(len(query), 1 / len(query))))
        sample[:] = nnls(basis * drawn[:, None], query * drawn)[0]
    low, high = np.quantile(samples, [0.025, 0.975], axis=0)
    order = np.argsort(-weight, kind="stable")
    floor = np.sqrt(2 * np.log(max(len(centroids), 2)) / len(query))
    order = order[weight[order] > floor]
    return QuantumWeights(quantum=candidates[order], weight=weight[order], low=low[order], high=high[order])


def extremes(
    scores: Float[np.ndarray, " unit"], num: int
) -> tuple[Int[np.ndarray, " most"], Int[np.ndarray, " least"]]:
    """Units of the largest scores (largest first) and of the smallest negative ones (smallest first), `num` at most."""
    order = np.argsort(-scores, kind="stable")
    least = order[::-1][:num]
    return order[:num], least[scores[least] < 0]


def nearest_elsewhere(
    rows: Float[np.ndarray, "unit dim"],
    document: Int[np.ndarray, " unit"],
    *,
    queries: Int[np.ndarray, " query"],
    chunk: int = 512,
) -> Float[np.ndarray, " query"]:
    """For each of some units: the largest cosine with a unit of another document; −1 where there is no other."""
    best = np.empty(len(queries), np.float32)
    for start in range(0, len(queries), chunk):
        part = queries[start : start + chunk]
        cosines = rows[part] @ rows.T
        cosines[document[part][:, None] == document[None, :]] = -1
        best[start : start + chunk] = cosines.max(axis=1)
    return best


def novelty(
    query: Float[np.ndarray, " dim"],
    rows: Float[np.ndarray, "unit dim"],
    reference: Float[np.ndarray, " reference"],
) -> float:
    """Share of training units that are nearer to the training units of other documents than the query is to any.

    `reference` is `nearest_elsewhere` of training units. 0: nothing is unusual; 1: stranger than all of them.
    """
    return float((reference > (rows @ query).max()).mean())
