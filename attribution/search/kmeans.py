"""k-means over rows that stream by: a good start on a sample, then passes over all rows. Arrays in, arrays out.

The start: candidates by oversampling (k-means‖, Bahmani et al. 2012, algorithm 2), reduced by weighted k-means++
(Arthur & Vassilvitskii 2007), then Lloyd's iterations on the sample. Then rounds that split the clusters with the
largest error and merge the pairs whose merging costs least (Ward's cost; "breathing", Fritzke 2020, merges by another
measure), kept while they lower the objective: they repair what Lloyd cannot, two centroids in one cluster and one in
two. Products may be bfloat16, so a row between two equally near centroids may go to either.

The same rows, in the same chunks, with the same seed and precision give the same result on any number of threads: tiles
are added in their order.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from threading import Lock
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int32, Int64
from torch.utils.dlpack import from_dlpack

from ...errors import ConfigurationError
from .coarse import Precision, fastest_precision
from .tiles import Chunk, cut, each_tile

Read = Callable[[], Iterable[Chunk]]
"""Reads all rows again, from the first."""

_TILE_ROWS = 2_048
_SAMPLE_STREAM, _START_STREAM = 0x6B6D01, 0x6B6D02
"""Random streams of their own: rows that were drawn with the same seed do not decide which of them are sampled."""
_OVERSAMPLING_ROUNDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class KMeansConfig:
    """How rows become clusters."""

    num_clusters: int
    seed: int = 0
    spherical: bool = False
    """Centroids are made unit and rows go to the greatest inner product: for rows of equal norm."""
    start: Literal["spread", "random"] = "spread"
    """`spread`: the candidates above; `random`: rows of the sample, which is quicker and good enough for lists."""
    sample_per_cluster: int = 64
    """Rows of the sample for each cluster; all rows where there are not so many."""
    num_rounds: int = 12
    """Of splitting and merging on the sample, at most."""
    num_passes: int = 4
    """Over all rows, at most; 0 takes the sample's centroids."""
    tolerance: float = 1e-5
    """Passes end when one lowers the objective by less than this share."""
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        least = {"num_clusters": 1, "sample_per_cluster": 1, "num_rounds": 0, "num_passes": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; it must be at least {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KMeans:
    """Clusters of rows."""

    centroids: Float32[np.ndarray, "cluster dim"]
    """The means of the last pass' clusters (of unit norm, if spherical). A cluster without rows keeps its centroid."""
    sizes: Int64[np.ndarray, " cluster"]
    """Rows of each, in the last pass."""
    objectives: tuple[float, ...]
    """After each pass: squared distances of all rows to their cluster's mean, summed (spherical: Σ ‖x‖ − ⟨x, c⟩)."""
    sample: Int64[np.ndarray, " sampled"]
    """Numbers of the rows that the start was made from."""


@dataclass(slots=True, kw_only=True)
class _Sums:
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


def kmeans(read: Read, dim: int, config: KMeansConfig, *, num_threads: int | None = None) -> KMeans:
    """Cluster the rows that `read` gives; it is called once for the sample and once for each pass.

    Rows that are not kept or not finite belong to no cluster. Memory: the sample and a few tiles. Raises
    ConfigurationError for fewer rows than clusters.
    """
    work = _Work(dim, config, num_threads)
    sample, rows = _sampled(read, dim, config)
    if len(rows) < config.num_clusters:
        raise ConfigurationError(f"{config.num_clusters} clusters from {len(rows)} rows; ask for fewer clusters")
    generator = np.random.default_rng([_START_STREAM, config.seed])
    centroids = work.improved(rows, _start(rows, config, generator, work), generator)
    objectives: list[float] = []
    sizes = np.zeros(config.num_clusters, np.int64)
    for _ in range(config.num_passes):
        sums = work.sums(read(), centroids)
        centroids, sizes = work.means(sums, centroids), sums.size
        objectives.append(work.objective(sums))
        if len(objectives) > 1 and objectives[-2] - objectives[-1] < config.tolerance * objectives[-2]:
            break
    return KMeans(centroids=centroids, sizes=sizes, objectives=tuple(objectives), sample=sample)


def assign(
    rows: Float32[np.ndarray, "row dim"], centroids: Float32[np.ndarray, "cluster dim"], *, spherical: bool = False
) -> Int32[np.ndarray, " row"]:
    """The nearest centroid of each row, in float32 (spherical: of greatest inner product)."""
    scores = torch.from_numpy(rows) @ torch.from_numpy(centroids).T
    if not spherical:
        scores -= torch.from_numpy((centroids**2).sum(axis=1) / 2)
    return scores.numpy().argmax(axis=1).astype(np.int32)


def _sampled(read: Read, dim: int, config: KMeansConfig) -> tuple[Int64[np.ndarray, " sampled"], torch.Tensor]:
    """Numbers and rows (float32) of a sample of the rows that count, drawn evenly: the least of seeded keys."""
    wanted = config.num_clusters * config.sample_per_cluster
    generator = np.random.default_rng([_SAMPLE_STREAM, config.seed])
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = [
        (np.empty(0), np.empty(0, np.int64), np.empty((0, dim), np.float16))
    ]
    limit = np.inf
    for chunk in cut(read(), dim, 1 << 16):
        drawn = generator.random(len(chunk.rows))
        fine = drawn < limit if chunk.keep is None else chunk.keep & (drawn < limit)
        fine[fine] = np.isfinite(chunk.rows[fine]).all(axis=1)
        parts.append((drawn[fine], chunk.first + np.flatnonzero(fine), chunk.rows[fine]))
        if sum(len(part[0]) for part in parts) > 2 * wanted:
            parts = [_least(parts, wanted)]
            limit = parts[0][0].max()
    _, numbers, rows = _least(parts, wanted)
    return numbers, from_dlpack(rows).float()


def _least(
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]], wanted: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys, numbers and rows of the least keys, in the order of the numbers."""
    keys, numbers, rows = (np.concatenate([part[i] for part in parts]) for i in range(3))
    if len(keys) <= wanted:
        return keys, numbers, rows
    chosen = np.sort(np.argpartition(keys, wanted - 1)[:wanted])
    return keys[chosen], numbers[chosen], rows[chosen]


class _Work:
    """Lloyd's step over streams and samples."""

    def __init__(self, dim: int, config: KMeansConfig, num_threads: int | None) -> None:
        chosen = fastest_precision() if config.precision == "auto" else config.precision
        self.dtype = torch.bfloat16 if chosen == "bfloat16" else torch.float32
        self.spherical, self._config = config.spherical, config
        self._dim, self._num_threads = dim, num_threads

    def sums(self, chunks: Iterable[Chunk], centroids: Float32[np.ndarray, "cluster dim"]) -> _Sums:
        """Give each row to its centroid, and gather each cluster's size, sum and squares."""
        num = len(centroids)
        sums = _Sums(size=np.zeros(num, np.int64), total=np.zeros((num, self._dim)), squares=np.zeros(num, np.float64))
        weights, bias = self.prepared(centroids)
        writing = Lock()
        waiting: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        order: deque[int] = deque()

        def in_order() -> Iterator[Chunk]:
            for tile in cut(chunks, self._dim, _TILE_ROWS):
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

    def means(self, sums: _Sums, before: Float32[np.ndarray, "cluster dim"]) -> Float32[np.ndarray, "cluster dim"]:
        """The clusters' means; an empty cluster keeps its centroid."""
        scale = np.linalg.norm(sums.total, axis=1) if self.spherical else sums.size.astype(np.float64)
        means = sums.total / np.where(scale > 0, scale, 1)[:, None]
        return np.where((scale > 0)[:, None], means, before).astype(np.float32)

    def errors(self, sums: _Sums) -> Float64[np.ndarray, " cluster"]:
        """Each cluster's part of the objective, about its own mean."""
        squared = (sums.total**2).sum(axis=1)
        explained = np.sqrt(squared) if self.spherical else squared / np.maximum(sums.size, 1)
        return np.maximum(sums.squares - explained, 0)

    def objective(self, sums: _Sums) -> float:
        """What k-means minimises, about the means of these clusters."""
        return float(self.errors(sums).sum())

    def improved(
        self, rows: torch.Tensor, centroids: Float32[np.ndarray, "cluster dim"], generator: np.random.Generator
    ) -> Float32[np.ndarray, "cluster dim"]:
        """Lloyd's iterations on a sample, and rounds of splitting and merging while they help."""
        centroids, sums = self._lloyd(rows, centroids, 6)
        best, number = self.objective(sums), max(1, len(centroids) // 8)
        for _ in range(self._config.num_rounds if len(centroids) > 1 else 0):
            wider, more = self._lloyd(rows, self._split(rows, centroids, sums, number, generator), 2)
            found, after = self._lloyd(rows, self._merged(wider, more, len(centroids)), 2)
            value = self.objective(after)
            if value < best * (1 - 1e-4):
                centroids, sums, best = found, after, value
            elif number == 1:
                break
            else:
                number = -(-number // 3)
        return centroids

    def _lloyd(
        self, rows: torch.Tensor, centroids: Float32[np.ndarray, "cluster dim"], num: int
    ) -> tuple[Float32[np.ndarray, "cluster dim"], _Sums]:
        for _ in range(num):
            sums = self.sums([Chunk(0, rows.numpy())], centroids)
            centroids = self.means(sums, centroids)
        return centroids, sums

    def _split(
        self,
        rows: torch.Tensor,
        centroids: Float32[np.ndarray, "cluster dim"],
        sums: _Sums,
        number: int,
        generator: np.random.Generator,
    ) -> Float32[np.ndarray, "more dim"]:
        """One more centroid for each of the clusters with the largest errors: one of its rows."""
        worst = np.argsort(-self.errors(sums), kind="stable")[:number]
        place = self.places(rows, centroids)
        order = np.argsort(place, kind="stable")
        starts = np.searchsorted(place[order], worst)
        ends = np.searchsorted(place[order], worst, side="right")
        full = ends > starts
        chosen = order[starts[full] + (generator.random(full.sum()) * (ends - starts)[full]).astype(np.int64)]
        return np.concatenate([centroids, rows.numpy()[chosen]])

    def _merged(
        self, centroids: Float32[np.ndarray, "more dim"], sums: _Sums, wanted: int
    ) -> Float32[np.ndarray, "cluster dim"]:
        """As many as wanted, by merging the pairs that cost least; none is merged twice."""
        size = np.maximum(sums.size, 1e-9)
        products = centroids @ centroids.T
        norms = np.diag(products)
        cost = (norms[:, None] + norms[None] - 2 * products) / (1 / size[:, None] + 1 / size[None])
        cost[np.tril_indices(len(cost))] = np.inf
        merged, gone = np.zeros(len(cost), bool), np.zeros(len(cost), bool)
        result = centroids.copy()
        for flat in np.argsort(cost, axis=None, kind="stable"):
            if gone.sum() == len(cost) - wanted:
                break
            a, b = divmod(int(flat), len(cost))
            if not (merged[a] or merged[b]):
                merged[[a, b]], gone[b] = True, True
                result[a] = (size[a] * centroids[a] + size[b] * centroids[b]) / (size[a] + size[b])
        return result[~gone]

    def places(self, rows: torch.Tensor, centroids: Float32[np.ndarray, "cluster dim"]) -> Int64[np.ndarray, " row"]:
        """The cluster of each row of a sample."""
        place = np.empty(len(rows), np.int64)
        weights, bias = self.prepared(centroids)

        def make_work() -> Callable[[Chunk], None]:
            step = _Step(weights, bias)

            def work(tile: Chunk) -> None:
                place[tile.first : tile.first + len(tile.rows)] = step.assign(tile)[0]

            return work

        each_tile(cut([Chunk(0, rows.numpy())], self._dim, _TILE_ROWS), make_work, self._num_threads)
        return place


class _Step:
    """One thread's buffers for giving a tile's rows to centroids."""

    def __init__(self, weights: torch.Tensor, bias: torch.Tensor) -> None:
        self._weights, self._bias = weights, bias
        num, dim = weights.shape
        self._wide = torch.empty(_TILE_ROWS, dim)
        self._narrow = (
            self._wide if weights.dtype == torch.float32 else torch.empty(_TILE_ROWS, dim, dtype=weights.dtype)
        )
        self._products = torch.empty(_TILE_ROWS, num, dtype=weights.dtype)
        self._scores = torch.empty(_TILE_ROWS, num)

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


def _start(
    rows: torch.Tensor, config: KMeansConfig, generator: np.random.Generator, work: _Work
) -> Float32[np.ndarray, "cluster dim"]:
    """Centroids to begin with, from a sample."""
    if config.start == "random":
        return rows.numpy()[np.sort(generator.choice(len(rows), config.num_clusters, replace=False))]
    if len(rows) <= 16 * config.num_clusters:
        candidates, weight = rows.numpy(), np.ones(len(rows))
    else:
        candidates, weight = _oversampled(rows, config.num_clusters, generator, work)
    return _plus_plus(candidates, weight, config.num_clusters, generator)


def _oversampled(
    rows: torch.Tensor, num_clusters: int, generator: np.random.Generator, work: _Work
) -> tuple[Float32[np.ndarray, "candidate dim"], Float64[np.ndarray, " candidate"]]:
    """Some rows for each cluster, drawn in rounds by squared distance to those before; how many each stands for."""
    squares = rows.square().sum(dim=1).double().numpy()
    candidates = chosen = np.array([generator.integers(len(rows))])
    far = np.full(len(rows), np.inf)
    for _ in range(_OVERSAMPLING_ROUNDS):
        far = np.minimum(far, _squared_distances(rows, rows.numpy()[chosen], squares, work))
        far[chosen] = 0
        odds = far * (num_clusters / max(far.sum(), 1e-300))
        chosen = np.flatnonzero(generator.random(len(rows)) < odds)
        if not chosen.size:
            break
        candidates = np.concatenate([candidates, chosen])
    if len(candidates) < num_clusters:  # few different rows
        rest = np.setdiff1d(np.arange(len(rows)), candidates)
        candidates = np.concatenate([candidates, rest[: num_clusters - len(candidates)]])
    place = work.places(rows, rows.numpy()[candidates])
    return rows.numpy()[candidates], np.bincount(place, minlength=len(candidates)).astype(np.float64)


def _squared_distances(
    rows: torch.Tensor, centres: np.ndarray, squares: np.ndarray, work: _Work
) -> Float64[np.ndarray, " row"]:
    """Of each row to the nearest of some centres (all rows taken as of equal norm where spherical)."""
    place = work.places(rows, centres)
    nearest = np.empty(len(rows))
    for start in range(0, len(rows), _TILE_ROWS):
        part = slice(start, start + _TILE_ROWS)
        nearest[part] = (rows[part] - torch.from_numpy(centres)[place[part]]).square().sum(dim=1).numpy()
    return np.minimum(nearest, 4 * squares.max())


def _plus_plus(
    candidates: Float32[np.ndarray, "candidate dim"],
    weight: Float64[np.ndarray, " candidate"],
    num_clusters: int,
    generator: np.random.Generator,
) -> Float32[np.ndarray, "cluster dim"]:
    """k-means++ with weights: each next one drawn by weight times squared distance to the nearest so far."""
    squares = (candidates.astype(np.float64) ** 2).sum(axis=1)
    chosen = np.empty(num_clusters, np.int64)
    chosen[0] = _drawn(weight, generator)
    far = np.full(len(candidates), np.inf)
    for i in range(1, num_clusters):
        last = chosen[i - 1]
        far = np.minimum(far, np.maximum(squares + squares[last] - 2.0 * (candidates @ candidates[last]), 0))
        far[last] = 0
        chosen[i] = _drawn(weight * far, generator)
    return candidates[chosen].copy()


def _drawn(odds: np.ndarray, generator: np.random.Generator) -> int:
    total = np.cumsum(odds)
    if total[-1] <= 0:  # no row differs from those chosen
        return int(generator.integers(len(odds)))
    return int(min(np.searchsorted(total, generator.random() * total[-1], side="right"), len(odds) - 1))
