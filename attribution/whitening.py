"""Whitening of unit gradient rows by a power of their second moment.

Raw gradient rows share a few strong directions that say little about which skill a unit uses. Half whitening (the
uncentred second moment to the power −1/4, so that each direction keeps its scale to the power 1/2) or full whitening
(power −1/2) turns them down. Knows arrays only: where rows come from and which of them are valid is the caller's
affair.

Legend: M = Σ x xᵀ / n the second moment, λ its eigenvalues, λ̄ their mean, δ the damping, p the power (1/4 or 1/2).
A direction is scaled by (λ + δ λ̄)^(−p). Directions outside the fitted subspace share the scale of their mean
eigenvalue, and since rows are made unit afterwards, only the ratio to that scale is kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from jaxtyping import Float, Shaped
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # has no stubs

from ..errors import ConfigurationError

POWERS = {"none": 0.0, "half": 0.25, "full": 0.5}


@dataclass(frozen=True, slots=True, kw_only=True)
class WhiteningConfig:
    """How rows are whitened."""

    strength: Literal["none", "half", "full"] = "half"
    """`half`: second moment to the power −1/4; `full`: −1/2; `none`: rows are only made unit."""
    damping: float = 0.1
    """Added to each eigenvalue, as a multiple of the mean eigenvalue; above 0."""
    rank: int = 512
    """Leading directions that get a scale of their own where the exact decomposition would be too slow."""
    max_exact: int = 1_024
    """The decomposition is exact where the lesser of rows and columns is at most this."""
    num_power_iterations: int = 2
    """Rounds of subspace iteration; each costs two products of the rows with a rank-wide matrix."""
    seed: int = 0
    """Seed of the random start of the subspace."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.strength not in POWERS:
            raise ConfigurationError(f"strength is {self.strength!r}; it is one of {', '.join(POWERS)}")
        if not self.damping > 0:
            raise ConfigurationError(f"damping is {self.damping}; it must be above 0")
        if self.rank < 1 or self.num_power_iterations < 0:
            raise ConfigurationError("rank must be at least 1 and num_power_iterations at least 0")


