"""The best rows of each query so far: coarse products sift, exact ones decide.

A pair (row, query) waits with an interval that its exact score lies in, until the floor of its query rises above it or
the pair is settled: its score computed in float64 from the row's own numbers, then rounded to float32. Arrays only.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64

from ...errors import ConfigurationError

_GATHERED = 4_096
"""Rows that are gathered together to be scored: some megabytes."""
_PIECE = 128
"""Rows that are scored together: few enough to stay in cache in float64."""
_LEAST_WAITING = 8_192
_MAX_WAITING = 1 << 21
"""Pairs that wait before the floors are raised, at least and at most; the latter are about 100 MB."""


@dataclass(slots=True, kw_only=True)
class Pairs:
    """Pairs that wait; one line each."""

    query: Int64[np.ndarray, " pair"]
    row: Int64[np.ndarray, " pair"]
    """The row's number."""
    tile: Int64[np.ndarray, " pair"]
    place: Int64[np.ndarray, " pair"]
    """Of the row in its tile."""
    low: Float64[np.ndarray, " pair"]
    high: Float64[np.ndarray, " pair"]
    """The exact score, times the query's scale, is in [low, high]."""

    def __len__(self) -> int:
        return len(self.query)

    def take(self, which: np.ndarray) -> "Pairs":
        """Some of them, by mask or by position."""
        places = np.flatnonzero(which) if which.dtype == bool else which
        return Pairs(**{f.name: getattr(self, f.name).take(places) for f in fields(self)})


def joined(parts: list[Pairs]) -> Pairs:
    """All pairs of several parts; at least one part."""
    return Pairs(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Pairs)})


