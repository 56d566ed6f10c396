"""No projection: rows are the gradients themselves. Also what any projection does with a block that is no larger."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot, pad


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Rows of as many numbers as the blocks' parameters have."""

    def block(
        self, name: str, *, number: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
    ) -> "IdentityBlock":
        """The block as it is; neither name nor number matters."""
        del name, number, device
        return IdentityBlock(shape=shape, dtype=dtype)

    def describe(self) -> dict[str, Any]:
        """The map as JSON."""
        return {"kind": "none"}


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityBlock:
    """One block's matrix, row after row."""

    shape: tuple[int, int]
    dtype: torch.dtype

    @property
    def dim(self) -> int:
        """Numbers of the matrix."""
        return self.shape[0] * self.shape[1]

    def rows(self, values: Float[Tensor, "example position row"], start: int = 0) -> Tensor:
        """Padded with zeros to all rows."""
        return pad(values, (start, self.shape[0] - start - values.shape[-1]))

    def columns(self, values: Float[Tensor, "example position column"], *, constant: bool = False) -> Tensor:
        """With the constant column, if asked."""
        return pad(values, (0, 1), value=1.0) if constant else values

    def one_hot(self, index: Int[Tensor, "example position"]) -> Tensor:
        """Ones and zeros; all zeros for −1."""
        return one_hot(index + 1, self.shape[0] + 1)[..., 1:].to(self.dtype)

    def combine(self, rows: Tensor, columns: Tensor) -> Float[Tensor, "example dim"]:
        """Σₜ rowsₜ columnsₜᵀ, flattened."""
        return (rows.transpose(1, 2) @ columns).flatten(1)

    def project(self, gradient: Float[Tensor, "example row column"]) -> Float[Tensor, "example dim"]:
        """The gradient, flattened."""
        return gradient.flatten(1)
