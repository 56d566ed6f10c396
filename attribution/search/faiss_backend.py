"""The one place that imports FAISS: spherical k-means, and a flat inner-product index as bytes.

Each function has a numpy twin (its name ends in `_numpy`) with the same signature and meaning, which the tests compare
it with. Arrays in, arrays or bytes out: knows no files and no runs.
"""

from collections.abc import Callable
from importlib import metadata
from types import ModuleType
from typing import Literal

import numpy as np
from jaxtyping import Float, Int32, Int64

from ...errors import ConfigurationError, DamagedRunError, MissingDependencyError

Precision = Literal["float16", "float32"]

_DISTRIBUTIONS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12")
_INSTALL = 'pip install "quantascope[cpu]"'
_MAGIC = {"float16": b"flat-f2\n", "float32": b"flat-f4\n"}


def require_faiss() -> ModuleType:
    """The faiss module, for callers that want the refusal before any long work.

    Raises MissingDependencyError where no FAISS distribution is installed, or more than one: two of them overwrite
    each other's files.
    """
    found = [name for name in _DISTRIBUTIONS if _is_installed(name)]
    if len(found) > 1:
        raise MissingDependencyError(
            f"{' and '.join(found)} are installed over each other; run `pip uninstall {' '.join(found)}` "
            f"and then `{_INSTALL}` (or quantascope[gpu])"
        )
    try:
        import faiss
    except ImportError as error:
        raise MissingDependencyError(
            f"FAISS is not installed or cannot be loaded ({error}); run `{_INSTALL}` (or quantascope[gpu])"
        ) from error
    if not found:
        raise MissingDependencyError(f"none of {', '.join(_DISTRIBUTIONS)} is installed; run `{_INSTALL}`")
    return faiss


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def spherical_kmeans(
    rows: Float[np.ndarray, "unit dim"],
    num_clusters: int,
    *,
    seed: int,
    num_iterations: int = 20,
    num_redo: int = 1,
    sample_size: int | None = None,
) -> tuple[Float[np.ndarray, "cluster dim"], Int32[np.ndarray, " unit"]]:
    """Unit centroids (float32) and the nearest one of each unit row, by inner product.

    Trains on `sample_size` rows drawn without replacement, or on all where it is None; the best of `num_redo` starts
    from random rows wins. Same rows and seed, same result on equal hardware. Raises ConfigurationError where there are
    fewer rows (or sampled rows) than clusters, MissingDependencyError without FAISS.
    """
    faiss = require_faiss()

    def train(sample: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, float]:
        kmeans = faiss.Kmeans(
            sample.shape[1],
            num_clusters,
            niter=num_iterations,
            seed=seed,
            spherical=True,
            min_points_per_centroid=1,  # FAISS would print a warning, and above its default
            max_points_per_centroid=len(sample),  # of 256 drop rows without a word
        )
        kmeans.train(sample, init_centroids=start)
        return kmeans.centroids, float(kmeans.obj[-1])

    centroids = _best_start(rows, num_clusters, train, seed=seed, num_redo=num_redo, sample_size=sample_size)
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(centroids)
    nearest = index.search(np.ascontiguousarray(rows, dtype=np.float32), 1)[1][:, 0]
    return centroids, nearest.astype(np.int32)


def spherical_kmeans_numpy(
    rows: Float[np.ndarray, "unit dim"],
    num_clusters: int,
    *,
    seed: int,
    num_iterations: int = 20,
    num_redo: int = 1,
    sample_size: int | None = None,
) -> tuple[Float[np.ndarray, "cluster dim"], Int32[np.ndarray, " unit"]]:
    """The twin of `spherical_kmeans`; they may differ where a cluster empties.

    FAISS then splits a large cluster, this one restarts at the row that is described worst so far.
    """

    def train(sample: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, float]:
        centroids = start / np.linalg.norm(start, axis=1, keepdims=True)
        objective = 0.0
        for _ in range(num_iterations):
            similarity = sample @ centroids.T
            nearest = similarity.argmax(1)
            best = similarity[np.arange(len(sample)), nearest]
            objective = float(best.sum())
            sums = np.zeros_like(centroids)
            np.add.at(sums, nearest, sample)
            empty = np.flatnonzero(np.bincount(nearest, minlength=num_clusters) == 0)
            sums[empty] = sample[np.argsort(best, kind="stable")[: len(empty)]]
            centroids = sums / np.linalg.norm(sums, axis=1, keepdims=True)
        return centroids, objective

    centroids = _best_start(rows, num_clusters, train, seed=seed, num_redo=num_redo, sample_size=sample_size)
    return centroids, (rows.astype(np.float32) @ centroids.T).argmax(1).astype(np.int32)


