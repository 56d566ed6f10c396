"""The sketched ledger: the same accounts in projected space, for models whose exact books are too large or too slow.

Three things are not exact, and the residual measures all of them together, against the weights' own projected change:

- every vector is seen through random signs on its two axes (tapped.py): norms and shares carry a few per cent of noise,
  but what is compared with the change went through the same signs;
- Adam's step is elementwise, which no projection commutes with. Its scale 1/√v̂ is taken for the product of a factor
  for each row and one for each column (Adafactor, Shazeer & Stern 2018, section 3, has v̂ so), times one number that
  fits each parameter's entries to its own change by least squares, period by period;
- these factors, and the weights that decay works on, are read every `refresh_steps` steps, which are a period.

With SGD and `refresh_steps=1` the entries are the exact grade's, projected. An optimiser that the exact grade refuses
is taken for AdamW where its state has `exp_avg_sq`, and for SGD where it has not; `assumption` says so.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import BadWeightsError, ConfigurationError
from .auditing import Audit
from .chart import DECAY, Chart
from .evaluation import require_losses
from .ledger import stepped_parameters
from .linear_steps import ACCEPTED, MomentumStep, momentum_step
from .sheets import BalanceSheet, Course, LossSheet
from .stepping import OpenStep, StepKeeper
from .tapped import GradientTaps

_LEAST = 1e-30
_FORGET = 0.2
"""How much the newest gradient counts for what a row's squared gradient usually is."""


