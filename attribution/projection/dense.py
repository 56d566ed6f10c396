"""Dense random signs on each block's whole gradient: the plainest Johnson–Lindenstrauss transform, and the dearest.

Achlioptas 2003 (JCSS 66), "Database-friendly random projections": row = Sᵀ vec(G) / √D with S of P × D random signs,
made a stretch at a time whenever they are needed, so that no P × D matrix ever exists.

Over the seed, the inner product of two rows has mean ⟨A, B⟩ and variance

    (|A|²|B|² + ⟨A, B⟩² − 2 Σₑ Aₑ²Bₑ²) / D,

a count sketch's: what density buys are lighter tails, not a smaller variance.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..randomness import random_bits
from .base import BlockProjection, dim_of, dims_as_json, require_dims
from .identity import IdentityBlock
from .in_full import InFullBlock

_STRETCH_NUMBERS = 2**22
"""Random signs that exist at a time, unless one entry has more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """Rows of `dim_per_block` numbers per block, fewer only for blocks that have no more parameters.

    Forms every gradient in full, and draws its P × D signs anew for each batch: for small models.
    """

    dim_per_block: int | tuple[int, ...]
    """Numbers per block (D), at least 1; for all blocks, or for each in its order."""
    seed: int = 0

    def __post_init__(self) -> None:
        require_dims(self.dim_per_block, least=1, what="A dense projection")

    def block(
        self, name: str, *, number: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
    ) -> BlockProjection:
        """The map of one block, its signs drawn from (seed, name)."""
        del device
        dim = dim_of(self.dim_per_block, number)
        if dim >= shape[0] * shape[1]:
            return IdentityBlock(shape=shape, dtype=dtype)
        return DenseBlock(shape=shape, dtype=dtype, dim=dim, seed=self.seed, name=name)

    def describe(self) -> dict[str, Any]:
        """The map as JSON."""
        return {"kind": "dense", "dim_per_block": dims_as_json(self.dim_per_block), "seed": self.seed}


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseBlock(InFullBlock):
    """The dense map of one block's flattened matrix: entry e has bits e · dim and on of the block's stream."""

    seed: int
    name: str

    def add_entries(
        self, result: Float[Tensor, "example dim"], entries: Float[Tensor, "example entry"], start: int
    ) -> None:
        """Entries times their signs, as many entries at a time as there may be signs."""
        step = max(1, _STRETCH_NUMBERS // self.dim)
        for first in range(0, entries.shape[1], step):
            part = entries[:, first : first + step]
            count = part.shape[1] * self.dim
            bits = random_bits(self.seed, self.name, "dense", count, start=(start + first) * self.dim)
            signs = 1 - 2 * torch.from_numpy(bits).to(part.device, part.dtype).reshape(-1, self.dim)
            result += part @ signs / self.dim**0.5