def _best_start(
    rows: np.ndarray,
    num_clusters: int,
    train: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, float]],
    *,
    seed: int,
    num_redo: int,
    sample_size: int | None,
) -> np.ndarray:
    """Centroids of the start with the greatest objective (sum of inner products)."""
    rng = np.random.default_rng(seed)
    num_rows = len(rows)
    if sample_size is not None and sample_size < num_rows:
        num_rows = sample_size
        rows = rows[np.sort(rng.choice(len(rows), sample_size, replace=False))]
    if not 1 <= num_clusters <= num_rows:
        raise ConfigurationError(
            f"{num_clusters} clusters from {num_rows} rows; ask for between 1 and {num_rows}, or sample more rows"
        )
    sample = np.ascontiguousarray(rows, dtype=np.float32)
    starts = (np.sort(rng.choice(num_rows, num_clusters, replace=False)) for _ in range(max(num_redo, 1)))
    trained = [train(sample, sample[start]) for start in starts]
    best = max(objective for _, objective in trained)
    # the first of those that reach the same optimum, whichever way the last bits were rounded
    return np.asarray(next(c for c, objective in trained if objective >= best - 1e-6 * abs(best)), dtype=np.float32)


def build_index(rows: Float[np.ndarray, "unit dim"], *, precision: Precision = "float16") -> bytes:
    """A flat inner-product index of the rows, in FAISS's own format: `faiss.read_index` opens it from a file.

    `float16` halves the bytes; entries then carry a relative error of 2⁻¹¹.
    """
    faiss = require_faiss()
    dim = rows.shape[1]
    if precision == "float16":
        index = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    else:
        index = faiss.IndexFlatIP(dim)
    index.add(np.ascontiguousarray(rows, dtype=np.float32))
    return bytes(faiss.serialize_index(index))


def build_index_numpy(rows: Float[np.ndarray, "unit dim"], *, precision: Precision = "float16") -> bytes:
    """The twin of `build_index`, in a format of its own: a tag, two little-endian sizes, the rows."""
    numbers = np.ascontiguousarray(rows, dtype="<f2" if precision == "float16" else "<f4")
    return _MAGIC[precision] + np.array(rows.shape, dtype="<i8").tobytes() + numbers.tobytes()


def search_index(
    index: bytes, queries: Float[np.ndarray, "query dim"], *, num_neighbours: int
) -> tuple[Float[np.ndarray, "query neighbour"], Int64[np.ndarray, "query neighbour"]]:
    """Scores (float32, falling) and positions of the rows with the greatest inner product with each query.

    At most as many neighbours as the index has rows. Raises ConfigurationError where widths differ or
    `num_neighbours` is below 1, DamagedRunError where the bytes are no index.
    """
    faiss = require_faiss()
    try:
        opened = faiss.deserialize_index(np.frombuffer(index, dtype=np.uint8))
    except (RuntimeError, MemoryError) as error:
        raise DamagedRunError("these bytes are no FAISS index; build the index again") from error
    _check_search(queries, opened.d, num_neighbours)
    wanted = min(num_neighbours, opened.ntotal)
    try:
        scores, positions = opened.search(np.ascontiguousarray(queries, dtype=np.float32), wanted)
    except (RuntimeError, MemoryError) as error:  # what can be read may still say that it is not trained
        raise DamagedRunError("these bytes are no FAISS index that can be searched; build the index again") from error
    return scores, positions


def search_index_numpy(
    index: bytes, queries: Float[np.ndarray, "query dim"], *, num_neighbours: int
) -> tuple[Float[np.ndarray, "query neighbour"], Int64[np.ndarray, "query neighbour"]]:
    """The twin of `search_index`, for bytes of `build_index_numpy`; ties go to the lower position."""
    kinds = {tag: "<f2" if name == "float16" else "<f4" for name, tag in _MAGIC.items()}
    if index[:8] not in kinds:
        raise DamagedRunError("these bytes are no flat index; build the index again")
    shape = np.frombuffer(index, dtype="<i8", count=2, offset=8)
    _check_search(queries, int(shape[1]), num_neighbours)
    rows = np.frombuffer(index, dtype=kinds[index[:8]], offset=24).reshape(shape).astype(np.float32)
    products = queries.astype(np.float32) @ rows.T
    positions = np.argsort(-products, axis=1, kind="stable")[:, :num_neighbours]
    return np.take_along_axis(products, positions, axis=1), positions.astype(np.int64)


def _check_search(queries: np.ndarray, dim: int, num_neighbours: int) -> None:
    if queries.shape[1] != dim:
        raise ConfigurationError(f"queries are {queries.shape[1]} wide, the index {dim}; use the same projection")
    if num_neighbours < 1:
        raise ConfigurationError(f"num_neighbours is {num_neighbours}; it must be at least 1")
