"""Held-out losses by kind, and their gradients, at any weights. Knows a model and batches; nothing of optimisers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn

from ...errors import ConfigurationError
from .chart import Chart
from .splitting import GradientSplitter

Losses = Callable[[Any, Any], Tensor]
"""From a model and a batch to one loss per example, [example]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Batches that the loss books are kept on, which training does not see."""

    batches: Sequence[tuple[Any, Sequence[str]]]
    """Each batch with the label of each of its examples; the labels need not be the training's kinds."""
    losses: Losses
    tolerance: float = 5e-4
    """Periods are split while a kind's residual is above this share of its loss's change."""
    max_panels: int = 4
    """Into at most so many parts; a power of 2. Each costs two more readings of all losses; 1 never splits."""
    interactions: bool = False
    """Book what pairs of accounts did together as well (interactions.py): 6 readings more for each account and period
    (more where it is split), and a gradient for each pair of loss and account. For small models."""

    def __post_init__(self) -> None:
        if self.max_panels < 1 or self.max_panels & (self.max_panels - 1):
            raise ConfigurationError(f"max_panels is {self.max_panels}; accepted are 1, 2, 4, 8, and so on.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The mean loss of every kind at some weights, and its gradient."""

    losses: Float64[Tensor, " kind"]
    gradients: dict[str, Tensor]
    """By parameter name, [kind, …]."""


class Evaluator:
    """Reads an evaluation's losses at the model's weights, in evaluation mode; the model is left as it was."""

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter], evaluation: Evaluation) -> None:
        labels = [label for _, own in evaluation.batches for label in own]
        if not labels:
            raise ConfigurationError("The evaluation has no examples; give at least one batch with its labels.")
        self.chart = Chart(tuple(dict.fromkeys(labels)))
        self._model, self._evaluation = model, evaluation
        self.tolerance, self.max_panels = evaluation.tolerance, evaluation.max_panels
        self.books_interactions = evaluation.interactions
        self._splitter = GradientSplitter(model, parameters)
        device = next(iter(parameters.values())).device
        self._groups: list[Int64[Tensor, " example"]] = [
            self.chart.indices(own).to(device) for _, own in evaluation.batches
        ]
        self.counts = torch.bincount(torch.cat(self._groups), minlength=len(self.chart.kinds)).cpu()
        """Examples of each kind."""

    def read(self) -> Reading:
        """Losses and gradients at the weights as they are; no .grad is touched."""
        kinds = len(self.chart.kinds)
        parameters = self._splitter.parameters
        sums = {name: torch.zeros(kinds, *p.shape, dtype=p.dtype, device=p.device) for name, p in parameters.items()}
        losses = torch.zeros(kinds, dtype=torch.float64)
        with _evaluating(self._model):
            for (batch, _), group in zip(self._evaluation.batches, self._groups, strict=True):
                with self._splitter.listening(group, sums), torch.enable_grad():
                    values = self._evaluation.losses(self._model, batch)
                    require_losses(values, len(group))
                    weighted = values / self.counts.to(values.device)[group]
                    self._splitter.backward(weighted.sum(), part_of(weighted), into_grad=False)
                losses.index_add_(0, group.cpu(), weighted.detach().double().cpu())
        return Reading(losses=losses, gradients=sums)


def simpson_weights(num_panels: int) -> dict[Fraction, float]:
    """The composite rule for a mean over the line from 0 to 1: its 2 · panels + 1 places, and each one's weight."""
    last = 2 * num_panels
    return {
        Fraction(i, last): (1.0 if i in (0, last) else 4.0 if i % 2 else 2.0) / (6 * num_panels)
        for i in range(last + 1)
    }


@torch.no_grad()
def set_weights(parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Put these weights in the place of the parameters' own."""
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])


def part_of(losses: Tensor, divisor: int | float | Tensor = 1) -> Callable[[Tensor], Tensor]:
    """What `GradientSplitter.backward` needs: from examples' numbers to the sum of their losses over a divisor."""
    return lambda members: losses[members].sum() / divisor


def require_losses(losses: Tensor, num_examples: int) -> None:
    """ConfigurationError unless there is one loss with a gradient for each example."""
    if losses.dim() != 1 or len(losses) != num_examples:
        raise ConfigurationError(
            f"The losses have the shape {tuple(losses.shape)}, the batch has {num_examples} labels; give one loss per "
            "example, [example], before any mean over the batch."
        )
    if not losses.requires_grad:
        raise ConfigurationError("The losses carry no gradient; compute them from the model outside torch.no_grad().")


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
