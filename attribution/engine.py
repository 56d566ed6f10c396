"""Projected gradients of many losses at the cost of a forward pass and the backward pass through activations.

Weights need no gradient. Taps (taps/) keep each module's compressed input in the forward pass; in the backward pass
the gradient at its output is compressed too, and the two are combined per example (projection/base.py). What no tap
can follow is found through copies per example, or at last by differentiating once per unit. Several losses of one
example share the forward pass: each backward pass serves one loss of every example.

Before the first rows, the engine proves itself on the batch at hand (proof.py), and takes the next slower way for a
block that differs from autograd's own gradient.

Knows any torch module; nothing of documents, runs or Ray.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import ConfigurationError
from .blocks import Block, find_blocks
from .devices import on_device
from .projection.base import Projection
from .proof import Proof
from .taps.checkpoint import layers_of
from .taps.passes import Passes
from .taps.route import Route

Batch = TypeVar("Batch")
Losses = Callable[[nn.Module, Batch], Tensor]
"""From a model and a batch to one loss per unit, [unit]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientRows:
    """The rows of one batch, on the model's device."""

    rows: Float[Tensor, "unit dim"]
    """Projected gradients, block after block; float64 for a float64 model, else float32."""
    block_norms: Float[Tensor, "unit block"]
    losses: Float[Tensor, " unit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contributions:
    """What each position adds to the row of its example; nothing is lost: rows = positions summed + unplaced."""

    rows: Float[Tensor, "example position dim"]
    unplaced: Float[Tensor, "example dim"]
    """What parameters without positions add (class tokens, state-space vectors)."""
    losses: Float[Tensor, " example"]


class GradientEngine(Generic[Batch]):
    """A model, made ready for gradient rows under one projection.

    Puts the model in eval mode, with a warning where it had dropout on, and freezes its weights, which may lie on
    several devices. `prove=False` takes taps at their word. With `checkpoint_activations` each layer (an item of the
    model's lists of modules) keeps its input alone and is run again in every backward pass: the same rows, for less
    memory and one forward pass more per backward pass; whatever switch for it the model has of its own does not matter.
    Raises CoverageError where no parameter is left to cover, and ConfigurationError for offloaded weights.
    """

    def __init__(
        self,
        model: nn.Module,
        projection: Projection,
        blocks: tuple[Block, ...] | None = None,
        *,
        prove: bool = True,
        checkpoint_activations: bool = False,
    ) -> None:
        _warn_of_dropout(model)
        layers = layers_of(model) if checkpoint_activations else ()
        if checkpoint_activations and not layers:
            raise ConfigurationError(
                f"{type(model).__name__} has no layers whose activations could be computed again; leave "
                "checkpoint_activations off."
            )
        blocks = find_blocks(model).blocks if blocks is None else blocks
        self.passes = Passes(model, projection, blocks, layers=layers)
        self.model, self.blocks = model, blocks
        self.device, self.dtype = self.passes.device, self.passes.dtype
        self.columns = self.passes.columns
        """Column range of each block in a row."""
        self.dim = self.passes.dim
        self.proof = Proof(self.passes)
        if not prove:
            self.proof.take_for_granted()

    @property
    def route(self) -> Route:
        """How each block's gradient is found."""
        return self.passes.route

    def rows(
        self,
        batch: Batch,
        losses: Losses[Batch],
        example: Int[Tensor, " unit"] | None = None,
        *,
        num_examples: int | None = None,
    ) -> GradientRows:
        """The row of each loss.

        `example[u]` is the example (index along the first axis) that unit u's loss belongs to, and must be the only
        one that it depends on; without it, unit u belongs to example u. It may lie on the CPU whatever the model's
        device is, and then no GPU is made to wait for it. `num_examples` is needed where the last example has no unit;
        where neither is given, a forward pass more finds it out. Raises CoverageError for losses that mix examples, or
        that use none of the parameters.
        """
        is_one_each = example is None
        own, number = self._prepare(batch, losses, example, num_examples)
        groups = [own] if is_one_each else _passes(own, self.device)
        own = on_device(own, self.device)
        return self.proof.settled(lambda: self._rows(batch, losses, own, groups, num_examples=number))

    def contributions(
        self, batch: Batch, losses: Losses[Batch], *, num_examples: int, num_positions: int
    ) -> Contributions:
        """Each position's share of its example's one loss; `num_positions` is the padded length."""
        example, _ = self._prepare(batch, losses, None, num_examples)
        return self.proof.settled(lambda: self._contributions(batch, losses, example, num_positions))

    def prove(
        self,
        batch: Batch,
        losses: Losses[Batch],
        example: Int[Tensor, " unit"] | None = None,
        *,
        num_examples: int | None = None,
    ) -> None:
        """Compare every block with autograd's own gradient of two losses, and settle how each block is found.

        Taps that cannot follow a module, or differ (a module whose weight is used past it), give way to copies, and
        these to one differentiation per unit. Blocks whose gradient is zero in both losses are compared later, on the
        first batches in which it is not. Raises CoverageError for losses that mix examples.
        """
        example, num_examples = _examples(self.passes, batch, losses, example, num_examples)
        self.proof.prove(lambda: losses(self.model, batch), example, num_examples)

    def _prepare(
        self, batch: Batch, losses: Losses[Batch], example: Tensor | None, num_examples: int | None
    ) -> tuple[Tensor, int]:
        """The examples, after the proof if this batch says more than the last one that was proved."""
        if example is None or num_examples is None:
            example, num_examples = _examples(self.passes, batch, losses, example, num_examples)
        if self.proof.num_examples < min(2, num_examples):
            self.prove(batch, losses, example, num_examples=num_examples)
        return example, num_examples

    def _rows(
        self, batch: Batch, losses: Losses[Batch], example: Tensor, groups: list[Tensor], *, num_examples: int
    ) -> GradientRows | None:
        """The rows, by one backward pass for each group of units; None where they do not stand."""
        with self.passes.forward(num_examples) as recorder:
            values = self.passes.losses(recorder, lambda: losses(self.model, batch))
            result = torch.zeros(len(values), self.dim, dtype=self.dtype, device=self.device)
            for number, units in enumerate(groups):
                is_last = number + 1 == len(groups) and not self.route.looped
                self.passes.backward(recorder, values, units, retain_graph=not is_last)
                for block, part in recorder.sums.items():
                    result[units, self.columns[block]] = part.to(self.device)[example[units]]
            self.passes.loop(values, result)
        if not self.proof.stands(result, lambda: losses(self.model, batch), num_examples):
            return None
        norms = torch.stack([torch.linalg.vector_norm(result[:, c], dim=1) for c in self.columns], dim=1)
        return GradientRows(rows=result, block_norms=norms, losses=values.detach())

    def _contributions(
        self, batch: Batch, losses: Losses[Batch], example: Tensor, num_positions: int
    ) -> Contributions | None:
        """The contributions; None where they do not stand."""
        num_examples = len(example)
        with self.passes.forward(num_examples, num_positions) as recorder:
            values = self.passes.losses(recorder, lambda: losses(self.model, batch))
            self.passes.backward(recorder, values, example, retain_graph=bool(self.route.looped))
            rows = torch.zeros(num_examples, num_positions, self.dim, dtype=self.dtype, device=self.device)
            unplaced = torch.zeros(num_examples, self.dim, dtype=self.dtype, device=self.device)
            for block, part in recorder.sums.items():
                rows[:, :, self.columns[block]] = part.to(self.device)
            for block, part in recorder.unplaced.items():
                unplaced[:, self.columns[block]] = part.to(self.device)
            self.passes.loop(values, unplaced)
        total = rows.sum(1) + unplaced if self.proof.open else unplaced
        if not self.proof.stands(total, lambda: losses(self.model, batch), num_examples):
            return None
        return Contributions(rows=rows, unplaced=unplaced, losses=values.detach())


def gradient_rows(
    model: nn.Module,
    batch: Batch,
    losses: Losses[Batch],
    *,
    projection: Projection,
    blocks: str = "all",
    example: Int[Tensor, " unit"] | None = None,
) -> GradientRows:
    """The projected gradient of each loss of a batch; see `GradientEngine`, which keeps its set-up between batches."""
    return GradientEngine[Batch](model, projection, find_blocks(model, blocks).blocks).rows(batch, losses, example)


def _warn_of_dropout(model: nn.Module) -> None:
    active = [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p > 0]
    if active:
        warnings.warn(
            f"{type(model).__name__} has {len(active)} dropout layers on, which would make rows random: it is switched "
            "to eval mode.",
            stacklevel=3,
        )


def _examples(
    passes: Passes, batch: Batch, losses: Losses[Batch], example: Tensor | None, num_examples: int | None
) -> tuple[Tensor, int]:
    """The example of each unit, and the number of examples; without any of them, one forward pass finds out."""
    if example is None:
        if num_examples is None:
            with torch.no_grad():
                num_examples = len(losses(passes.model, batch))
        example = torch.arange(num_examples, device=passes.device)
    return example, num_examples or int(example.max()) + 1


def _passes(example: Int[Tensor, " unit"], device: torch.device) -> list[Tensor]:
    """Units sorted into as few groups as possible, with at most one unit per example in each; on a device."""
    host = example.cpu()  # the groups' sizes are asked for
    order = torch.argsort(host, stable=True)
    ordered = host[order]
    first = torch.searchsorted(ordered, ordered)
    rank = torch.arange(len(order)) - first
    groups = range(int(rank.max()) + 1) if len(order) else []
    return [on_device(order[rank == p], device) for p in groups]
