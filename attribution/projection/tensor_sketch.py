"""Tensor sketch: a count sketch of the whole outer product from count sketches of its two sides.

Pham & Pagh 2013 (KDD), "Fast and scalable polynomial kernels via explicit feature maps"; here for Σₜ gₜ xₜᵀ, whose
sketch is F⁻¹ Σₜ F(C x) ∘ F(C′ g) with F the discrete Fourier transform. Inner products are unbiased for any fixed
buckets, since the signs are independent. Buckets are strides and not hashes: p·i mod m for row i and q·j mod m for
column j, where the stride of the shorter axis is ⌊m / length⌋, so that it spreads over all buckets, and others are 1.
As good as hashed ones, measured in benchmarks/projection.py, and a few sums.

Variance of ⟨S A, S B⟩ for fixed buckets b(i, j): over all unordered pairs p = {i, i′} of rows and q = {j, j′} of
columns, where {i, i} counts as the one empty pair ∅ and so does {j, j}, let C(p, q) be the sum of Aᵢⱼ Bᵢ′ⱼ′ over the
orderings of both pairs that have b(i, j) = b(i′, j′); then Var = Σ C(p, q)² over (p, q) ≠ (∅, ∅). With hashed buckets
and independent signs it would be (‖A‖²‖B‖² + ⟨A, B⟩² − 2 Σ A²B²) / m.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..randomness import random_signs
from .base import BlockProjection, dim_of, dims_as_json, require_dims
from .identity import IdentityBlock


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSketch:
    """Rows of `dim_per_block` numbers per block, fewer only for blocks that have no more parameters."""

    dim_per_block: int | tuple[int, ...]
    """Buckets of a block's sketch (m), at least 2 for a block of two parameters or more; for all blocks, or for each in
    its order."""
    seed: int = 0

    def __post_init__(self) -> None:
        require_dims(self.dim_per_block, least=2 if isinstance(self.dim_per_block, int) else 1, what="A tensor sketch")

    def block(
        self, name: str, *, number: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
    ) -> BlockProjection:
        """The sketch of one block, its signs drawn from (seed, name, axis)."""
        dim = dim_of(self.dim_per_block, number)
        if dim >= shape[0] * shape[1]:
            return IdentityBlock(shape=shape, dtype=dtype)
        require_dims(dim, least=2, what="A tensor sketch")
        rows, columns = (
            torch.from_numpy(random_signs(self.seed, name, axis, width)).to(device, dtype)
            for axis, width in zip(("row", "column"), shape, strict=True)
        )
        return TensorSketchBlock(dim=dim, row_signs=rows, column_signs=columns)

    def describe(self) -> dict[str, Any]:
        """The map as JSON."""
        return {"kind": "tensor-sketch", "dim_per_block": dims_as_json(self.dim_per_block), "seed": self.seed}


@dataclass(frozen=True, kw_only=True)
class TensorSketchBlock:
    """The tensor sketch of one block."""

    dim: int
    row_signs: Float[Tensor, " row"]
    column_signs: Float[Tensor, " column"]

    def rows(self, values: Float[Tensor, "example position row"], start: int = 0) -> Tensor:
        """F(C′ g), complex, [example, position, frequency]."""
        signs = self.row_signs[start : start + values.shape[-1]]
        return torch.fft.rfft(_sketch(values, signs, self.dim, self._strides[0], start))

    def grouped_rows(self, values: Float[Tensor, "pair width"], counts: Sequence[int]) -> Tensor:
        """`rows` of vectors sorted by group: one transform for all of them."""
        width = values.shape[-1]
        sketch = values.new_zeros(len(values), self.dim)
        parts = zip(values.split(list(counts)), sketch.split(list(counts)), strict=True)
        for start, (own, into) in zip(range(0, width * len(counts), width), parts, strict=True):
            _add_sketch(into, own, self.row_signs[start : start + width], self._strides[0], start)
        return torch.fft.rfft(sketch)

    def columns(self, values: Float[Tensor, "example position column"], *, constant: bool = False) -> Tensor:
        """F(C x), complex, [example, position, frequency]."""
        width, stride = values.shape[-1], self._strides[1]
        sketch = _sketch(values, self.column_signs[:width], self.dim, stride)
        if constant:
            sketch[..., width * stride % self.dim] += self.column_signs[width]
        return torch.fft.rfft(sketch)

    def one_hot(self, index: Int[Tensor, "example position"]) -> Tensor:
        """F of a sketch with one entry: the entry's sign times a phase; zero for −1."""
        signs = torch.where(index >= 0, self.row_signs[index.clamp(min=0)], 0)
        return signs.unsqueeze(-1) * self._phases[index * self._strides[0] % self.dim]

    def combine(self, rows: Tensor, columns: Tensor) -> Float[Tensor, "example dim"]:
        """F⁻¹ of the sum over positions of the products."""
        return torch.fft.irfft((rows * columns).sum(1), n=self.dim)

    def project(self, gradient: Float[Tensor, "example row column"]) -> Float[Tensor, "example dim"]:
        """Each entry (i, j), with both signs, added to bucket (p·i + q·j) mod m."""
        num_rows, num_columns = gradient.shape[1:]
        if num_rows == 1:
            return _sketch(gradient[:, 0] * self.row_signs, self.column_signs, self.dim, self._strides[1])
        rows = torch.arange(num_rows, device=gradient.device)[:, None]
        columns = torch.arange(num_columns, device=gradient.device)[None, :]
        buckets = ((self._strides[0] * rows + self._strides[1] * columns) % self.dim).flatten()
        signed = gradient * self.row_signs[:, None] * self.column_signs[None, :]
        result = gradient.new_zeros(len(gradient), self.dim)
        for own, values in zip(result, signed.flatten(1), strict=True):  # far quicker than along axis 1
            own.index_add_(0, buckets, values)
        return result

    @property
    def _strides(self) -> tuple[int, int]:
        """Of rows and columns: with both axes short, equal strides would leave some buckets empty."""
        rows, columns = len(self.row_signs), len(self.column_signs)
        spread = max(1, self.dim // min(rows, columns))
        return (spread, 1) if rows < columns else (1, spread)

    @cached_property
    def _phases(self) -> Tensor:
        """F of each unit vector, [bucket, frequency]."""
        return torch.fft.rfft(torch.eye(self.dim, dtype=self.row_signs.dtype, device=self.row_signs.device))


def _sketch(
    values: Float[Tensor, "... width"], signs: Float[Tensor, " width"], dim: int, stride: int, start: int = 0
) -> Float[Tensor, "... dim"]:
    """Σ, with signs, over the entries whose index (counted from `start`) times stride is equal modulo dim."""
    sketch = values.new_zeros(*values.shape[:-1], dim)
    _add_sketch(sketch, values, signs, stride, start)
    return sketch


def _add_sketch(
    sketch: Float[Tensor, "... dim"],
    values: Float[Tensor, "... width"],
    signs: Float[Tensor, " width"],
    stride: int,
    start: int,
) -> None:
    """Piece by piece into one accumulator: no signed copy of the values is made."""
    dim = sketch.shape[-1]
    if stride > 1:  # then no two entries meet
        sketch[..., start * stride : (start + values.shape[-1]) * stride : stride] = values * signs
        return
    first = 0
    while first < values.shape[-1]:
        bucket = (start + first) % dim
        last = min(first + dim - bucket, values.shape[-1])
        sketch[..., bucket : bucket + last - first].addcmul_(values[..., first:last], signs[first:last])
        first = last
