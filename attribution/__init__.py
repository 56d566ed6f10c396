"""The mathematics of gradient rows and quanta: arrays in, arrays out. No files, no Ray, no HTTP."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .blocks import Block as Block
    from .blocks import Coverage as Coverage
    from .blocks import find_blocks as find_blocks
    from .engine import Contributions as Contributions
    from .engine import GradientEngine as GradientEngine
    from .engine import GradientRows as GradientRows
    from .engine import gradient_rows as gradient_rows

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "blocks": ["Block", "Coverage", "find_blocks"],
        "engine": ["Contributions", "GradientEngine", "GradientRows", "gradient_rows"],
    },
)
