"""Projected gradients of many losses at the cost of a forward pass and the backward pass through activations.

Weights need no gradient. Taps (taps/) keep each module's compressed input in the forward pass; in the backward pass
the gradient at its output is compressed too, and the two are combined per example (projection/base.py). What no tap
can follow is found through copies per example, or at last by differentiating once per unit. Several losses of one
example share the forward pass: each backward pass serves one loss of every example.

Before the first rows, the engine proves itself on the batch at hand: for two of its losses it compares every block
with autograd's own gradient, and takes the next slower way for a block that differs.

Knows any torch module; nothing of documents, runs or Ray.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import CoverageError
from .blocks import Block, find_blocks
from .projection.base import BlockProjection, Projection
from .taps.attach import attached
from .taps.recorder import NoExamplesError, Reading, Recorder
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

    Puts the model in eval mode, with a warning where it had dropout on, and freezes its weights. `prove=False` takes
    taps at their word. Raises CoverageError where no parameter is left to cover.
    """

    def __init__(
        self,
        model: nn.Module,
        projection: Projection,
        blocks: tuple[Block, ...] | None = None,
        *,
        prove: bool = True,
    ) -> None:
        _warn_of_dropout(model)
        self.model = model.eval().requires_grad_(False)
        self.blocks = find_blocks(model).blocks if blocks is None else blocks
        weight = next(model.parameters())
        self.device = weight.device
        self.dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self._projections: list[BlockProjection] = [
            projection.block(b.name, number=i, shape=(b.rows, b.columns), dtype=self.dtype, device=weight.device)
            for i, b in enumerate(self.blocks)
        ]
        ends = np.cumsum([0, *(p.dim for p in self._projections)])
        self.columns = [slice(int(a), int(b)) for a, b in pairwise(ends)]
        """Column range of each block in a row."""
        self.dim = int(ends[-1])
        self.route = Route(self.blocks)
        """How each block's gradient is found."""
        self._readings: dict[str, Reading] = {}
        self._proved_examples = 2**31 if not prove else 0

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
        one that it depends on; without it, unit u belongs to example u. `num_examples` is needed where the last
        example has no unit; where neither is given, a forward pass more finds it out. Raises CoverageError for losses
        that mix examples, or that use none of the parameters.
        """
        example, num_examples = self._prepare(batch, losses, example, num_examples)
        with self._forward(num_examples) as recorder, torch.enable_grad():
            values = losses(self.model, batch)
            result = torch.zeros(len(values), self.dim, dtype=self.dtype, device=values.device)
            passes = _passes(example)
            for number, units in enumerate(passes):
                is_last = number + 1 == len(passes) and not self.route.looped
                self._backward(recorder, values, units, retain_graph=not is_last)
                for block, part in recorder.sums.items():
                    result[units, self.columns[block]] = part[example[units]]
            self._loop(values, result)
        norms = torch.stack([torch.linalg.vector_norm(result[:, c], dim=1) for c in self.columns], dim=1)
        return GradientRows(rows=result, block_norms=norms, losses=values.detach())

    def contributions(
        self, batch: Batch, losses: Losses[Batch], *, num_examples: int, num_positions: int
    ) -> Contributions:
        """Each position's share of its example's one loss; `num_positions` is the padded length."""
        example, num_examples = self._prepare(batch, losses, None, num_examples)
        with self._forward(num_examples, num_positions) as recorder, torch.enable_grad():
            values = losses(self.model, batch)
            self._backward(recorder, values, example, retain_graph=bool(self.route.looped))
            rows = values.new_zeros(num_examples, num_positions, self.dim, dtype=self.dtype)
            unplaced = values.new_zeros(num_examples, self.dim, dtype=self.dtype)
            for block, part in recorder.sums.items():
                rows[:, :, self.columns[block]] = part
            for block, part in recorder.unplaced.items():
                unplaced[:, self.columns[block]] = part
            self._loop(values, unplaced)
        return Contributions(rows=rows, unplaced=unplaced, losses=values.detach())

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
        these to one differentiation per unit. Raises CoverageError for losses that mix examples.
        """
        example, num_examples = _examples(self.model, batch, losses, example, num_examples)
        chosen = torch.unique(torch.stack([example.argmin(), example.argmax()])).tolist()
        wanted = self._wanted(batch, losses, chosen)
        self._readings.clear()
        mixed: set[int] = set()
        for _ in range(3 * len(self.blocks) + 3):
            try:
                failing, mixing = self._failing(batch, losses, example, num_examples, wanted)
            except NoExamplesError as error:
                failing, mixing = set(self.route.blocks_of(error.module)), set()
                if not failing:
                    raise
            if not failing:
                break
            mixed |= mixing
            self._readings.clear()
            for number in sorted(failing):
                self.route.demote(number)
        self._require_apart(mixed)
        self._proved_examples = num_examples

    def _prepare(
        self, batch: Batch, losses: Losses[Batch], example: Tensor | None, num_examples: int | None
    ) -> tuple[Tensor, int]:
        """The examples, after the proof if this batch says more than the last one that was proved."""
        if self._proved_examples < 2:
            example, num_examples = _examples(self.model, batch, losses, example, num_examples)
            if num_examples > self._proved_examples:
                self.prove(batch, losses, example, num_examples=num_examples)
        elif example is None or num_examples is None:
            example, num_examples = _examples(self.model, batch, losses, example, num_examples)
        return example, num_examples

    def _wanted(self, batch: Batch, losses: Losses[Batch], chosen: list[int]) -> dict[int, list[Tensor]]:
        """Autograd's gradients of some losses, projected: for each unit one row per block."""
        names = [p for b in self.blocks for p in b.parameters]
        parameters = [self.model.get_parameter(p).requires_grad_() for p in names]
        try:
            with torch.enable_grad():
                values = losses(self.model, batch)
                found = {}
                for unit in chosen:
                    gradients = _gradients(values[unit], parameters)
                    full = {n: g.to(self.dtype)[None] for n, g in zip(names, gradients, strict=True)}
                    found[unit] = [
                        p.project(b.matrix(full))[0] for p, b in zip(self._projections, self.blocks, strict=True)
                    ]
        finally:
            self.model.requires_grad_(False)
        return found

    def _failing(
        self,
        batch: Batch,
        losses: Losses[Batch],
        example: Tensor,
        num_examples: int,
        wanted: dict[int, list[Tensor]],
    ) -> tuple[set[int], set[int]]:
        """Blocks whose rows are not what autograd says, and those where one example's loss reaches another one."""
        loose, tiny = _TOLERANCE[next(self.model.parameters()).dtype]
        failing: set[int] = set()
        mixing: set[int] = set()
        with self._forward(num_examples) as recorder, torch.enable_grad():
            values = losses(self.model, batch)
            for unit, rows in wanted.items():
                scale = torch.stack([r.norm() for r in rows]).norm() * tiny
                self._backward(recorder, values, torch.tensor([unit], device=values.device), retain_graph=True)
                for number, row in enumerate(rows):
                    if number in self.route.looped:
                        continue
                    part = recorder.sums.get(number, row.new_zeros(num_examples, len(row)))
                    if number not in recorder.sums and row.any():
                        failing.add(number)  # never reached: wrong however small the block is
                    own = int(example[unit])
                    others = part.clone()
                    others[own] = 0
                    if others.norm() > scale + loose * row.norm():
                        failing.add(number)
                        if all(self._readings.get(m) == "example" for m in self.blocks[number].modules):
                            mixing.add(number)
                    if not (part[own] - row).norm() <= scale + loose * row.norm() and row.isfinite().all():
                        failing.add(number)
        return failing, mixing

    def _require_apart(self, mixed: set[int]) -> None:
        """CoverageError if taps and copies both found an example's loss to reach another example.

        One of them alone proves nothing: an axis of positions as long as the batch can be taken for the examples'.
        """
        together = mixed.intersection(self.route.looped)
        if together:
            self.route = Route(self.blocks)
            raise CoverageError(
                f"The loss of one example depends on another one, at {self.blocks[min(together)].name}: rows per "
                "example do not exist. Give losses that keep examples apart (no batch statistics, no mean over the "
                "batch)."
            )

    @contextmanager
    def _forward(self, num_examples: int, num_positions: int | None = None) -> Iterator[Recorder]:
        recorder = Recorder(
            self._projections,
            self.dtype,
            self.device,
            num_examples=num_examples,
            num_positions=num_positions,
            readings=self._readings,
        )
        looped = [self.model.get_parameter(p) for n in self.route.looped for p in self.blocks[n].parameters]
        for parameter in looped:
            parameter.requires_grad_()
        try:
            with attached(self.model, self.blocks, self.route.tapped, self.route.owners, recorder):
                yield recorder
        finally:
            for parameter in looped:
                parameter.requires_grad_(False)

    def _backward(self, recorder: Recorder, values: Tensor, units: Tensor, *, retain_graph: bool) -> None:
        """One backward pass for at most one unit of each example; leaves every block's sums in the recorder."""
        copies = [leaf for _, leaf in recorder.parameter_leaves]
        looped = [self.model.get_parameter(p) for n in self.route.looped for p in self.blocks[n].parameters]
        inputs = [*recorder.leaves, *copies, *looped]
        if not values.requires_grad or not (recorder.fired or looped):
            raise CoverageError("The losses do not use any of the chosen parameters: nothing to take gradients of.")
        recorder.start()
        chosen = torch.zeros_like(values)
        chosen[units] = 1
        found = torch.autograd.grad(values, inputs, chosen, retain_graph=retain_graph, allow_unused=True)
        start = len(recorder.leaves)
        for (name, _), gradient in zip(recorder.parameter_leaves, found[start : start + len(copies)], strict=True):
            if gradient is not None:
                recorder.add_vector(name, gradient)
        for number in self.route.in_full:
            recorder.finish(number, self.blocks[number], self.model)

    def _loop(self, values: Tensor, rows: Float[Tensor, "unit dim"]) -> None:
        """The last way: one differentiation per unit, for the blocks that nothing else covers."""
        if not self.route.looped:
            return
        names = [p for n in self.route.looped for p in self.blocks[n].parameters]
        parameters = [self.model.get_parameter(p) for p in names]
        for unit in range(len(values)):
            gradients = _gradients(values[unit], parameters)
            full = {n: g.to(self.dtype)[None] for n, g in zip(names, gradients, strict=True)}
            for number in self.route.looped:
                rows[unit, self.columns[number]] = self._projections[number].project(self.blocks[number].matrix(full))[
                    0
                ]


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


