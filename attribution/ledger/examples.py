"""Every single example's effect on the final weights, by a backward recursion over the steps (dense, small models).

With the step of linear_steps.py, m ← β m + k g and Δ = −scale ⊙ (a g + b m) − decoupled w, the effect on w_T of a
gradient g that is stepped at step s is −(a scaleₛ Dₛ₊₁ + k Cₛ) ⊙ g, where

    Cₛ = b scaleₛ Dₛ₊₁ + βₛ₊₁ Cₛ₊₁        Dₛ₊₁ = Π over r > s of (1 − decoupledᵣ)

*Net* entries shrink with the decay that comes after them, and w_T − D₁ w₀ is their sum. *Gross* ones (D = 1) sum to
the kinds' entries; decay has an account of its own. Elementwise, so that it does not factor through two-sided probes.

For AdamW, k Cₛ is (1 − β₁) Bₛ with Bₛ = ηₛ Dₛ₊₁ Pₛ / (1 − β₁ˢ) + β₁ Bₛ₊₁.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from ...errors import ConfigurationError
from .linear_steps import MomentumStep, WeightStep

_ROUNDS = 20


@dataclass(slots=True, kw_only=True)
class ExampleRecord:
    """What the recursion needs of a training: steps × parameters numbers, and examples × parameters."""

    parameters: dict[str, int]
    """Numbers of each parameter, in the order of the columns."""
    shapes: dict[str, tuple[int, ...]]
    steps: list[dict[str, tuple[MomentumStep, WeightStep]]] = field(default_factory=list)
    """For each step, of each parameter that was stepped."""
    gradients: list[Inexact[Tensor, "example number"]] = field(default_factory=list)
    """For each step: each example's part of the stepped gradient (its share of the mean, clipped)."""
    labels: list[list[str]] = field(default_factory=list)
    """For each step: each example's kind."""
    ids: list[list[str]] = field(default_factory=list)
    """For each step: what each example is called, "" where it was not said."""

    @property
    def step_of(self) -> list[int]:
        """The step of each example, from 0, in the order of entries."""
        return [step for step, own in enumerate(self.labels) for _ in own]


def example_effects(record: ExampleRecord, *, net: bool) -> Inexact[Tensor, "step number"]:
    """By which each step's gradients are multiplied, number by number, to give their effect on the final weights.

    ConfigurationError for net effects where decay runs through the momentum (Adam and SGD with weight_decay).
    """
    return torch.cat([_effects(record, name, size, net=net) for name, size in record.parameters.items()], dim=1)


def example_entries(record: ExampleRecord, *, net: bool = False) -> Float[Tensor, "example number"]:
    """Each example's entry, in the order of the record; gross unless `net`."""
    effects = example_effects(record, net=net)
    return torch.cat([e * g for e, g in zip(effects, record.gradients, strict=True)])


def entries_by(
    record: ExampleRecord, labels: Sequence[str], *, net: bool = False
) -> tuple[tuple[str, ...], Float[Tensor, "account number"]]:
    """Entries of accounts that were not known in training: quanta, for instance, or any other label of the examples.

    `labels` has one for each example, in the order of the record. Accounts stand in the order of their first example;
    their gross entries sum to the kinds', whatever the labels are. ConfigurationError for another number of labels.
    """
    if len(labels) != len(record.step_of):
        raise ConfigurationError(f"{len(labels)} labels for {len(record.step_of)} examples; each needs one.")
    accounts = tuple(dict.fromkeys(labels))
    place = {account: number for number, account in enumerate(accounts)}
    group = torch.tensor([place[label] for label in labels])
    effects = example_effects(record, net=net)
    result = effects.new_zeros(len(accounts), effects.shape[1])
    first = 0
    for effect, gradients in zip(effects, record.gradients, strict=True):
        result.index_add_(0, group[first : first + len(gradients)].to(result.device), effect * gradients)
        first += len(gradients)
    return accounts, result


@dataclass(frozen=True, slots=True, kw_only=True)
class RankOneEntries:
    """Single examples' entries with each step's effects replaced, weight by weight, by a product of two vectors."""

    entries: Float[Tensor, "example number"]
    error: Float[Tensor, " example"]
    """Norm of what each entry misses, over the norm of the entry."""


