"""Kronecker-factored whitening before any projection: B^−½ G A^−½ in place of G.

Knows projections and factors; not how they were measured (measure.py).
"""

from dataclasses import dataclass
from typing import Any

import torch

from ...errors import ConfigurationError
from ..projection.base import BlockProjection, Projection
from .factors import KroneckerFactors
from .scaled import scaled


@dataclass(frozen=True, slots=True, kw_only=True)
class Kronecker:
    """A projection of whitened gradients.

    A two-sided projection takes B^−½ and A^−½ into its factors, so that a row costs nothing more; before any other
    one, values are multiplied by them (`ScaledBlock` says what that costs). Making a block takes the eigenvectors
    of both factors.
    """

    base: Projection
    factors: KroneckerFactors
    damping: float = 0.1
    """Added to each eigenvalue of a factor, as a multiple of its mean eigenvalue; above 0."""

    def __post_init__(self) -> None:
        if not 0 < self.damping < float("inf"):
            raise ConfigurationError(f"damping is {self.damping}; it must be above 0 and finite.")

    def block(
        self, name: str, *, number: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
    ) -> BlockProjection:
        """The whitened block; ConfigurationError where the factors lack it."""
        inner = self.base.block(name, number=number, shape=shape, dtype=dtype, device=device)
        rows, columns = (s.to(device, dtype) for s in self.factors.scales(name, shape, damping=self.damping))
        return scaled(inner, rows=rows, columns=columns)

    def describe(self) -> dict[str, Any]:
        """The map as JSON, with a digest of the factors."""
        return {
            "kind": "kronecker",
            "damping": self.damping,
            "factors": self.factors.digest,
            "base": self.base.describe(),
        }
