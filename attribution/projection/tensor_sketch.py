"""Tensor sketch: a count sketch of the whole outer product from count sketches of its two sides.

Pham & Pagh 2013 (KDD), "Fast and scalable polynomial kernels via explicit feature maps"; here for Σₜ gₜ xₜᵀ, whose
sketch is F⁻¹ Σₜ F(C x) ∘ F(C′ g) with F the discrete Fourier transform. Inner products are unbiased for any fixed
buckets, since the signs are independent. Buckets are strides and not hashes (i mod m outside, stride·j mod m inside):
as good as hashed ones, measured in benchmarks/projection.py, and a reshape with a sum.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from ...errors import ConfigurationError
from ..randomness import random_signs

_STRIDE = 97


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSketch:
    """Rows of `dim_per_block` numbers per block."""

    dim_per_block: int
    """Buckets of each block's sketch (m); at least 2."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dim_per_block < 2:
            raise ConfigurationError(f"A tensor sketch needs at least 2 numbers per block, got {self.dim_per_block}.")

    def block(
        self, name: str, *, in_width: int, out_width: int, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> "TensorSketchBlock":
        """The sketch of one block, its signs drawn from (seed, name, axis)."""

        def signs(axis: str, width: int) -> Tensor:
            return torch.from_numpy(random_signs(self.seed, name, axis, width)).to(device, dtype)

        return TensorSketchBlock(
            dim=self.dim_per_block,
            in_signs=signs("in", in_width + bias),
            out_signs=signs("out", out_width),
            bias=bias,
        )

    def describe(self) -> dict[str, Any]:
        """The map as JSON."""
        return {"kind": "tensor-sketch", "dim_per_block": self.dim_per_block, "seed": self.seed, "stride": _STRIDE}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSketchBlock:
    """The tensor sketch of one block."""

    dim: int
    in_signs: Float[Tensor, " in_and_bias"]
    out_signs: Float[Tensor, " out"]
    bias: bool

    def inputs(self, x: Float[Tensor, "example position in"]) -> Tensor:
        """F(C x), complex, [example, position, frequency]."""
        width = x.shape[-1]
        sketch = _fold(x * self.in_signs[:width], self.dim)
        if self.bias:
            sketch[..., width % self.dim] += self.in_signs[width]
        return torch.fft.rfft(sketch[..., self._in_order(x.device)])

    def outputs(self, g: Float[Tensor, "example position out"]) -> Tensor:
        """F(C′ g), complex, [example, position, frequency]."""
        return torch.fft.rfft(_fold(g * self.out_signs, self.dim))

    def combine(self, inputs: Tensor, outputs: Tensor) -> Float[Tensor, "example dim"]:
        """F⁻¹ of the sum over positions of the products."""
        return torch.fft.irfft((inputs * outputs).sum(1), n=self.dim)

    def project(self, gradient: Float[Tensor, "example out in_and_bias"]) -> Float[Tensor, "example dim"]:
        """Each entry (i, j), with both signs, added to bucket (i + stride·j) mod m."""
        out_width, in_width = gradient.shape[1:]
        stride = _coprime_stride(self.dim)
        rows = torch.arange(out_width, device=gradient.device)[:, None]
        columns = torch.arange(in_width, device=gradient.device)[None, :]
        buckets = (rows + stride * columns) % self.dim
        signed = gradient * self.out_signs[:, None] * self.in_signs[None, :]
        result = gradient.new_zeros(len(gradient), self.dim)
        return result.index_add_(1, buckets.flatten(), signed.flatten(1))

    def _in_order(self, device: torch.device) -> Tensor:
        """Which folded bucket each strided bucket reads: position stride·j mod m holds fold j."""
        inverse = pow(_coprime_stride(self.dim), -1, self.dim)
        return torch.arange(self.dim, device=device) * inverse % self.dim


def _fold(x: Float[Tensor, "... width"], dim: int) -> Float[Tensor, "... dim"]:
    """Sum of the entries whose index is equal modulo dim."""
    num_folds = -(-x.shape[-1] // dim)
    return pad(x, (0, num_folds * dim - x.shape[-1])).unflatten(-1, (num_folds, dim)).sum(-2)


def _coprime_stride(dim: int) -> int:
    """The smallest stride from 97 on that reaches every bucket."""
    return next(s for s in range(_STRIDE, _STRIDE + dim) if math.gcd(s, dim) == 1)
