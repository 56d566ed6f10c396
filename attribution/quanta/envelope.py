"""Rank and frequency over many grains at once: the paper's envelope, and its slope.

Sizes of one clustering depend on how many clusters it has. Michaud et al. (arXiv 2303.13506, appendix on clusters and
rank–frequency) take thirty cluster counts from 10 to 1,500 of 10,000 tokens, the largest size that any of them has at
each rank, and fit a line over ranks 101 to 1,000. Here the clusterings are cuts of one tree, and the numbers keep their
proportion to the number of units. Knows a tree and its counts only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Int64

from ...errors import ConfigurationError
from ..clustering.tree import Tree
from .rank_frequency import fitted_line

_NUM_CUTS = 30
_FEWEST = 10
_MOST, _LAST = 0.15, 1.5
"""The finest cut has this many groups per unit; the fit ends at the rank of its number of groups over this."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Envelope:
    """The largest size at each rank over many cuts, and the line through its logarithms."""

    counts: Int64[np.ndarray, " cut"]
    """Groups of each cut, rising."""
    sizes: Int64[np.ndarray, " rank"]
    """Largest size of any cut at ranks 1, 2, …; falling."""
    first_rank: int
    last_rank: int
    """Ranks of the fit, both inclusive."""
    slope: float
    slope_low: float
    slope_high: float
    """95 % interval over resampled units; the tree is held fixed."""
    null_slopes: Float[np.ndarray, " null"]
    """The same over the same ranks for trees of rows without structure."""

    def sentence(self) -> str:
        """The result with its interval and its null, as plain words."""
        null = "no null was given"
        if len(self.null_slopes):
            null = f"nulls give {self.null_slopes.min():.2f} to {self.null_slopes.max():.2f}"
        return (
            f"The largest size at each rank over {len(self.counts)} cuts of {self.counts[0]} to {self.counts[-1]} "
            f"groups falls over ranks {self.first_rank} to {self.last_rank} to the power {self.slope:.2f} (95 % "
            f"interval {self.slope_low:.2f} to {self.slope_high:.2f}, resampling units); {null}."
        )


def fit_envelope(tree: Tree, *, null_trees: Sequence[Tree] = (), num_resamples: int = 200, seed: int = 0) -> Envelope:
    """The envelope over thirty cuts, ten groups to 0.15 per unit (or per the leaves there are), evenly in logarithm.

    Fitted by least squares over the ranks from a fifteenth of the finest cut's number of groups to two thirds of it:
    101 to 1,000 for 10,000 units, as in the paper. Null trees are cut alike. Raises ConfigurationError where that
    leaves fewer than 3 ranks.
    """
    total = int(tree.leaf_counts.sum())
    most = min(int(_MOST * total), tree.num_leaves)
    last = int(most / _LAST)
    first = last // 10 + 1
    if most <= _FEWEST or last - first < 2:
        raise ConfigurationError(f"{total} units in {tree.num_leaves} leaves are too few for the slope of an envelope")
    counts = np.unique(np.geomspace(_FEWEST, most, _NUM_CUTS).round().astype(np.int64))
    cuts = [tree.cut(int(count)) for count in counts]
    sizes = _largest(cuts, tree.leaf_counts)
    draws = np.random.default_rng(seed).multinomial(total, tree.leaf_counts / total, size=num_resamples)
    slopes = [fitted_line(_largest(cuts, draw), first, last)[0] for draw in draws]
    low, high = np.percentile(slopes, [2.5, 97.5])
    nulls = [
        fitted_line(_largest([null.cut(int(min(c, null.num_leaves))) for c in counts], null.leaf_counts), first, last)
        for null in null_trees
    ]
    return Envelope(
        counts=counts,
        sizes=sizes,
        first_rank=first,
        last_rank=last,
        slope=fitted_line(sizes, first, last)[0],
        slope_low=float(low),
        slope_high=float(high),
        null_slopes=np.array([slope for slope, _ in nulls], dtype=np.float64),
    )


def _largest(cuts: Sequence[np.ndarray], leaf_counts: Int[np.ndarray, " leaf"]) -> Int64[np.ndarray, " rank"]:
    """The largest size of any cut at each rank."""
    most = int(max(labels.max() for labels in cuts)) + 1
    found = np.zeros(most, dtype=np.int64)
    for labels in cuts:
        sizes = np.sort(np.bincount(labels, weights=leaf_counts).astype(np.int64))[::-1]
        found[: len(sizes)] = np.maximum(found[: len(sizes)], sizes)
    return found
