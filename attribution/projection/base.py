"""What a projection is: for each block (the weight, and bias, of one linear map) two factors and how they combine.

The gradient of example n with respect to a linear map's weight is Gₙ = Σₜ gₙₜ xₙₜᵀ, with x the map's input and g the
loss's gradient at its output. A bias counts as one more input that is always 1. A factored projection compresses
x in the forward pass and g in the backward pass, and combines the two, without ever forming Gₙ.
"""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class BlockProjection(Protocol):
    """The projection of one block's gradient, [out, in] → [dim]. Inner products are unbiased over the seed."""

    @property
    def dim(self) -> int:
        """Numbers that it gives per row."""
        ...

    def inputs(self, x: Float[Tensor, "example position in"]) -> Tensor:
        """The compressed input, kept from the forward pass; x is without the bias's 1."""
        ...

    def outputs(self, g: Float[Tensor, "example position out"]) -> Tensor:
        """The compressed gradient at the output."""
        ...

    def combine(self, inputs: Tensor, outputs: Tensor) -> Float[Tensor, "example dim"]:
        """The projected gradient, summed over positions."""
        ...

    def project(self, gradient: Float[Tensor, "example out in_and_bias"]) -> Float[Tensor, "example dim"]:
        """The same map applied to gradients that were formed in full: the oracle of the tests."""
        ...


@runtime_checkable
class Projection(Protocol):
    """A seeded random map from gradients to rows; the same on every worker."""

    def block(
        self, name: str, *, in_width: int, out_width: int, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> BlockProjection:
        """The projection of one block; `in_width` is without the bias."""
        ...

    def describe(self) -> dict[str, Any]:
        """Everything that fixes the map, as JSON: rows are comparable exactly where this is equal."""
        ...
