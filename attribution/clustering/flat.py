"""What clusterers share: checks of their rows, and rows that they leave to nobody."""

import numpy as np
from jaxtyping import Float, Int, Int64

from ...errors import ConfigurationError
from ..whitening import unit_rows
from .base import group_sums

_CHUNK = 8_192
_UNIT = 1e-5
_LARGE = 2**30


def checked_rows(rows: Float[np.ndarray, "unit dim"]) -> Float[np.ndarray, "unit dim"]:
    """Unit rows, float32, as a new array; one of more than 1 GiB that is that already comes back itself.

    Raises ConfigurationError for zero or non-finite rows, or no rows.
    """
    if len(rows) == 0:
        raise ConfigurationError("no rows to cluster; collect at least one valid row")
    if rows.dtype == np.float32 and rows.nbytes > _LARGE:
        squares = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
        if np.abs(squares - 1).max() < _UNIT:
            return rows
    return unit_rows(rows)


def claim_unclaimed(
    rows: Float[np.ndarray, "unit dim"], labels: Int[np.ndarray, " unit"]
) -> Int64[np.ndarray, " unit"]:
    """Labels with every −1 replaced by that of the nearest mean direction; all 0 where every label is −1."""
    claimed = labels >= 0
    if not claimed.any():
        return np.zeros(len(labels), dtype=np.int64)
    names, codes = np.unique(labels[claimed], return_inverse=True)
    sums = group_sums(rows[claimed], codes, len(names))
    centroids = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    found = labels.astype(np.int64)
    unclaimed = np.flatnonzero(~claimed)
    for start in range(0, len(unclaimed), _CHUNK):
        part = unclaimed[start : start + _CHUNK]
        found[part] = names[(rows[part] @ centroids.T).argmax(axis=1)]
    return found
