"""Which entries of an account matrix are more than chance: each kind booked in two halves that chance made.

An entry is a sum over a kind's examples. Divide these in two at random, and the halves' entries differ by what chance
alone does: the variance of their difference is that of their sum. An entry is held against it after the mean of its row
(a loss that everybody lowers) and of its column (a kind that lowers all losses) are taken out, so that what is found is
between the two kinds.

Knows numbers only.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64
from scipy.stats import t as student

from ...errors import ConfigurationError
from ..change.compare import false_discovery_rate

_ROUNDS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Flows:
    """What each account did to each loss beyond its row and its column; the diagonal is 0 and has no test."""

    centred: Float64[np.ndarray, "kind account"]
    """Mean over runs, in nats; negative: it helped, more than it and the loss would let one think."""
    error: Float64[np.ndarray, " kind"]
    """Standard error by chance of a row's entries."""
    false_discovery: Float64[np.ndarray, "kind account"]
    """Benjamini and Hochberg's, over all entries off the diagonal; 1 on it."""

    def found(self, level: float = 0.05) -> list[tuple[int, int]]:
        """(Whose loss, who) of the entries beyond chance, the strongest first."""
        places = np.argwhere(self.false_discovery <= level)
        order = np.argsort(-np.abs(self.centred[tuple(places.T)]))
        return [(int(row), int(column)) for row, column in places[order]]


def flows_beyond_chance(halves: Float[np.ndarray, "run half kind account"]) -> Flows:
    """The flows of square account matrices, whose accounts were booked in two halves, in one run or several.

    Student's t with a standard error for each row, from all its halves' differences. ConfigurationError for another
    number of halves, or fewer than three kinds.
    """
    runs, parts, kinds, accounts = halves.shape
    if parts != 2 or kinds != accounts or kinds < 3:
        raise ConfigurationError(
            f"The matrices have the shape {halves.shape}; give [run, half, kind, account] with 2 halves and as many "
            "accounts as kinds, 3 or more."
        )
    centred = centre(halves.sum(1).mean(0))
    differences = np.stack([centre(own[0] - own[1]) for own in halves])
    away = ~np.eye(kinds, dtype=np.bool_)
    freedom = runs * (kinds * kinds - 3 * kinds + 1)  # entries off the diagonal, without the means taken out
    freedom_of_row = max(freedom / kinds, 1.0)
    square = (differences**2 * away).sum((0, 2)) / freedom_of_row
    error = np.sqrt(square / runs)
    scores = np.divide(np.abs(centred), error[:, None], out=np.zeros_like(centred), where=error[:, None] > 0)
    chances = 2 * student.sf(scores, freedom_of_row)
    rates = np.ones_like(centred)
    rates[away] = false_discovery_rate(chances[away])
    return Flows(centred=centred, error=error, false_discovery=rates)


def centre(matrix: Float[np.ndarray, "kind kind"]) -> Float64[np.ndarray, "kind kind"]:
    """The matrix without row and column means of its entries off the diagonal, found by alternating; 0 on it."""
    result = np.where(np.eye(len(matrix), dtype=np.bool_), np.nan, matrix).astype(np.float64)
    for _ in range(_ROUNDS):
        result = result - np.nanmean(result, axis=1, keepdims=True)
        result = result - np.nanmean(result, axis=0, keepdims=True)
    return np.nan_to_num(result)
