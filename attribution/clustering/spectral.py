"""Spectral clustering of all pairs of rows: the paper's way, to compare with.

Michaud et al. (arXiv 2303.13506) cluster gradients by scikit-learn's SpectralClustering with the affinity
1 − arccos(cos) / π and thirty starts of k-means. Unrelated rows then have an affinity of 0.5, which drowns the related
ones; max(cos, 0)² leaves near zero to them. Knows unit rows only.
"""

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from sklearn.cluster import SpectralClustering

from ...errors import ConfigurationError
from .base import Clustering
from .flat import checked_rows
from .nested import nested_clustering


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectral:
    """Spectral clustering; time and memory are quadratic in the rows (8 bytes for each pair), and more in quanta."""

    num_quanta: int
    """How many quanta, from 1 to one less than the rows; fewer come out where k-means leaves some empty."""
    affinity: Literal["angle", "squared cosine"] = "angle"
    """`angle` is the paper's 1 − arccos(cos) / π, `squared cosine` is max(cos, 0)²."""
    num_starts: int = 30
    """Starts of k-means in the space of eigenvectors; the paper's 30."""
    max_rows: int = 20_000
    """More rows are refused."""
    seed: int = 0
    """Seed of the eigensolver and of k-means."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.num_quanta < 1 or self.num_starts < 1:
            raise ConfigurationError("num_quanta and num_starts must be at least 1")
        if self.affinity not in ("angle", "squared cosine"):
            raise ConfigurationError(f"affinity is {self.affinity!r}; it is angle or squared cosine")

    def cluster(
        self, rows: Float[np.ndarray, "unit dim"], documents: Int[np.ndarray, " unit"] | None = None
    ) -> Clustering:
        """Quanta of the rows, which are made unit first; `documents` makes no difference.

        Raises ConfigurationError for zero or non-finite rows, no rows, more than `max_rows`, or too many quanta.
        """
        unit = checked_rows(rows)
        if len(unit) > self.max_rows:
            raise ConfigurationError(
                f"{len(unit)} rows are too many to compare all pairs; give at most {self.max_rows}"
            )
        if self.num_quanta == 1:
            return nested_clustering(unit, np.zeros(len(unit), dtype=np.int64))
        if self.num_quanta >= len(unit):
            raise ConfigurationError(
                f"num_quanta is {self.num_quanta}, there are {len(unit)} rows: give less than that"
            )
        model = SpectralClustering(
            n_clusters=self.num_quanta, affinity="precomputed", n_init=self.num_starts, random_state=self.seed
        )
        with warnings.catch_warnings():
            # parts of the graph without a link, and fewer distinct points than quanta, are fine: the labels say so
            warnings.filterwarnings("ignore", category=UserWarning, module="sklearn")
            return nested_clustering(unit, model.fit_predict(self._affinities(unit)))

    def _affinities(self, unit: np.ndarray) -> np.ndarray:
        cosines = np.clip(unit @ unit.T, -1, 1).astype(np.float64)
        cosines = (cosines + cosines.T) / 2
        if self.affinity == "angle":
            return np.asarray(1 - np.arccos(cosines) / np.pi)
        return np.square(np.maximum(cosines, 0))
