"""Does learning one part of a quantum teach the rest of it, and nothing else?

Weights take one small step down the mean gradient of some units (half of a quantum's documents); the losses of the
quantum's other documents, and of units outside of it, are measured before and after, by forward passes with the weights
so moved. Legend: L the logarithm of a unit's loss, Δ its fall through the step;

    selectivity = Σ_q mean Δ over the other half of q  /  Σ_q mean |Δ| over units outside of q

over quanta q. 1 means that the step moves strangers as much as kin. To first order Δ is the step's inner product with
the unit's own gradient over its loss, so that whoever groups by gradients should win with plain gradient steps; other
directions (the signs of the gradient, as Adam's first step), and steps that are not small, are the harder tests. Knows
weights and losses of numbered units; not what a unit or a quantum is.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int, Int64
from torch import Tensor

from ...errors import BadWeightsError, ConfigurationError

Losses = Callable[[Int64[np.ndarray, " unit"]], Tensor]
"""From numbers of units to their losses in nats at the weights of the moment, [unit]; gradients may flow through."""
Direction = Callable[[Tensor], Tensor]
"""From one weight's gradient to what is subtracted from it, up to the length of the whole step."""

_LEAST_LOSS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """What a step of one length did."""

    length: float
    """Norm of the step over the norm of all weights."""
    taught: float
    """Mean fall of the log loss of the units that the step was made for."""
    falls: Float64[np.ndarray, " unit"]
    """Fall of the log loss of each other unit that was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferTotals:
    """Sums over quanta at one length of step; they add up to a selectivity."""

    carried: Float64[np.ndarray, " quantum"]
    """Mean fall of the log loss in the other half."""
    spilled: Float64[np.ndarray, " quantum"]
    """Mean size of the change outside."""

    @property
    def selectivity(self) -> float:
        """Σ carried over Σ spilled; negative where learning one half of the quanta unlearns the other."""
        return float(self.carried.sum() / max(self.spilled.sum(), np.finfo(np.float64).tiny))

    def interval(self, *, num_resamples: int = 1_000, seed: int = 0) -> tuple[float, float]:
        """2.5th and 97.5th percentile over resampled quanta."""
        num = len(self.carried)
        draws = np.random.default_rng(seed).multinomial(num, np.full(num, 1 / num), size=num_resamples)
        low, high = np.percentile((draws @ self.carried) / (draws @ self.spilled), [2.5, 97.5])
        return float(low), float(high)


def split_documents(
    members: Int[np.ndarray, " unit"],
    document: Int[np.ndarray, " member"],
    rng: np.random.Generator,
    *,
    max_units: int,
) -> tuple[Int64[np.ndarray, " first"], Int64[np.ndarray, " second"]]:
    """A quantum's units in two halves that share no document, each of at most `max_units` units, drawn at random.

    Documents are drawn in random order, and go to the half that has fewer units. `document` has one entry for each
    member. Raises ConfigurationError for members of fewer than two documents.
    """
    names, codes = np.unique(document, return_inverse=True)
    if len(names) < 2:
        raise ConfigurationError("the units are of one document; halves that share none need two")
    sizes = np.bincount(codes)
    side = np.zeros(len(names), dtype=bool)
    filled = [0, 0]
    for name in rng.permutation(len(names)).tolist():
        side[name] = filled[1] < filled[0]
        filled[int(side[name])] += int(sizes[name])
    halves = (members[~side[codes]], members[side[codes]])
    first, second = (np.sort(rng.permutation(half)[:max_units]).astype(np.int64) for half in halves)
    return first, second


def measure_steps(
    losses: Losses,
    weights: Sequence[Tensor],
    units: Int[np.ndarray, " unit"],
    others: Int[np.ndarray, " other"],
    *,
    steps: Sequence[tuple[Direction | None, float]],
) -> list[Step]:
    """Step down the gradient of the mean loss of `units`, in several ways, and measure `others`; a result for each.

    A way is a direction and a length above 0. The direction maps each weight's gradient to its part of the step, None
    takes the gradient itself; the whole step is scaled to length times the norm of all weights. Each is tried from the
    same weights, which are as they were afterwards, bit for bit. Raises BadWeightsError for a gradient that is zero or
    not finite, ConfigurationError for a length that is not above 0.
    """
    if not all(length > 0 for _, length in steps):
        raise ConfigurationError(f"lengths are {[length for _, length in steps]}; each must be above 0")
    both = np.concatenate([units, others]).astype(np.int64)
    gradients = _gradients(losses, weights, units.astype(np.int64))
    before = _log_losses(losses, both)
    found = []
    for direction, length in steps:
        parts = gradients if direction is None else [direction(g) for g in gradients]
        with _moved(weights, parts, length):
            falls = before - _log_losses(losses, both)
        taught = float(falls[: len(units)].mean())
        found.append(Step(length=length, taught=taught, falls=falls[len(units) :]))
    return found


def _gradients(losses: Losses, weights: Sequence[Tensor], units: np.ndarray) -> list[Tensor]:
    with torch.enable_grad():
        for weight in weights:
            weight.requires_grad_(True)
        try:
            found = torch.autograd.grad(losses(units).mean(), list(weights), allow_unused=True)
        finally:
            for weight in weights:
                weight.requires_grad_(False)
    gradients = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]
    norm = _norm(gradients)
    if not 0 < norm < float("inf"):
        raise BadWeightsError(f"The mean gradient of {len(units)} units has norm {norm}: there is no step to make.")
    return gradients


@contextmanager
def _moved(weights: Sequence[Tensor], parts: list[Tensor], length: float) -> Iterator[None]:
    kept = [weight.detach().clone() for weight in weights]
    size = length * _norm(weights) / _norm(parts)
    try:
        with torch.no_grad():
            for weight, part in zip(weights, parts, strict=True):
                weight.sub_(part, alpha=size)
        yield
    finally:
        with torch.no_grad():
            for weight, before in zip(weights, kept, strict=True):
                weight.copy_(before)


def _log_losses(losses: Losses, units: np.ndarray) -> Float64[np.ndarray, " unit"]:
    with torch.no_grad():
        return losses(units).double().clamp(min=_LEAST_LOSS).log().cpu().numpy()


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack([t.detach().double().norm() for t in tensors]).norm())
