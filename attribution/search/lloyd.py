"""Lloyd's step over rows that stream by: each to its nearest centroid, and what each cluster gathers. Arrays only.

Products may be bfloat16, so a row between two equally near centroids may go to either. Tiles are added in their order,
so that any number of threads gives the same sums.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch.utils.dlpack import from_dlpack

from .coarse import Precision, fastest_precision
from .tiles import Chunk, cut, each_tile

TILE_ROWS = 2_048


@dataclass(slots=True, kw_only=True)
class Sums:
    """What one pass gathers."""

    size: Int64[np.ndarray, " cluster"]
    total: Float64[np.ndarray, "cluster dim"]
    squares: Float64[np.ndarray, " cluster"]
    """Sum of squared norms (spherical: of norms)."""

    def add(self, size: np.ndarray, total: np.ndarray, squares: np.ndarray) -> None:
        """Add a tile's."""
        self.size += size
        self.total += total
        self.squares += squares


class Lloyd:
    """Lloyd's step over streams and samples."""

    def __init__(
        self, dim: int, *, spherical: bool, precision: Precision = "auto", num_threads: int | None = None
    ) -> None:
        chosen = fastest_precision() if precision == "auto" else precision
        self.dtype = torch.bfloat16 if chosen == "bfloat16" else torch.float32
        self.spherical, self._dim, self._num_threads = spherical, dim, num_threads

    def sums(self, chunks: Iterable[Chunk], centroids: Float32[np.ndarray, "cluster dim"]) -> Sums:
        """Give each row to its centroid, and gather each cluster's size, sum and squares."""
        num = len(centroids)
        sums = Sums(size=np.zeros(num, np.int64), total=np.zeros((num, self._dim)), squares=np.zeros(num, np.float64))
        weights, bias = self.prepared(centroids)
        writing = Lock()
        waiting: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        order: deque[int] = deque()

        def in_order() -> Iterator[Chunk]:
            for tile in cut(chunks, self._dim, TILE_ROWS):
                order.append(tile.first)
                yield tile

        def make_work() -> Callable[[Chunk], None]:
            step = _Step(weights, bias)

            def work(tile: Chunk) -> None:
                gathered = step.gather(*step.assign(tile), spherical=self.spherical)
                with writing:
                    waiting[tile.first] = gathered
                    while order and order[0] in waiting:
                        sums.add(*waiting.pop(order.popleft()))

            return work

        each_tile(in_order(), make_work, self._num_threads)
        return sums

    def prepared(self, centroids: Float32[np.ndarray, "cluster dim"]) -> tuple[torch.Tensor, torch.Tensor]:
        """Centroids in the working precision, and half their squared norms (spherical: 0)."""
        exact = torch.from_numpy(centroids)
        half = torch.zeros(len(exact)) if self.spherical else exact.square().sum(dim=1) / 2
        return exact.to(self.dtype), half

    def means(self, sums: Sums, before: Float32[np.ndarray, "cluster dim"]) -> Float32[np.ndarray, "cluster dim"]:
        """The clusters' means; an empty cluster keeps its centroid."""
        scale = np.linalg.norm(sums.total, axis=1) if self.spherical else sums.size.astype(np.float64)
        means = sums.total / np.where(scale > 0, scale, 1)[:, None]
        return np.where((scale > 0)[:, None], means, before).astype(np.float32)

    def errors(self, sums: Sums) -> Float64[np.ndarray, " cluster"]:
        """Each cluster's part of the objective, about its own mean."""
        squared = (sums.total**2).sum(axis=1)
        explained = np.sqrt(squared) if self.spherical else squared / np.maximum(sums.size, 1)
        return np.maximum(sums.squares - explained, 0)

    def objective(self, sums: Sums) -> float:
        """What k-means minimises, about the means of these clusters."""
        return float(self.errors(sums).sum())

    def repeated(
        self, rows: torch.Tensor, centroids: Float32[np.ndarray, "cluster dim"], num: int
    ) -> tuple[Float32[np.ndarray, "cluster dim"], Sums]:
        """So many steps over a sample; the last one's sums. At least one."""
        for _ in range(num):
            sums = self.sums([Chunk(0, rows.numpy())], centroids)
            centroids = self.means(sums, centroids)
        return centroids, sums

    def places(self, rows: torch.Tensor, centroids: Float32[np.ndarray, "cluster dim"]) -> Int64[np.ndarray, " row"]:
        """The cluster of each row of a sample."""
        place = np.empty(len(rows), np.int64)
        weights, bias = self.prepared(centroids)

        def make_work() -> Callable[[Chunk], None]:
            step = _Step(weights, bias)

            def work(tile: Chunk) -> None:
                place[tile.first : tile.first + len(tile.rows)] = step.assign(tile)[0]

            return work

        each_tile(cut([Chunk(0, rows.numpy())], self._dim, TILE_ROWS), make_work, self._num_threads)
        return place


class _Step:
    """One thread's buffers for giving a tile's rows to centroids."""

    def __init__(self, weights: torch.Tensor, bias: torch.Tensor) -> None:
        self._weights, self._bias = weights, bias
        num, dim = weights.shape
        self._wide = torch.empty(TILE_ROWS, dim)
        self._narrow = (
            self._wide if weights.dtype == torch.float32 else torch.empty(TILE_ROWS, dim, dtype=weights.dtype)
        )
        self._products = torch.empty(TILE_ROWS, num, dtype=weights.dtype)
        self._scores = torch.empty(TILE_ROWS, num)

    def assign(self, tile: Chunk) -> tuple[np.ndarray, np.ndarray]:
        """Each row's cluster, and whether it counts."""
        num_rows = len(tile.rows)
        wide, narrow = self._wide[:num_rows], self._narrow[:num_rows]
        wide.copy_(from_dlpack(tile.rows))
        norms = torch.linalg.vector_norm(wide, dim=1).numpy()
        fine = np.isfinite(norms) if tile.keep is None else tile.keep & np.isfinite(norms)
        if not fine.all():
            wide[torch.from_numpy(~fine)] = 0
        if narrow is not wide:
            narrow.copy_(wide)
        scores = self._scores[:num_rows]
        torch.mm(narrow, self._weights.T, out=self._products[:num_rows])
        scores.copy_(self._products[:num_rows])
        scores.sub_(self._bias)
        return scores.numpy().argmax(axis=1), fine

    def gather(
        self, place: np.ndarray, fine: np.ndarray, *, spherical: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sizes, sums and squares of the tile that was assigned last."""
        num, wide = len(self._weights), self._wide[: len(place)]
        norms = torch.linalg.vector_norm(wide, dim=1).double()
        squares = norms if spherical else norms.square()
        target = torch.from_numpy(place)
        total = torch.zeros(num, wide.shape[1]).index_add_(0, target, wide)
        gathered = torch.zeros(num, dtype=torch.float64).index_add_(0, target, squares)
        return np.bincount(place[fine], minlength=num), total.numpy(), gathered.numpy()
