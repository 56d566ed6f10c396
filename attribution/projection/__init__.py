"""Projections: the seeded random maps from gradients to rows."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .base import BlockProjection as BlockProjection
    from .base import Projection as Projection
    from .tensor_sketch import TensorSketch as TensorSketch
    from .two_sided import TwoSided as TwoSided

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": ["BlockProjection", "Projection"],
        "tensor_sketch": ["TensorSketch"],
        "two_sided": ["TwoSided"],
    },
)
