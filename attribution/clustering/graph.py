"""Leiden on a graph of nearest neighbours: no number of quanta to choose, but a resolution.

Each row is joined to its nearest rows by cosine (FAISS), with the cosine to some power as the weight, and Leiden
(Traag, Waltman & van Eck 2019) looks for the partition of greatest modularity. Knows unit rows only.
"""

from dataclasses import dataclass
from types import ModuleType

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from ...errors import ConfigurationError, MissingDependencyError
from ..search.faiss_backend import build_index, search_index
from .base import Clustering
from .flat import checked_rows
from .nested import nested_clustering


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
    seed: int = 0
    """Seed of Leiden's order and moves."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.num_neighbours < 1 or self.num_iterations < 1:
            raise ConfigurationError("num_neighbours and num_iterations must be at least 1")
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
        graph = neighbour_graph(unit, num_neighbours=self.num_neighbours)
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
            found = np.fromiter(communities.keys(), np.int64)
            labels[found] = len(unit) + np.fromiter(communities.values(), np.int64)
        return nested_clustering(unit, labels)


def neighbour_graph(rows: Float[np.ndarray, "unit dim"], *, num_neighbours: int) -> csr_array:
    """Symmetric graph [unit, unit] of each unit row's nearest others, with their cosines where these are positive.

    Exact search; float32. Two rows are joined where either is among the other's nearest.
    """
    wanted = min(num_neighbours + 1, len(rows))
    cosines, places = search_index(build_index(rows, precision="float32"), rows, num_neighbours=wanted)
    origin = np.repeat(np.arange(len(rows)), wanted)
    target, weight = places.ravel(), cosines.ravel()
    kept = (origin != target) & (weight > 0)
    graph = csr_array((weight[kept], (origin[kept], target[kept])), shape=(len(rows), len(rows)))
    return csr_array(graph.maximum(graph.T))


def _require_leiden() -> ModuleType:
    try:
        import graspologic_native  # type: ignore[import-untyped]  # has no stubs
    except ImportError as error:
        raise MissingDependencyError(
            f"graspologic-native is not installed or cannot be loaded ({error}); run `pip install graspologic-native`"
        ) from error
    return graspologic_native
