"""Projections: the seeded random maps from gradients to rows."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .base import BlockProjection as BlockProjection
    from .base import Projection as Projection
    from .dense import Dense as Dense
    from .describe import from_description as from_description
    from .identity import Identity as Identity
    from .pair import Pair as Pair
    from .pair import member_columns as member_columns
    from .sjlt import SparseJL as SparseJL
    from .tensor_sketch import TensorSketch as TensorSketch
    from .two_sided import TwoSided as TwoSided
    from .wide import Wide as Wide

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": ["BlockProjection", "Projection"],
        "dense": ["Dense"],
        "describe": ["from_description"],
        "identity": ["Identity"],
        "pair": ["Pair", "member_columns"],
        "sjlt": ["SparseJL"],
        "tensor_sketch": ["TensorSketch"],
        "two_sided": ["TwoSided"],
        "wide": ["Wide"],
    },
)
