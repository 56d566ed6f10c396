"""Memorised or general: does a quantum's support come from other documents, or from each unit's own?

Two figures for each quantum. *Own share*: of all that the units of a quantum do for each other's gradients, the part
that a unit's own document does, itself included: 1 where a quantum is one document's affair, near 0 where many
documents teach the same. *Self-influence*: the squared length of a unit's gradient in the metric that divides by the
second moment of all (gᵀ (M + δ)⁻¹ g; Feldman & Zhang 2020 call memorised what has much of it), beside the median unit.
Knows rows, norms and documents.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int
from scipy.stats import beta

from ...errors import ConfigurationError
from ..clustering.base import group_sums
from ..whitening import Whitener

_CHUNK = 8_192


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OwnShare:
    """How much of each quantum's support stays within documents."""

    value: Float64[np.ndarray, " quantum"]
    """In [0, 1]; 1 where no other document supports it."""
    null: Float64[np.ndarray, " quantum"]
    """The same if units of one document were no more alike than units of any two: its sizes alone give this much."""


def own_share(
    rows: Float[np.ndarray, "unit dim"],
    assignments: Int[np.ndarray, " unit"],
    documents: Int[np.ndarray, " unit"],
) -> OwnShare:
    """Sum of inner products within documents over the sum within the quantum, for unit rows; quanta 0 … k − 1.

    From group sums S: Σ_d |S_qd|² / |S_q|². The null puts the quantum's mean cosine in the place of each pair's.
    Raises ConfigurationError where lengths differ.
    """
    if not len(rows) == len(assignments) == len(documents):
        raise ConfigurationError(f"{len(rows)} rows, {len(assignments)} assignments, {len(documents)} documents")
    num_quanta = int(assignments.max()) + 1
    named = np.unique(documents, return_inverse=True)[1]
    keys, part = np.unique(assignments.astype(np.int64) * (named.max() + 1) + named, return_inverse=True)
    owner = keys // (named.max() + 1)
    within, counts = np.zeros(len(keys)), np.bincount(part).astype(np.float64)
    order = np.argsort(part, kind="stable")
    for group, units in enumerate(np.split(order, np.cumsum(counts.astype(np.int64))[:-1])):
        within[group] = np.square(rows[units].sum(axis=0, dtype=np.float64)).sum()
    total = np.square(group_sums(rows, assignments, num_quanta).astype(np.float64)).sum(axis=1)
    own = np.bincount(owner, weights=within, minlength=num_quanta)
    sizes = np.bincount(assignments, minlength=num_quanta).astype(np.float64)
    cosine = np.maximum(total - sizes, 0) / np.maximum(sizes * (sizes - 1), 1)
    pairs = np.bincount(owner, weights=counts * (counts - 1), minlength=num_quanta)
    null = (sizes + cosine * pairs) / np.maximum(sizes + cosine * sizes * (sizes - 1), 1e-12)
    value = np.where(total > 0, own / np.where(total > 0, total, 1), 1.0)
    return OwnShare(value=np.clip(value, 0, 1), null=np.clip(null, 0, 1))


def self_influence(
    rows: Float[np.ndarray, "unit dim"], norms: Float[np.ndarray, " unit"], whitener: Whitener, damping: float
) -> Float32[np.ndarray, " unit"]:
    """gᵀ (M + δ λ̄)⁻¹ g of each gradient g = norm · row over the median unit's; 1 is as usual.

    `rows` are the unit rows that the whitener was fitted on; without fitted directions M is taken to be the same in
    all of them, and only norms tell units apart.
    """
    dim, floor = len(whitener.basis), damping / len(whitener.basis)
    rest = float(whitener.rest_eigenvalue) + floor
    found = np.empty(len(rows), dtype=np.float64)
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        inside = np.square((part @ whitener.basis).astype(np.float64))
        outside = np.maximum(1 - inside.sum(axis=1), 0)
        found[start : start + _CHUNK] = inside @ (1 / (whitener.eigenvalues + floor)) + outside / rest
    found *= np.square(norms.astype(np.float64)) / dim
    middle = float(np.median(found)) if len(found) else 1.0
    return (found / (middle if middle > 0 else 1.0)).astype(np.float32)


def null_medians(
    influence: Float[np.ndarray, " unit"], sizes: Int[np.ndarray, " quantum"], *, level: float = 0.95
) -> Float64[np.ndarray, "quantum end"]:
    """Between which values the median of as many units drawn at random lies, for each size: lower and upper end.

    The median of n draws has the rank of a Beta((n + 1)/2, (n + 1)/2) variable among all (exactly so for odd n and
    draws with replacement). `level` is the share of draws between the ends.
    """
    ends = np.array([(1 - level) / 2, (1 + level) / 2])
    half = (sizes[:, None] + 1) / 2
    return np.asarray(np.quantile(influence.astype(np.float64), beta.ppf(ends, half, half)))
