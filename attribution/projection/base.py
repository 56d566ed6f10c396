"""What a projection is: for each block two factors, one per side of its matrix, and how they combine.

The gradient of example n with respect to a linear map's weight is Gₙ = Σₜ gₙₜ xₙₜᵀ, with x the map's input (columns)
and g the loss's gradient at its output (rows). A factored projection compresses x in the forward pass and g in the
backward pass, and combines the two, without ever forming Gₙ.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import ConfigurationError


@runtime_checkable
class BlockProjection(Protocol):
    """The projection of one block's gradient, [row, column] → [dim]. Inner products are unbiased over the seed."""

    @property
    def dim(self) -> int:
        """Numbers that it gives per row."""
        ...

    def rows(self, values: Float[Tensor, "example position row"], start: int = 0) -> Tensor:
        """The rows' side, compressed; values that cover rows `start` and on where there are fewer than all."""
        ...

    def columns(self, values: Float[Tensor, "example position column"], *, constant: bool = False) -> Tensor:
        """The columns' side, compressed; `constant` adds the last column, which is 1 (a bias)."""
        ...

    def one_hot(self, index: Int[Tensor, "example position"]) -> Tensor:
        """`rows` of values that are 1 in one row and 0 elsewhere; −1 stands for nowhere."""
        ...

    def combine(self, rows: Tensor, columns: Tensor) -> Float[Tensor, "example dim"]:
        """The projected gradient, summed over positions."""
        ...

    def project(self, gradient: Float[Tensor, "example row column"]) -> Float[Tensor, "example dim"]:
        """The same map applied to gradients that were formed in full."""
        ...


@runtime_checkable
class GroupedBlockProjection(Protocol):
    """A block projection that takes the rows' side of many groups (experts) at once, quicker than one by one."""

    def grouped_rows(self, values: Float[Tensor, "pair width"], counts: Sequence[int]) -> Tensor:
        """`rows` of vectors sorted by group, `counts[e]` of group e, which cover rows e · width and on."""
        ...


@runtime_checkable
class Projection(Protocol):
    """A seeded random map from gradients to rows; the same on every worker."""

    def block(
        self, name: str, *, number: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
    ) -> BlockProjection:
        """The projection of the block of that name and number, whose matrix has that shape (rows, columns)."""
        ...

    def describe(self) -> dict[str, Any]:
        """Everything that fixes the map, as JSON: rows are comparable exactly where this is equal."""
        ...


def dim_of(dim_per_block: int | tuple[int, ...], number: int) -> int:
    """The numbers of one block: the same for all, or one for each in their order."""
    return dim_per_block if isinstance(dim_per_block, int) else dim_per_block[number]


def require_dims(dim_per_block: int | tuple[int, ...], *, least: int, what: str) -> None:
    """ConfigurationError if a block would have fewer than `least` numbers."""
    smallest = dim_per_block if isinstance(dim_per_block, int) else min(dim_per_block, default=least)
    if smallest < least:
        raise ConfigurationError(f"{what} needs at least {least} numbers per block, got {smallest}.")


def dims_as_json(dims: int | tuple[int, ...]) -> int | list[int]:
    """`dim_per_block` as a description keeps it."""
    return dims if isinstance(dims, int) else list(dims)
