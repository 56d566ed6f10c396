"""The default clusterer: average linkage on cosines, of all rows or of micro-clusters.

The tree comes for free. What it loses at the edges of quanta, mixture.py wins back. Knows arrays only.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int, Int32

from ...errors import ConfigurationError
from ..search.kmeans import KMeansConfig, assign, kmeans
from ..search.tiles import Chunk
from .base import Clustering, cut_clustering, group_sums
from .choose import choose_cut
from .flat import checked_rows
from .heights import by_centre_cosine
from .linkage import average_linkage
from .nested import MAX_PAIRS_ROWS, nested_clustering

_ASSIGNED = 8_192
"""Rows whose products with all centroids are held at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AverageLinkage:
    """Average linkage; `num_quanta` or `min_cosine` fix the cut, without them held-out documents do (choose.py)."""

    num_quanta: int | None = None
    """How many quanta to leave, between 1 and the number of rows; fewer where there are fewer micro-clusters."""
    min_cosine: float | None = None
    """Join groups while their mean cosine is at least this, in [−1, 1]."""
    max_pairs_rows: int = MAX_PAIRS_ROWS
    """Up to this many rows all pairs are compared (4 bytes for each pair); above, micro-clusters are joined."""
    micro_clusters: int = 4_096
    """Micro-clusters that k-means makes of more rows than that; several times the quanta expected."""
    seed: int = 0
    """Seed of the micro-clusters and of the halves that choose the cut."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.num_quanta is not None and self.min_cosine is not None:
            raise ConfigurationError("num_quanta and min_cosine both fix the cut; give one of them")
        if self.num_quanta is not None and self.num_quanta < 1:
            raise ConfigurationError(f"num_quanta is {self.num_quanta}; it must be at least 1")
        if self.min_cosine is not None and not -1 <= self.min_cosine <= 1:
            raise ConfigurationError(f"min_cosine is {self.min_cosine}; a cosine lies between -1 and 1")
        if self.micro_clusters < 1:
            raise ConfigurationError(f"micro_clusters is {self.micro_clusters}; it must be at least 1")

    def cluster(
        self, rows: Float[np.ndarray, "unit dim"], documents: Int[np.ndarray, " unit"] | None = None
    ) -> Clustering:
        """Quanta of the rows, which are made unit first; same rows and seed, same quanta.

        `documents` names each row's document, for choosing how many quanta; without it each row is its own.

        Raises ConfigurationError for zero or non-finite rows, no rows, or more quanta than rows;
        MissingDependencyError where micro-clusters are needed and FAISS is missing.
        """
        unit = checked_rows(rows)
        if self.num_quanta is not None and self.num_quanta > len(rows):
            raise ConfigurationError(f"num_quanta is {self.num_quanta}, there are {len(rows)} rows: give at most that.")
        groups = self._groups(unit)
        num_groups = int(groups.max()) + 1
        counts = np.bincount(groups, minlength=num_groups)
        sums = unit if num_groups == len(unit) else group_sums(unit, groups, num_groups)
        tree = average_linkage(sums, counts)
        if self.num_quanta is not None:
            return cut_clustering(unit, groups, tree, min(self.num_quanta, num_groups))
        if self.min_cosine is not None:
            return cut_clustering(unit, groups, tree, tree.num_leaves_at(self.min_cosine))
        cosine = self._chosen(unit, documents)
        if cosine <= -1:
            return cut_clustering(unit, groups, tree, 1)
        pairs = (np.einsum("ij,ij->i", sums, sums, dtype=np.float64) - counts) / 2
        return nested_clustering(unit, by_centre_cosine(tree, pairs).cut_at(cosine)[groups], groups)

    def _groups(self, unit: np.ndarray) -> np.ndarray:
        """Leaf of each row: itself, or its micro-cluster (empty ones are dropped)."""
        if len(unit) <= self.max_pairs_rows:
            return np.arange(len(unit), dtype=np.int32)
        return micro_clusters(unit, self.micro_clusters, seed=self.seed)

    def _chosen(self, unit: np.ndarray, documents: np.ndarray | None) -> float:
        """The centre cosine of the cut; −1 where there are too few rows to choose one."""
        if len(unit) < 4 or (documents is not None and len(np.unique(documents)) < 2):
            return -1.0
        return choose_cut(unit, documents, seed=self.seed).cosine


def micro_clusters(
    rows: Float32[np.ndarray, "unit dim"], num_clusters: int, *, seed: int
) -> Int32[np.ndarray, " unit"]:
    """Small groups of unit rows by spherical k-means, numbered 0 … m − 1; empty ones are dropped.

    Trained on 64 rows for each cluster at most, then every row goes to its nearest centroid. The same rows and seed
    give the same groups on any number of threads.
    """
    wanted = min(num_clusters, len(rows))
    config = KMeansConfig(num_clusters=wanted, seed=seed, spherical=True, start="random", num_rounds=0, num_passes=0)
    centroids = kmeans(lambda: [Chunk(0, rows)], rows.shape[1], config).centroids
    parts = (rows[start : start + _ASSIGNED] for start in range(0, len(rows), _ASSIGNED))
    nearest = np.concatenate([assign(part, centroids, spherical=True) for part in parts])
    return np.unique(nearest, return_inverse=True)[1].astype(np.int32)
