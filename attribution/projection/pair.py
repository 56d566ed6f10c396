"""Several independent projections of the same gradients, collected in one pass.

Products of inner products under one projection are biased (the square of a noisy number is too large); those of two
independent ones are not: E⟨a₁, b₁⟩⟨a₂, b₂⟩ = ⟨A, B⟩². That is what unbiased second moments (effective dimensions,
tr F²) need.

A block's row holds its members' rows one after the other, each over √n for n members, so that the whole row's inner
products are the mean of the members': unbiased, with variance Σᵢ Varᵢ / n². A member's own row is its part times √n.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import ConfigurationError
from .base import BlockProjection, Projection


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Rows that hold, in each block, the rows of all members."""

    members: tuple[Projection, ...]
    """At least two, none of them a pair, each with a seed of its own, and equally many numbers in each block."""

    def __post_init__(self) -> None:
        described = [member.describe() for member in self.members]
        seeds = [d["seed"] for d in described if "seed" in d]
        if len(described) < 2 or any(d["kind"] == "pair" for d in described):
            raise ConfigurationError(
                f"A pair has at least two members and no pair among them, got {[d['kind'] for d in described]}."
            )
        if len(set(seeds)) < len(seeds):
            raise ConfigurationError(f"Seeds {seeds}: members are independent only if each has a seed of its own.")

    def block(
        self, name: str, *, number: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
    ) -> "PairBlock":
        """The members' maps of one block; ConfigurationError if their numbers differ."""
        members = tuple(m.block(name, number=number, shape=shape, dtype=dtype, device=device) for m in self.members)
        if len({member.dim for member in members}) > 1:
            raise ConfigurationError(
                f"Block {name}: the members of a pair give {[m.dim for m in members]} numbers; they must be equal."
            )
        return PairBlock(members=members)

    def describe(self) -> dict[str, Any]:
        """All members as JSON."""
        return {"kind": "pair", "members": [member.describe() for member in self.members]}


@dataclass(frozen=True, slots=True, kw_only=True)
class PairBlock:
    """The members' maps of one block."""

    members: tuple[BlockProjection, ...]
    _row_layouts: "_Layouts" = field(default_factory=dict, init=False, repr=False)
    _column_layouts: "_Layouts" = field(default_factory=dict, init=False, repr=False)

    @property
    def dim(self) -> int:
        """Numbers of all members."""
        return sum(member.dim for member in self.members)

    def rows(self, values: Float[Tensor, "example position row"], start: int = 0) -> Tensor:
        """The members' rows, joined."""
        return _join([member.rows(values, start) for member in self.members], self._row_layouts)

    def columns(self, values: Float[Tensor, "example position column"], *, constant: bool = False) -> Tensor:
        """The members' columns, joined."""
        return _join([member.columns(values, constant=constant) for member in self.members], self._column_layouts)

    def one_hot(self, index: Int[Tensor, "example position"]) -> Tensor:
        """The members' rows, joined."""
        return _join([member.one_hot(index) for member in self.members], self._row_layouts)

    def combine(self, rows: Tensor, columns: Tensor) -> Float[Tensor, "example dim"]:
        """What each member makes of its factors, over √n."""
        divided = _divide(rows, self._row_layouts), _divide(columns, self._column_layouts)
        parts = zip(self.members, *divided, strict=True)
        return torch.cat([member.combine(r, c) for member, r, c in parts], dim=1) / len(self.members) ** 0.5

    def project(self, gradient: Float[Tensor, "example row column"]) -> Float[Tensor, "example dim"]:
        """What each member makes of a gradient formed in full, over √n."""
        return torch.cat([member.project(gradient) for member in self.members], dim=1) / len(self.members) ** 0.5


def member_columns(columns: Sequence[slice], num_members: int) -> list[list[slice]]:
    """For each member its columns in each block, from the blocks' columns in rows that a pair made."""
    parts: list[list[slice]] = [[] for _ in range(num_members)]
    for block in columns:
        width, rest = divmod(block.stop - block.start, num_members)
        if rest:
            raise ConfigurationError(
                f"Columns {block.start} to {block.stop} do not divide among {num_members} members."
            )
        for number, part in enumerate(parts):
            part.append(slice(block.start + number * width, block.start + (number + 1) * width))
    return parts


class _Part(NamedTuple):
    """One member's part of joined factors."""

    width: int
    is_complex: bool


_Layouts = dict[int, tuple[_Part, ...]]
"""How joined factors divide among the members, by their whole width. One width has one layout: wider values make no
member's factors narrower."""


def _join(factors: list[Tensor], layouts: _Layouts) -> Tensor:
    """All members' factors on the last axis, complex ones as pairs of real numbers; notes the layout."""
    real = [torch.view_as_real(f).flatten(-2) if f.is_complex() else f for f in factors]
    joined = torch.cat(real, dim=-1)
    layouts[joined.shape[-1]] = tuple(_Part(r.shape[-1], f.is_complex()) for r, f in zip(real, factors, strict=True))
    return joined


def _divide(joined: Tensor, layouts: _Layouts) -> list[Tensor]:
    """The members' factors again."""
    layout = layouts[joined.shape[-1]]
    parts = torch.split(joined, [part.width for part in layout], dim=-1)
    return [
        torch.complex(values[..., ::2], values[..., 1::2]) if part.is_complex else values
        for values, part in zip(parts, layout, strict=True)
    ]
