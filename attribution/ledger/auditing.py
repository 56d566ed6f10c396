"""A sketched ledger held against the exact grade, on sampled steps.

On every so many steps one kind's gradient is found in full, by differentiating its examples' losses, and what it does
to the weights in that very step is computed as the exact grade has it. Through the same signs this is compared with
what the sketched books have: Adam's scale as it is, beside two factors that were read up to a period before.

Knows steps and projections; nothing of periods or sheets.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from .linear_steps import MomentumStep, weight_step
from .tapped import GradientTaps


class Audit:
    """Which steps are audited, of which kind, and what that gave."""

    def __init__(self, taps: GradientTaps, parameters: Mapping[str, nn.Parameter], every_steps: int) -> None:
        self._taps, self._parameters = taps, {n: parameters[n] for n in taps.sides}
        self._every = every_steps
        self._kind: int | None = None
        self._gradients: dict[str, Tensor] = {}
        self._pending: dict[str, tuple[Tensor, Tensor]] = {}
        self._kinds: list[int] = []
        self._missed = self._whole = self._seen_square = self._square = 0.0

    def begin(self, num_steps: int) -> None:
        """A step begins, with so many before it."""
        self._kind = -1 if (num_steps + 1) % self._every == 0 else None
        self._gradients.clear()

    def listen(self, losses: Float[Tensor, " example"], groups: Int64[Tensor, " example"], divisor: Any) -> None:  # noqa: ANN401 - a number
        """Before a batch's backward pass: the audited kind's gradient, where this step is audited.

        Kinds take turns, those that the step's first batch lacks left out.
        """
        if self._kind is None:
            return
        if self._kind < 0:
            present = torch.unique(groups).tolist()
            self._kind = present[len(self._kinds) % len(present)]
        own = losses[groups == self._kind]
        if not len(own):
            return
        self._taps.active = False
        found = torch.autograd.grad(
            own.sum() / divisor, list(self._parameters.values()), retain_graph=True, allow_unused=True
        )
        self._taps.active = True
        for name, gradient in zip(self._parameters, found, strict=True):
            if gradient is not None:
                self._gradients[name] = self._gradients[name] + gradient if name in self._gradients else gradient

    def compare(
        self,
        name: str,
        optimizer: torch.optim.Optimizer,
        group: dict[str, Any],
        *,
        step: MomentumStep,
        factor: float,
        sketched: tuple[Tensor, float],
    ) -> None:
        """After the optimiser's step: the sketched books' gradients by kind, and by what they took them."""
        gradient = self._gradients.pop(name, None)
        if self._kind is None or gradient is None:
            return
        parameter = self._parameters[name]
        after = weight_step(optimizer, group, optimizer.state.get(parameter, {}), gradient.dtype)
        share = -(after.direct + after.from_momentum * step.keep) * step.sign * factor
        exact = after.scale * gradient * share
        self._square += float(exact.double().square().sum())
        self._pending[name] = (self._taps.sides[name].project(exact), sketched[0][self._kind] * sketched[1])

    def settle(self, fitted: Mapping[str, float]) -> None:
        """A period is closed: its entries were multiplied by these factors."""
        for name, (exact, sketched) in self._pending.items():
            found = sketched.double() * fitted.get(name, 1.0)
            self._missed += float((found - exact.double()).square().sum())
            self._whole += float(exact.double().square().sum())
            self._seen_square += float(found.square().sum())
        self._pending.clear()

    def facts(self) -> dict[str, Any]:
        """Steps that were audited, what their entries miss of the exact ones, and the ratio of their norms."""
        if not self._kinds or self._whole == 0:
            return {"steps": 0, "residual": None, "norm": None}
        return {
            "steps": len(self._kinds),
            "residual": (self._missed / self._whole) ** 0.5,
            "norm": (self._seen_square / self._square) ** 0.5,
        }

    def end(self) -> None:
        """The step is made, or was not."""
        if self._kind is not None and self._kind >= 0 and self._pending:
            self._kinds.append(self._kind)
        self._kind = None
