"""Projected gradients of many losses at the cost of a forward pass and the backward pass through activations.

Weights need no gradient. A hook at each linear map keeps its compressed input in the forward pass; in the backward
pass the gradient at the map's output is compressed too, and the two are combined per example (projection/base.py).
Several losses of one example share the forward pass: each backward pass serves one loss of every example.

Knows any torch module whose first axis is the example; nothing of documents, runs or Ray.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import CoverageError
from .blocks import Block, find_blocks, iter_modules
from .projection.base import BlockProjection, Projection

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


class GradientEngine(Generic[Batch]):
    """A model, made ready for gradient rows under one projection.

    Puts the model in eval mode and freezes its weights (dropout would make rows random). Raises CoverageError where
    no linear map is found.
    """

    def __init__(self, model: nn.Module, projection: Projection, blocks: tuple[Block, ...] | None = None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.blocks = find_blocks(model).blocks if blocks is None else blocks
        weight = next(model.parameters())
        self.device = weight.device
        self.dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self._projections: list[BlockProjection] = [
            projection.block(
                b.name,
                in_width=b.in_width,
                out_width=b.out_width,
                bias=b.bias,
                dtype=self.dtype,
                device=weight.device,
            )
            for b in self.blocks
        ]
        ends = np.cumsum([0, *(p.dim for p in self._projections)])
        self.columns = [slice(int(a), int(b)) for a, b in pairwise(ends)]
        """Column range of each block in a row."""
        self.dim = int(ends[-1])

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
        example has no unit. Raises CoverageError for a model that hands a linear map anything but one row of positions
        per example.
        """
        with self._taps() as taps, torch.enable_grad():
            values = losses(self.model, batch)
            if example is None:
                example = torch.arange(len(values), device=values.device)
            result = torch.zeros(len(values), self.dim, dtype=self.dtype, device=values.device)
            passes = _passes(example)
            for number, units in enumerate(passes):
                chosen = torch.zeros_like(values)
                chosen[units] = 1
                taps.start(num_examples=num_examples or int(example.max()) + 1)
                torch.autograd.grad(
                    values, taps.leaves, chosen, retain_graph=number + 1 < len(passes), allow_unused=True
                )
                taps.collect(result, units, example[units])
        norms = torch.stack([torch.linalg.vector_norm(result[:, c], dim=1) for c in self.columns], dim=1)
        return GradientRows(rows=result, block_norms=norms, losses=values.detach())

    def position_rows(self, batch: Batch, losses: Losses[Batch]) -> Float[Tensor, "position dim"]:
        """Each position's share of the one example's one loss; over positions they add up to its row."""
        with self._taps(by_position=True) as taps, torch.enable_grad():
            values = losses(self.model, batch)
            taps.start(num_examples=1)
            torch.autograd.grad(values.sum(), taps.leaves, allow_unused=True)
        return taps.by_position(self.dim)

    @contextmanager
    def _taps(self, *, by_position: bool = False) -> Iterator["_Taps"]:
        taps = _Taps(self._projections, self.columns, self.dtype, positions_apart=by_position)
        handles: list[RemovableHandle] = [
            module.register_forward_hook(taps.hook(number)) for module, number in iter_modules(self.model, self.blocks)
        ]
        try:
            yield taps
        finally:
            for handle in handles:
                handle.remove()


def gradient_rows(
    model: nn.Module,
    batch: Batch,
    losses: Losses[Batch],
    *,
    projection: Projection,
    example: Int[Tensor, " unit"] | None = None,
) -> GradientRows:
    """The projected gradient of each loss of a batch; see `GradientEngine`, which keeps its set-up between batches."""
    return GradientEngine[Batch](model, projection).rows(batch, losses, example)


class _Taps:
    """What the hooks of one forward pass share with its backward passes."""

    def __init__(
        self,
        projections: list[BlockProjection],
        columns: list[slice],
        dtype: torch.dtype,
        *,
        positions_apart: bool,
    ) -> None:
        self._projections, self._columns, self._dtype = projections, columns, dtype
        self._positions_apart = positions_apart
        self._sums: dict[int, Tensor] = {}
        self.leaves: list[Tensor] = []
        """Where the backward pass may stop: outputs of the earliest tapped maps."""
        self._seen: dict[int, int] = {}
        """Each block's length of the example axis."""

    def hook(self, number: int) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        """The forward hook of one block's module."""
        projection = self._projections[number]

        def forward(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            self._seen[number] = len(args[0])
            inputs = projection.inputs(_by_position(args[0].detach(), self._dtype))
            if not output.requires_grad:
                self.leaves.append(output.requires_grad_())
                output = output.clone()

            def backward(gradient: Tensor) -> None:
                outputs = projection.outputs(_by_position(gradient, self._dtype))
                if self._positions_apart:
                    part = projection.combine(inputs.transpose(0, 1), outputs.transpose(0, 1))
                else:
                    part = projection.combine(inputs, outputs)
                self._sums[number] = self._sums[number] + part if number in self._sums else part

            output.register_hook(backward)
            return output

        return forward

    def start(self, *, num_examples: int) -> None:
        """Before a backward pass."""
        if not self.leaves:
            raise CoverageError("The losses do not use any of the model's linear maps: nothing to take gradients of.")
        for number, seen in self._seen.items():
            if seen != num_examples:
                raise CoverageError(
                    f"Linear map {number} of {len(self._projections)} saw {seen} rows for {num_examples} examples: the "
                    "model flattens or drops the example axis in front of it, which is not supported yet. Leave that "
                    "map out, or bring a model whose maps see [example, position, width]."
                )
        self._sums.clear()

    def collect(self, rows: Tensor, units: Tensor, examples: Tensor) -> None:
        """After a backward pass: the sums of these units' examples become their rows."""
        for number, part in self._sums.items():
            rows[units, self._columns[number]] = part[examples]

    def by_position(self, dim: int) -> Float[Tensor, "position dim"]:
        """After a backward pass with positions apart: all blocks side by side."""
        parts = next(iter(self._sums.values()))
        rows = parts.new_zeros(len(parts), dim)
        for number, part in self._sums.items():
            rows[:, self._columns[number]] = part
        return rows


def _by_position(x: Tensor, dtype: torch.dtype) -> Float[Tensor, "example position width"]:
    """[example, width] or [example, …, width] as [example, position, width], in compute precision."""
    x = x.to(dtype)
    return x.unsqueeze(1) if x.dim() == 2 else x.flatten(1, -2)


def _passes(example: Int[Tensor, " unit"]) -> list[Tensor]:
    """Units sorted into as few groups as possible, with at most one unit per example in each."""
    order = torch.argsort(example, stable=True)
    ordered = example[order]
    first = torch.searchsorted(ordered, ordered)
    rank = torch.arange(len(order), device=order.device) - first
    return [order[rank == p] for p in range(int(rank.max()) + 1)] if len(order) else []
