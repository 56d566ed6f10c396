"""Were units learned together? How well a unit's loss curve is foretold by the units that it is grouped with.

Legend: y_u the curve of unit u (log losses over checkpoints); b_u the mean curve of the units with the same target
token in other documents; ŷ_u the mean curve of u's mates, which are of other documents too. The co-emergence is

    R² = 1 − Σ_u |y_u − ŷ_u|² / Σ_u |y_u − b_u|²

over the units that have a b_u; one without mates counts as foretold by b_u. So 0 is what the target token alone says, 1
is perfect, and mates drawn at random give about −1/m for m of them. Knows curves and groups; not what a group is made
of: gradients and every rival go through the same functions. A document never says anything about itself.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64
from scipy.sparse import csr_array

from ...errors import ConfigurationError

_CHUNK = 1_024


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CoEmergence:
    """R² of mates' curves beyond those of the target token, with what a comparison needs."""

    value: float
    """At most 1; 0 is the target token alone."""
    low: float
    """2.5th percentile over resampled documents."""
    high: float
    """97.5th percentile over resampled documents."""
    coverage: float
    """Share of the units that count which have mates."""
    num_units: int
    """Units that count."""
    errors: Float64[np.ndarray, " document"]
    """Σ |y − ŷ|² of each document's units."""
    baseline_errors: Float64[np.ndarray, " document"]
    """Σ |y − b|² of each document's units."""


def nearest_mates(
    rows: Float[np.ndarray, "unit dim"],
    target: Int[np.ndarray, " unit"],
    document: Int[np.ndarray, " unit"],
    *,
    num_neighbours: int,
) -> csr_array:
    """Each unit's nearest units by inner product, among those of its target token in other documents.

    A sparse matrix [unit, unit] whose rows sum to 1, or to 0 where there is no such unit; at most `num_neighbours`, at
    least 1, of equal weight. Rows should be unit. All pairs within a target token are compared.
    """
    if num_neighbours < 1:
        raise ConfigurationError(f"num_neighbours is {num_neighbours}; it must be at least 1")
    _check(len(rows), target, document)
    unit_of, mate_of = [], []
    for token in np.unique(target):
        members = np.flatnonzero(target == token)
        for start in range(0, len(members), _CHUNK):
            part = members[start : start + _CHUNK]
            products = rows[part] @ rows[members].T
            products[document[part][:, None] == document[members][None, :]] = -np.inf
            kept = min(num_neighbours, len(members))
            order = np.argpartition(-products, kept - 1, axis=1)[:, :kept]
            valid = np.isfinite(np.take_along_axis(products, order, axis=1))
            unit_of.append(np.repeat(part, valid.sum(axis=1)))
            mate_of.append(members[order[valid]])
    return _averaging(np.concatenate(unit_of), np.concatenate(mate_of), len(rows))


def mates_in_groups(
    groups: Int[np.ndarray, " unit"], target: Int[np.ndarray, " unit"], document: Int[np.ndarray, " unit"]
) -> csr_array:
    """All units of the same group and target token in other documents; the same kind of matrix as `nearest_mates`."""
    _check(len(groups), target, document)
    _, cell = np.unique(np.stack([groups, target]), axis=1, return_inverse=True)
    cell = cell.reshape(-1)
    order = np.argsort(cell, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(cell[order])) + 1)
    unit_of, mate_of = [], []
    for members in parts:
        first, second = np.nonzero(document[members][:, None] != document[members][None, :])
        unit_of.append(members[first])
        mate_of.append(members[second])
    return _averaging(np.concatenate(unit_of), np.concatenate(mate_of), len(groups))


