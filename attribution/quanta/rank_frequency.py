"""How often quanta are used, by rank: slope, interval, nulls, and whether the tail is a power law at all.

The Quantization Model (Michaud et al., arXiv 2303.13506, section 2) has quantum k used with frequency p_k ∝ k^−(1+α),
so log size against log rank falls with slope −(1 + α), where α is also the exponent with which the loss should scale.
The sizes' own distribution is then p(size) ∝ size^−(1 + 1/(1+α)). Knows sizes only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize, special, stats

from ...errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RankFrequency:
    """The fit of log size on log rank; every band has one row for each rank in `ranks`."""

    ranks: Int[np.ndarray, " rank"]
    """All ranks from 1."""
    sizes: Int[np.ndarray, " rank"]
    """Units in the quantum of each rank, falling."""
    first_rank: int
    """First rank of the fit, inclusive."""
    last_rank: int
    """Last rank of the fit, inclusive."""
    slope: float
    """Of natural log size on natural log rank."""
    slope_low: float
    """2.5th percentile over resampled units."""
    slope_high: float
    """97.5th percentile over resampled units."""
    intercept: float
    """Log size at rank 1 on the fitted line."""
    line_low: Float[np.ndarray, " rank"]
    """2.5th percentile of the fitted line, in units; a 95 % band."""
    line_high: Float[np.ndarray, " rank"]
    """97.5th percentile of the same."""
    null_low: Float[np.ndarray, " rank"]
    """2.5th percentile of the null clusterings' sizes at each rank; NaN without nulls."""
    null_high: Float[np.ndarray, " rank"]
    """97.5th percentile of the same."""
    null_slopes: Float[np.ndarray, " null"]
    """Slope of each null over the same ranks."""

    @property
    def alpha(self) -> float:
        """The exponent α that the slope stands for: −slope − 1."""
        return -self.slope - 1

    def sentence(self) -> str:
        """The result with its interval and its null, as plain words."""
        if len(self.null_slopes):
            null = f"; nulls give {self.null_slopes.min():.2f} to {self.null_slopes.max():.2f}"
        else:
            null = "; no null was given"
        return (
            f"Over ranks {self.first_rank} to {self.last_rank} size falls with rank to the power {self.slope:.2f} "
            f"(95 % interval {self.slope_low:.2f} to {self.slope_high:.2f}, resampling units){null}."
        )


def fit_rank_frequency(
    sizes: Int[np.ndarray, " quantum"],
    *,
    first_rank: int = 1,
    last_rank: int | None = None,
    null_sizes: Sequence[Int[np.ndarray, "..."]] = (),
    num_resamples: int = 1_000,
    seed: int = 0,
) -> RankFrequency:
    """Ordinary least squares of log size on log rank over the ranks given (both inclusive; None: all).

    The interval resamples units with replacement and ranks again, so it holds the assignments fixed; it does not cover
    the choice of clusterer or cut. Quanta that a resample leaves empty are left out of its fit. `null_sizes` are the
    sizes of clusterings of rows without structure. Raises ConfigurationError for fewer than 3 ranks.
    """
    ordered = np.sort(sizes[sizes > 0])[::-1].astype(np.int64)
    last = len(ordered) if last_rank is None else min(last_rank, len(ordered))
    if first_rank < 1 or last - first_rank < 2:
        raise ConfigurationError(
            f"ranks {first_rank} to {last} of {len(ordered)} quanta; a slope needs 3 ranks or more"
        )
    ranks = np.arange(1, len(ordered) + 1)
    slope, intercept = fitted_line(ordered, first_rank, last)
    total = int(ordered.sum())
    draws = np.random.default_rng(seed).multinomial(total, ordered / total, size=num_resamples)
    lines = np.array([fitted_line(np.sort(draw)[::-1], first_rank, last) for draw in draws])
    drawn = np.exp(lines[:, :1] * np.log(ranks) + lines[:, 1:])
    line_low, line_high = np.percentile(drawn, [2.5, 97.5], axis=0)
    null_low, null_high = _null_band(null_sizes, len(ordered))
    return RankFrequency(
        ranks=ranks,
        sizes=ordered,
        first_rank=first_rank,
        last_rank=last,
        slope=slope,
        slope_low=float(np.percentile(lines[:, 0], 2.5)),
        slope_high=float(np.percentile(lines[:, 0], 97.5)),
        intercept=intercept,
        line_low=line_low,
        line_high=line_high,
        null_low=null_low,
        null_high=null_high,
        null_slopes=np.array(
            [fitted_line(np.sort(null)[::-1], first_rank, last)[0] for null in null_sizes], dtype=float
        ),
    )


