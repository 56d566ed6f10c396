"""Kronecker factors from a recorded sample: the engine runs as ever, and its blocks add up second moments.

Knows the engine and its blocks; not where the sample comes from.
"""

from dataclasses import dataclass, field
from typing import Any, Generic

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from ..blocks import Block
from ..engine import Batch, GradientEngine, Losses
from ..projection.base import BlockProjection
from ..projection.two_sided import TwoSided
from .factors import Factors, KroneckerFactors, Role

_PROOF = TwoSided(dim_per_block=64)
"""What the engine's proof is held with, while nothing is added up."""


class FactorMeter(Generic[Batch]):
    """Adds up both Kronecker factors of each block over batches.

    A side wider than `max_width` keeps its diagonal only, and so do an embedding's words and parameters without two
    sides; experts' outputs keep one matrix per expert. Memory: 8 bytes per number of each side's matrix. Products
    are taken in the engine's precision and added up in float64.
    For a map of n inputs and m outputs a position and backward pass takes n² + m² multiplications.
    """

    def __init__(self, model: nn.Module, blocks: tuple[Block, ...] | None = None, *, max_width: int = 3_000) -> None:
        self._statistics = _Statistics(max_width=max_width)
        self._engine = GradientEngine[Batch](model, self._statistics, blocks)
        self._num_units = 0

    def add(
        self,
        batch: Batch,
        losses: Losses[Batch],
        example: Int[Tensor, " unit"] | None = None,
        *,
        num_examples: int | None = None,
    ) -> None:
        """Add a batch's units; arguments and errors as `GradientEngine.rows`. All losses weigh the same."""
        proof = self._engine.proof
        if proof.num_examples < 2 or proof.open:  # the engine compares itself with autograd: not part of the sample
            self._engine.rows(batch, losses, example, num_examples=num_examples)
        still_open, proof.open = proof.open, frozenset()
        self._statistics.is_recording = True
        try:
            values = self._engine.rows(batch, losses, example, num_examples=num_examples).losses
        finally:
            self._statistics.is_recording, proof.open = False, still_open
        self._num_units += len(values)

    def factors(self) -> KroneckerFactors:
        """What was added up so far, as copies; ConfigurationError where nothing was, or where it is not finite."""
        return KroneckerFactors(
            blocks={name: block.factors() for name, block in self._statistics.blocks.items()},
            num_units=self._num_units,
        )


@dataclass(slots=True, kw_only=True)
class _Statistics:
    """A projection that keeps what its blocks add up."""

    max_width: int
    is_recording: bool = False
    blocks: dict[str, "_StatisticsBlock"] = field(default_factory=dict)

    def block(
        self, name: str, *, number: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
    ) -> "_StatisticsBlock":
        """A block that adds up, or that projects for the proof."""
        inner = _PROOF.block(name, number=number, shape=shape, dtype=dtype, device=device)
        made = _StatisticsBlock(self, inner, shape, device)
        self.blocks[name] = made
        return made

    def describe(self) -> dict[str, Any]:
        """No row comes of it."""
        return {"kind": "statistics"}


