"""The exact scan: the rows with the greatest inner product with each query, among all rows, read once.

Rows stream through in tiles. A coarse product in the processor's fastest precision carries a proved bound of its error
(`coarse`), and only rows whose bound reaches a query's k-th best are scored exactly (`best`). So the
answer is exact, whatever the precision, the number of threads, the chunks and their order. Knows arrays; where they lie
(memory, a map of a file, a stream) is the caller's affair.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64

from ...errors import ConfigurationError
from .best import Best, Pairs
from .coarse import Coarse, Precision, Workspace, rows_per_tile
from .tiles import Chunk as Chunk
from .tiles import cut, each_tile


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """The best rows of each query, best first; equal scores by row number."""

    scores: Float32[np.ndarray, "query neighbour"]
    """Inner products, correct to float64's rounding before they are rounded to float32."""
    rows: Int64[np.ndarray, "query neighbour"]
    num_rows: int
    """How many rows could answer."""
    num_settled: int
    """How many pairs of a row and a query were scored exactly; the rest was ruled out by the bound."""


def scan(
    chunks: Iterable[Chunk],
    queries: Float[np.ndarray, "query dim"],
    num_neighbours: int,
    *,
    precision: Precision = "auto",
    num_threads: int | None = None,
) -> Neighbours:
    """The `num_neighbours` rows with the greatest inner product with each query; fewer where there are fewer rows.

    Queries are taken as float32. Memory: a few tiles per thread, 100 MB of candidates, and references to the chunks
    that these lie in, 1 GiB at most (nothing where chunks map files). `precision` and `num_threads` change the time and
    not the answer; see `each_tile` for threads. Raises ConfigurationError for widths that differ, fewer than one
    neighbour, a query that is not finite, float32 rows whose norm overflows.
    """
    if num_neighbours < 1:
        raise ConfigurationError(f"num_neighbours is {num_neighbours}; it must be at least 1")
    asked = np.ascontiguousarray(queries, dtype=np.float32)
    coarse = Coarse(asked, precision)
    best = Best(asked, coarse.scale, num_neighbours, num_threads=num_threads or torch.get_num_threads())
    work = _Scan(coarse, best, num_neighbours)
    tile_rows = rows_per_tile(asked.shape[1], len(asked))
    each_tile(
        cut(chunks, asked.shape[1], tile_rows),
        lambda: work.of_one_thread(coarse.workspace(tile_rows)),
        num_threads,
    )
    scores, rows = work.best.finish()
    return Neighbours(scores=scores, rows=rows, num_rows=work.num_rows, num_settled=work.best.num_settled)


class _Scan:
    """One scan: multiplies tiles, and hands in what passes."""

    def __init__(self, coarse: Coarse, best: Best, num_neighbours: int) -> None:
        self.best, self.num_rows = best, 0
        self._coarse, self._k = coarse, num_neighbours
        self._writing = Lock()

    def of_one_thread(self, workspace: Workspace) -> Callable[[Chunk], None]:
        """What one thread does with a tile."""
        return lambda tile: self._multiply(tile, workspace)

    def _multiply(self, tile: Chunk, workspace: Workspace) -> None:
        shifted = tile.longest is not None and self._coarse.shifts(tile.rows)
        fine, longest = self._shifted(tile, workspace) if shifted else self._loaded(tile, workspace)
        num_rows, num_fine = len(fine), int(fine.sum())
        if num_fine == 0:
            return
        out = np.flatnonzero(~fine)
        workspace.multiply(num_rows, out)
        error = self._coarse.error(longest, shifted=shifted)
        positions = workspace.passing(num_rows, self._coarse.keys(self.best.floor - error))
        if num_fine >= self._k and len(positions) > 4 * self._k * self._coarse.num_queries:
            kth = workspace.greatest(num_rows, self._k, out)  # in the first tiles the floors are low: the tile's own
            floor = np.maximum(self.best.floor, kth - abs(kth) * self._coarse.rounding - error)
            positions = workspace.passing(num_rows, self._coarse.keys(floor - error))
        pairs = self._pairs(tile, workspace, positions, fine, error)
        with self._writing:
            self.num_rows += num_fine
            self.best.add(tile.rows, pairs)

    def _shifted(self, tile: Chunk, workspace: Workspace) -> tuple[np.ndarray, float]:
        """Which rows count, and a bound of their norms: what the tile says of itself."""
        workspace.shift(tile.rows)
        return np.ones(len(tile.rows), bool) if tile.keep is None else tile.keep, float(tile.longest or 0)

    def _loaded(self, tile: Chunk, workspace: Workspace) -> tuple[np.ndarray, float]:
        """The same as measured."""
        norms = workspace.load(tile.rows)
        fine = np.isfinite(norms)
        if not fine.all():
            _require_no_overflow(tile.rows[~fine])
        if tile.keep is not None:
            fine &= tile.keep
        return fine, float(norms[fine].max(initial=0))

    def _pairs(
        self, tile: Chunk, workspace: Workspace, positions: np.ndarray, fine: np.ndarray, error: np.ndarray
    ) -> Pairs:
        positions = positions[fine[positions // self._coarse.num_queries]]
        place, query = np.divmod(positions, self._coarse.num_queries)
        products = workspace.values(positions)
        width = abs(products) * self._coarse.rounding + error[query]
        return Pairs(
            query=query,
            row=tile.first + place,
            tile=np.zeros(len(query), np.int64),
            place=place,
            low=products - width,
            high=products + width,
        )


def _require_no_overflow(rows: Float[np.ndarray, "row dim"]) -> None:
    if np.isfinite(rows).all(axis=1).any():
        raise ConfigurationError("a row's norm is beyond float32; scale the rows down")
