"""Where quanta and units lie on a two-dimensional map.

Quanta that point alike lie near each other; units lie around their quantum along its own two main directions. A
picture to find one's way by: distances across the map carry no measurement. Knows arrays only.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import eigh
from scipy.spatial import cKDTree
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # has no stubs

from ...errors import ConfigurationError
from ..clustering.base import group_sums

_LOCAL_UNITS = 512


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layout:
    """Coordinates in [−1, 1], float32, centred on the middle of the map."""

    quanta: Float[np.ndarray, "quantum 2"]
    """Where each quantum lies."""
    units: Float[np.ndarray, "unit 2"]
    """Where each unit lies."""


def lay_out(
    rows: Float[np.ndarray, "unit dim"],
    assignments: Int[np.ndarray, " unit"],
    centroids: Float[np.ndarray, "quantum dim"],
    *,
    seed: int = 0,
) -> Layout:
    """A map of unit rows and the unit centroids of their quanta 0 … k − 1; deterministic in the seed.

    Up to 5 quanta are placed by classical scaling of their cosine distances, more by t-SNE started from it (van der
    Maaten & Hinton 2008). Raises ConfigurationError where there are no quanta or arrays differ in length.
    """
    if len(centroids) == 0 or len(rows) != len(assignments):
        raise ConfigurationError(f"{len(rows)} rows, {len(assignments)} assignments, {len(centroids)} centroids")
    quanta = _place_quanta(centroids.astype(np.float32), seed)
    units = _place_units(rows, assignments, quanta)
    both = np.concatenate([quanta, units])
    middle = (both.max(axis=0) + both.min(axis=0)) / 2
    scale = max(float(np.abs(both - middle).max()), 1e-12)
    return Layout(
        quanta=np.clip((quanta - middle) / scale, -1, 1).astype(np.float32),
        units=np.clip((units - middle) / scale, -1, 1).astype(np.float32),
    )


def _place_quanta(centroids: np.ndarray, seed: int) -> np.ndarray:
    distances = np.clip(1 - (centroids @ centroids.T).astype(np.float64), 0, None)
    np.fill_diagonal(distances, 0)
    start = _classical_scaling(distances)
    if len(centroids) <= 5:
        return start
    from sklearn.manifold import TSNE  # slow to import

    spread = start[:, 0].std()
    tsne = TSNE(
        metric="precomputed",
        init=(start * (1e-4 / spread if spread > 0 else 1)).astype(np.float32),
        perplexity=min(20.0, (len(centroids) - 1) / 3),
        max_iter=300,
        random_state=seed,
        method="exact" if len(centroids) <= 250 else "barnes_hut",
        n_jobs=1,
    )
    with threadpool_limits(1):  # on a shared machine its threads wait for each other; one is also reproducible
        return np.asarray(tsne.fit_transform(distances), dtype=np.float64)


def _classical_scaling(distances: np.ndarray) -> np.ndarray:
    """Two coordinates whose distances are closest to √distances (1 − cosine is half a squared distance)."""
    count = len(distances)
    centred = distances - distances.mean(axis=0) - distances.mean(axis=1, keepdims=True) + distances.mean()
    coordinates = np.zeros((count, 2))
    wanted = min(2, count)
    values, vectors = _top_eigenvectors(-centred / 2, wanted)
    coordinates[:, :wanted] = vectors * np.sqrt(np.maximum(values, 0))
    return coordinates


def _top_eigenvectors(matrix: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """Leading eigenpairs, greatest first, each vector's largest entry positive so that signs are fixed."""
    count = len(matrix)
    with threadpool_limits(1):  # small matrices: threads only wait for each other
        values, vectors = eigh(matrix, subset_by_index=(count - wanted, count - 1))
    values, vectors = values[::-1], vectors[:, ::-1]
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(wanted)])
    return values, vectors * np.where(signs == 0, 1, signs)


def _place_units(rows: np.ndarray, assignments: np.ndarray, quanta: np.ndarray) -> np.ndarray:
    """Each quantum's units by local principal components, within a disc that keeps clear of the next quantum."""
    sizes = np.bincount(assignments, minlength=len(quanta))
    gaps = cKDTree(quanta).query(quanta, k=2)[0][:, 1] if len(quanta) > 1 else np.ones(1)
    radii = 0.45 * np.minimum(gaps, 2 * np.median(gaps)) * (sizes / sizes.max()) ** 0.25
    means = group_sums(rows, assignments, len(quanta)) / np.maximum(sizes, 1)[:, None].astype(np.float32)
    units = quanta[assignments].astype(np.float64)
    members = np.split(np.argsort(assignments, kind="stable"), np.cumsum(sizes)[:-1])
    for quantum, own in enumerate(members):
        if len(own) > 2:
            offsets = _principal_offsets(rows[own].astype(np.float32) - means[quantum])
            length = np.linalg.norm(offsets, axis=1)
            # the square root of the rank spreads units evenly over the disc, whatever outliers there are
            rank = np.empty(len(own))
            rank[np.argsort(length, kind="stable")] = np.sqrt((np.arange(len(own)) + 0.5) / len(own))
            units[own] += radii[quantum] * offsets * (rank / np.maximum(length, 1e-12))[:, None]
    return np.asarray(units)


def _principal_offsets(residuals: np.ndarray) -> np.ndarray:
    """Coordinates of each row along the two main directions of (at most 512 evenly spaced of) the rows."""
    sample = residuals[:: -(-len(residuals) // _LOCAL_UNITS)]
    values, vectors = _top_eigenvectors((sample @ sample.T).astype(np.float64), 2)
    directions = sample.T @ (vectors / np.sqrt(np.maximum(values, 1e-12))).astype(np.float32)
    offsets = (residuals @ directions).astype(np.float64)
    return np.asarray(offsets / np.maximum(offsets.std(axis=0), 1e-12))