class SketchedLedger(StepKeeper["SketchedStep"]):
    """Books of one training run in projected space: the interface of `Ledger`, without loss books.

    Memory: K + 3 times k² numbers for each weight, K the number of kinds, and the signs, k for each row and column.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,  # noqa: ANN401 - an optimiser, or accelerate's wrapper of one
        kinds: Sequence[str],
        *,
        k: int = 16,
        refresh_steps: int = 10,
        seed: int = 0,
        audit_steps: int | None = 100,
    ) -> None:
        """`k` columns for each axis of a weight; ConfigurationError for kinds that make no chart.

        Every `audit_steps` steps one kind is held against the exact grade (auditing.py), which costs a backward pass;
        None leaves that out. An optimiser that the exact grade cannot read is not audited.
        """
        if refresh_steps < 1:
            raise ConfigurationError(f"refresh_steps is {refresh_steps}; give 1 or more.")
        self.chart = Chart(tuple(kinds))
        self.accounts = (*self.chart.kinds, DECAY)
        super().__init__(getattr(optimizer, "optimizer", optimizer))
        self.assumption = _assumption(self.optimizer)
        """What is taken for granted of an optimiser that is not known; empty for one that is."""
        names, self._parameters = stepped_parameters(model, self.optimizer)
        self._names = names
        self.taps = GradientTaps(model, self._parameters, k=k, seed=seed)
        if not self.taps.sides:
            raise ConfigurationError("None of the model's parameters can be booked: it has no linear map or embedding.")
        self.uncovered = self.taps.uncovered
        """Parameters that have no account; the sheet is of the others."""
        self.audit = Audit(self.taps, self._parameters, audit_steps) if audit_steps and not self.assumption else None
        self._k = k
        self._refresh_steps = refresh_steps
        kinds_count = len(self.chart.kinds)
        self._gradients = self.taps.zeros(kinds_count)
        self._momentum = self.taps.zeros(kinds_count + 1)
        self._period = self.taps.zeros(kinds_count + 1)
        self._entries = self.taps.zeros(kinds_count + 1)
        self._course: list[tuple[int, Tensor, Tensor, Tensor]] = []
        self._start = {n: s.project(self._parameters[n].detach()) for n, s in self.taps.sides.items()}
        self._weights: dict[str, tuple[Tensor, Tensor]] = {}
        self._group_of = {names[id(p)]: g for g in self.optimizer.param_groups for p in g["params"] if id(p) in names}
        self._smallest = min(self._parameters, key=lambda n: self._parameters[n].numel())
        self._seen: Tensor | None = None
        self._made: set[str] = set()
        self._factor = 1.0
        self._usual: dict[str, Tensor] = {}
        self._steps: dict[str, MomentumStep] = {}
        with torch.no_grad():
            self._refresh()

    @property
    def grade(self) -> dict[str, Any]:
        """What a sheet says of it: what it assumes, what it has no account of, and how its audit went."""
        return {
            "name": "sketched",
            "k": self._k,
            "assumption": self.assumption,
            "uncovered": self.uncovered,
            "audit": self.audit.facts() if self.audit else None,
        }

    @contextmanager
    def step(self, labels: Sequence[str | None] | None = None) -> Iterator["SketchedStep"]:
        """One step of the optimiser, as `Ledger.step` has it."""
        with self._opened(SketchedStep(self)) as step:
            for gradients in self._gradients.values():
                gradients.zero_()
            self._seen = None
            if self.audit is not None:
                self.audit.begin(self.num_steps)
            if labels is not None:
                step.begin(labels)
            yield step

    def close(self) -> None:
        """Let go of the optimiser; sheets can still be asked for."""
        if self._hooks and self.num_steps > self._last_closed():
            with torch.no_grad():
                self._refresh()
        self._let_go()

    @torch.no_grad()
    def balance(self) -> BalanceSheet:
        """Who moved the weights that are booked, as seen through the signs."""
        modules = tuple(dict.fromkeys(n.rpartition(".")[0] for n in self.taps.sides))
        count = len(self.accounts)
        gram, along = np.zeros((len(modules), count, count)), np.zeros((len(modules), count))
        change_square, residual_square = np.zeros(len(modules)), np.zeros(len(modules))
        for name, sides in self.taps.sides.items():
            at = modules.index(name.rpartition(".")[0])
            entries = self._entries[name].flatten(1).double()
            moved = (sides.project(self._parameters[name].detach()) - self._start[name]).flatten().double()
            gram[at] += (entries @ entries.T).cpu().numpy()
            along[at] += (entries @ moved).cpu().numpy()
            change_square[at] += float(moved @ moved)
            residual_square[at] += float((moved - entries.sum(0)).square().sum())
        return BalanceSheet(
            accounts=self.accounts,
            modules=modules,
            gram=gram,
            along=along,
            change_square=change_square,
            residual_square=residual_square,
            num_steps=self.num_steps,
            num_skipped=self.num_skipped,
        )

    def entry(self, account: str) -> dict[str, Tensor]:
        """What an account, or a group of them, has done to each booked parameter, projected; KeyError for others."""
        rows = [i for i, a in enumerate(self.accounts) if a == account or a.startswith(f"{account}/")]
        if not rows:
            raise KeyError(account)
        return {n: e[rows].sum(0) for n, e in self._entries.items()}

    def loss_sheet(self) -> LossSheet | None:
        """None: losses are booked by the exact grade alone."""
        return None

    def interactions(self) -> None:
        """None: pairs are booked by the exact grade alone."""

    def course(self) -> Course:
        """The entries over time, one period of `refresh_steps` after another (the first ones are single steps)."""
        names = [n.rpartition(".")[0] for n in self.taps.sides]
        modules = tuple(dict.fromkeys(names))
        belongs = np.array([[float(own == module) for own in names] for module in modules])
        shape = (len(self._course), len(names), len(self.accounts))
        steps, *parts = zip(*self._course, strict=True) if self._course else ((), (), (), ())
        along, square, change = (torch.stack(own).numpy() if own else np.zeros(shape) for own in parts)
        return Course(
            steps=np.array([0, *steps], np.int64),
            along=belongs @ along,
            square=belongs @ square,
            change_square=change.reshape(shape[:2]) @ belongs.T if self._course else np.zeros((0, len(modules))),
        )

    def _last_closed(self) -> int:
        return self._course[-1][0] if self._course else 0

    def example_facts(self) -> None:
        """None: single examples are booked by the exact grade alone."""

    def begun_with(self) -> dict[str, Tensor]:
        """The weights at the opening, projected: what the ledger was kept of."""
        return self._start

    def _take_up(self, _step: "SketchedStep") -> None:
        self._factor = self._read_factor()
        if not np.isfinite(self._factor):
            raise BadWeightsError(
                "The gradient to be stepped has NaN or infinite entries, which would end the training. Lower the "
                "learning rate, or leave the step out (torch.amp.GradScaler does)."
            )
        self._add_to_momentum(self._factor)

    def _read_factor(self) -> float:
        """Between the gradient of the backward passes and the one that is stepped: clipping, loss scales."""
        stepped = self._parameters[self._smallest].grad
        if stepped is None or self._seen is None:
            return 1.0
        square = float(self._seen.double().square().sum())
        along = float((stepped.double() * self._seen.double()).sum())
        return 1.0 if square == 0 else along / square

    def _add_to_momentum(self, factor: float) -> None:
        kinds = len(self.chart.kinds)
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                name = self._names.get(id(parameter), "")
                if parameter.grad is None or name not in self.taps.sides:
                    continue
                step = self._steps[name] = _momentum_step(self.optimizer, group, is_first=name not in self._made)
                momentum = self._momentum[name]
                momentum.mul_(step.beta)
                momentum[:kinds].add_(self._gradients[name], alpha=step.sign * step.keep * factor)
                plain, scaled = self._weights[name]
                if step.coupled:
                    momentum[kinds].add_(scaled, alpha=step.keep * step.coupled)
                if step.decoupled:
                    self._period[name][kinds].add_(plain, alpha=-step.decoupled)

    def _book(self, _step: "SketchedStep") -> None:
        kinds = len(self.chart.kinds)
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                name = self._names.get(id(parameter), "")
                step = self._steps.pop(name, None)
                if step is None:
                    continue
                direct, from_momentum, rate = _weight_factors(self.optimizer, group, parameter)
                self._period[name].add_(self._momentum[name], alpha=-rate * from_momentum)
                if direct:
                    direct *= step.sign * self._factor
                    self._period[name][:kinds].add_(self._gradients[name], alpha=-rate * direct)
                if self.audit is not None:
                    share = -rate * (direct + from_momentum * step.keep * step.sign * self._factor)
                    self.audit.compare(
                        name,
                        self.optimizer,
                        group,
                        step=step,
                        factor=self._factor,
                        sketched=(self._gradients[name], share),
                    )
                self._made.add(name)
        if self.audit is not None:
            self.audit.end()
        if self.num_steps % self._refresh_steps == 0 or self.num_steps < self._refresh_steps:
            self._refresh()

    def _refresh(self) -> None:
        """Close the period: fit its entries to the weights' own change, then read the second moment and the weights."""
        along, square, change = [], [], []
        factors_of: dict[str, float] = {}
        for name, sides in self.taps.sides.items():
            parameter = self._parameters[name]
            value = sides.project(parameter.detach())
            if name in self._weights:
                period = self._period[name]
                moved = value - self._weights[name][0]
                fitted = _fit(period, moved)
                period[:-1] *= fitted
                factors_of[name] = fitted
                if self.num_steps == 1:
                    self._momentum[name] *= fitted  # its gradients came before there was a second moment
                self._entries[name] += period
                flat = period.flatten(1).double()
                along.append(flat @ moved.flatten().double())
                square.append(flat.square().sum(1))
                change.append(moved.double().square().sum())
                period.zero_()
            factors = self._scale_factors(name, parameter)
            if factors is not None:
                sides.scale(factors)
            self._weights[name] = (value, sides.project(parameter.detach(), scaled=True))
        if self.audit is not None:
            self.audit.settle(factors_of)
        if along:
            parts = [torch.stack(own).cpu() for own in (along, square, change)]
            self._course.append((self.num_steps, parts[0], parts[1], parts[2]))

    def _scale_factors(self, name: str, parameter: nn.Parameter) -> tuple[Tensor, ...] | None:
        """One for each axis, whose product is near 1/√v; None where there is no second moment.

        The gradient that is to be scaled will itself be in v by then. What it will add is not known yet, so that each
        row's usual squared gradient stands in for it: without it a row whose v has faded, or had never begun, would be
        scaled far too much. Adam's correction of v for its beginning is one number for a parameter, and left to the
        step; so is what ε takes off.
        """
        moment = self.optimizer.state.get(parameter, {}).get("exp_avg_sq")
        if moment is None or moment.shape != parameter.shape:
            return None
        second = float(self._group_of[name]["betas"][1])
        wide = moment.to(torch.promote_types(moment.dtype, torch.float32))
        usual = self._usual_square(name, parameter, wide.dtype)
        if wide.dim() == 1:
            return ((second * wide + (1 - second) * usual).clamp_(min=_LEAST).rsqrt_(),)
        rows = second * wide.mean(1) + (1 - second) * usual
        columns = second * wide.mean(0) + (1 - second) * usual.mean()
        share = (columns / columns.mean().clamp(min=_LEAST)).clamp_(min=1e-12)
        return rows.clamp_(min=_LEAST).rsqrt_(), share.rsqrt_()

    def _usual_square(self, name: str, parameter: nn.Parameter, dtype: torch.dtype) -> Tensor:
        """Mean squared gradient of each row, when it has one; of rows that never had one the mean of the others."""
        before = self._usual.get(name)
        if parameter.grad is not None:
            square = parameter.grad.to(dtype).square()
            found = square.mean(-1) if square.dim() == 2 else square.mean()[None]
            old = torch.zeros_like(found) if before is None else before
            mixed = torch.where(old > 0, old + _FORGET * (found - old), found)
            self._usual[name] = before = torch.where(found > 0, mixed, old)
        assert before is not None, "a second moment comes from gradients"
        seen = before > 0
        return torch.where(seen, before, before[seen].mean() if bool(seen.any()) else before)


