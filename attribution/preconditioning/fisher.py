"""Damped Fisher whitening of rows, from the rows themselves.

TRAK (arXiv 2303.14186, section 3) scores with (ΦᵀΦ)⁻¹ between two rows; here each row is multiplied by the −½th
power, which gives the same inner products. Rows are made unit before and after.
"""

import numpy as np
from jaxtyping import Float

from ..whitening import Whitener, WhiteningConfig


def fisher_whitener(rows: Float[np.ndarray, "unit dim"], damping: float = 0.1) -> Whitener:
    """The whitener by the second moment of these rows to the power −½; `damping` as in `WhiteningConfig`."""
    return Whitener.fit(rows, WhiteningConfig(strength="full", damping=damping))
