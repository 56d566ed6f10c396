"""Block projections that need the gradient itself: they keep the factors and form it piece by piece.

Cost and memory traffic are those of the full gradient per example, so these serve small models, and as the measure
of the projections that never form it. Knows how a gradient is formed; not which map is applied to it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot, pad

_PIECE_NUMBERS = 2**20
"""Numbers of one example's gradient that are formed at a time, unless a single row has more."""
_PIECE_ROWS = 2**10
_EXACT = 2**24
"""Integers up to here are exact in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InFullBlock(ABC):
    """A linear map of one block's matrix, given by what it does to a stretch of the flattened matrix.

    Rows are kept as they are. Where they cover few of the block's rows (an expert, a word), each position keeps the
    first row that it covers, and then its values.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    dim: int

    @abstractmethod
    def add_entries(
        self, result: Float[Tensor, "example dim"], entries: Float[Tensor, "example entry"], start: int
    ) -> None:
        """Add to `result`, in place, the map of entries `start` and on of the flattened matrix."""

    def rows(self, values: Float[Tensor, "example position row"], start: int = 0) -> Tensor:
        """The values, with zeros for all other rows or behind the number of their first row."""
        width = values.shape[-1]
        if self._is_short(width):
            return pad(values, (1, 0), value=float(start))
        return pad(values, (start, self.shape[0] - start - width))

    def columns(self, values: Float[Tensor, "example position column"], *, constant: bool = False) -> Tensor:
        """With the constant column, if asked."""
        return pad(values, (0, 1), value=1.0) if constant else values

    def one_hot(self, index: Int[Tensor, "example position"]) -> Tensor:
        """`rows` of a 1 at the index; of a 0 for −1."""
        if self._is_short(1):
            return torch.stack([index.clamp(min=0), index >= 0], dim=-1).to(self.dtype)
        return one_hot(index + 1, self.shape[0] + 1)[..., 1:].to(self.dtype)

    def combine(self, rows: Tensor, columns: Tensor) -> Float[Tensor, "example dim"]:
        """The map of Σₜ rowsₜ columnsₜᵀ, formed for some rows at a time."""
        result = columns.new_zeros(len(columns), self.dim)
        for first, end in self._pieces():
            gradient = self._rows_between(rows, first, end).transpose(1, 2) @ columns
            self.add_entries(result, gradient.flatten(1), first * self.shape[1])
        return result

    def project(self, gradient: Float[Tensor, "example row column"]) -> Float[Tensor, "example dim"]:
        """The map of gradients that were formed in full."""
        result = gradient.new_zeros(len(gradient), self.dim)
        for first, end in self._pieces():
            self.add_entries(result, gradient[:, first:end].flatten(1), first * self.shape[1])
        return result

    def _is_short(self, width: int) -> bool:
        return width + 1 < self.shape[0] <= _EXACT

    def _pieces(self) -> Iterator[tuple[int, int]]:
        """First and end of some rows at a time: the same for every batch, so that sums have one order."""
        step = min(_PIECE_ROWS, max(1, _PIECE_NUMBERS // self.shape[1]))
        for first in range(0, self.shape[0], step):
            yield first, min(first + step, self.shape[0])

    def _rows_between(self, rows: Tensor, first: int, end: int) -> Float[Tensor, "example position row"]:
        if rows.shape[-1] == self.shape[0]:
            return rows[..., first:end]
        values = rows[..., 1:]
        own = torch.arange(first, end, device=rows.device) - rows[..., :1].long()
        covered = (own >= 0) & (own < values.shape[-1])
        return values.gather(-1, own.clamp(0, values.shape[-1] - 1)) * covered