class SketchedStep(OpenStep):
    """One step of the optimiser, while its gradients are gathered; made by `SketchedLedger.step`."""

    def __init__(self, ledger: SketchedLedger) -> None:
        super().__init__()
        self._ledger = ledger
        self._groups = torch.zeros(0, dtype=torch.int64)

    def begin(self, labels: Sequence[str | None]) -> None:
        """Before a batch's forward pass: the label of each of its examples."""
        own = self._require_labels(labels)
        ledger = self._ledger
        device = next(iter(ledger._gradients.values())).device
        self._groups = ledger.chart.indices(own).to(device)
        self._num_examples = len(own)
        self._stack.enter_context(ledger.taps.listening(self._groups, ledger._gradients))

    def backward(self, losses: Tensor, *, divide_by: int | float | Tensor | None = None) -> None:
        """The backward pass of the batch's loss, as `Step.backward` has it."""
        self._require_begun()
        require_losses(losses, self._num_examples)
        total = losses.mean() if divide_by is None else losses.sum() / divide_by
        if self._ledger.audit is not None:
            self._ledger.audit.listen(losses, self._groups, len(losses) if divide_by is None else divide_by)
        total.backward()
        self._over()
        gradient = self._ledger._parameters[self._ledger._smallest].grad
        self._ledger._seen = None if gradient is None else gradient.detach().clone()


