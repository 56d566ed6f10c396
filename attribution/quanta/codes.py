"""Several quanta per unit: each row as a sparse non-negative combination of the quanta's centroids.

The hard assignment names one quantum; a token that closes a bracket at the end of a list of months uses two. Michaud et
al. (arXiv 2303.13506) call a sample monogenic where one quantum decides its loss and polygenic where several do; here
the weights say so. The same least squares as for a trace (tracing.py), with one difference: a unit's own quantum counts
without the unit, or a small quantum would always explain its own members. Knows rows and assignments.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int, Int32, Int64
from scipy.linalg import solve_triangular
from scipy.optimize import nnls

from ...errors import ConfigurationError
from ..clustering.base import group_sums

_CHUNK = 2_048
CANDIDATES = 10
_RIDGE = 1e-6
"""Added to the squared length of each centroid, so that equal centroids have an answer."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UnitCodes:
    """Which quanta each unit uses, greatest weight first; places without a quantum hold −1 and weight 0."""

    quantum: Int32[np.ndarray, "unit place"]
    weight: Float32[np.ndarray, "unit place"]
    """Coefficient of the quantum's unit centroid, at least the floor; a unit row without noise has 1 on its own."""
    explained: Float32[np.ndarray, " unit"]
    """Share of the row's squared norm that the combination explains, 0 to 1."""
    monogenic: Float32[np.ndarray, " unit"]
    """Greatest squared weight over the sum of squares: 1 for one quantum, 1/m for m equal ones, NaN for none."""

    @property
    def num_used(self) -> Int32[np.ndarray, " unit"]:
        """Quanta that each unit uses, from 0."""
        return (self.quantum >= 0).sum(axis=1).astype(np.int32)


def unit_codes(
    rows: Float[np.ndarray, "unit dim"],
    assignments: Int[np.ndarray, " unit"],
    *,
    units: Int[np.ndarray, " coded"] | None = None,
    max_quanta: int = 5,
    noise_dim: float | None = None,
) -> UnitCodes:
    """Weights w ≥ 0 that minimise ‖row − Σ w_q centroid_q‖ over the ten nearest centroids, for unit rows.

    Of all rows, or of `units` alone, in their order.

    Weights below √(2 ln k / `noise_dim`), about the greatest cosine of a random row with any of k centroids, are left
    out and the others solved for again; at most `max_quanta` are kept. `noise_dim` is the effective dimension of the
    noise (None: the rows' width, which is right where directions are equally strong). `assignments` are 0 … k − 1, none
    empty; a quantum of one row says nothing about that row. Deterministic. Raises ConfigurationError where lengths or
    numbers don't fit.
    """
    sizes = np.bincount(assignments)
    if len(rows) != len(assignments) or not len(rows) or not sizes.all():
        raise ConfigurationError(f"{len(rows)} rows need as many assignments, numbered 0 to k - 1, none of them empty")
    if not 1 <= max_quanta <= CANDIDATES:
        raise ConfigurationError(f"max_quanta is {max_quanta}; it lies between 1 and {CANDIDATES}")
    sums = group_sums(rows, assignments, len(sizes)).astype(np.float64)
    norms = np.maximum(np.linalg.norm(sums, axis=1), np.finfo(np.float64).tiny)
    gram = (sums @ sums.T) / norms / norms[:, None]
    floor = weight_floor(len(sizes), float(noise_dim or rows.shape[1]))
    wanted = np.arange(len(rows)) if units is None else units
    found = []
    for start in range(0, len(wanted), _CHUNK):
        part = wanted[start : start + _CHUNK]
        products = rows[part].astype(np.float64) @ (sums / norms[:, None]).T
        for near, own in zip(products, assignments[part].tolist(), strict=True):
            found.append(_code(near, own, norms[own] if sizes[own] > 1 else 0.0, gram, floor))
    return as_codes(found, max_quanta)


def weight_floor(num_quanta: int, noise_dim: float) -> float:
    """√(2 ln k / D), about the greatest cosine of a random row with any of k directions: weights below are noise."""
    return float(np.sqrt(2 * np.log(max(num_quanta, 2)) / noise_dim))


