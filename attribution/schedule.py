"""In which order token-loss units meet the model: many rows from one forward pass, few wasted positions.

Units of one window share a forward pass, and each backward pass serves one unit of every window in the batch.
Positions after a token carry no gradient, so units are grouped by the prefix that they need. Knows numbers only; the
same units give the same batches, whoever runs them.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

_GRAIN = 64
"""Prefixes are cut at multiples of this many tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledBatch:
    """Windows that go through the model together."""

    length: int
    """Tokens of each window that are needed: the prefix."""
    window: Int[np.ndarray, " example"]
    """Which window each example of the batch is."""
    unit: Int[np.ndarray, " unit"]
    """The units that are served, as indices into what was scheduled."""
    example: Int[np.ndarray, " unit"]
    """Which example of the batch each unit belongs to."""


def schedule_tokens(
    window: Int[np.ndarray, " unit"], position: Int[np.ndarray, " unit"], *, batch_tokens: int
) -> list[ScheduledBatch]:
    """Batches of at most `batch_tokens` padded positions (or one window, if that is longer).

    `position[u]` is the predicted token's place in its window (from 1): the prefix up to it has as many tokens as its
    place, and the token itself is only looked up; a batch's `length` counts it in.
    """
    length = -(-(position.astype(np.int64) + 1) // _GRAIN) * _GRAIN
    keys, inverse, counts = np.unique(
        np.stack([length, window], axis=1), axis=0, return_inverse=True, return_counts=True
    )
    inverse = inverse.reshape(-1)
    order = np.lexsort((keys[:, 1], -counts, keys[:, 0]))
    batches = []
    start = 0
    while start < len(order):
        prefix = int(keys[order[start], 0])
        size = max(1, batch_tokens // prefix)
        chosen = order[start : start + size]
        chosen = chosen[keys[chosen, 0] == prefix]
        place = np.full(len(keys), -1)
        place[chosen] = np.arange(len(chosen))
        unit = np.flatnonzero(place[inverse] >= 0)
        batches.append(
            ScheduledBatch(
                length=int(position[unit].max()) + 1,
                window=keys[chosen, 1],
                unit=unit,
                example=place[inverse][unit],
            )
        )
        start += len(chosen)
    return batches
