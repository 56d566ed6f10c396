"""Two-sided projection: Pᵀ G Q with random signs, k × k numbers per block.

Unbiased like the tensor sketch, but its error does not fall where examples share a side (equal inputs, or equal
gradients at the output): see docs/projections.md. A factor as wide as its axis is the identity, so a large k gives
the full gradient: `TwoSided.full()`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from ...errors import ConfigurationError
from ..randomness import random_signs


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoSided:
    """Rows of side² numbers per block, fewer where an axis is narrower than `side`."""

    side: int
    """Width of each factor (k); at least 1."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ConfigurationError(f"A two-sided projection needs a side of at least 1, got {self.side}.")

    @classmethod
    def full(cls) -> "TwoSided":
        """No projection: rows are the gradients themselves."""
        return cls(side=2**31)

    def block(
        self, name: str, *, in_width: int, out_width: int, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> "TwoSidedBlock":
        """The factors of one block, drawn from (seed, name, axis)."""

        def factor(axis: str, width: int) -> Tensor:
            if self.side >= width:
                return torch.eye(width, dtype=dtype, device=device)
            signs = random_signs(self.seed, name, axis, width * self.side).reshape(width, self.side)
            scaled: Tensor = torch.from_numpy(signs).to(device, dtype) / self.side**0.5
            return scaled

        in_factor, out_factor = factor("in", in_width + bias), factor("out", out_width)
        return TwoSidedBlock(
            dim=in_factor.shape[1] * out_factor.shape[1], in_factor=in_factor, out_factor=out_factor, bias=bias
        )

    def describe(self) -> dict[str, Any]:
        """The map as JSON."""
        return {"kind": "two-sided", "side": self.side, "seed": self.seed}


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoSidedBlock:
    """The two-sided projection of one block."""

    dim: int
    in_factor: Float[Tensor, "in_and_bias k_in"]
    out_factor: Float[Tensor, "out k_out"]
    bias: bool

    def inputs(self, x: Float[Tensor, "example position in"]) -> Tensor:
        """[x, 1] Q."""
        return (pad(x, (0, 1), value=1.0) if self.bias else x) @ self.in_factor

    def outputs(self, g: Float[Tensor, "example position out"]) -> Tensor:
        """g P."""
        return g @ self.out_factor

    def combine(self, inputs: Tensor, outputs: Tensor) -> Float[Tensor, "example dim"]:
        """Pᵀ G Q, flattened with the output side first."""
        return (outputs.transpose(1, 2) @ inputs).flatten(1)

    def project(self, gradient: Float[Tensor, "example out in_and_bias"]) -> Float[Tensor, "example dim"]:
        """Pᵀ G Q of a gradient formed in full."""
        return (self.out_factor.T @ gradient @ self.in_factor).flatten(1)
