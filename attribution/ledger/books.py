"""The buffers of a ledger, one set per parameter, and how a step is booked in them.

By account (kinds, then rounding, then decay): the gradients of the step at hand, momentum, and entries. Entries are
kept for the open period and in total; closing a period moves them over. Knows linear steps (linear_steps.py); nothing
of models or losses.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Inexact
from torch import Tensor, nn

from ...errors import BadWeightsError, CoverageError
from .linear_steps import MomentumStep, WeightStep, momentum_step, weight_step

_MISFIT = {torch.float64: 1e-8, torch.float32: 1e-3}
_LOOSE_MISFIT = 5e-2
"""By dtype: the part of the stepped gradient that sums over kinds may miss by rounding."""


class Books:
    """The accounts of every parameter of an optimiser."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], num_kinds: int) -> None:
        self.parameters, self.num_kinds = dict(parameters), num_kinds
        self.start = {n: _wide(p.detach()).clone() for n, p in self.parameters.items()}
        self.gradients = self._zeros(num_kinds + 1)
        """Of the step at hand, before clipping: kinds, then rounding."""
        self.momentum = self._zeros(num_kinds + 1)
        """The same, and a row for decay where it belongs inside the gradient."""
        self.period = self._zeros(num_kinds + 2)
        """Entries of the open period."""
        self.total: dict[str, Tensor] = {}
        """Entries of the closed periods; empty before the first."""
        self.first_made: set[str] = set()
        """Parameters that have been stepped."""
        self._steps: dict[str, MomentumStep] = {}

    def kinds(self) -> dict[str, Tensor]:
        """The rows of `gradients` that belong to kinds."""
        return {n: g[:-1] for n, g in self.gradients.items()}

    def take_up(self, optimizer: torch.optim.Optimizer, names: Mapping[int, str], coarsest: torch.dtype) -> float:
        """Before the optimiser's step: momentum takes up the gradients as they will be stepped.

        Returns the realised factor between them and those of the backward passes (clipping, loss scales). Raises
        CoverageError where one factor does not explain them, BadWeightsError where they are not finite.
        """
        stepped = [(n, p.grad) for n, p in self.parameters.items() if p.grad is not None]
        factor = self._factor(stepped, coarsest)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None or id(parameter) not in names:
                    continue
                name = names[id(parameter)]
                step = momentum_step(optimizer, group, is_first=name not in self.first_made)
                self._steps[name] = step
                momentum, gradients = self._momentum(name, step), self.gradients[name]
                rows = self.num_kinds + 1
                momentum.mul_(step.beta)
                momentum[:rows].add_(gradients, alpha=step.sign * step.keep * factor)
                if step.coupled:
                    momentum[rows].add_(_wide(parameter.detach()), alpha=step.keep * step.coupled)
                if step.decoupled:
                    self.period[name][-1].add_(_wide(parameter.detach()), alpha=-step.decoupled)
        return factor

    def book(
        self, optimizer: torch.optim.Optimizer, names: Mapping[int, str], factor: float
    ) -> dict[str, tuple[MomentumStep, WeightStep]]:
        """After the optimiser's step: every account's part of it. `factor` is what `take_up` returned.

        Returns how each parameter that was stepped was.
        """
        booked = {}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = names.get(id(parameter), "")
                if name not in self._steps:
                    continue
                before = self._steps.pop(name)
                momentum, period = self.momentum[name], self.period[name]
                after = weight_step(optimizer, group, optimizer.state.get(parameter, {}), period.dtype)
                _subtract(period[: len(momentum)], momentum, after.scale, after.from_momentum)
                if after.direct:
                    direct = after.direct * before.sign * factor
                    _subtract(period[: self.num_kinds + 1], self.gradients[name], after.scale, direct)
                self.first_made.add(name)
                booked[name] = (before, after)
        return booked

    def close_period(self) -> None:
        """Move the open period's entries to the total."""
        for name, period in self.period.items():
            if name in self.total:
                self.total[name] += period
            else:
                self.total[name] = period.clone()
            period.zero_()

    def entries(self, name: str) -> Inexact[Tensor, "account ..."]:
        """All entries so far of one parameter."""
        return self.total[name] + self.period[name] if name in self.total else self.period[name].clone()

    def change(self, name: str) -> Tensor:
        """How one parameter has moved since the books were opened."""
        return _wide(self.parameters[name].detach()) - self.start[name]

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All that must be kept to go on: by buffer, then by parameter."""
        return {"start": self.start, "momentum": self.momentum, "period": self.period, "total": self.total}

    def load(self, tensors: Mapping[str, Mapping[str, Tensor]], first_made: list[str]) -> None:
        """What `tensors` and `first_made` were."""
        for buffer, own in self.tensors().items():
            own.clear()
            for name, value in tensors[buffer].items():
                own[name] = value.to(self.parameters[name].device).clone()
        self.first_made = set(first_made)

    def _zeros(self, rows: int) -> dict[str, Tensor]:
        return {n: _wide(p.detach()).new_zeros(rows, *p.shape) for n, p in self.parameters.items()}

    def _momentum(self, name: str, step: MomentumStep) -> Tensor:
        momentum = self.momentum[name]
        if step.coupled and len(momentum) == self.num_kinds + 1:
            momentum = torch.cat([momentum, torch.zeros_like(momentum[:1])])
            self.momentum[name] = momentum
        return momentum

    def _factor(self, stepped: list[tuple[str, Any]], coarsest: torch.dtype) -> float:
        """The least-squares factor from Σ over kinds to what is stepped; what it leaves becomes the rounding rows."""
        if not all(bool(g.isfinite().all()) for _, g in stepped):
            raise BadWeightsError(
                "The gradient to be stepped has NaN or infinite entries, which would end the training. Lower the "
                "learning rate, or leave the step out (torch.amp.GradScaler does)."
            )
        sums = {n: self.gradients[n][:-1].sum(0) for n, _ in stepped}
        wide = {n: _wide(g.detach()) for n, g in stepped}
        along = sum(float((wide[n] * s).sum(dtype=torch.float64)) for n, s in sums.items())
        square = sum(float((s * s).sum(dtype=torch.float64)) for s in sums.values())
        factor = along / square if square > 0 and along else 1.0
        missed, whole = 0.0, 0.0
        for name, value in wide.items():
            row = torch.sub(value / factor, sums[name], out=self.gradients[name][-1])
            missed += float(row.square().sum(dtype=torch.float64)) * factor**2
            whole += float(value.square().sum(dtype=torch.float64))
        allowed = _MISFIT.get(coarsest, _LOOSE_MISFIT)
        if missed > allowed**2 * whole:
            raise CoverageError(
                f"The gradient to be stepped is not one factor times the sum over kinds: {(missed / whole) ** 0.5:.1%} "
                "of it is left. Clip by the norm of all parameters together (not by value, nor by layer), zero the "
                "gradients before each step, and give every loss that is trained on to Step.backward."
            )
        return factor


def _subtract(into: Tensor, values: Tensor, scale: Tensor | float, factor: float) -> None:
    """into −= factor · scale ⊙ values, for every account."""
    if isinstance(scale, Tensor):
        into.addcmul_(values, scale, value=-factor)
    else:
        into.add_(values, alpha=-factor * scale)


def _wide(tensor: Tensor) -> Tensor:
    """In float32 at least."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
