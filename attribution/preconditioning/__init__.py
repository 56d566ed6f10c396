"""Preconditioners: what gradients or rows are multiplied by before they are compared."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .choose import PRECONDITIONERS as PRECONDITIONERS
    from .choose import precondition_projection as precondition_projection
    from .choose import precondition_rows as precondition_rows
    from .factors import KroneckerFactors as KroneckerFactors
    from .fisher import fisher_whitener as fisher_whitener
    from .kronecker import Kronecker as Kronecker
    from .measure import FactorMeter as FactorMeter
    from .optimizer import second_moments as second_moments
    from .second_moment import RankOne as RankOne
    from .second_moment import SecondMoment as SecondMoment
    from .second_moment import block_moments as block_moments
    from .second_moment import factorisation_error as factorisation_error

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "choose": ["PRECONDITIONERS", "precondition_projection", "precondition_rows"],
        "factors": ["KroneckerFactors"],
        "fisher": ["fisher_whitener"],
        "kronecker": ["Kronecker"],
        "measure": ["FactorMeter"],
        "optimizer": ["second_moments"],
        "second_moment": ["RankOne", "SecondMoment", "block_moments", "factorisation_error"],
    },
)
