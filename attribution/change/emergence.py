"""When each quantum formed: its loss and gradient over a series of checkpoints, the transition, and what it forgot.

The series may be one of models: their numbers of parameters then stand for the steps.

Units are grouped by quantum (or task); intervals come from resampled documents, since units of one document fall
together. A transition is never known better than the checkpoints lie apart: where 10 to 90 % of the fall fit between
two neighbours, the interval spans at least that gap.

Knows numbers over units and checkpoints; nothing of models, runs or files. The fit: transitions.py.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64, Int, Int64
from scipy import stats

from ...errors import ConfigurationError
from .transitions import Fits, Scale, TransitionGrid

Status = Literal["learned", "early", "late", "flat"]
_PLACES: dict[int, Status] = {-1: "early", 0: "learned", 1: "late"}
_LEAST_EXPLAINED = 0.5
_NEIGHBOURS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class EmergenceConfig:
    """How transitions are found."""

    scale: Scale = "log"
    """Whether the logistic is one in the logarithm of the step, or in the step."""
    num_resamples: int = 200
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_resamples < 20:
            raise ConfigurationError(f"num_resamples is {self.num_resamples}; an interval needs at least 20.")
        if not 0 < self.confidence < 1:
            raise ConfigurationError(f"confidence is {self.confidence}; give a share between 0 and 1.")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Emergence:
    """The transitions of all quanta; losses in nats, times in training steps."""

    steps: Int64[np.ndarray, " checkpoint"]
    sizes: Int64[np.ndarray, " quantum"]
    losses: Float64[np.ndarray, "quantum checkpoint"]
    """Mean over each quantum's units."""
    fits: Fits
    low: Float64[np.ndarray, " quantum"]
    """The midpoint's interval; NaN for quanta of one document."""
    high: Float64[np.ndarray, " quantum"]
    status: tuple[Status, ...]
    """`learned`: the fall lies within the series; `early`: it began at the first checkpoint or before; `late`: it ends
    at the last or after; `flat`: no fall that resampled documents agree on, or none that a logistic explains."""
    forgotten: Float64[np.ndarray, " quantum"]
    """Loss at the last checkpoint above the best one, which is chosen on other documents than it is measured on."""
    forgotten_low: Float64[np.ndarray, " quantum"]
    forgotten_high: Float64[np.ndarray, " quantum"]
    largest_fall: Float64[np.ndarray, " quantum"]
    """Share of the drop that falls between two neighbouring checkpoints: near 1 for a phase change."""
    largest_fall_step: Int64[np.ndarray, " quantum"]
    """The later of the two."""