_TOLERANCE = {
    torch.float64: (1e-4, 1e-6),  # some models compute in float32 inside (Gemma's norms)
    torch.float32: (1e-3, 1e-5),
    torch.bfloat16: (0.2, 0.02),
    torch.float16: (0.1, 0.01),
}
"""By the model's dtype: a block's error over its own norm, and over the whole row's, that is still rounding."""


def _warn_of_dropout(model: nn.Module) -> None:
    active = [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p > 0]
    if active:
        warnings.warn(
            f"{type(model).__name__} has {len(active)} dropout layers on, which would make rows random: it is switched "
            "to eval mode.",
            stacklevel=3,
        )


def _examples(
    model: nn.Module, batch: Batch, losses: Losses[Batch], example: Tensor | None, num_examples: int | None
) -> tuple[Tensor, int]:
    """The example of each unit, and the number of examples; without any of them, one forward pass finds out."""
    if example is None:
        if num_examples is None:
            with torch.no_grad():
                num_examples = len(losses(model, batch))
        example = torch.arange(num_examples, device=next(model.parameters()).device)
    return example, num_examples or int(example.max()) + 1


def _gradients(value: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Of one loss; zeros for a parameter that it does not use."""
    if not value.requires_grad:
        return [torch.zeros_like(p) for p in parameters]
    found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def _passes(example: Int[Tensor, " unit"]) -> list[Tensor]:
    """Units sorted into as few groups as possible, with at most one unit per example in each."""
    order = torch.argsort(example, stable=True)
    ordered = example[order]
    first = torch.searchsorted(ordered, ordered)
    rank = torch.arange(len(order), device=order.device) - first
    return [order[rank == p] for p in range(int(rank.max()) + 1)] if len(order) else []
