"""Nearest neighbours of a million rows: each is compared with the rows of micro-clusters near its own, not with all.

Micro-clusters point alike where they are parts of one skill, so a row's neighbours lie in micro-clusters whose mean
directions are near its own one's. All pairs of those are compared, in the processor's fastest precision; the best are
compared again in float32. Knows unit rows and their micro-clusters.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int64

from ...errors import ConfigurationError
from ..search.coarse import fastest_precision

_QUERIES = 1_024
_CANDIDATES = 16_384
_QUERY_STEP, _CANDIDATE_STEP = 64, 1_024
_SPARE = 6
"""Places kept beyond those that are asked for, while products are coarse."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LocalNeighbours:
    """Each row's nearest others, nearest first; −1 and −∞ where a row met fewer."""

    cosines: Float32[np.ndarray, "unit neighbour"]
    rows: Int64[np.ndarray, "unit neighbour"]
    num_pairs: int
    """Pairs of rows that were compared; the square of the number of rows is what an exact search compares."""


def local_neighbours(
    rows: Float32[np.ndarray, "unit dim"],
    groups: Int[np.ndarray, " unit"],
    *,
    num_neighbours: int = 10,
    least_cosine: float = 0.3,
    least_groups: int = 8,
) -> LocalNeighbours:
    """Approximate nearest neighbours of unit rows by cosine.

    `groups` are micro-clusters 0 … m − 1, none empty. Compared are the rows of all groups whose mean directions have
    a cosine of at least `least_cosine`, and those of the `least_groups` nearest in any case. Beside the rows memory
    holds them once more in the coarse precision (2 bytes for each number where the processor multiplies bfloat16).
    Deterministic. Raises ConfigurationError where lengths don't fit or a group is empty.
    """
    sizes = np.bincount(groups)
    if len(rows) != len(groups) or not len(rows) or not sizes.all():
        raise ConfigurationError(f"{len(rows)} rows need as many groups, numbered 0 to m - 1, none of them empty")
    order = np.argsort(groups, kind="stable")
    starts = np.concatenate([[0], np.cumsum(sizes)])
    coarse, means = _coarse(rows, order, starts)
    near = _near_groups(means, least_cosine, least_groups)
    kept = min(num_neighbours + 1 + _SPARE, len(rows))
    cosines = np.full((len(rows), num_neighbours), -np.inf, dtype=np.float32)
    places = np.full((len(rows), num_neighbours), -1, dtype=np.int64)
    search = _Search(coarse, kept)
    num_pairs = 0
    for group, others in enumerate(near):
        candidates = _members(starts, others)
        num_pairs += int(sizes[group]) * len(candidates)
        for first in range(int(starts[group]), int(starts[group + 1]), _QUERIES):
            last = min(first + _QUERIES, int(starts[group + 1]))
            _settle(rows, order, first, search.best(first, last, candidates), cosines, places)
    return LocalNeighbours(cosines=cosines, rows=places, num_pairs=num_pairs)


def _coarse(rows: np.ndarray, order: np.ndarray, starts: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    """Rows in the order of their groups, in the fastest precision, and each group's mean direction."""
    dtype = torch.bfloat16 if fastest_precision() == "bfloat16" else torch.float32
    coarse = torch.empty(rows.shape, dtype=dtype)
    means = np.empty((len(starts) - 1, rows.shape[1]), dtype=np.float32)
    for group in range(len(means)):
        part = rows[order[starts[group] : starts[group + 1]]]
        coarse[int(starts[group]) : int(starts[group + 1])] = torch.from_numpy(part)
        means[group] = part.sum(axis=0)
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return coarse, means


def _near_groups(means: np.ndarray, least_cosine: float, least_groups: int) -> list[np.ndarray]:
    """For each group those whose rows are compared with its own, itself included, in order."""
    found = []
    for start in range(0, len(means), 1_024):
        for cosines in means[start : start + 1_024] @ means.T:
            nearest = np.argpartition(-cosines, min(least_groups, len(means)) - 1)[:least_groups]
            found.append(np.union1d(np.flatnonzero(cosines >= least_cosine), nearest))
    return found


def _members(starts: np.ndarray, groups: np.ndarray) -> torch.Tensor:
    """Sorted rows that belong to these groups."""
    return torch.cat([torch.arange(int(starts[group]), int(starts[group + 1])) for group in groups])


class _Search:
    """Best coarse products of sorted rows with sorted rows.

    Candidates are gathered into one buffer, and both sides of a product are rounded up, so that there are few shapes:
    each shape that is new to the processor's library costs a kernel, which it keeps.
    """

    def __init__(self, coarse: torch.Tensor, kept: int) -> None:
        self._coarse, self._kept = coarse, kept
        self._buffer = torch.zeros(min(_CANDIDATES, len(coarse)), coarse.shape[1], dtype=coarse.dtype)

    def best(self, first: int, last: int, candidates: torch.Tensor) -> Int64[np.ndarray, "query kept"]:
        """The candidates with the greatest products with each row from `first` on; −1 where there are fewer."""
        queries = self._coarse[first : first + _rounded(last - first, _QUERY_STEP)]
        values = torch.full((last - first, self._kept), -torch.inf)
        places = torch.full((last - first, self._kept), -1)
        for columns in candidates.split(len(self._buffer)):
            torch.index_select(self._coarse, 0, columns, out=self._buffer[: len(columns)])
            others = self._buffer[: _rounded(len(columns), _CANDIDATE_STEP)]
            products = (queries @ others.T)[: last - first, : len(columns)].float()
            top = products.topk(min(self._kept, len(columns)), dim=1)
            values = torch.cat([values, top.values], dim=1)
            places = torch.cat([places, columns[top.indices]], dim=1)
            best = values.topk(self._kept, dim=1).indices
            values, places = values.gather(1, best), places.gather(1, best)
        return places.numpy()


def _rounded(number: int, step: int) -> int:
    return -(-number // step) * step


def _settle(
    rows: np.ndarray, order: np.ndarray, first: int, found: np.ndarray, cosines: np.ndarray, places: np.ndarray
) -> None:
    """Exact cosines of the rows found; the row itself is left out, the best are written where they belong."""
    own = order[first : first + len(found)]
    names = np.where(found >= 0, order[found], -1)
    for start in range(0, len(found), 64):
        mine, theirs = own[start : start + 64], names[start : start + 64]
        exact = np.einsum("qd,qkd->qk", rows[mine], rows[np.maximum(theirs, 0)])
        exact[(theirs < 0) | (theirs == mine[:, None])] = -np.inf
        best = np.lexsort((theirs, -exact), axis=1)[:, : cosines.shape[1]]
        scores = np.take_along_axis(exact, best, axis=1)
        cosines[mine, : best.shape[1]] = scores
        places[mine, : best.shape[1]] = np.where(np.isfinite(scores), np.take_along_axis(theirs, best, axis=1), -1)


def recall(found: LocalNeighbours, rows: Float[np.ndarray, "unit dim"], sampled: Int[np.ndarray, " sample"]) -> float:
    """Of the exact nearest neighbours of some rows, the share that was found; compares them with all rows."""
    num_neighbours = found.rows.shape[1]
    hits = 0
    for start in range(0, len(sampled), 64):
        part = sampled[start : start + 64]
        products = rows[part] @ rows.T
        products[np.arange(len(part)), part] = -np.inf
        exact = np.argpartition(-products, num_neighbours - 1, axis=1)[:, :num_neighbours]
        hits += sum(len(np.intersect1d(a, b)) for a, b in zip(exact, found.rows[part], strict=True))
    return hits / (len(sampled) * num_neighbours)
