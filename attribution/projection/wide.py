"""A wider two-sided projection, then a sparse one down to size: more directions per side for the same numbers.

Not a gradient but only its k × k two-sided projection is formed. With a = Pᵀ A Q and b = Pᵀ B Q the two-sided rows
(two_sided.py) and m the numbers that are left, ⟨SA, SB⟩ has mean ⟨A, B⟩ over the seed, and variance

    Var⟨a, b⟩ + E(|a|²|b|² + ⟨a, b⟩² − 2 Σₑ aₑ²bₑ²) / m.

The first term, of a wider projection, is smaller than that of a two-sided one of m numbers; the second is the price.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import ConfigurationError
from .base import BlockProjection, dim_of, dims_as_json, require_dims
from .identity import IdentityBlock
from .sjlt import SparseMap
from .two_sided import TwoSided


@dataclass(frozen=True, slots=True, kw_only=True)
class Wide:
    """Rows of `dim_per_block` numbers per block, fewer only for blocks that have no more parameters."""

    dim_per_block: int | tuple[int, ...]
    """At least 1; for all blocks, or for each in its order."""
    seed: int = 0
    side_factor: int = 4
    """Numbers of the two-sided projection over those of the row, at least 2."""

    def __post_init__(self) -> None:
        require_dims(self.dim_per_block, least=1, what="A wide projection")
        if self.side_factor < 2:
            raise ConfigurationError(f"A wide projection needs a side factor of at least 2, got {self.side_factor}.")

    def block(
        self, name: str, *, number: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
    ) -> BlockProjection:
        """Factors and sparse map of one block, drawn from (seed, name)."""
        dim = dim_of(self.dim_per_block, number)
        if dim >= shape[0] * shape[1]:
            return IdentityBlock(shape=shape, dtype=dtype)
        two_sided = TwoSided(dim_per_block=self.side_factor * dim, seed=self.seed)
        inner = two_sided.block(name, number=number, shape=shape, dtype=dtype, device=device)
        if inner.dim <= dim:
            return inner
        sparse = SparseMap.draw(self.seed, name, inner.dim, dim=dim, nonzeros=1, device=device)
        return WideBlock(dim=dim, inner=inner, sparse=sparse)

    def describe(self) -> dict[str, Any]:
        """The map as JSON."""
        dims = dims_as_json(self.dim_per_block)
        return {"kind": "wide", "dim_per_block": dims, "seed": self.seed, "side_factor": self.side_factor}


@dataclass(frozen=True, slots=True, kw_only=True)
class WideBlock:
    """The two maps of one block, one after the other."""

    dim: int
    inner: BlockProjection
    sparse: SparseMap

    def rows(self, values: Float[Tensor, "example position row"], start: int = 0) -> Tensor:
        """The two-sided projection's."""
        return self.inner.rows(values, start)

    def columns(self, values: Float[Tensor, "example position column"], *, constant: bool = False) -> Tensor:
        """The two-sided projection's."""
        return self.inner.columns(values, constant=constant)

    def one_hot(self, index: Int[Tensor, "example position"]) -> Tensor:
        """The two-sided projection's."""
        return self.inner.one_hot(index)

    def combine(self, rows: Tensor, columns: Tensor) -> Float[Tensor, "example dim"]:
        """The two-sided row, compressed."""
        return self._narrow(self.inner.combine(rows, columns))

    def project(self, gradient: Float[Tensor, "example row column"]) -> Float[Tensor, "example dim"]:
        """The same for gradients that were formed in full."""
        return self._narrow(self.inner.project(gradient))

    def _narrow(self, rows: Float[Tensor, "example wide"]) -> Float[Tensor, "example dim"]:
        result = rows.new_zeros(len(rows), self.dim)
        self.sparse.add(result, rows)
        return result