def co_emergence(
    curves: Float[np.ndarray, "unit checkpoint"],
    mates: csr_array,
    target: Int[np.ndarray, " unit"],
    document: Int[np.ndarray, " unit"],
    *,
    num_resamples: int = 1_000,
    seed: int = 0,
) -> CoEmergence:
    """R² of the mates' mean curves (see the module); its interval resamples documents, drawn by `seed`.

    `curves` are log losses, or whatever else is to be foretold. Raises ConfigurationError for arrays of unequal
    lengths, non-finite curves, or where no target token stands in two documents.
    """
    _check(len(curves), target, document)
    if not np.isfinite(curves).all():
        raise ConfigurationError("curves have NaN or infinite entries; clip losses above 0 before taking logarithms")
    curves = curves.astype(np.float64)
    baseline, counts = _foretold(curves, mates_in_groups(np.zeros_like(target), target, document))
    if not counts.any():
        raise ConfigurationError("no target token stands in two documents: there is nothing to foretell a curve from")
    found, has_mates = _foretold(curves, mates)
    error = np.square(curves - np.where(has_mates[:, None], found, baseline)).sum(axis=1)[counts]
    alone = np.square(curves - baseline).sum(axis=1)[counts]
    names, codes = np.unique(document, return_inverse=True)
    errors = np.bincount(codes[counts], weights=error, minlength=len(names))
    baseline_errors = np.bincount(codes[counts], weights=alone, minlength=len(names))
    resampled = _ratios(errors, baseline_errors, num_resamples, seed)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return CoEmergence(
        value=float(1 - errors.sum() / baseline_errors.sum()),
        low=float(low),
        high=float(high),
        coverage=float(has_mates[counts].mean()),
        num_units=int(counts.sum()),
        errors=errors,
        baseline_errors=baseline_errors,
    )


def co_emergence_gain(
    first: CoEmergence, second: CoEmergence, *, num_resamples: int = 1_000, seed: int = 0
) -> tuple[float, float, float]:
    """First less second, with its 2.5th and 97.5th percentile over documents that are resampled for both alike.

    Raises ConfigurationError where the two were not measured on the same units.
    """
    if not np.array_equal(first.baseline_errors, second.baseline_errors):
        raise ConfigurationError("the two figures are not of the same units and curves; compare them on the same ones")
    resampled = _ratios(first.errors, first.baseline_errors, num_resamples, seed) - _ratios(
        second.errors, second.baseline_errors, num_resamples, seed
    )
    low, high = np.percentile(resampled, [2.5, 97.5])
    return first.value - second.value, float(low), float(high)


def beyond_last(
    curves: Float[np.ndarray, "unit checkpoint"], target: Int[np.ndarray, " unit"]
) -> Float64[np.ndarray, "unit earlier"]:
    """What is left of curves when their last entry has been allowed for, so that it foretells nothing by itself.

    Both are taken less their mean within each target token, and each checkpoint is regressed on the last one by least
    squares, one slope for all tokens. The last checkpoint, zero then, is dropped.
    """
    codes = np.unique(target, return_inverse=True)[1]
    sizes = np.bincount(codes)
    indicator = csr_array((np.ones(len(codes)), (codes, np.arange(len(codes)))), shape=(len(sizes), len(codes)))
    centred = curves - ((indicator @ curves) / sizes[:, None])[codes]
    last = centred[:, -1]
    slopes = (last @ centred) / max(float(last @ last), np.finfo(np.float64).tiny)
    return np.asarray((centred - last[:, None] * slopes[None, :])[:, :-1], dtype=np.float64)


def _averaging(unit_of: Int64[np.ndarray, " pair"], mate_of: Int64[np.ndarray, " pair"], num_units: int) -> csr_array:
    weight = 1 / np.maximum(np.bincount(unit_of, minlength=num_units), 1)[unit_of]
    return csr_array((weight, (unit_of, mate_of)), shape=(num_units, num_units))


def _foretold(curves: np.ndarray, mates: csr_array) -> tuple[Float64[np.ndarray, "u c"], Bool[np.ndarray, " u"]]:
    return np.asarray(mates @ curves), np.asarray(mates.sum(axis=1)).ravel() > 0


def _ratios(errors: np.ndarray, baseline: np.ndarray, num_resamples: int, seed: int) -> Float64[np.ndarray, " draw"]:
    num = len(errors)
    draws = np.random.default_rng(seed).multinomial(num, np.full(num, 1 / num), size=num_resamples)
    return np.asarray(1 - (draws @ errors) / np.maximum(draws @ baseline, np.finfo(np.float64).tiny))


def _check(num_units: int, *arrays: np.ndarray) -> None:
    lengths = {num_units, *(len(array) for array in arrays)}
    if len(lengths) > 1 or num_units == 0:
        raise ConfigurationError(f"arrays of {sorted(lengths)} units; one entry for each unit, and at least one unit")
