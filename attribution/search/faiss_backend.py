"""The one place that imports FAISS: whether it is there, and a flat inner-product index as bytes.

What builds or searches has a numpy twin (its name ends in `_numpy`) of the same signature and meaning, which the tests
compare it with. Arrays in, arrays or bytes out: knows no files and no runs.
"""

from functools import cache
from importlib import metadata
from types import ModuleType
from typing import Literal

import numpy as np
from jaxtyping import Float, Int64

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


@cache
def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


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