def find_emergence(
    losses: Float[np.ndarray, "unit checkpoint"],
    steps: Int[np.ndarray, " checkpoint"],
    quantum: Int[np.ndarray, " unit"],
    document: Int[np.ndarray, " unit"],
    *,
    config: EmergenceConfig | None = None,
) -> Emergence:
    """Fit every quantum's transition.

    Quanta are numbered from 0, each with units. Deterministic for a seed. ConfigurationError for arrays that do not
    fit each other, steps that do not rise, fewer than four checkpoints, or losses that are not finite.
    """
    config = config or EmergenceConfig()
    losses = np.asarray(losses, np.float64)
    _check(losses, steps, quantum, document)
    grid = TransitionGrid(steps, config.scale)
    sizes = np.bincount(quantum).astype(np.int64)
    curves = group_means(losses, quantum)
    fits = grid.fit(curves)
    low, high = np.full(len(sizes), np.nan), np.full(len(sizes), np.nan)
    forgotten = np.full((len(sizes), 3), np.nan)
    edges = 100 * np.array([(1 - config.confidence) / 2, (1 + config.confidence) / 2])
    chance = np.random.default_rng(config.seed)
    falls = np.zeros(len(sizes), np.bool_)
    for number, units in enumerate(_members(quantum)):
        sums, counts = sums_by_document(losses[units], document[units])
        if len(counts) < 2:
            falls[number] = fits.drop[number] > 0
            continue
        draws = chance.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=config.num_resamples)
        resampled = (draws @ sums) / (draws @ counts)[:, None]
        low[number], high[number] = np.percentile(grid.midpoints(resampled), edges)
        falls[number] = np.percentile(resampled[:, 0] - resampled.min(1), edges[0]) > 0 and fits.drop[number] > 0
        forgotten[number] = _forgotten(resampled, draws, sums, counts, edges)
    low, high = _no_finer_than(low, high, fits, np.asarray(steps, np.float64))
    fall, place = _largest_fall(curves, fits.drop)
    return Emergence(
        steps=np.asarray(steps, np.int64),
        sizes=sizes,
        losses=curves,
        fits=fits,
        low=low,
        high=high,
        status=tuple(_status(fits, falls)),
        forgotten=forgotten[:, 0],
        forgotten_low=forgotten[:, 1],
        forgotten_high=forgotten[:, 2],
        largest_fall=fall,
        largest_fall_step=np.asarray(steps, np.int64)[place],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Do frequent quanta come first? Quanta without a transition are left out."""

    correlation: float
    """Spearman's, of time and frequency: negative where frequent ones come first."""
    low: float
    """95 % interval over resampled quanta."""
    high: float
    null_low: float
    """1st and 99th percentile with the frequencies shuffled."""
    null_high: float
    p_value: float
    """Share of shuffles at least as far from 0, two-sided."""
    slope: float
    """Of ln time on ln frequency, over the learned ones, by least squares; NaN below three."""
    slope_low: float
    slope_high: float
    num_quanta: int
    num_left_out: int

    def sentence(self, axis: str = "time") -> str:
        """The result beside its null, as plain words; `axis` says what quanta were followed over."""
        return (
            f"{axis} against frequency: Spearman {self.correlation:.2f} (95 % interval {self.low:.2f} to "
            f"{self.high:.2f}; shuffled frequencies {self.null_low:.2f} to {self.null_high:.2f}, p = "
            f"{self.p_value:.2g}), {axis} ∝ frequency^{self.slope:.2f} ({self.slope_low:.2f} to "
            f"{self.slope_high:.2f}), {self.num_quanta} quanta, {self.num_left_out} without a transition left out"
        )


def order_against_frequency(
    emergence: Emergence, frequency: Float[np.ndarray, " quantum"], *, num_resamples: int = 2_000, seed: int = 0
) -> Order | None:
    """Rank correlation of transition times with frequencies, with its null; None below four quanta that have times."""
    status = np.array(emergence.status)
    has = status != "flat"
    if has.sum() < 4:
        return None
    times = emergence.fits.midpoint[has]
    weights = np.asarray(frequency, np.float64)[has]
    chance = np.random.default_rng(seed)
    correlation = _spearman(times, weights)
    null = np.array([_spearman(times, chance.permutation(weights)) for _ in range(num_resamples)])
    picks = chance.integers(0, len(times), (num_resamples, len(times)))
    resampled = np.array([_spearman(times[p], weights[p]) for p in picks])
    learned = (status[has] == "learned") & (times > 0) & (weights > 0)
    slopes = _slopes(np.log(times[learned]), np.log(weights[learned]), chance, num_resamples)
    return Order(
        correlation=correlation,
        low=float(np.nanpercentile(resampled, 2.5)),
        high=float(np.nanpercentile(resampled, 97.5)),
        null_low=float(np.percentile(null, 1)),
        null_high=float(np.percentile(null, 99)),
        p_value=float((1 + (np.abs(null) >= abs(correlation)).sum()) / (1 + num_resamples)),
        slope=slopes[0],
        slope_low=slopes[1],
        slope_high=slopes[2],
        num_quanta=int(has.sum()),
        num_left_out=int((~has).sum()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Burst:
    """A gap between neighbouring checkpoints in which more quanta form than around it: a phase change of the model."""

    first_step: int
    last_step: int
    count: int
    expected: float
    """From the two gaps on either side, by their lengths on the axis of the fit."""
    p_value: float
    """One-sided, times the number of gaps (Bonferroni)."""


def find_bursts(emergence: Emergence, *, scale: Scale = "log", level: float = 0.05) -> list[Burst]:
    """The gaps with more midpoints than their neighbours' density explains (conditional binomial test).

    Equal densities of two Poisson processes make the count of one, given both, binomial with the share of its length
    (Przyborowski & Wilenski 1940).
    """
    grid = TransitionGrid(emergence.steps, scale)
    learned = np.array(emergence.status) == "learned"
    counts, _ = np.histogram(emergence.fits.midpoint[learned], emergence.steps.astype(np.float64))
    lengths = np.diff(grid.x)
    found = []
    for gap, count in enumerate(counts.tolist()):
        around = [g for g in range(gap - _NEIGHBOURS, gap + _NEIGHBOURS + 1) if g != gap and 0 <= g < len(counts)]
        near, length = int(counts[around].sum()), float(lengths[around].sum())
        share = float(lengths[gap]) / (float(lengths[gap]) + length)
        p = float(stats.binom.sf(count - 1, count + near, share)) * len(counts) if count else 1.0
        if p < level:
            found.append(
                Burst(
                    first_step=int(emergence.steps[gap]),
                    last_step=int(emergence.steps[gap + 1]),
                    count=count,
                    expected=near * float(lengths[gap]) / length,
                    p_value=p,
                )
            )
    return found


def group_means(
    values: Float[np.ndarray, "unit checkpoint"], group: Int[np.ndarray, " unit"]
) -> Float64[np.ndarray, "group checkpoint"]:
    """Mean over each group's units; NaN for a group without any."""
    sizes = np.bincount(group)
    sums = np.zeros((len(sizes), values.shape[1]))
    np.add.at(sums, group, values)
    with np.errstate(invalid="ignore"):
        return sums / sizes[:, None]


def sums_by_document(
    losses: Float[np.ndarray, "unit checkpoint"], document: Int[np.ndarray, " unit"]
) -> tuple[Float64[np.ndarray, "document checkpoint"], Int64[np.ndarray, " document"]]:
    """Sum over each document's units, and how many these are; documents in the order of their numbers."""
    _, place = np.unique(document, return_inverse=True)
    counts = np.bincount(place).astype(np.int64)
    sums = np.zeros((len(counts), losses.shape[1]))
    np.add.at(sums, place, losses)
    return sums, counts


def _check(losses: np.ndarray, steps: np.ndarray, quantum: np.ndarray, document: np.ndarray) -> None:
    if losses.shape != (len(quantum), len(steps)) or len(document) != len(quantum):
        raise ConfigurationError(
            f"Losses of the shape {losses.shape} for {len(quantum)} units in {len(document)} documents at {len(steps)} "
            "checkpoints; give one line per unit and one column per checkpoint."
        )
    if not np.isfinite(losses).all():
        unit = int(np.flatnonzero(~np.isfinite(losses).all(1))[0])
        raise ConfigurationError(f"Unit {unit} has a loss that is not finite; leave such units out.")
    if not np.bincount(quantum).all():
        raise ConfigurationError("Quanta are numbered from 0, and each needs units; number them anew.")


def _members(quantum: np.ndarray) -> list[np.ndarray]:
    return np.split(np.argsort(quantum, kind="stable"), np.cumsum(np.bincount(quantum))[:-1])


def _forgotten(
    resampled: np.ndarray, draws: np.ndarray, sums: np.ndarray, counts: np.ndarray, edges: np.ndarray
) -> np.ndarray:
    """The last loss above the best one: chosen on the documents drawn, measured on those that were not."""
    outside = (draws == 0).astype(np.float64)
    has = outside.sum(1) > 0
    left = (outside[has] @ sums) / (outside[has] @ counts)[:, None]
    best = resampled[has].argmin(1)
    rise = left[:, -1] - left[np.arange(len(left)), best]
    return np.array([rise.mean(), *np.percentile(rise, edges)]) if len(rise) else np.full(3, np.nan)


def _no_finer_than(low: np.ndarray, high: np.ndarray, fits: Fits, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intervals with the fit in them, widened to the gap between checkpoints that holds the whole transition."""
    low, high = np.minimum(low, fits.midpoint), np.maximum(high, fits.midpoint)
    place = np.clip(np.searchsorted(steps, fits.midpoint), 1, len(steps) - 1)
    before, after = steps[place - 1], steps[place]
    within = (fits.start >= before) & (fits.end <= after)
    return np.where(within, np.minimum(low, before), low), np.where(within, np.maximum(high, after), high)


def _largest_fall(curves: np.ndarray, drop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    falls = -np.diff(curves, axis=1)
    place = falls.argmax(1)
    value = falls[np.arange(len(curves)), place]
    share = np.divide(value, drop, out=np.full(len(drop), np.nan), where=drop > 0)
    return np.clip(share, 0, 1), place + 1


def _status(fits: Fits, falls: np.ndarray) -> list[Status]:
    found: list[Status] = []
    for number in range(len(fits.drop)):
        if not falls[number] or fits.explained[number] < _LEAST_EXPLAINED:
            found.append("flat")
        else:
            found.append(_PLACES[int(fits.edge[number])])
    return found


def _spearman(first: np.ndarray, second: np.ndarray) -> float:
    a, b = stats.rankdata(first), stats.rankdata(second)
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else float("nan")


def _slopes(
    times: np.ndarray, weights: np.ndarray, chance: np.random.Generator, num_resamples: int
) -> tuple[float, float, float]:
    if len(times) < 3 or np.ptp(weights) == 0:
        return float("nan"), float("nan"), float("nan")
    picks = chance.integers(0, len(times), (num_resamples, len(times)))
    found = []
    for pick in picks:
        x = weights[pick] - weights[pick].mean()
        if x @ x > 0:
            found.append(float(x @ times[pick] / (x @ x)))
    x = weights - weights.mean()
    low, high = np.percentile(found, [2.5, 97.5])
    return float(x @ times / (x @ x)), float(low), float(high)