def _fit(period: Tensor, moved: Tensor) -> float:
    """The factor of the kinds' entries that brings their sum, with decay's, nearest to the change; 1 for no entries."""
    total = period[:-1].sum(0).double()
    square = float(total.square().sum())
    return max(float(((moved.double() - period[-1].double()) * total).sum()) / square, 0.0) if square > 0 else 1.0


def _assumption(optimizer: torch.optim.Optimizer) -> str:
    if type(optimizer) in ACCEPTED and not any(group.get("amsgrad") for group in optimizer.param_groups):
        return ""
    name = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
    alike = "AdamW" if all("betas" in group for group in optimizer.param_groups) else "SGD"
    return f"the state of {name} is not known: its steps are taken for {alike}'s, and the residual says how they differ"


def _momentum_step(optimizer: torch.optim.Optimizer, group: dict[str, Any], *, is_first: bool) -> MomentumStep:
    if type(optimizer) in ACCEPTED:
        return momentum_step(optimizer, group, is_first=is_first)
    decay = float(group.get("lr", 0.0)) * float(group.get("weight_decay") or 0.0)
    beta = float(group["betas"][0]) if "betas" in group else float(group.get("momentum") or 0.0)
    keep = 1 - beta if "betas" in group else 1.0
    return MomentumStep(beta=beta, keep=keep, sign=1.0, coupled=0.0, decoupled=decay)


def _weight_factors(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: nn.Parameter
) -> tuple[float, float, float]:
    """What of the step is direct, what from momentum (linear_steps.py), and the rate of both."""
    rate = float(group["lr"])
    if "betas" not in group:
        momentum = float(group.get("momentum") or 0.0)
        if momentum == 0:
            return 1.0, 0.0, rate
        return (1.0, momentum, rate) if group.get("nesterov") else (0.0, 1.0, rate)
    first, second = (float(beta) for beta in group["betas"][:2])
    steps = float(optimizer.state[parameter].get("step", 1.0))
    return 0.0, 1.0, rate * (1 - second**steps) ** 0.5 / (1 - first**steps)
