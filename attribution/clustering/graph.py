"""Leiden on a graph of nearest neighbours: no number of quanta to choose, but a resolution.

Each row is joined to its nearest rows by cosine, with the cosine to some power as the weight, and Leiden (Traag,
Waltman & van Eck 2019) looks for the partition of greatest modularity. Neighbours come from an exact search (FAISS);
of many rows from those of micro-clusters near their own (local_graph.py). Knows unit rows only.
"""

from dataclasses import dataclass
from types import ModuleType

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from ...errors import ConfigurationError, MissingDependencyError
from ..search.faiss_backend import build_index, search_index
from .average import micro_clusters
from .base import Clustering
from .flat import checked_rows
from .local_graph import local_neighbours
from .nested import MAX_PAIRS_ROWS, nested_clustering


@dataclass(frozen=True, slots=True, kw_only=True)
class Leiden:
    """Communities of the nearest-neighbour graph."""

    num_neighbours: int = 10
    """Rows that each row is joined to, at least 1."""
    resolution: float = 1.0
    """Higher makes more quanta; above 0."""
    power: float = 3.0
    """Of the cosine, in an edge's weight; edges of no positive cosine are left out."""
    num_iterations: int = 5
    """Full rounds of Leiden, each from the last one's result."""
    max_exact_rows: int = MAX_PAIRS_ROWS
    """Of more rows neighbours are looked for among micro-clusters nearby, which become the tree's leaves."""
    micro_clusters: int = 4_096
    """How many FAISS makes of more rows than that."""
    seed: int = 0
    """Seed of Leiden's order and moves."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if min(self.num_neighbours, self.num_iterations, self.micro_clusters) < 1:
            raise ConfigurationError("num_neighbours, num_iterations and micro_clusters must be at least 1")
        if not self.resolution > 0 or not self.power > 0:
            raise ConfigurationError("resolution and power must be above 0")

    def cluster(
        self, rows: Float[np.ndarray, "unit dim"], documents: Int[np.ndarray, " unit"] | None = None
    ) -> Clustering:
        """Quanta of the rows, which are made unit first; `documents` makes no difference.

        A row without any edge is a quantum of its own. Raises ConfigurationError for zero or non-finite rows, or no
        rows; MissingDependencyError without FAISS or graspologic-native.
        """
        leiden = _require_leiden()
        unit = checked_rows(rows)
        groups = None
        if len(unit) <= self.max_exact_rows:
            graph = neighbour_graph(unit, num_neighbours=self.num_neighbours)
        else:
            groups = micro_clusters(unit, self.micro_clusters, seed=self.seed)
            found = local_neighbours(unit, groups, num_neighbours=self.num_neighbours)
            graph = _joined(found.rows, found.cosines)
        labels = np.arange(len(unit))
        if graph.nnz:
            _, communities = leiden.leiden_csr(
                graph.indptr.astype(np.int64),
                graph.indices.astype(np.int32),
                graph.data.astype(np.float64) ** self.power,
                len(unit),
                resolution=self.resolution,
                iterations=self.num_iterations,
                seed=self.seed,
            )
            named = np.fromiter(communities.keys(), np.int64)
            labels[named] = len(unit) + np.fromiter(communities.values(), np.int64)
        return nested_clustering(unit, labels, groups)


def neighbour_graph(rows: Float[np.ndarray, "unit dim"], *, num_neighbours: int) -> csr_array:
    """Symmetric graph [unit, unit] of each unit row's nearest others, with their cosines where these are positive.

    Exact search; float32. Two rows are joined where either is among the other's nearest.
    """
    wanted = min(num_neighbours + 1, len(rows))
    cosines, places = search_index(build_index(rows, precision="float32"), rows, num_neighbours=wanted)
    return _joined(places, cosines)


def _joined(places: Int[np.ndarray, "unit neighbour"], cosines: Float[np.ndarray, "unit neighbour"]) -> csr_array:
    """The symmetric graph of these neighbours, without a unit's own place, gaps (−1) and cosines of 0 and less."""
    origin = np.repeat(np.arange(len(places)), places.shape[1])
    target, weight = places.ravel(), cosines.ravel()
    kept = (origin != target) & (target >= 0) & (weight > 0)
    graph = csr_array((weight[kept], (origin[kept], target[kept])), shape=(len(places), len(places)))
    return csr_array(graph.maximum(graph.T))


def _require_leiden() -> ModuleType:
    try:
        import graspologic_native  # type: ignore[import-untyped]  # has no stubs
    except ImportError as error:
        raise MissingDependencyError(
            f"graspologic-native is not installed or cannot be loaded ({error}); run `pip install graspologic-native`"
        ) from error
    return graspologic_native
