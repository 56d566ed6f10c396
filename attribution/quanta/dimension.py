"""How many directions a quantum's rows spread over, freed from the projection's share in the answer.

The participation ratio of rows with second moment F is (tr F)² / tr F², and for unit rows tr F = 1, so it is one over
the mean squared cosine of two different rows. A projection to D numbers adds about 1/D to each squared cosine, which
would bind the ratio below D. So the columns are halved at random, and the *product* of the two halves' inner products
takes the place of the square: the two errors are unrelated, and their product is zero on average. Knows unit rows.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int

from ...errors import ConfigurationError

_NULL_ROWS = 1_500


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EffectiveDimension:
    """Participation ratio of each quantum's rows; infinite where no two rows share a direction beyond noise."""

    value: Float64[np.ndarray, " quantum"]
    """At least 1; NaN where there are no two rows of different documents."""
    low: Float64[np.ndarray, " quantum"]
    """Lower end of a 95 % interval (jackknife over units; normal for the mean squared cosine)."""
    high: Float64[np.ndarray, " quantum"]
    """Upper end, often infinite."""
    null: float
    """The same of rows drawn from all units: what a quantum without any structure of its own has."""


def effective_dimension(
    rows: Float[np.ndarray, "unit dim"],
    assignments: Int[np.ndarray, " unit"],
    documents: Int[np.ndarray, " unit"],
    *,
    max_units: int = 256,
    seed: int = 0,
) -> EffectiveDimension:
    """Participation ratio of each quantum 0 … k − 1, from pairs of units of different documents.

    `rows` are unit rows as collected, not whitened. Of a quantum with more than `max_units` units as many are drawn.
    Right for projections whose columns err independently (dense, sparse, tensor sketch); two-sided ones share their
    factors among columns and stay biased. Raises ConfigurationError where lengths differ or there are fewer than two
    columns. Deterministic in the seed.
    """
    if not len(rows) == len(assignments) == len(documents) or rows.shape[1] < 2:
        raise ConfigurationError(
            f"{rows.shape} rows, {len(assignments)} assignments and {len(documents)} documents don't fit, or one column"
        )
    rng = np.random.default_rng(seed)
    left = np.sort(rng.permutation(rows.shape[1])[: rows.shape[1] // 2])
    right = np.setdiff1d(np.arange(rows.shape[1]), left)
    found = np.full((int(assignments.max()) + 1, 3), np.nan)
    ends = np.cumsum(np.bincount(assignments))[:-1]
    for quantum, units in enumerate(np.split(np.argsort(assignments, kind="stable"), ends)):
        if len(units) > max_units:
            units = np.sort(rng.permutation(units)[:max_units])
        found[quantum] = _ratio(rows[units], documents[units], left, right)
    everyone = np.sort(rng.permutation(len(rows))[:_NULL_ROWS])
    null = _ratio(rows[everyone], documents[everyone], left, right)[0]
    return EffectiveDimension(value=found[:, 0], low=found[:, 1], high=found[:, 2], null=float(null))


def _ratio(rows: np.ndarray, documents: np.ndarray, left: np.ndarray, right: np.ndarray) -> tuple[float, float, float]:
    """The ratio and its interval; NaN where no pair counts."""
    squares = _products(rows[:, left]) * _products(rows[:, right])
    counts = documents[:, None] != documents[None, :]
    pairs, total = counts.sum(axis=1), np.where(counts, squares, 0).sum(axis=1)
    if not pairs.any():
        return float("nan"), float("nan"), float("nan")
    mean = total.sum() / pairs.sum()
    others = pairs.sum() - 2 * pairs
    error = 0.0
    if (others > 0).all():
        without = (total.sum() - 2 * total) / others
        error = float(np.sqrt((len(rows) - 1) / len(rows) * np.square(without - without.mean()).sum()))
    else:
        error = float("inf")
    return _inverse(mean), _inverse(mean + 1.96 * error), _inverse(mean - 1.96 * error)


def _products(half: np.ndarray) -> np.ndarray:
    """Inner products of unit rows, from half of their columns."""
    unit = half.astype(np.float64)
    norms = np.linalg.norm(unit, axis=1, keepdims=True)
    unit /= np.where(norms > 0, norms, 1)
    return np.asarray(unit @ unit.T)


def _inverse(mean: float) -> float:
    return float("inf") if mean <= 0 else max(1.0 / mean, 1.0)