def unit_rows(rows: Float[np.ndarray, "unit dim"]) -> Float[np.ndarray, "unit dim"]:
    """Rows divided by their norms, as a new float32 array.

    Raises ConfigurationError where a row is zero or has a NaN or infinite entry: rows are masked by their status
    before they come here.
    """
    single = np.array(rows, dtype=np.float32)
    norms = np.sqrt(np.einsum("ij,ij->i", single, single, dtype=np.float64))
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if bad.size:
        raise ConfigurationError(
            f"{bad.size} of {len(single)} rows are zero or not finite (the first is row {bad[0]}); "
            "leave out every row whose status is not ok"
        )
    single /= norms[:, None].astype(np.float32)
    return single


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Whitener:
    """A fitted whitening; plain arrays, so that a run can store it and use it for queries."""

    basis: Float[np.ndarray, "dim rank"]
    """Orthonormal leading directions, float32."""
    gains: Float[np.ndarray, " rank"]
    """Scale of each direction relative to the directions outside the basis, float32, in (0, ∞)."""
    eigenvalues: Float[np.ndarray, " rank"]
    """Eigenvalues of the second moment of unit rows, float64, falling; they and the rest sum to 1."""
    rest_eigenvalue: Float[np.ndarray, ""]
    """Mean eigenvalue outside the basis, float64."""

    @classmethod
    def fit(cls, rows: Float[np.ndarray, "unit dim"], config: WhiteningConfig | None = None) -> "Whitener":
        """Fit on rows of any norm (each is made unit first); at least one row.

        Exact where min(units, dim) ≤ `max_exact`; otherwise a randomised subspace (Halko, Martinsson & Tropp 2011,
        algorithm 4.4) of `rank` directions, the rest isotropic. The same rows and seed give the same whitener.
        Raises ConfigurationError for zero or non-finite rows.
        """
        config = config or WhiteningConfig()
        unit = unit_rows(rows)
        num_units, dim = unit.shape
        if num_units < 1:
            raise ConfigurationError("no rows to fit a whitener on; collect at least one valid row")
        power = POWERS[config.strength]
        if power == 0:
            return cls._from_spectrum(np.empty((dim, 0)), np.empty(0), power, config.damping)
        if min(num_units, dim) <= config.max_exact or config.rank >= min(num_units, dim):
            basis, eigenvalues = _exact_spectrum(unit)
        else:
            basis, eigenvalues = _leading_spectrum(unit, config)
        return cls._from_spectrum(basis, eigenvalues, power, config.damping)

    @classmethod
    def _from_spectrum(cls, basis: np.ndarray, eigenvalues: np.ndarray, power: float, damping: float) -> "Whitener":
        dim, rank = basis.shape
        # unit rows: the trace of the second moment is 1
        rest = max(1.0 - float(eigenvalues.sum()), 0.0) / max(dim - rank, 1)
        floor = damping / dim
        gains = ((eigenvalues + floor) / (rest + floor)) ** -power
        return cls(
            basis=basis.astype(np.float32),
            gains=gains.astype(np.float32),
            eigenvalues=eigenvalues.astype(np.float64),
            rest_eigenvalue=np.asarray(rest, dtype=np.float64),
        )

    def apply(self, rows: Float[np.ndarray, "unit dim"]) -> Float[np.ndarray, "unit dim"]:
        """Whitened rows of unit norm, float32, a new array; any number of rows, of any norm.

        Raises ConfigurationError for zero or non-finite rows, and where the width differs from the fitted one.
        """
        if rows.shape[1] != self.basis.shape[0]:
            raise ConfigurationError(
                f"rows are {rows.shape[1]} wide, the whitener was fitted on {self.basis.shape[0]}; "
                "use rows of the same projection"
            )
        unit = unit_rows(rows)
        if self.gains.size == 0:
            return unit
        unit += ((unit @ self.basis) * (self.gains - 1)) @ self.basis.T
        return unit_rows(unit)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The fields by name, for storing; `from_arrays` is the inverse."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> "Whitener":
        """The whitener whose `to_arrays` gave these arrays; raises ConfigurationError where one is missing."""
        missing = [field.name for field in fields(cls) if field.name not in arrays]
        if missing:
            raise ConfigurationError(f"a stored whitener lacks {', '.join(missing)}; fit and store it again")
        return cls(**{field.name: np.asarray(arrays[field.name]) for field in fields(cls)})


def _exact_spectrum(unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvectors [dim, rank] and eigenvalues of the second moment, from the smaller of the two Gram matrices."""
    num_units, dim = unit.shape
    wide = dim > num_units
    gram = (unit @ unit.T if wide else unit.T @ unit).astype(np.float64) / num_units
    with threadpool_limits(1):  # a shared machine slows LAPACK's panels tenfold; one thread is also reproducible
        values, vectors = np.linalg.eigh(gram)
    keep = values > values[-1] * 1e-7
    values, vectors = values[keep][::-1], vectors[:, keep][:, ::-1]
    if wide:
        vectors = (unit.T @ vectors.astype(np.float32)) / np.sqrt(values * num_units)
    return vectors, values


def _leading_spectrum(unit: np.ndarray, config: WhiteningConfig) -> tuple[np.ndarray, np.ndarray]:
    """The same for the `rank` leading directions only."""
    num_units, dim = unit.shape
    oversampled = min(config.rank + max(config.rank // 8, 16), num_units, dim)
    start = np.random.default_rng(config.seed).standard_normal((num_units, oversampled), dtype=np.float32)
    subspace = _orthonormal(unit.T @ start)
    for _ in range(config.num_power_iterations):
        subspace = _orthonormal(unit.T @ (unit @ subspace))
    image = unit @ subspace
    moment = (image.T @ image).astype(np.float64) / num_units
    with threadpool_limits(1):
        values, vectors = np.linalg.eigh(moment)
    values, vectors = values[::-1][: config.rank], vectors[:, ::-1][:, : config.rank]
    keep = values > values[0] * 1e-7
    return subspace @ vectors[:, keep].astype(np.float32), values[keep]


def _orthonormal(columns: np.ndarray) -> np.ndarray:
    with threadpool_limits(1):
        return np.linalg.qr(columns)[0]
