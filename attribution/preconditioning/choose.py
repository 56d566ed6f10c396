"""Preconditioners by name, as a command line gives them.

Two act before the projection and are part of it; the others act on finished rows.
"""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ...errors import ConfigurationError
from ..projection.base import Projection
from ..whitening import unit_rows
from .factors import KroneckerFactors
from .fisher import fisher_whitener
from .kronecker import Kronecker
from .second_moment import RankOne, SecondMoment

PRECONDITIONERS = {
    "none": "rows as they are",
    "unit": "rows divided by their norms",
    "fisher": "rows times their damped second moment to the power −½, then made unit",
    "kfac": "Kronecker-factored whitening before the projection; needs factors from a sample",
    "second-moment": "division by the root of Adam's second moment before the projection; needs an optimiser's state",
}
"""Names, and what each does."""

Rows = Float[np.ndarray, "unit dim"]


def precondition_projection(
    name: str,
    base: Projection,
    *,
    factors: KroneckerFactors | None = None,
    moments: Mapping[str, Tensor | RankOne] | None = None,
    damping: float = 0.1,
) -> Projection:
    """The projection with the named preconditioner in it; `base` itself for those that act on rows.

    Raises ConfigurationError for other names, and where what it needs is not given.
    """
    _require_name(name)
    if name == "kfac":
        if factors is None:
            raise ConfigurationError("--precondition kfac needs factors; measure them on a sample with FactorMeter.")
        return Kronecker(base=base, factors=factors, damping=damping)
    if name == "second-moment":
        if moments is None:
            raise ConfigurationError(
                "--precondition second-moment needs the optimiser's second moment; this checkpoint has none."
            )
        return SecondMoment(base=base, moments=moments)
    return base


def precondition_rows(name: str, sample: Rows, *, damping: float = 0.1) -> Callable[[Rows], Rows]:
    """What the named preconditioner does with finished rows: the identity for those that act before the projection.

    Only `fisher` looks at the sample: valid rows, at least one. Raises ConfigurationError for other names.
    """
    _require_name(name)
    if name == "fisher":
        return fisher_whitener(sample, damping).apply
    return unit_rows if name == "unit" else lambda rows: rows


def _require_name(name: str) -> None:
    if name not in PRECONDITIONERS:
        raise ConfigurationError(f"--precondition is {name!r}; accepted are {', '.join(PRECONDITIONERS)}.")
