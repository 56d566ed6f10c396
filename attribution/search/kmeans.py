"""k-means over rows that stream by: a good start on a sample (`kmeans_start`), then passes over all rows (`lloyd`).

The same rows, in the same chunks, with the same seed and precision give the same result on any number of threads.
Arrays in, arrays out.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64
from torch.utils.dlpack import from_dlpack

from ...errors import ConfigurationError
from .coarse import Precision
from .kmeans_start import Start, first_centroids, improved
from .lloyd import Lloyd
from .tiles import Chunk, cut

Read = Callable[[], Iterable[Chunk]]
"""Reads all rows again, from the first."""

_SAMPLE_STREAM, _START_STREAM = 0x6B6D01, 0x6B6D02
"""Random streams of their own: rows that were drawn with the same seed do not decide which of them are sampled."""
_READ_ROWS = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class KMeansConfig:
    """How rows become clusters."""

    num_clusters: int
    seed: int = 0
    spherical: bool = False
    """Centroids are made unit and rows go to the greatest inner product: for rows of equal norm."""
    start: Start = "spread"
    """`spread`: candidates far from each other; `random`: rows of the sample, quicker, and good enough for lists."""
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


def kmeans(read: Read, dim: int, config: KMeansConfig, *, num_threads: int | None = None) -> KMeans:
    """Cluster the rows that `read` gives; it is called once for the sample and once for each pass.

    Rows that are not kept or not finite belong to no cluster. Memory: the sample and a few tiles. Raises
    ConfigurationError for fewer rows than clusters.
    """
    lloyd = Lloyd(dim, spherical=config.spherical, precision=config.precision, num_threads=num_threads)
    sample, rows = _sampled(read, dim, config)
    if len(rows) < config.num_clusters:
        raise ConfigurationError(f"{config.num_clusters} clusters from {len(rows)} rows; ask for fewer clusters")
    generator = np.random.default_rng([_START_STREAM, config.seed])
    centroids = first_centroids(rows, config.num_clusters, generator, lloyd, start=config.start)
    centroids = improved(rows, centroids, generator, lloyd, num_rounds=config.num_rounds)
    objectives: list[float] = []
    sizes = np.zeros(config.num_clusters, np.int64)
    for _ in range(config.num_passes):
        sums = lloyd.sums(read(), centroids)
        centroids, sizes = lloyd.means(sums, centroids), sums.size
        objectives.append(lloyd.objective(sums))
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
    sample = _Sample(config.num_clusters * config.sample_per_cluster, dim)
    generator = np.random.default_rng([_SAMPLE_STREAM, config.seed])
    for chunk in cut(read(), dim, _READ_ROWS):
        drawn = generator.random(len(chunk.rows))
        fine = drawn < sample.limit if chunk.keep is None else chunk.keep & (drawn < sample.limit)
        fine[fine] = np.isfinite(chunk.rows[fine]).all(axis=1)
        sample.add(drawn[fine], chunk.first + np.flatnonzero(fine), chunk.rows[fine])
    numbers, rows = sample.finish()
    return numbers, from_dlpack(rows).float()


class _Sample:
    """The rows with the least keys, in the order of their numbers; held once, with room for some more."""

    def __init__(self, wanted: int, dim: int) -> None:
        self.limit = np.inf
        """Rows with greater keys need not be added."""
        self._wanted, self._dim, self._held = wanted, dim, 0
        room = wanted + max(wanted // 4, _READ_ROWS)
        self._keys, self._numbers = np.empty(room), np.empty(room, np.int64)
        self._rows: np.ndarray | None = None

    def add(self, keys: np.ndarray, numbers: np.ndarray, rows: np.ndarray) -> None:
        """At most `_READ_ROWS` rows, with greater numbers than all before."""
        if self._rows is None:
            self._rows = np.empty((len(self._keys), self._dim), rows.dtype)
        if self._rows.dtype != np.result_type(self._rows, rows):
            self._rows = self._rows.astype(np.result_type(self._rows, rows))
        if self._held + len(keys) > len(self._keys):
            self._keep_least()
        end = self._held + len(keys)
        new = slice(self._held, end)
        self._keys[new], self._numbers[new], self._rows[new] = keys, numbers, rows
        self._held = end

    def finish(self) -> tuple[Int64[np.ndarray, " sampled"], np.ndarray]:
        """Numbers and rows."""
        if self._rows is None:
            return np.empty(0, np.int64), np.empty((0, self._dim), np.float16)
        self._keep_least()
        return self._numbers[: self._held].copy(), self._rows[: self._held]

    def _keep_least(self) -> None:
        if self._held <= self._wanted or self._rows is None:
            return
        chosen = np.sort(np.argpartition(self._keys[: self._held], self._wanted - 1)[: self._wanted])
        for start in range(0, self._wanted, _READ_ROWS):  # rows move down, and never onto one that is still to move
            part = chosen[start : start + _READ_ROWS]
            new = slice(start, start + len(part))
            self._rows[new], self._keys[new], self._numbers[new] = (
                self._rows[part], self._keys[part], self._numbers[part],
            )  # fmt: skip
        self._held = self._wanted
        self.limit = self._keys[: self._held].max()