def fitted_line(ordered: Int[np.ndarray, " rank"], first: int, last: int) -> tuple[float, float]:
    """Slope and intercept of log size on log rank over ranks `first` to `last` that have a size; NaN for fewer than 2.

    `ordered` are sizes, falling; least squares.
    """
    part = ordered[first - 1 : last]
    used = np.flatnonzero(part > 0)
    if len(used) < 2:
        return float("nan"), float("nan")
    x, y = np.log(used + first), np.log(part[used])
    slope = float(np.dot(x - x.mean(), y - y.mean()) / np.dot(x - x.mean(), x - x.mean()))
    return slope, float(y.mean() - slope * x.mean())


def _null_band(null_sizes: Sequence[np.ndarray], num_ranks: int) -> tuple[np.ndarray, np.ndarray]:
    if not null_sizes:
        return np.full(num_ranks, np.nan), np.full(num_ranks, np.nan)
    padded = np.zeros((len(null_sizes), num_ranks))
    for row, null in zip(padded, null_sizes, strict=True):
        ordered = np.sort(null)[::-1][:num_ranks]
        row[: len(ordered)] = ordered
    low, high = np.percentile(padded, [2.5, 97.5], axis=0)
    return low, high


@dataclass(frozen=True, slots=True, kw_only=True)
class TailRival:
    """A power law against another distribution of sizes (Vuong 1989)."""

    name: str
    """`log-normal` or `exponential`."""
    log_likelihood_ratio: float
    """Power law minus rival; above 0 favours the power law."""
    p_value: float
    """Chance of a ratio at least this far from 0 if both fitted equally well (two-sided); 1 where undefined."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TailFit:
    """A discrete power law p(size) ∝ size^−exponent for sizes of at least `min_size`."""

    exponent: float
    """Maximum likelihood, above 1."""
    min_size: int
    """Smallest size in the tail."""
    num_tail: int
    """Quanta in the tail."""
    distance: float
    """Kolmogorov–Smirnov distance of the tail to the fit, in [0, 1]."""
    rivals: tuple[TailRival, ...]
    """Log-normal and exponential."""

    def sentence(self) -> str:
        """The result beside its rivals, as plain words."""
        verdicts = []
        for rival in self.rivals:
            if rival.p_value >= 0.05:
                verdicts.append(f"not told apart from {rival.name} (p = {rival.p_value:.2f})")
            else:
                better = "better" if rival.log_likelihood_ratio > 0 else "worse"
                verdicts.append(f"{better} than {rival.name} (p = {rival.p_value:.2g})")
        return (
            f"For {self.num_tail} quanta of {self.min_size} units and more, the power law with exponent "
            f"{self.exponent:.2f} is {' and '.join(verdicts)}."
        )


def fit_tail(sizes: Int[np.ndarray, " quantum"], *, min_size: int | None = None, min_tail: int = 10) -> TailFit:
    """Fit the tail of the sizes by maximum likelihood and compare it with its rivals.

    Clauset, Shalizi & Newman 2009 (arXiv 0706.1062), equations 3.5 and 3.9 and appendix C; without `min_size` the one
    with the least Kolmogorov–Smirnov distance among those that leave at least `min_tail` quanta. The rivals are the
    log-normal and the exponential, made discrete by their mass between size − ½ and size + ½ and cut off below
    `min_size`. Raises ConfigurationError where fewer than `min_tail` quanta, or only one size, are left.
    """
    ordered = np.sort(sizes[sizes > 0]).astype(np.int64)
    if min_size is None:
        starts = [int(s) for s in np.unique(ordered) if (ordered >= s).sum() >= min_tail and ordered[-1] > s]
    else:
        starts = [min_size] if (ordered >= min_size).sum() >= min_tail and ordered[-1] > min_size else []
    if not starts:
        raise ConfigurationError(f"{len(ordered)} quanta leave no tail of {min_tail} quanta with two sizes or more")
    fits = [(_ks_distance(ordered[ordered >= s], s), s) for s in starts]
    distance, chosen = min(fits)
    tail = ordered[ordered >= chosen]
    exponent = _power_exponent(tail, chosen)
    ours = -exponent * np.log(tail) - np.log(special.zeta(exponent, chosen))
    rivals = (
        _compare("log-normal", ours, _lognormal(tail, chosen)),
        _compare("exponential", ours, _exponential(tail, chosen)),
    )
    return TailFit(exponent=exponent, min_size=chosen, num_tail=len(tail), distance=distance, rivals=rivals)


def _power_exponent(tail: np.ndarray, min_size: int) -> float:
    log_sum, count = float(np.log(tail).sum()), len(tail)

    def loss(exponent: float) -> float:
        return float(exponent * log_sum + count * np.log(special.zeta(exponent, min_size)))

    return float(optimize.minimize_scalar(loss, bounds=(1.0001, 20), method="bounded").x)


def _ks_distance(tail: np.ndarray, min_size: int) -> float:
    exponent = _power_exponent(tail, min_size)
    values, counts = np.unique(tail, return_counts=True)
    fitted = 1 - special.zeta(exponent, values + 1) / special.zeta(exponent, min_size)
    return float(np.abs(np.cumsum(counts) / len(tail) - fitted).max())


def _lognormal(tail: np.ndarray, min_size: int) -> np.ndarray:
    logs = np.log(tail)

    def log_mass(parameters: np.ndarray) -> np.ndarray:
        mean, log_width = parameters
        width = np.exp(log_width)
        upper, lower = (-(np.log(edge) - mean) / width for edge in (tail - 0.5, tail + 0.5))
        # in logs of the survival function, which keep their digits far out in the tail
        high, low = stats.norm.logcdf(upper), stats.norm.logcdf(lower)
        whole = stats.norm.logcdf(-(np.log(min_size - 0.5) - mean) / width)
        return np.asarray(high + np.log1p(-np.exp(np.minimum(low - high, -1e-12))) - whole)

    start = np.array([logs.mean(), np.log(max(float(logs.std()), 0.1))])
    bounds = ((-20.0, 20.0), (-4.0, 4.0))
    fitted = optimize.minimize(lambda p: -log_mass(p).sum(), start, method="L-BFGS-B", bounds=bounds)
    return log_mass(fitted.x)


def _exponential(tail: np.ndarray, min_size: int) -> np.ndarray:
    excess = tail - min_size
    ratio = excess.mean() / (1 + excess.mean())  # the geometric distribution's closed form
    return np.asarray(np.log1p(-ratio) + excess * np.log(ratio))


def _compare(name: str, ours: np.ndarray, theirs: np.ndarray) -> TailRival:
    difference = ours - theirs
    ratio, spread = float(difference.sum()), float(difference.std())
    p_value = special.erfc(abs(ratio) / (np.sqrt(2 * len(ours)) * spread)) if spread > 1e-12 else 1.0
    return TailRival(name=name, log_likelihood_ratio=ratio, p_value=float(p_value))
