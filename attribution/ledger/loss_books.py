"""Who lowered whose loss: the change of each kind's held-out loss over each period, split among the accounts.

Over the straight line from the weights w₀ at a period's start to w₁ at its end, L(w₁) − L(w₀) = Σ_c ḡ · Δ^c, with Δ^c
account c's part of w₁ − w₀ and ḡ the mean of the loss's gradient along the line: exact (the path integral of a
gradient; Aumann & Shapley 1974 split it in this way). ḡ is found by Simpson's rule, (g₀ + 4 g_½ + g₁) / 6, which is
exact for losses that are quartic along the line; what it misses is the residual, which is known, so that the line is
halved until it is small. A period of one step follows the training's own path; longer ones cut its corners, cost less,
and their books close as well.

Knows entries and readings; nothing of optimisers.
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .evaluation import Evaluator, Reading, set_weights, simpson_weights
from .interactions import Interactions
from .sheets import LossSheet


class LossBooks:
    """The accounts of every kind's held-out loss."""

    def __init__(self, evaluator: Evaluator, parameters: Mapping[str, Tensor], accounts: tuple[str, ...]) -> None:
        self._evaluator, self._parameters, self._accounts = evaluator, dict(parameters), accounts
        kinds = len(evaluator.chart.kinds)
        self._changes = {n: torch.zeros(kinds, len(accounts), dtype=torch.float64) for n in self._parameters}
        self._tolerance, self._max_panels = evaluator.tolerance, evaluator.max_panels
        self._losses: list[Tensor] = []
        self._booked: list[Tensor] = []
        self._steps: list[int] = []
        self._start: dict[str, Tensor] = {}
        self._reading: Reading | None = None
        self.interactions = Interactions(evaluator, parameters, accounts) if evaluator.books_interactions else None
        """What pairs of accounts did together, where that is booked."""

    @property
    def is_open(self) -> bool:
        """Whether the first reading has been made."""
        return self._reading is not None

    def open(self, step: int) -> None:
        """Read the losses before the first step."""
        self._reading = self._evaluator.read()
        self._losses.append(self._reading.losses)
        self._steps.append(step)
        self._keep_start()
        if self.interactions is not None:
            self.interactions.open(self._reading)

    def close_period(self, entries: Mapping[str, Tensor], step: int) -> None:
        """Split the losses' changes since the last reading among the accounts of `entries`, [account, …] by name."""
        before = self._reading
        assert before is not None, "the books were never opened"
        end = {n: p.detach().clone() for n, p in self._parameters.items()}
        after = self._evaluator.read()
        points = {Fraction(0): _products(before, entries), Fraction(1): _products(after, entries)}
        moved = after.losses - before.losses
        num_panels = 1
        try:
            while True:
                for place in range(1, 2 * num_panels, 2):
                    at = Fraction(place, 2 * num_panels)
                    set_weights(self._parameters, {n: torch.lerp(self._start[n], w, float(at)) for n, w in end.items()})
                    points[at] = _products(self._evaluator.read(), entries)
                parts = _simpson(points, num_panels)
                booked = torch.stack(list(parts.values())).sum(0)
                if num_panels >= self._max_panels or self._is_close(moved, booked):
                    break
                num_panels *= 2
        finally:
            set_weights(self._parameters, end)
        if self.interactions is not None:
            self.interactions.close_period(self._start, after, entries, num_panels=num_panels)
        for name, part in parts.items():
            self._changes[name] += part
        self._booked.append(booked)
        self._losses.append(after.losses)
        self._steps.append(step)
        self._reading = after
        self._keep_start()

    def sheet(self) -> LossSheet:
        """The books as they stand at the last closing."""
        modules = tuple(dict.fromkeys(_module(n) for n in self._changes))
        changes = {m: torch.zeros_like(next(iter(self._changes.values()))) for m in modules}
        for name, change in self._changes.items():
            changes[_module(name)] += change
        kinds = self._evaluator.chart.kinds
        return LossSheet(
            kinds=kinds,
            counts=self._evaluator.counts.numpy(),
            accounts=self._accounts,
            modules=modules,
            changes=torch.stack(list(changes.values())).numpy(),
            steps=np.array(self._steps, np.int64),
            losses=torch.stack(self._losses).numpy() if self._losses else np.zeros((0, len(kinds))),
            booked=torch.stack(self._booked).numpy()
            if self._booked
            else np.zeros((0, len(kinds), len(self._accounts))),
        )

    def facts(self) -> dict[str, Any]:
        """What must be equal to go on, and the steps of the readings."""
        return {
            "kinds": list(self._evaluator.chart.kinds),
            "counts": self._evaluator.counts.tolist(),
            "steps": list(self._steps),
        }

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All that must be kept to go on."""
        reading = self._reading
        assert reading is not None, "the books were never opened"
        return {
            "loss/start": self._start,
            "loss/gradients": reading.gradients,
            "loss/changes": self._changes,
            "loss/course": {"losses": torch.stack(self._losses)}
            | ({"booked": torch.stack(self._booked)} if self._booked else {}),
        }

    def load(self, tensors: Mapping[str, Mapping[str, Tensor]], steps: list[int]) -> None:
        """What `tensors` and the facts' steps were."""
        device = next(iter(self._parameters.values())).device
        course = tensors["loss/course"]
        self._losses, self._booked = list(course["losses"]), list(course.get("booked", []))
        self._steps = list(steps)
        self._start = {n: t.to(device).clone() for n, t in tensors["loss/start"].items()}
        self._changes = {n: t.clone() for n, t in tensors["loss/changes"].items()}
        gradients = {n: t.to(device).clone() for n, t in tensors["loss/gradients"].items()}
        self._reading = Reading(losses=self._losses[-1], gradients=gradients)

    def _is_close(self, moved: Tensor, booked: Tensor) -> bool:
        """Whether each residual is small beside the kind's own change, or the mean one where it hardly moved."""
        scale = torch.maximum(moved.abs(), moved.abs().mean())
        return bool(((moved - booked.sum(1)).abs() <= self._tolerance * scale).all())

    def _keep_start(self) -> None:
        self._start = {n: p.detach().clone() for n, p in self._parameters.items()}


def _products(reading: Reading, entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each kind's gradient times each account's entry, [kind, account] by parameter name."""
    return {
        name: (reading.gradients[name].flatten(1).to(own.dtype) @ own.flatten(1).T).double().cpu()
        for name, own in entries.items()
    }


def _simpson(points: Mapping[Fraction, Mapping[str, Tensor]], num_panels: int) -> dict[str, Tensor]:
    """The mean over the line by the composite rule, from its 2 · panels + 1 points."""
    weights = simpson_weights(num_panels)
    names = points[Fraction(0)]
    return {n: torch.stack([w * points[at][n] for at, w in weights.items()]).sum(0) for n in names}


def _module(parameter: str) -> str:
    return parameter.rpartition(".")[0]
