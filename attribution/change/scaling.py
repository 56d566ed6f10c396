"""The mean loss over models of different sizes, as a sum over quanta, and its fall as a power of the size.

    L(n) = Σ_q share_q · L_q(n), exactly        share_q: the quantum's share of all units, L_q its units' mean loss
    L(n) ≈ c · n^−α                             n: the number of parameters

Where a model of n parameters has the quanta of the lowest ranks, as many as n allows, and the frequency of a quantum
falls with its rank to the power −(α + 1), the loss falls as n^−α (Michaud et al., arXiv 2303.13506, section 2). Then
the quantum of frequency f is there from n ∝ f^(−1/(α + 1)) on, by putting the one into the other.

Knows numbers over units and models; nothing of models or files.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int

from .emergence import EmergenceConfig, group_means, sums_by_document


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """The fall of the mean loss of all units with the number of parameters."""

    exponent: float
    """α, by least squares of the logarithm of the loss, no offset taken off; NaN for a loss that is 0 somewhere."""
    exponent_low: float
    """Its interval over resampled documents; NaN for units of one document."""
    exponent_high: float
    explained: float
    """R² of that line."""
    confidence: float

    @property
    def expected_rank_slope(self) -> float | None:
        """Power of the rank that frequencies fall with, were quanta learned in their order; None without a fall."""
        return -(1 + self.exponent) if self.exponent > 0 else None

    @property
    def expected_order_slope(self) -> float | None:
        """Power of a quantum's frequency that the parameters at which it forms go with, likewise."""
        return -1 / (1 + self.exponent) if self.exponent > 0 else None

    def sentence(self) -> str:
        """The fit, and what it would mean for quanta, as plain words."""
        fitted = (
            f"mean loss ∝ parameters^−α, α = {self.exponent:.2f} ({100 * self.confidence:g} % interval "
            f"{self.exponent_low:.2f} to {self.exponent_high:.2f}, resampling documents; "
            f"R² {self.explained:.2f}, no offset)"
        )
        if self.expected_rank_slope is None or self.expected_order_slope is None:
            return fitted
        return (
            f"{fitted}; by that, quanta learned in the order of frequency would have frequency ∝ "
            f"rank^{self.expected_rank_slope:.2f} and parameters ∝ frequency^{self.expected_order_slope:.2f}"
        )


def decompose(
    losses: Float[np.ndarray, "unit model"], quantum: Int[np.ndarray, " unit"]
) -> Float64[np.ndarray, "quantum model"]:
    """Each quantum's share times its mean loss, in nats: a model's column adds up to the mean over all units.

    Quanta are numbered from 0, each with units.
    """
    return group_means(losses, quantum) * (np.bincount(quantum) / len(quantum))[:, None]


def fit_scaling(
    losses: Float[np.ndarray, "unit model"],
    num_parameters: Int[np.ndarray, " model"],
    document: Int[np.ndarray, " unit"],
    *,
    config: EmergenceConfig | None = None,
) -> Scaling:
    """Fit the fall of the mean over all units; of the configuration, the resamples, their confidence and the seed."""
    config = config or EmergenceConfig()
    x = np.log(np.asarray(num_parameters, np.float64))
    sums, counts = sums_by_document(np.asarray(losses, np.float64), document)
    slope, explained = _lines(x, sums.sum(0, keepdims=True) / counts.sum())
    low = high = float("nan")
    if len(counts) > 1:
        shares = np.full(len(counts), 1 / len(counts))
        draws = np.random.default_rng(config.seed).multinomial(len(counts), shares, size=config.num_resamples)
        slopes, _ = _lines(x, (draws @ sums) / (draws @ counts)[:, None])
        edges = 100 * np.array([(1 - config.confidence) / 2, (1 + config.confidence) / 2])
        low, high = (float(value) for value in -np.percentile(slopes, edges[::-1]))
    return Scaling(
        exponent=-float(slope[0]),
        exponent_low=low,
        exponent_high=high,
        explained=float(explained[0]),
        confidence=config.confidence,
    )


def _lines(
    x: Float64[np.ndarray, " model"], losses: Float64[np.ndarray, "curve model"]
) -> tuple[Float64[np.ndarray, " curve"], Float64[np.ndarray, " curve"]]:
    """Slope and R² of each curve's logarithm on x; NaN for a curve that is 0 somewhere."""
    y = np.log(np.where((losses > 0).all(1, keepdims=True), losses, np.nan))
    x, y = x - x.mean(), y - y.mean(1, keepdims=True)
    slopes = y @ x / (x @ x)
    total = (y**2).sum(1)
    explained = np.divide(slopes**2 * (x @ x), total, out=np.zeros_like(total), where=total > 0)
    return slopes, np.where(np.isnan(total), np.nan, explained)