class _StatisticsBlock:
    """Keeps values as they are until both sides meet in `combine`: positions without gradient do not count."""

    def __init__(
        self, owner: _Statistics, inner: BlockProjection, shape: tuple[int, int], device: torch.device
    ) -> None:
        self._owner, self._inner, self._shape, self._device = owner, inner, shape, device
        self._sums: dict[Role, _Sums] = {}

    @property
    def dim(self) -> int:
        """Numbers of the proof's rows."""
        return self._inner.dim

    def rows(self, values: Float[Tensor, "example position row"], start: int = 0) -> Tensor:
        """The values, and where they start as one more number."""
        if not self._owner.is_recording:
            return self._inner.rows(values, start)
        return pad(values, (0, 1), value=float(start))

    def columns(self, values: Float[Tensor, "example position column"], *, constant: bool = False) -> Tensor:
        """The values, with the constant column if asked."""
        if not self._owner.is_recording:
            return self._inner.columns(values, constant=constant)
        return pad(values, (0, 1), value=1.0) if constant else values

    def one_hot(self, index: Int[Tensor, "example position"]) -> Tensor:
        """The index alone."""
        return index.unsqueeze(-1) if self._owner.is_recording else self._inner.one_hot(index)

    def combine(self, rows: Tensor, columns: Tensor) -> Float[Tensor, "example dim"]:
        """Add both sides of every position; zeros, for there is no row."""
        if not self._owner.is_recording:
            return self._inner.combine(rows, columns)
        nothing = columns.new_zeros(len(columns), self.dim)
        rows, columns = rows.flatten(0, 1), columns.flatten(0, 1)
        if rows.shape[1] == 1:
            used = (rows[:, 0] >= 0) & (columns != 0).any(1)
            sums = self._in_role("word")
            sums.rows.add_entries(rows[used, 0], columns.new_ones(int(used.sum())))
        else:
            used = (rows[:, :-1] != 0).any(1)
            sums = self._in_role("map")
            sums.rows.add_slices(rows[used, :-1], rows[used, -1])
        sums.columns.add(columns[used])
        sums.weight += int(used.sum())
        return nothing

    def project(self, gradient: Float[Tensor, "example row column"]) -> Float[Tensor, "example dim"]:
        """Add gradients that were formed in full: Σ GᵀG and Σ GGᵀ, or Σ G² without two sides."""
        if not self._owner.is_recording:
            return self._inner.project(gradient)
        sums = self._in_role("full")
        if self._shape[0] == 1:
            squares = gradient[:, 0].square().sum(0)
            sums.columns.add_entries(torch.arange(len(squares), device=squares.device), squares)
            sums.rows.add_entries(torch.zeros(1, dtype=torch.long, device=squares.device), squares.sum()[None])
        else:
            sums.columns.add(gradient.flatten(0, 1))
            sums.rows.add(gradient.mT.flatten(0, 1))
        sums.weight += float(gradient.double().square().sum())
        return gradient.new_zeros(len(gradient), self.dim)

    def factors(self) -> dict[Role, Factors]:
        """The sums of each role, as copies; zeros where nothing was added."""
        if not self._sums:
            self._in_role("full")
        return {
            role: Factors(rows=sums.rows.moment(), columns=sums.columns.moment(), weight=sums.weight)
            for role, sums in sorted(self._sums.items())
        }

    def _in_role(self, role: Role) -> "_Sums":
        if role not in self._sums:
            rows, columns = (_Side(width, self._owner.max_width, self._device) for width in self._shape)
            self._sums[role] = _Sums(rows=rows, columns=columns)
        return self._sums[role]


@dataclass(slots=True, kw_only=True)
class _Sums:
    rows: "_Side"
    columns: "_Side"
    weight: float = 0.0


class _Side:
    """The second moment of one side: a diagonal or matrices along it, as the first values that arrive decide."""

    def __init__(self, width: int, max_width: int, device: torch.device) -> None:
        self._width, self._max_width, self._device = width, max_width, device
        self._sum: Tensor | None = None

    def moment(self) -> Tensor:
        """A copy of the sum."""
        return self._zeros(self._width) if self._sum is None else self._sum.clone()

    def add(self, values: Float[Tensor, "vector width"], start: int = 0) -> None:
        """Σ value valueᵀ, at coordinates `start` and on."""
        size = values.shape[1]
        if self._sum is None:
            is_full = size <= self._max_width
            self._sum = self._zeros(self._width // size, size, size) if is_full else self._zeros(self._width)
        if self._sum.dim() == 1:
            self._sum[start : start + size] += values.square().sum(0)
        else:
            self._sum[start // size] += values.T @ values

    def add_slices(self, values: Float[Tensor, "vector width"], start: Float[Tensor, " vector"]) -> None:
        """`add`, where each vector has a start of its own."""
        if values.shape[1] == self._width:
            self.add(values)
            return
        for place in torch.unique(start).tolist():
            self.add(values[start == place], int(place))

    def add_entries(self, index: Int[Tensor, " vector"], weight: Float[Tensor, " vector"]) -> None:
        """Σ weight · e eᵀ with e the unit vector of each index."""
        if self._sum is None:
            self._sum = self._zeros(self._width)
        diagonal = self._sum if self._sum.dim() == 1 else self._sum.diagonal(dim1=1, dim2=2)[0]
        diagonal.index_add_(0, index, weight.double())

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.float64, device=self._device)
