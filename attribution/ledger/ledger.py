"""The ledger of a training run: a context manager around each step of a plain torch loop.

    ledger = Ledger(model, optimizer, kinds=["animal", "plant"])
    for batch, labels in data:
        with ledger.step(labels) as step:
            step.backward(losses(model, batch))     # one loss per example
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        optimizer.zero_grad()
    ledger.close()
    ledger.balance(), ledger.loss_sheet()

The training is the one that runs without it, bit for bit: `Step.backward` calls .backward() on the mean of the losses,
and everything else is read. Formulas: linear_steps.py, loss_books.py, examples.py, and docs/ledger.md.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import ConfigurationError, RunMismatchError
from .books import Books
from .chart import Chart
from .evaluation import Evaluation, Evaluator, part_of, require_losses
from .examples import ExampleFacts, ExampleRecord, example_facts, flat
from .interactions import InteractionSheet
from .linear_steps import readable
from .loss_books import LossBooks
from .sheets import BalanceSheet, Course, LossSheet
from .splitting import GradientSplitter
from .stepping import OpenStep, StepKeeper

_FOREIGN = 1e-2
"""A loaded ledger whose books miss the weights' change by more than this share belongs to other weights."""
_PIECE = 2**18


class Ledger(StepKeeper["Step"]):
    """Books of one training run: per parameter one momentum buffer and one entry for each kind.

    Memory: 4 K + 7 copies of the parameters for K kinds, K + 2 fewer without periods; for loss books of J kinds 3 J + 3
    more. Opened before the first step, or given `load_state_dict` when a run goes on. Raises ConfigurationError for
    optimisers that it cannot read, and for kinds that make no chart (chart.py).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,  # noqa: ANN401 - an optimiser, or accelerate's wrapper of one
        kinds: Sequence[str],
        *,
        evaluation: Evaluation | None = None,
        period_steps: int | None = None,
        keep_examples: bool = False,
    ) -> None:
        """`evaluation` opens loss books, closed every `period_steps` steps (default 10); see loss_books.py.

        `period_steps` without it keeps the weights' entries over time. `keep_examples` records what `example_entries`
        needs: steps and examples times parameters.
        """
        if period_steps is not None and period_steps < 1:
            raise ConfigurationError(f"period_steps is {period_steps}; a period has at least 1 step.")
        self.chart = Chart(tuple(kinds))
        inner = readable(optimizer)
        self._names, parameters = stepped_parameters(model, inner)
        self.period_steps = period_steps or (10 if evaluation else None)
        self.books = Books(parameters, len(self.chart.kinds))
        self.grade: dict[str, Any] = {"name": "exact"}
        self._splitter = GradientSplitter(model, parameters)
        self._device = next(iter(parameters.values())).device
        self._loss_books = (
            LossBooks(Evaluator(model, parameters, evaluation), parameters, self.chart.accounts) if evaluation else None
        )
        self.record = _record_of(parameters) if keep_examples else None
        self._modules = tuple(dict.fromkeys(n.rpartition(".")[0] for n in parameters))
        self._course: list[tuple[int, Tensor, Tensor, Tensor]] = []
        self._factor = 1.0
        super().__init__(inner)

    @contextmanager
    def step(self, labels: Sequence[str | None] | None = None, *, ids: Sequence[str] | None = None) -> Iterator["Step"]:
        """One step of the optimiser, with the label of each example of its batch, and what each is called.

        Where gradients are accumulated, leave `labels` out and call `Step.begin` for every batch. A step that the
        optimiser does not make is booked as nothing. ConfigurationError for labels without an account.
        """
        with self._opened(Step(self)) as step:
            if self.num_steps == 0 and self._loss_books and not self._loss_books.is_open:
                self._loss_books.open(0)
            for gradients in self.books.gradients.values():
                gradients.zero_()
            if labels is not None:
                step.begin(labels, ids=ids)
            yield step

    def close(self) -> None:
        """Close the open period and let go of the optimiser; sheets can still be asked for."""
        if self.period_steps and self.num_steps > self._last_closed():
            self._close_period()
        self._let_go()

    def entry(self, account: str) -> dict[str, Tensor]:
        """What an account, or a group of them ("living"), has done to each parameter so far; KeyError for others."""
        rows = [i for i, a in enumerate(self.chart.accounts) if a == account or a.startswith(f"{account}/")]
        if not rows:
            raise KeyError(account)
        return {n: self.books.entries(n)[rows].sum(0) for n in self.books.parameters}

    @torch.no_grad()
    def balance(self) -> BalanceSheet:
        """Who moved the weights, from the ledger's opening to now."""
        accounts = len(self.chart.accounts)
        gram = np.zeros((len(self._modules), accounts, accounts))
        along = np.zeros((len(self._modules), accounts))
        change_square, residual_square = np.zeros(len(self._modules)), np.zeros(len(self._modules))
        for name in self.books.parameters:
            at = self._modules.index(name.rpartition(".")[0])
            entries = self.books.entries(name).flatten(1)
            change = self.books.change(name).flatten()
            for part, moved in zip(entries.split(_PIECE, dim=1), change.split(_PIECE), strict=True):
                wide, moved = part.double(), moved.double()
                gram[at] += (wide @ wide.T).cpu().numpy()
                along[at] += (wide @ moved).cpu().numpy()
                change_square[at] += float(moved @ moved)
                residual_square[at] += float((moved - wide.sum(0)).square().sum())
        return BalanceSheet(
            accounts=self.chart.accounts,
            modules=self._modules,
            gram=gram,
            along=along,
            change_square=change_square,
            residual_square=residual_square,
            num_steps=self.num_steps,
            num_skipped=self.num_skipped,
        )

    def loss_sheet(self) -> LossSheet | None:
        """Who lowered whose loss, up to the last closed period; None without an evaluation."""
        return self._loss_books.sheet() if self._loss_books else None

    def interactions(self) -> InteractionSheet | None:
        """What pairs of accounts did together; None unless the evaluation asks for it."""
        books = self._loss_books.interactions if self._loss_books else None
        return books.sheet() if books else None

    def course(self) -> Course:
        """The weights' entries over time, one period after another; empty without `period_steps`."""
        shape = (0, len(self._modules), len(self.chart.accounts))
        parts = list(zip(*self._course, strict=True)) or [(), (), (), ()]
        return Course(
            steps=np.array([0, *parts[0]], np.int64),
            along=torch.stack(parts[1]).numpy() if parts[1] else np.zeros(shape),
            square=torch.stack(parts[2]).numpy() if parts[2] else np.zeros(shape),
            change_square=torch.stack(parts[3]).numpy() if parts[3] else np.zeros(shape[:2]),
        )

    def begun_with(self) -> dict[str, Tensor]:
        """The weights at the opening: what the ledger was kept of."""
        return self.books.start

    def example_facts(self) -> ExampleFacts | None:
        """Who moved the weights, example by example; None unless the ledger keeps examples."""
        if self.record is None or not self.record.steps:
            return None
        change = torch.cat([self.books.change(name).flatten() for name in self.record.parameters])
        return example_facts(self.record, change)

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on: `facts` (JSON) and `tensors` by name. Tensors are the ledger's own.

        ConfigurationError while a step is open, and for a ledger that keeps examples.
        """
        if self._open is not None:
            raise ConfigurationError("A step of this ledger is open; take its state between two steps.")
        if self.record is not None:
            raise ConfigurationError("A ledger that keeps examples cannot be saved; it serves one run from its start.")
        if self._loss_books and self._loss_books.interactions:
            raise ConfigurationError("A ledger with interactions cannot be saved; it serves one run from its start.")
        buffers = self.books.tensors()
        if self._loss_books and self._loss_books.is_open:
            buffers |= self._loss_books.tensors()
        if self._course:
            course = self.course()
            names = ("along", "square", "change_square")
            buffers["course"] = {k: torch.from_numpy(getattr(course, k)) for k in names}
        facts = self._identity() | {
            "num_steps": self.num_steps,
            "num_skipped": self.num_skipped,
            "first_made": sorted(self.books.first_made),
            "course_steps": [c[0] for c in self._course],
            "loss_steps": self._loss_books.facts()["steps"] if self._loss_books else [],
        }
        return {"facts": facts, "tensors": {f"{b}:{n}": t for b, own in buffers.items() for n, t in own.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, the model's weights and the optimiser's state being those of that moment.

        RunMismatchError, with both sides, where kinds, parameters or periods differ, or the weights are others.
        """
        facts = state["facts"]
        for key, own in self._identity().items():
            if facts.get(key) != own:
                raise RunMismatchError(
                    f"The ledger's state was kept with another {key}: there {facts.get(key)!r}, here {own!r}. Open the "
                    "ledger as it was opened then."
                )
        buffers: dict[str, dict[str, Tensor]] = {b: {} for b in self.books.tensors()}
        for key, value in state["tensors"].items():
            buffer, _, name = key.partition(":")
            buffers.setdefault(buffer, {})[name] = value
        self.books.load(buffers, facts["first_made"])
        if self._loss_books and facts["loss_steps"]:
            self._loss_books.load(buffers, facts["loss_steps"])
        course = buffers.get("course", {})
        self._course = [
            (step, course["along"][i], course["square"][i], course["change_square"][i])
            for i, step in enumerate(facts["course_steps"])
        ]
        self.num_steps, self.num_skipped = int(facts["num_steps"]), int(facts["num_skipped"])
        missed = self.balance().residual if self.num_steps else 0.0
        if missed > _FOREIGN:
            raise RunMismatchError(
                f"The ledger's entries miss the weights' change by {missed:.0%}: it was saved with other weights. Load "
                "the model and the optimiser of the same checkpoint first."
            )

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a state to fit."""
        losses = self._loss_books.facts() if self._loss_books else {}
        return {
            "kinds": list(self.chart.kinds),
            "optimizer": type(self.optimizer).__name__,
            "period_steps": self.period_steps,
            "parameters": {n: list(p.shape) for n, p in self.books.parameters.items()},
            "evaluation": {k: losses[k] for k in ("kinds", "counts")} if losses else None,
        }

    def _take_up(self, step: "Step") -> None:
        self._factor = self.books.take_up(self.optimizer, self._names, step.coarsest)

    def _book(self, step: "Step") -> None:
        booked = self.books.book(self.optimizer, self._names, self._factor)
        if self.record is not None:
            self.record.steps.append(booked)
            self.record.gradients.append(torch.cat(step.examples) * self._factor)
            self.record.labels.append(step.labels)
            self.record.ids.append(step.ids)
        if self.period_steps and self.num_steps % self.period_steps == 0:
            self._close_period()

    def _last_closed(self) -> int:
        return self._course[-1][0] if self._course else 0

    @torch.no_grad()
    def _close_period(self) -> None:
        shape = (len(self._modules), len(self.chart.accounts))
        along, square = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
        change_square = torch.zeros(shape[0], dtype=torch.float64)
        for name, entries in self.books.period.items():
            at = self._modules.index(name.rpartition(".")[0])
            rows = entries.flatten(1)
            change = rows.sum(0)
            along[at] += (rows @ change).double().cpu()
            square[at] += torch.linalg.vector_norm(rows, dim=1).double().square().cpu()
            change_square[at] += float(change @ change)
        if self._loss_books:
            self._loss_books.close_period(self.books.period, self.num_steps)
        self.books.close_period()
        self._course.append((self.num_steps, along, square, change_square))


class Step(OpenStep):
    """One step of the optimiser, while its gradients are gathered; made by `Ledger.step`."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger
        self._group = torch.zeros(0, dtype=torch.int64)
        self._sums: dict[str, Tensor] = {}
        self._own: list[str | None] = []
        self._own_ids: list[str] = []
        self.labels: list[str] = []
        """Of the examples whose gradients were gathered."""
        self.ids: list[str] = []
        """What they are called; "" where it was not said."""
        self.examples: list[Tensor] = []
        """Their gradients, where the ledger keeps examples."""
        self.coarsest = torch.float64

    def begin(self, labels: Sequence[str | None], *, ids: Sequence[str] | None = None) -> None:
        """Before a batch's forward pass: the label of each of its examples, and what it is called (`keep_examples`)."""
        own = self._require_labels(labels)
        if ids is not None and len(ids) != len(labels):
            raise ConfigurationError(
                f"The batch has {len(labels)} labels and {len(ids)} ids; give one of each for all."
            )
        ledger = self._ledger
        self._own = own
        self._own_ids = [""] * len(labels) if ids is None else [str(name) for name in ids]
        self._group = ledger.chart.indices(self._own).to(ledger._device)
        self._num_examples = len(own)
        sums = ledger.books.kinds()
        listened = self._group
        if ledger.record is not None:
            listened = torch.arange(len(labels), device=ledger._device)
            sums = {n: s.new_zeros(len(labels), *s.shape[1:]) for n, s in sums.items()}
        self._sums = sums
        self._stack.enter_context(ledger._splitter.listening(listened, sums))

    def backward(self, losses: Tensor, *, divide_by: int | float | Tensor | None = None) -> None:
        """The backward pass of the batch's loss: the mean of `losses`, one for each example, or Σ / `divide_by`.

        With accumulation, `divide_by` is the number that belongs to the whole step. Losses may carry weights or a
        scaler's scale. Gradients go to .grad as without a ledger. Raises ConfigurationError for losses in another form.
        """
        self._require_begun()
        require_losses(losses, len(self._group))
        divisor = len(losses) if divide_by is None else divide_by
        total = losses.mean() if divide_by is None else losses.sum() / divide_by
        splitter = self._ledger._splitter
        splitter.backward(total, part_of(losses, divisor), into_grad=True)
        coarsest = splitter.batch.coarsest
        if torch.finfo(coarsest).eps > torch.finfo(self.coarsest).eps:
            self.coarsest = coarsest
        self._over()
        if self._ledger.record is not None:
            self.examples.append(flat(self._sums, self._ledger.record.parameters))
            for name, kinds in self._ledger.books.kinds().items():
                kinds.index_add_(0, self._group, self._sums[name])
        self.labels += [str(label) for label in self._own]
        self.ids += self._own_ids
        self._sums = {}


def _record_of(parameters: Mapping[str, nn.Parameter]) -> ExampleRecord:
    return ExampleRecord(
        parameters={n: p.numel() for n, p in parameters.items()},
        shapes={n: tuple(p.shape) for n, p in parameters.items()},
    )


def stepped_parameters(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[int, str], dict[str, nn.Parameter]]:
    """The names of the optimiser's parameters, and these by name in the model's order."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    parameters = {n: p for n, p in model.named_parameters() if id(p) in held}
    missing = len(held) - len(parameters)
    if missing or not parameters:
        raise ConfigurationError(
            f"The optimiser holds {len(held)} parameters that train, {missing} of which the model does not have; give "
            "the ledger the optimiser of this very model."
        )
    return {id(p): n for n, p in parameters.items()}, parameters
