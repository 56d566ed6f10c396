"""Sparse Johnson–Lindenstrauss transform of each block's whole gradient.

Kane & Nelson 2014 (J. ACM 61), "Sparser Johnson-Lindenstrauss transforms", block construction: the m numbers fall
into s ranges, and each entry of the gradient is added, with a random sign and times 1/√s, to one random number of
each range. With s = 1 this is a count sketch (Charikar, Chen & Farach-Colton 2002).

Over the seed, ⟨SA, SB⟩ has mean ⟨A, B⟩ and variance

    (|A|²|B|² + ⟨A, B⟩² − 2 Σₑ Aₑ²Bₑ²) · Σ_c 1 / (s² m_c),

with m_c the numbers of range c; the sum is 1/m where s divides m, whatever s.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import ConfigurationError
from ..randomness import random_integers, random_signs
from .base import BlockProjection, dim_of, dims_as_json, require_dims
from .identity import IdentityBlock
from .in_full import InFullBlock


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseJL:
    """Rows of `dim_per_block` numbers per block, fewer only for blocks that have no more parameters.

    Forms every gradient in full, and keeps 5 · `nonzeros` bytes per parameter.
    """

    dim_per_block: int | tuple[int, ...]
    """Numbers per block (m), at least `nonzeros`; for all blocks, or for each in its order."""
    seed: int = 0
    nonzeros: int = 1
    """Numbers that each entry of the gradient is added to (s), at least 1."""

    def __post_init__(self) -> None:
        if self.nonzeros < 1:
            raise ConfigurationError(f"A sparse projection needs at least 1 nonzero per entry, got {self.nonzeros}.")
        require_dims(self.dim_per_block, least=self.nonzeros, what=f"A projection with {self.nonzeros} nonzeros")

    def block(
        self, name: str, *, number: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
    ) -> BlockProjection:
        """The map of one block, drawn from (seed, name)."""
        dim = dim_of(self.dim_per_block, number)
        numel = shape[0] * shape[1]
        if dim >= numel:
            return IdentityBlock(shape=shape, dtype=dtype)
        sparse = SparseMap.draw(self.seed, name, numel, dim=dim, nonzeros=self.nonzeros, device=device)
        return SparseJLBlock(shape=shape, dtype=dtype, dim=dim, sparse=sparse)

    def describe(self) -> dict[str, Any]:
        """The map as JSON."""
        dims = dims_as_json(self.dim_per_block)
        return {"kind": "sparse-jl", "dim_per_block": dims, "seed": self.seed, "nonzeros": self.nonzeros}


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseMap:
    """A sparse Johnson–Lindenstrauss transform of vectors."""

    buckets: Int[Tensor, "nonzero entry"]
    """Which number each entry is added to; int32."""
    signs: Int[Tensor, "nonzero entry"]
    """+1 or −1; int8."""

    @classmethod
    def draw(cls, seed: int, name: str, numel: int, *, dim: int, nonzeros: int, device: torch.device) -> "SparseMap":
        """Independent buckets and signs for each range, from (seed, name)."""
        edges = [c * dim // nonzeros for c in range(nonzeros + 1)]
        buckets = np.empty((nonzeros, numel), np.int32)
        signs = np.empty((nonzeros, numel), np.int8)
        for c in range(nonzeros):
            size = edges[c + 1] - edges[c]
            buckets[c] = edges[c] + random_integers(seed, name, f"bucket {c}", numel, below=size)
            signs[c] = random_signs(seed, name, f"sign {c}", numel)
        return cls(buckets=torch.from_numpy(buckets).to(device), signs=torch.from_numpy(signs).to(device))

    def add(
        self, result: Float[Tensor, "example dim"], entries: Float[Tensor, "example entry"], start: int = 0
    ) -> None:
        """Add to `result`, in place, the map of entries `start` and on."""
        end = start + entries.shape[1]
        for buckets, signs in zip(self.buckets[:, start:end], self.signs[:, start:end], strict=True):
            scaled = entries * signs / len(self.signs) ** 0.5
            for own, values in zip(result, scaled, strict=True):
                own.index_add_(0, buckets, values)


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseJLBlock(InFullBlock):
    """The sparse map of one block's flattened matrix."""

    sparse: SparseMap

    def add_entries(
        self, result: Float[Tensor, "example dim"], entries: Float[Tensor, "example entry"], start: int
    ) -> None:
        """Each entry added to its numbers."""
        self.sparse.add(result, entries, start)
