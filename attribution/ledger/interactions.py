"""What pairs of kinds did to a loss together: second-order terms of the loss books, within periods and across them.

The account A[c′, c] multiplies kind c's part of each step by the gradient of c′'s loss that it met. That gradient was
made by everybody's earlier steps, and met everybody's parts of the same one. Both are booked here. Over a period from w
with parts Δ^d, H the Hessian of c′'s loss and H̄ its mean along the line,

    g(w + Δ) − g(w) = Σ_d H̄ Δ^d        L(w + Δ) − L(w) − g(w) · Δ = Σ_cd ∫ (1 − τ) Δ^c · H(w + τΔ) Δ^d dτ

(Taylor's theorem with its integral remainder), so that with g₀ the gradient where the books were opened,

    A[c′, c] = g₀ · Σ Δ^c + Σ_d across[c′, c, d] + Σ_d within[c′, c, d]

across: Σ over periods of Δ^c · (what d's earlier periods added to the gradient); c is the later one. within: the same
period's, symmetric in c and d. Negative: the two together lowered the loss by more than each alone.

Hessians times parts are central differences of gradients, and integrals Simpson's rule; what both miss is known (the
gradient's own change, and A). Periods are divided as the loss books divide them; into n parts, that is 4 n + 2 readings
of all losses for each account, and one gradient is kept for each pair of loss and account. For small models.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from .evaluation import Evaluator, Reading, set_weights, simpson_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class InteractionSheet:
    """Who changed what others did to whose loss, in nats."""

    kinds: tuple[str, ...]
    """Whose loss."""
    accounts: tuple[str, ...]
    first: Float64[np.ndarray, "kind account"]
    """By the gradient where the books were opened: what each account would have done had no gradient changed."""
    across: Float64[np.ndarray, "kind account account"]
    """[whose loss, later, earlier]: what the earlier one's periods added to what the later one did."""
    within: Float64[np.ndarray, "kind account account"]
    """Of the same period; symmetric."""
    missed: Float64[np.ndarray, " kind"]
    """Of the gradient's change since the opening, the part of its norm that no account has."""

    @property
    def matrix(self) -> Float64[np.ndarray, "kind account"]:
        """All that each account did: what the loss books have, but for the differences."""
        return self.first + self.across.sum(2) + self.within.sum(2)

    @property
    def pairs(self) -> Float64[np.ndarray, "kind account account"]:
        """What two accounts did together, in either order, within periods and across; each pair stands twice."""
        both = self.across + self.within
        return both + both.transpose(0, 2, 1) * ~np.eye(len(self.accounts), dtype=np.bool_)


class Interactions:
    """The books of pairs, kept beside the loss books."""

    def __init__(self, evaluator: Evaluator, parameters: Mapping[str, Tensor], accounts: tuple[str, ...]) -> None:
        self._evaluator, self._parameters, self._accounts = evaluator, dict(parameters), accounts
        kinds, number = len(evaluator.chart.kinds), len(accounts)
        self._first = np.zeros((kinds, number))
        self._across, self._within = np.zeros((kinds, number, number)), np.zeros((kinds, number, number))
        self._start: dict[str, Tensor] = {}
        self._last: dict[str, Tensor] = {}
        self._added = {n: p.detach().new_zeros(number, kinds, *p.shape) for n, p in self._parameters.items()}
        """What each account's parts so far added to each loss's gradient."""

    def open(self, reading: Reading) -> None:
        """At the first reading."""
        self._start = self._last = reading.gradients

    def close_period(
        self, start: Mapping[str, Tensor], after: Reading, entries: Mapping[str, Tensor], *, num_panels: int = 1
    ) -> None:
        """Book a period from `start` to the weights as they are, at which `after` was read."""
        end = {n: p.detach().clone() for n, p in self._parameters.items()}
        self._first += _inner(self._start, entries)
        for number in range(len(self._accounts)):
            self._across[:, :, number] += _inner({n: own[number] for n, own in self._added.items()}, entries)
        try:
            for number in range(len(self._accounts)):
                part = {n: own[number] for n, own in entries.items()}
                points = (
                    (float(at), weight, {n: torch.lerp(start[n], end[n], float(at)) for n in end})
                    for at, weight in simpson_weights(num_panels).items()
                )
                self._book(number, part, points, entries)
        finally:
            set_weights(self._parameters, end)
        self._last = after.gradients

    def sheet(self) -> InteractionSheet:
        """The books as they stand at the last closing."""
        missed, moved = np.zeros(len(self._first)), np.full(len(self._first), 1e-300)
        for name, start in self._start.items():
            change = (self._last[name] - start).flatten(1).double()
            missed += np.asarray((change - self._added[name].sum(0).flatten(1)).square().sum(1).cpu())
            moved += np.asarray(change.square().sum(1).cpu())
        return InteractionSheet(
            kinds=self._evaluator.chart.kinds,
            accounts=self._accounts,
            first=self._first.copy(),
            across=self._across.copy(),
            within=self._within.copy(),
            missed=np.sqrt(missed / moved),
        )

    def _book(
        self,
        number: int,
        part: Mapping[str, Tensor],
        points: Iterable[tuple[float, float, Mapping[str, Tensor]]],
        entries: Mapping[str, Tensor],
    ) -> None:
        """What one account's part does to the gradients at points of the line: each one's place and Simpson weight."""
        size = float(torch.stack([own.norm() for own in part.values()]).norm())
        if size == 0:
            return
        for place, weight, weights in points:
            whole = float(torch.stack([own.norm() for own in weights.values()]).norm())
            reach = torch.finfo(next(iter(weights.values())).dtype).eps ** (1 / 3) * whole / size
            found = {n: torch.zeros_like(own[number]) for n, own in self._added.items()}
            for sign in (1.0, -1.0):
                set_weights(self._parameters, {n: (w + sign * reach * part[n]).to(w.dtype) for n, w in weights.items()})
                for name, gradient in self._evaluator.read().gradients.items():
                    found[name].add_(gradient, alpha=sign / (2 * reach))
            self._within[:, :, number] += weight * (1 - place) * _inner(found, entries)
            for name, product in found.items():
                self._added[name][number].add_(product, alpha=weight)


def _inner(gradients: Mapping[str, Tensor], entries: Mapping[str, Tensor]) -> Float64[np.ndarray, "kind account"]:
    """Each loss's gradient times each account's entry."""
    found = [gradients[n].flatten(1).double() @ own.flatten(1).double().T for n, own in entries.items()]
    return np.asarray(torch.stack(found).sum(0).cpu())
