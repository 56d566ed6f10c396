"""Density-based clustering (HDBSCAN): quanta are where rows lie close, and how many there are falls out.

Campello, Moulavi & Sander (2013), as scikit-learn has it. Unit rows' Euclidean distance rises with their angle, so it
is used as it is. Knows unit rows only.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from sklearn.cluster import HDBSCAN

from ...errors import ConfigurationError
from .base import Clustering
from .flat import checked_rows, claim_unclaimed
from .nested import nested_clustering


@dataclass(frozen=True, slots=True, kw_only=True)
class Density:
    """HDBSCAN; rows that it calls noise join the quantum whose mean direction is nearest."""

    min_size: int = 5
    """Rows that make a quantum, at least 2."""
    min_samples: int = 1
    """Neighbours whose distance measures a row's density; more make sparse rows noise."""
    max_rows: int = 20_000
    """More rows are refused: time is quadratic in them."""
    seed: int = 0
    """Nothing is drawn here; all clusterers have a seed."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.min_size < 2 or self.min_samples < 1:
            raise ConfigurationError("min_size must be at least 2 and min_samples at least 1")

    def cluster(
        self, rows: Float[np.ndarray, "unit dim"], documents: Int[np.ndarray, " unit"] | None = None
    ) -> Clustering:
        """Quanta of the rows, which are made unit first; `documents` makes no difference.

        One quantum where fewer than `min_size` rows are given or density finds no structure. Raises
        ConfigurationError for zero or non-finite rows, no rows, or more than `max_rows`.
        """
        unit = checked_rows(rows)
        if len(unit) > self.max_rows:
            raise ConfigurationError(f"{len(unit)} rows are too many for density; give at most {self.max_rows}")
        if len(unit) < max(self.min_size, self.min_samples):
            return nested_clustering(unit, np.zeros(len(unit), dtype=np.int64))
        distances = np.sqrt(np.maximum(2 - 2 * (unit @ unit.T).astype(np.float64), 0))
        distances = (distances + distances.T) / 2
        np.fill_diagonal(distances, 0)
        model = HDBSCAN(min_cluster_size=self.min_size, min_samples=self.min_samples, metric="precomputed", copy=False)
        return nested_clustering(unit, claim_unclaimed(unit, model.fit_predict(distances)))
