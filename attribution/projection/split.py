"""How many of a row's D numbers each block gets.

The variance of an inner product under a sketch is about Σ_b ‖G_b‖⁴ / m_b, with G_b a gradient's block and m_b its
numbers. Under Σ_b m_b = D it is least at m_b ∝ ‖G_b‖², and then equals that of one sketch of the whole gradient: so
shares of the squared norm keep blocks apart at no price. benchmarks/projection.py measures it.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ...errors import ConfigurationError

LEAST = 8
"""Numbers that every block gets, so that none is lost from view."""


def split_dim(dim: int, shares: Float[np.ndarray, " block"], sizes: Sequence[int]) -> tuple[int, ...]:
    """Numbers per block: about in proportion to `shares`, at least LEAST, at most the block's own `sizes`.

    They add up to at most `dim`: lengths are products of 2, 3 and 5, which Fourier transforms are quick for (elsewhere
    they take up to ten times as long). Raises ConfigurationError where `dim` does not suffice, and for shares that are
    negative, not finite, or all zero.
    """
    shares = np.asarray(shares, np.float64)
    if len(shares) != len(sizes) or not np.isfinite(shares).all() or (shares < 0).any() or not shares.sum() > 0:
        raise ConfigurationError(f"Shares of {len(sizes)} blocks must be positive numbers, got {shares.tolist()}.")
    least = np.minimum(LEAST, np.asarray(sizes))
    if least.sum() > dim:
        raise ConfigurationError(
            f"--dim {dim} leaves less than {LEAST} numbers for each of the {len(sizes)} blocks; give at least "
            f"{int(least.sum())}, better {64 * len(sizes)}, or choose fewer --blocks."
        )
    wanted = _fill(dim, shares / shares.sum(), least, np.asarray(sizes))
    found = [size if n >= size else _smooth(int(n)) for n, size in zip(wanted, sizes, strict=True)]
    while True:  # what rounding left over goes where most is missing and the next length fits
        left = dim - sum(found)
        steps = [min(_smooth_above(n), size) - n for n, size in zip(found, sizes, strict=True)]
        fitting = [i for i, step in enumerate(steps) if 0 < step <= left]
        if not fitting:
            return tuple(found)
        chosen = max(fitting, key=lambda i: (wanted[i] - found[i], -i))
        found[chosen] += steps[chosen]


def _fill(dim: int, shares: np.ndarray, least: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Real numbers between bounds, in proportion to shares where no bound is met, that add up to dim if they can."""
    if most.sum() <= dim:
        return most.astype(np.float64)
    low, high = 0.0, float(dim) / max(shares[shares > 0].min(), 1e-12) + 1
    for _ in range(200):
        scale = (low + high) / 2
        low, high = (scale, high) if np.clip(scale * shares, least, most).sum() < dim else (low, scale)
    return np.asarray(np.clip(low * shares, least, most))


def _smooth(count: int) -> int:
    """The largest product of 2, 3 and 5 that is no larger."""
    return max(
        2**a * rest
        for b in range(math.ceil(math.log(count + 1, 3)) + 1)
        for c in range(math.ceil(math.log(count + 1, 5)) + 1)
        if (rest := 3**b * 5**c) <= count
        for a in [int(math.log2(count / rest))]
    )


def _smooth_above(count: int) -> int:
    """The smallest product of 2, 3 and 5 that is larger."""
    return next(n for n in range(count + 1, 2 * count + 2) if _smooth(n) == n)
