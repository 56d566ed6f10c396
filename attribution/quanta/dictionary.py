"""Several quanta per unit over a learned dictionary: one direction for each quantum, fitted to sums and not to means.

A quantum's centroid is the mean of units that use other quanta besides; where a quarter of them use one and the same,
the centroid points there too. A dictionary takes that apart: every row is written as a sparse non-negative combination
of directions (codes.py), the directions are fitted to the rows by least squares, and so on in turn (method of optimal
directions, Engan, Aase & Husøy 1999). Gradient Atoms (arXiv 2603.14665) are such directions of whitened gradients;
there they start at random, here each starts at a quantum's centroid, so that direction q remains quantum q's. Knows
unit rows and assignments.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int
from scipy.sparse import csr_array

from ...errors import ConfigurationError
from ..clustering.base import group_sums
from .codes import CANDIDATES, NullUnits, UnitCodes, as_codes, thresholded, weight_floor

_CHUNK = 2_048
_RIDGE = 1e-3
"""Added to each direction's sum of squared weights: one that hardly any unit uses stays small, and is left out."""
_SHORT = 1e-3
"""Directions shorter than this are nobody's."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dictionary:
    """Directions, and what each unit uses of them."""

    atoms: Float32[np.ndarray, "quantum dim"]
    """Unit directions; 0 for a quantum that no unit uses."""
    codes: UnitCodes
    """Of each unit, by the directions that the *other* units give: their own row is left out exactly."""
    explained: Float64[np.ndarray, " round"]
    """Mean share of the rows' squared norm that the directions explain, before each round; with the own row in it."""


def learn_dictionary(
    rows: Float[np.ndarray, "unit dim"],
    assignments: Int[np.ndarray, " unit"],
    *,
    num_rounds: int = 10,
    max_quanta: int = 5,
    noise_dim: float | None = None,
) -> Dictionary:
    """A direction for each quantum 0 … k − 1 (none empty), and codes over them; unit rows.

    Weights below the floor of codes.py are left out. Stops after `num_rounds`, or where a round explains less than
    1e-4 more. Deterministic. Memory: 16 k² bytes
    beside the rows. Raises ConfigurationError where lengths or numbers
    don't fit.
    """
    sizes = np.bincount(assignments)
    if len(rows) != len(assignments) or not len(rows) or not sizes.all():
        raise ConfigurationError(f"{len(rows)} rows need as many assignments, numbered 0 to k - 1, none of them empty")
    if num_rounds < 1:
        raise ConfigurationError(f"num_rounds is {num_rounds}; it must be at least 1")
    if not 1 <= max_quanta <= CANDIDATES:
        raise ConfigurationError(f"max_quanta is {max_quanta}; it lies between 1 and {CANDIDATES}")
    floor = weight_floor(len(sizes), float(noise_dim or rows.shape[1]))
    atoms = _unit(group_sums(rows, assignments, len(sizes)).astype(np.float64))
    explained: list[float] = []
    while True:
        codes = _plain_codes(rows, atoms, floor, max_quanta)
        explained.append(float(codes.explained.mean()))
        fit = _Fit.of(rows, codes, len(sizes))
        atoms = _unit(fit.sums)
        if len(explained) == num_rounds or (len(explained) > 1 and explained[-1] - explained[-2] < 1e-4):
            break
    return Dictionary(
        atoms=atoms.astype(np.float32),
        codes=_codes_without_own(rows, fit, floor, max_quanta),
        explained=np.array(explained),
    )


def codes_of_null(
    found: Dictionary, drawn: NullUnits, *, max_quanta: int = 5, noise_dim: float | None = None
) -> UnitCodes:
    """The codes of made-up units, which took no part in the directions."""
    floor = weight_floor(len(found.atoms), float(noise_dim or found.atoms.shape[1]))
    return _plain_codes(drawn.rows, found.atoms.astype(np.float64), floor, max_quanta)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Fit:
    """Directions A = G⁻¹ Wᵀ X of rows X with weights W, before they are made unit; G = Wᵀ W + ridge."""

    codes: UnitCodes
    """W, in its sparse form."""
    inverse: Float64[np.ndarray, "quantum quantum"]
    sums: Float64[np.ndarray, "quantum dim"]

    @classmethod
    def of(cls, rows: np.ndarray, codes: UnitCodes, num: int) -> "_Fit":
        unit, place = np.nonzero(codes.quantum >= 0)
        entries = (codes.weight[unit, place].astype(np.float64), (codes.quantum[unit, place], unit))
        weights = csr_array(entries, shape=(num, len(rows)))
        products = np.zeros((num, rows.shape[1]))
        for start in range(0, len(rows), _CHUNK):
            products += weights[:, start : start + _CHUNK] @ rows[start : start + _CHUNK]
        inverse = np.linalg.inv((weights @ weights.T).toarray() + _RIDGE * np.eye(num))
        return cls(codes=codes, inverse=inverse, sums=inverse @ products)


def _plain_codes(rows: np.ndarray, atoms: np.ndarray, floor: float, max_quanta: int) -> UnitCodes:
    """Codes over directions as they are."""
    gram = atoms @ atoms.T
    found = []
    for start in range(0, len(rows), _CHUNK):
        for products in rows[start : start + _CHUNK].astype(np.float64) @ atoms.T:
            near = _nearest(products)
            kept, solved, share = thresholded(gram[np.ix_(near, near)], products[near], floor)
            found.append((near[kept], solved, share))
    return as_codes(found, max_quanta)


def _codes_without_own(rows: np.ndarray, fit: _Fit, floor: float, max_quanta: int) -> UnitCodes:
    """Codes of each row x over the directions that the others' rows and weights give.

    Without x and its weights w, A becomes A − u rᵀ / (1 − h), with u = G⁻¹ w, h = w·u and r = x − Aᵀ w (Sherman &
    Morrison): its inner products follow from those of A, x and w.
    """
    gram = fit.sums @ fit.sums.T
    found = []
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK].astype(np.float64)
        for unit, (x, products) in enumerate(zip(part, part @ fit.sums.T, strict=True), start):
            used = fit.codes.quantum[unit][fit.codes.quantum[unit] >= 0]
            w = fit.codes.weight[unit][: len(used)].astype(np.float64)
            u = fit.inverse[:, used] @ w / max(1 - float(w @ fit.inverse[np.ix_(used, used)] @ w), 1e-9)
            along = products - gram[:, used] @ w  # A r
            length = float(x @ x - w @ products[used])  # r·x
            rest = length - float(w @ along[used])  # r·r
            lengths = np.sqrt(np.maximum(np.diag(gram) - 2 * u * along + u**2 * rest, 0))
            there = lengths > _SHORT
            own = np.where(there, (products - u * length) / np.where(there, lengths, 1), -np.inf)
            near = _nearest(own)
            cross = np.outer(u[near], along[near])
            inner = gram[np.ix_(near, near)] - cross - cross.T + np.outer(u[near], u[near]) * rest
            kept, solved, share = thresholded(inner / np.outer(lengths[near], lengths[near]), own[near], floor)
            found.append((near[kept], solved, share))
    return as_codes(found, max_quanta)


def _nearest(products: np.ndarray) -> np.ndarray:
    """The ten directions with the greatest positive products, greatest first."""
    count = min(CANDIDATES, len(products))
    near = np.argpartition(-products, count - 1)[:count]
    near = near[np.lexsort((near, -products[near]))]
    return np.asarray(near[products[near] > 0])


def _unit(sums: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.where(lengths > _SHORT, sums / np.maximum(lengths, _SHORT), 0.0)