def as_codes(found: Sequence[tuple[np.ndarray, np.ndarray, float]], max_quanta: int) -> UnitCodes:
    """From each unit's quanta, weights and explained share: the greatest weights first, at most `max_quanta`."""
    quantum = np.full((len(found), max_quanta), -1, dtype=np.int32)
    weight = np.zeros((len(found), max_quanta), dtype=np.float32)
    for unit, (used, solved, _) in enumerate(found):
        kept = np.argsort(-solved, kind="stable")[:max_quanta]
        quantum[unit, : len(kept)] = used[kept]
        weight[unit, : len(kept)] = solved[kept]
    squares = np.square(weight)
    totals = squares.sum(axis=1)
    monogenic = np.where(totals > 0, squares.max(axis=1) / np.where(totals > 0, totals, 1), np.nan)
    return UnitCodes(
        quantum=quantum,
        weight=weight,
        explained=np.array([share for *_, share in found], dtype=np.float32),
        monogenic=monogenic.astype(np.float32),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NullUnits:
    """Units that use one quantum by construction: what is claimed for real ones has to differ from theirs."""

    unit: Int64[np.ndarray, " sampled"]
    """Which units they were made from."""
    rows: Float32[np.ndarray, "sampled dim"]
    """Their rows: of norm 1, with the part along the own quantum's direction."""


def null_units(
    rows: Float[np.ndarray, "unit dim"],
    assignments: Int[np.ndarray, " unit"],
    *,
    directions: Float[np.ndarray, "quantum dim"] | None = None,
    per_quantum: int = 20,
    seed: int = 0,
) -> NullUnits:
    """Of at most `per_quantum` units of each quantum: all but the part along its direction is given random signs.

    What remains has the same size as before, and fits other quanta by accident alone. Directions are the centroids
    where none are given.
    """
    sizes = np.bincount(assignments)
    if directions is None:
        sums = group_sums(rows, assignments, len(sizes))
        directions = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    order = np.argsort(assignments, kind="stable")
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    size, wanted = np.repeat(sizes, sizes), np.repeat(np.minimum(sizes, per_quantum), sizes)
    picked = np.sort(order[place * wanted // size != (place - 1) * wanted // size])  # at equal distances
    own = directions[assignments[picked]]
    along = np.einsum("ij,ij->i", rows[picked], own)[:, None] * own
    signs = np.random.default_rng(seed).choice(np.array([-1, 1], dtype=np.float32), size=along.shape)
    drawn = along + (rows[picked] - along) * signs
    drawn /= np.maximum(np.linalg.norm(drawn, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return NullUnits(unit=picked.astype(np.int64), rows=drawn.astype(np.float32))


def null_codes(
    rows: Float[np.ndarray, "unit dim"],
    assignments: Int[np.ndarray, " unit"],
    drawn: NullUnits,
    *,
    max_quanta: int = 5,
) -> UnitCodes:
    """The codes of `null_units`, in the place of the units that they were made from."""
    again = rows.astype(np.float32, copy=True)
    again[drawn.unit] = drawn.rows
    return unit_codes(again, assignments, units=drawn.unit, max_quanta=max_quanta)


def _code(
    products: np.ndarray, own: int, own_norm: float, gram: np.ndarray, floor: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Quanta used, their weights, and the share explained; `own_norm` is 0 where the quantum has no other rows.

    Without its row x, the own quantum's sum is S − x: its length and its products follow from those of S.
    """
    products = products.copy()
    length = np.sqrt(max(own_norm**2 - 2 * own_norm * products[own] + 1, 0.0))
    alone = length < 1e-6 or own_norm == 0
    others = np.zeros_like(products) if alone else (gram[own] * own_norm - products) / length
    products[own] = -np.inf if alone else (own_norm * products[own] - 1) / length
    candidates = np.argsort(-products, kind="stable")[:CANDIDATES]
    candidates = candidates[products[candidates] > 0]
    inner = gram[np.ix_(candidates, candidates)]
    at = np.flatnonzero(candidates == own)
    if len(at):
        inner[at[0]] = inner[:, at[0]] = others[candidates]
        inner[at[0], at[0]] = 1.0
    target = products[candidates]
    kept, solved, share = thresholded(inner, target, floor)
    return candidates[kept], solved, share


def thresholded(inner: np.ndarray, target: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Which of some unit directions a unit row uses, with which weights, and the share of it that they explain.

    Non-negative least squares from the directions' inner products and the row's with them; weights below the floor
    are left out, and the others solved for again.
    """
    kept = _least_squares(inner, target) >= floor
    if not kept.any():
        return kept, np.empty(0), 0.0
    solved = _least_squares(inner[np.ix_(kept, kept)], target[kept])
    share = float(2 * solved @ target[kept] - solved @ inner[np.ix_(kept, kept)] @ solved)
    return kept, solved, min(max(share, 0.0), 1.0)


def _least_squares(gram: np.ndarray, products: np.ndarray) -> np.ndarray:
    """Non-negative w that minimises wᵀ gram w − 2 products·w, by way of the Cholesky factor."""
    if not len(products):
        return products
    factor = np.linalg.cholesky(gram + _RIDGE * np.eye(len(gram)))
    return np.asarray(nnls(factor.T, solve_triangular(factor, products, lower=True))[0])
