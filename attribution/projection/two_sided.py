"""Two-sided projection: Pᵀ G Q with random factors, k × k numbers per block.

Unbiased like the tensor sketch, but its error does not fall where examples share a side (equal inputs, or equal
gradients at the output): see docs/projections.md. A factor as wide as its axis is the identity.

The variance of ⟨Pᵀ A Q, Pᵀ B Q⟩ over the seed follows from the fourth moments of both factors. With M = P Pᵀ, of R rows
and p columns, E M = I and

    E Mᵢⱼ Mₖₗ = α δᵢⱼ δₖₗ + β (δᵢₖ δⱼₗ + δᵢₗ δⱼₖ) + γ δᵢⱼₖₗ,

where (α, β, γ) is (1, 1/p, −2/p) for signs, (1, 1/p, 0) for normal numbers, (1 − 2β/R, β, 0) with
β = R (R − p) / (p (R − 1) (R + 2)) for an orthonormal frame, and (1, 0, 0) for the identity. For the columns, with
N = Q Qᵀ of q columns, they are (α′, β′, γ′). Let u = (α, β, β, γ), v = (α′, β′, β′, γ′), S = A Bᵀ, T = Aᵀ B; then

    Var = uᵀ K v − ⟨A, B⟩²,

    K = ⎡ ⟨A, B⟩²         ⟨A Aᵀ, B Bᵀ⟩      tr S²            Σⱼ Tⱼⱼ²          ⎤
        ⎢ ⟨Aᵀ A, Bᵀ B⟩    |A|² |B|²         ⟨Aᵀ A, Bᵀ B⟩     Σⱼ |A:ⱼ|²|B:ⱼ|²  ⎥
        ⎢ tr T²           ⟨A Aᵀ, B Bᵀ⟩      ⟨A, B⟩²          Σⱼ Tⱼⱼ²          ⎥
        ⎣ Σᵢ Sᵢᵢ²         Σᵢ |Aᵢ:|²|Bᵢ:|²   Σᵢ Sᵢᵢ²          Σᵢⱼ Aᵢⱼ² Bᵢⱼ²    ⎦

Where a side is shared, A = g xᵀ and B = g yᵀ, this is |g|⁴ (2 ⟨x, y⟩² β + (|x|²|y|² + ⟨x, y⟩²) β′) and terms of order
1/k² (and γ): of order 1/k, where a count sketch of k² numbers has 1/k². Which kind of factor hardly matters.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from ...errors import ConfigurationError
from ..randomness import random_normals, random_signs
from .base import BlockProjection, dim_of, dims_as_json, require_dims
from .identity import IdentityBlock

Factors = Literal["rademacher", "gaussian", "orthonormal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoSided:
    """Rows of at most `dim_per_block` numbers per block: k², with k its root rounded down; more for a thin axis."""

    dim_per_block: int | tuple[int, ...]
    """At least 1; for all blocks, or for each in its order."""
    seed: int = 0
    factors: Factors = "rademacher"
    """Entries of P and Q, k columns each: signs over √k, normal numbers over √k, or a random orthonormal frame times
    √(width / k)."""

    def __post_init__(self) -> None:
        if self.factors not in get_args(Factors):
            raise ConfigurationError(f"Factors {self.factors!r}; accepted are {', '.join(get_args(Factors))}.")
        require_dims(self.dim_per_block, least=1, what="A two-sided projection")

    def block(
        self, name: str, *, number: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
    ) -> BlockProjection:
        """The factors of one block, drawn from (seed, name, axis)."""
        dim = dim_of(self.dim_per_block, number)
        if dim >= shape[0] * shape[1]:
            return IdentityBlock(shape=shape, dtype=dtype)
        sides = _sides(dim, shape)
        factors = [
            torch.eye(width, dtype=dtype, device=device)
            if side >= width
            else torch.from_numpy(_draw(self.factors, self.seed, name, axis, (width, side))).to(device, dtype)
            for axis, width, side in zip(("row", "column"), shape, sides, strict=True)
        ]
        return TwoSidedBlock(row_factor=factors[0], column_factor=factors[1])

    def describe(self) -> dict[str, Any]:
        """The map as JSON."""
        dims = dims_as_json(self.dim_per_block)
        return {"kind": "two-sided", "dim_per_block": dims, "seed": self.seed, "factors": self.factors}


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoSidedBlock:
    """The two-sided projection of one block."""

    row_factor: Float[Tensor, "row row_side"]
    column_factor: Float[Tensor, "column column_side"]

    @property
    def dim(self) -> int:
        """Numbers of Pᵀ G Q."""
        return self.row_factor.shape[1] * self.column_factor.shape[1]

    def rows(self, values: Float[Tensor, "example position row"], start: int = 0) -> Tensor:
        """g P."""
        return values @ self.row_factor[start : start + values.shape[-1]]

    def columns(self, values: Float[Tensor, "example position column"], *, constant: bool = False) -> Tensor:
        """[x, 1] Q."""
        if not constant:
            return values @ self.column_factor
        return values @ self.column_factor[:-1] + self.column_factor[-1]

    def one_hot(self, index: Int[Tensor, "example position"]) -> Tensor:
        """Rows of P; zero for −1."""
        return pad(self.row_factor, (0, 0, 1, 0))[index + 1]

    def combine(self, rows: Tensor, columns: Tensor) -> Float[Tensor, "example dim"]:
        """Pᵀ G Q, flattened with the rows' side first."""
        return (rows.transpose(1, 2) @ columns).flatten(1)

    def project(self, gradient: Float[Tensor, "example row column"]) -> Float[Tensor, "example dim"]:
        """Pᵀ G Q of a gradient formed in full."""
        return (self.row_factor.T @ (gradient @ self.column_factor)).flatten(1)


def _sides(dim: int, shape: tuple[int, int]) -> tuple[int, int]:
    """Widths of both factors: equal, unless an axis is narrower and leaves more to the other."""
    rows, columns = shape
    side = math.isqrt(dim)
    if rows < side:
        return rows, min(columns, dim // rows)
    if columns < side:
        return min(rows, dim // columns), columns
    return side, side


def _draw(factors: Factors, seed: int, name: str, axis: str, shape: tuple[int, int]) -> Float[np.ndarray, "width side"]:
    """One factor, with E[P Pᵀ] = 1; reads one stream row after row, whatever is drawn from it."""
    width, side = shape
    if factors == "rademacher":
        return random_signs(seed, name, axis, width * side).reshape(shape).astype(np.float64) / side**0.5
    normals = random_normals(seed, name, axis, width * side).reshape(shape)
    if factors == "gaussian":
        return normals / side**0.5
    frame, triangle = np.linalg.qr(normals)
    # with a positive diagonal the decomposition is unique, and the frame uniform (Mezzadri 2007)
    return frame * np.where(np.diagonal(triangle) < 0, -1, 1) * (width / side) ** 0.5