def rank_one_entries(record: ExampleRecord, *, net: bool = False) -> RankOneEntries:
    """Entries in a form that passes through two-sided probes, with its error.

    An effect is elementwise, which no probe commutes with. u vᵀ in place of a matrix of effects turns the entry of a
    gradient Σ gₜ xₜᵀ into Σ (u ⊙ gₜ)(v ⊙ xₜ)ᵀ, which a probe takes on its two sides. u and v are those with the least
    squared error in the step's own entries (a low-rank approximation with the gradients' squares as weights; Srebro &
    Jaakkola 2003), found by alternating; parameters of one axis are kept as they are.
    """
    entries, errors = [], []
    for effect, gradients in zip(example_effects(record, net=net), record.gradients, strict=True):
        sizes = list(record.parameters.values())
        parts = zip(record.shapes.values(), effect.split(sizes), gradients.split(sizes, dim=1), strict=True)
        near = [
            _rank_one(own.reshape(shape), part.square().sum(0).reshape(shape)).flatten() if len(shape) == 2 else own
            for shape, own, part in parts
        ]
        entry, exact = torch.cat(near) * gradients, effect * gradients
        whole = exact.norm(dim=1)
        entries.append(entry)
        errors.append((entry - exact).norm(dim=1) / whole.clamp(min=torch.finfo(whole.dtype).tiny))
    return RankOneEntries(entries=torch.cat(entries), error=torch.cat(errors))


def _rank_one(effect: Float[Tensor, "row column"], weight: Float[Tensor, "row column"]) -> Float[Tensor, "row column"]:
    """u vᵀ with the least Σ weight · (effect − u vᵀ)²; nothing where a whole row or column has no weight."""
    tiny = torch.finfo(effect.dtype).tiny
    weight = weight / weight.max().clamp(min=tiny)
    both, v = weight * effect, torch.ones_like(effect[0])
    for _ in range(_ROUNDS):
        u = (both @ v) / (weight @ v.square()).clamp(min=tiny)
        v = (both.T @ u) / (weight.T @ u.square()).clamp(min=tiny)
    return u[:, None] * v


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleFacts:
    """One line per example, in the order of the record."""

    step: list[int]
    """From 1."""
    id: list[str]
    kind: list[str]
    norm: list[float]
    """Of the example's gross entry."""
    along: list[float]
    """Its length along the whole change of the weights, as a share of that change's own: they sum to the kinds'."""


def example_facts(record: ExampleRecord, change: Float[Tensor, " number"]) -> ExampleFacts:
    """Who moved the weights, example by example; `change` is w_T − w₀ in the order of the record's columns."""
    square = float(change.double().square().sum()) or 1.0
    norm: list[float] = []
    along: list[float] = []
    for effect, gradients in zip(example_effects(record, net=False), record.gradients, strict=True):
        entries = effect * gradients
        norm += entries.norm(dim=1).double().tolist()
        along += ((entries @ change).double() / square).tolist()
    return ExampleFacts(
        step=[step + 1 for step in record.step_of],
        id=[name for own in record.ids for name in own],
        kind=[label for own in record.labels for label in own],
        norm=norm,
        along=along,
    )


def shrinkage(record: ExampleRecord) -> Float[Tensor, " number"]:
    """D₁: what decay leaves of the initial weights."""
    parts = []
    like = record.gradients[0]
    for name, size in record.parameters.items():
        left = 1.0
        for step in record.steps:
            left *= 1 - step[name][0].decoupled if name in step else 1.0
        parts.append(like.new_full((size,), left))
    return torch.cat(parts)


def _effects(record: ExampleRecord, name: str, size: int, *, net: bool) -> Tensor:
    like = record.gradients[0]
    result = like.new_zeros(len(record.steps), size)
    carried, left = like.new_zeros(size), 1.0
    for number in range(len(record.steps) - 1, -1, -1):
        if name not in record.steps[number]:
            continue  # not stepped: its momentum waits
        momentum, weight = record.steps[number][name]
        if net and momentum.coupled:
            raise ConfigurationError(
                "Net entries need decay beside the gradient (AdamW); with decay inside it, it runs through the "
                "momentum. Ask for gross entries, where decay is an account of its own."
            )
        scale = weight.scale.flatten() if isinstance(weight.scale, Tensor) else like.new_full((size,), weight.scale)
        carried = weight.from_momentum * left * scale + carried
        result[number] = -momentum.sign * (weight.direct * left * scale + momentum.keep * carried)
        carried = momentum.beta * carried
        if net:
            left *= 1 - momentum.decoupled
    return result


def flat(values: Mapping[str, Tensor], order: Mapping[str, int]) -> Inexact[Tensor, "row number"]:
    """[row, …] by parameter as one matrix."""
    return torch.cat([values[name].flatten(1) for name in order], dim=1)