class Best:
    """The k best rows of each query among those seen; see the module. Not safe for several threads at once."""

    def __init__(
        self,
        queries: Float32[np.ndarray, "query dim"],
        scale: Float64[np.ndarray, " query"],
        num_neighbours: int,
        *,
        borrowed_bytes: int = 1 << 30,
        num_threads: int = 1,
    ) -> None:
        self._queries: Float64[np.ndarray, "query dim"] = queries.astype(np.float64)
        self._scale, self._k, self._budget = scale, num_neighbours, borrowed_bytes
        self._num_threads = num_threads
        self.floor: Float64[np.ndarray, " query"] = np.full(len(queries), -np.inf)
        """Rows whose exact score, times the query's scale, is below this are not among the k best."""
        self.num_settled = 0
        """How many pairs were settled."""
        self._parts: list[Pairs] = []
        self._tiles: list[np.ndarray] = []
        self._num_waiting = self._borrowed = 0
        self._tighten_at = self._least = max(_LEAST_WAITING, 4 * num_neighbours * len(queries))
        self._scores = np.full((len(queries), num_neighbours), -np.inf, np.float32)
        self._rows = np.full((len(queries), num_neighbours), np.iinfo(np.int64).max)

    def add(self, tile: Float[np.ndarray, "tile dim"], pairs: Pairs) -> None:
        """Pairs of one tile's rows; `tile` is kept until they are settled. Their `tile` is set here."""
        if not len(pairs):
            return
        pairs.tile[:] = len(self._tiles)
        self._tiles.append(tile)
        self._parts.append(pairs)
        self._num_waiting += len(pairs)
        self._borrowed += tile.nbytes
        if self._num_waiting > self._tighten_at or self._borrowed > self._budget:
            self._tighten()
            if self._num_waiting > _MAX_WAITING or self._borrowed > self._budget:
                self._settle()
            self._tighten_at = max(self._least, 2 * self._num_waiting)

    def finish(self) -> tuple[Float32[np.ndarray, "query neighbour"], Int64[np.ndarray, "query neighbour"]]:
        """Scores and rows, best first, equal scores by row number; as many as there were rows, k at most."""
        if self._parts:
            self._tighten()
            self._settle()
        found = int(np.isfinite(self._scores[:1]).sum()) if len(self._scores) else 0
        return self._scores[:, :found], self._rows[:, :found]

    def _tighten(self) -> None:
        """Raise the floors by what waits, and drop what is below them now."""
        pairs = joined(self._parts)
        self._raise_floor(pairs.query, pairs.low)
        self._parts = [pairs.take(pairs.high >= self.floor[pairs.query])]
        self._num_waiting = len(self._parts[0])

    def _raise_floor(self, query: np.ndarray, low: np.ndarray) -> None:
        """A query's floor is the k-th greatest of its settled scores and these lower bounds, less a rounding.

        One sort of whole numbers, a query's number above a value's bits, finds all of them.
        """
        settled = self._scores.astype(np.float64) * self._scale[:, None]
        there = np.isfinite(settled)
        queries = np.concatenate([query, np.nonzero(there)[0]])
        keys = np.sort((queries << 32) | _ordered(np.concatenate([low, settled[there]])))
        ends = np.cumsum(np.bincount(queries, minlength=len(self._scale)))
        known = np.diff(ends, prepend=0) >= self._k
        kth = _value(keys[ends[known] - self._k])
        below = kth - abs(kth) * 2.0**-22 - self._scale[known] * 2.0**-148  # scores that round alike
        self.floor[known] = np.maximum(self.floor[known], below)

    def _settle(self) -> None:
        """Score what waits: first each query's most promising, which raises the floors, then what is still in."""
        pairs = self._parts[0]
        order = np.lexsort((-pairs.high, pairs.query))
        starts = np.cumsum(np.bincount(pairs.query, minlength=len(self._scale)))
        rank = np.empty(len(pairs), np.int64)
        rank[order] = np.arange(len(pairs)) - np.concatenate([[0], starts[:-1]])[pairs.query[order]]
        first = pairs.take(rank < self._k)
        first_scores = self._exact(first)
        self._raise_floor(first.query, first_scores * self._scale[first.query])
        rest = pairs.take((rank >= self._k) & (pairs.high >= self.floor[pairs.query]))
        rest_scores = self._exact(rest)
        self._merge(joined([first, rest]), np.concatenate([first_scores, rest_scores]))
        self._parts, self._tiles, self._num_waiting, self._borrowed = [], [], 0, 0

    def _exact(self, pairs: Pairs) -> Float64[np.ndarray, " pair"]:
        """Inner products in float64: each product of a float16 and a float32 is exact, their sum nearly so."""
        scores = np.empty(len(pairs))
        order = np.argsort(pairs.query, kind="stable")
        parts = [order[start : start + _GATHERED] for start in range(0, len(order), _GATHERED)]
        with ThreadPoolExecutor(self._num_threads) as pool:
            for part, found in zip(parts, pool.map(lambda part: self._scored(pairs.take(part)), parts), strict=True):
                scores[part] = found
        self.num_settled += len(pairs)
        scaled = scores * self._scale[pairs.query]
        if not ((pairs.low <= scaled) & (scaled <= pairs.high)).all():
            raise ConfigurationError(
                "this machine's bfloat16 products err by more than IEEE rounding allows; ask for precision='float32'"
            )
        return scores

    def _scored(self, pairs: Pairs) -> Float64[np.ndarray, " pair"]:
        """The same for pairs in the order of their queries, few enough to gather their rows."""
        scores = np.empty(len(pairs))
        rows = self._gathered(pairs.tile, pairs.place)
        cuts = np.flatnonzero(np.diff(pairs.query, prepend=-1, append=len(self._scale)))
        for first, last in pairwise(cuts):
            for low in range(first, last, _PIECE):
                piece = slice(low, min(low + _PIECE, last))
                wide = torch.from_numpy(rows[piece]).float().double().numpy()
                scores[piece] = np.einsum("ij,j->i", wide, self._queries[pairs.query[first]])
        return scores

    def _gathered(self, tile: np.ndarray, place: np.ndarray) -> Float[np.ndarray, "pair dim"]:
        rows = np.empty((len(tile), self._queries.shape[1]), np.result_type(*{t.dtype for t in self._tiles}))
        order = np.argsort(tile, kind="stable")
        cuts = np.flatnonzero(np.diff(tile[order], prepend=-1, append=len(self._tiles)))
        for first, last in pairwise(cuts):
            part = order[first:last]
            rows[part] = self._tiles[tile[part[0]]][place[part]]
        return rows

    def _merge(self, pairs: Pairs, scores: Float64[np.ndarray, " pair"]) -> None:
        """Put settled pairs among the k best."""
        rounded = scores.astype(np.float32)
        order = np.lexsort((pairs.row, -rounded, pairs.query))
        query = pairs.query[order]
        ends = np.cumsum(np.bincount(query, minlength=len(self._scale)))
        for number, part in enumerate(np.split(order, ends[:-1])):
            if len(part):
                both = np.concatenate([self._scores[number], rounded[part]])
                rows = np.concatenate([self._rows[number], pairs.row[part]])
                chosen = np.lexsort((rows, -both))[: self._k]
                self._scores[number], self._rows[number] = both[chosen], rows[chosen]


def _ordered(values: Float64[np.ndarray, " value"]) -> Int64[np.ndarray, " value"]:
    """Whole numbers of 32 bits in the order of the values, which are rounded down to float32."""
    near = values.astype(np.float32)
    near = np.where(near > values, np.nextafter(near, np.float32(-np.inf)), near)
    bits = near.view(np.int32)
    return (bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))).astype(np.int64) + (1 << 31)


def _value(keys: Int64[np.ndarray, " value"]) -> Float64[np.ndarray, " value"]:
    """The values of `_ordered`, whatever stands above their 32 bits."""
    bits = ((keys & 0xFFFFFFFF) - (1 << 31)).astype(np.int32)
    return (bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))).view(np.float32).astype(np.float64)
