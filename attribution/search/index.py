"""Indexes that propose a query's nearest rows without looking at all of them: flat, IVF-SQ and OPQ-IVF-PQ, by FAISS.

An index is trained on a sample and empty; copies of it take rows of their own, in any processes, and are merged.
Arrays in, bytes out: what `to_bytes` gives, `faiss.read_index` opens from a file. FAISS itself comes from
`faiss_backend`, the one place that imports it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64

from ...errors import ConfigurationError, DamagedRunError
from .coarse import fastest_precision
from .faiss_backend import require_faiss
from .kmeans import KMeansConfig, kmeans
from .tiles import Chunk

IndexKind = Literal["flat", "ivf-sq", "opq-ivf-pq"]
KINDS: tuple[IndexKind, ...] = ("flat", "ivf-sq", "opq-ivf-pq")

_TILE_ROWS = 2_048
_OPQ_SAMPLE = 8_192
_PQ_SAMPLE = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSpec:
    """What kind of index, and how fine."""

    kind: IndexKind = "ivf-sq"
    """`flat`: every row, in float16. `ivf-sq`: rows in lists by their nearest centroid, of which a search looks at
    some. `opq-ivf-pq`: the same, with rows rotated and cut to a few bytes."""
    num_lists: int | None = None
    """None takes the power of two nearest to 4 √rows, or fewer where the sample has not 16 rows for each."""
    bits: int = 8
    """Of each number of an ivf-sq row: 8 or 16."""
    code_bytes: int | None = None
    """Of each opq-ivf-pq row; None takes an eighth of the width, 64 at most."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.kind not in KINDS:
            raise ConfigurationError(f"kind is {self.kind!r}; it is one of {', '.join(KINDS)}")
        if self.bits not in (8, 16):
            raise ConfigurationError(f"bits is {self.bits}; it is 8 or 16")
        for name in ("num_lists", "code_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"{name} is {value}; it must be at least 1")


class NearestIndex:
    """An index of rows by inner product; rows carry numbers of the caller's."""

    def __init__(self, opened: Any) -> None:  # noqa: ANN401 - FAISS has no types
        self._index = opened

    @classmethod
    def train(cls, sample: Float32[np.ndarray, "row dim"], num_rows: int, spec: IndexSpec) -> "NearestIndex":
        """An empty index for about `num_rows` rows like those of the sample. Same sample and seed, same index.

        Raises ConfigurationError for an empty sample, or where `code_bytes` does not fit the width.
        """
        if not len(sample):
            raise ConfigurationError("no rows to train an index on: none of them is fine")
        faiss, dim = require_faiss(), sample.shape[1]
        if spec.kind == "flat":
            flat = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
            return cls(faiss.IndexIDMap(flat))
        sample = np.ascontiguousarray(sample)
        num_lists = _lists(len(sample), num_rows, spec)
        if spec.kind == "ivf-sq":
            return cls(_trained_ivf(faiss, sample, num_lists, spec))
        size = spec.code_bytes or max(1, min(64, dim // 8))
        rotation = _rotation(faiss, sample, size)
        return cls(
            faiss.IndexPreTransform(rotation, _trained_ivf(faiss, rotation.apply(sample), num_lists, spec, size))
        )

    @classmethod
    def from_bytes(cls, data: bytes | np.ndarray) -> "NearestIndex":
        """What `to_bytes` gave; DamagedRunError for anything else."""
        faiss = require_faiss()
        try:
            return cls(faiss.deserialize_index(np.frombuffer(data, np.uint8)))
        except (RuntimeError, MemoryError) as error:
            raise DamagedRunError("these bytes are no FAISS index; build the index again") from error

    def to_bytes(self) -> bytes:
        """In FAISS's own format."""
        return bytes(require_faiss().serialize_index(self._index))

    def add(self, rows: Float32[np.ndarray, "row dim"], numbers: Int64[np.ndarray, " row"]) -> None:
        """Add rows under numbers; each number once."""
        given, names = np.ascontiguousarray(rows), np.ascontiguousarray(numbers)
        ivf = self._ivf
        if ivf is None or not len(given):
            self._index.add_with_ids(given, names)
            return
        faiss = require_faiss()
        if isinstance(self._index, faiss.IndexPreTransform):
            given = faiss.downcast_VectorTransform(self._index.chain.at(0)).apply(given)
        lists = _nearest(given, self._centroids).astype(np.int64)
        ivf.add_core(len(given), *(faiss.swig_ptr(array) for array in (given, names, lists)))
        self._index.ntotal = ivf.ntotal

    def merge(self, part: "NearestIndex") -> None:
        """Take over all rows of a part of the same training, which is empty afterwards."""
        self._index.merge_from(part._index, 0)

    @cached_property
    def _centroids(self) -> torch.Tensor:
        """Of the lists, in the fastest precision: a row between two lists may go to either."""
        ivf = self._ivf
        exact = torch.from_numpy(ivf.quantizer.reconstruct_n(0, ivf.nlist))
        return exact.to(torch.bfloat16 if fastest_precision() == "bfloat16" else torch.float32)

    @property
    def num_rows(self) -> int:
        """How many rows it has."""
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        """How wide they are."""
        return int(self._index.d)

    @property
    def num_lists(self) -> int:
        """How many lists there are; 1 for a flat index."""
        return int(self._ivf.nlist) if self._ivf else 1

    @property
    def num_probes(self) -> int:
        """How many lists a search looks at, unless told; FAISS stores it with the index."""
        return int(self._ivf.nprobe) if self._ivf else 1

    @num_probes.setter
    def num_probes(self, value: int) -> None:
        if self._ivf:
            self._ivf.nprobe = value

    def search(
        self, queries: Float[np.ndarray, "query dim"], num_neighbours: int, *, num_probes: int | None = None
    ) -> tuple[Float32[np.ndarray, "query neighbour"], Int64[np.ndarray, "query neighbour"]]:
        """Scores as the index holds its rows, falling, and numbers; number −1 where the lists had too few rows."""
        if queries.shape[1] != self.dim:
            raise ConfigurationError(f"queries are {queries.shape[1]} wide, the index {self.dim}; use the same rows")
        if num_neighbours < 1:
            raise ConfigurationError(f"num_neighbours is {num_neighbours}; it must be at least 1")
        before, self.num_probes = self.num_probes, num_probes or self.num_probes
        asked = np.ascontiguousarray(queries, dtype=np.float32)
        scores, numbers = self._index.search(asked, min(num_neighbours, max(self.num_rows, 1)))
        self.num_probes = before
        return scores, numbers

    def on_gpus(self) -> "NearestIndex":
        """The same rows on all GPUs, a shard on each; itself where this FAISS sees none."""
        faiss = require_faiss()
        if faiss.get_num_gpus() == 0:
            return self
        options = faiss.GpuMultipleClonerOptions()
        options.shard = True
        return NearestIndex(faiss.index_cpu_to_all_gpus(self._index, co=options))

    @property
    def _ivf(self) -> Any:  # noqa: ANN401
        faiss = require_faiss()
        return None if isinstance(self._index, faiss.IndexIDMap) else faiss.try_extract_index_ivf(self._index)


def recall(found: Int64[np.ndarray, "query found"], exact: Int64[np.ndarray, "query neighbour"]) -> float:
    """Share of the exact neighbours that were found, over all queries; 1 where there are none."""
    hits = [np.isin(wanted, got).mean() for got, wanted in zip(found, exact, strict=True) if wanted.size]
    return float(np.mean(hits)) if hits else 1.0


def least_probes(measure: Callable[[int], float], num_lists: int, wanted: float) -> tuple[int, dict[int, float]]:
    """The least power of two of lists whose recall is as wanted (or all lists), and the recalls that were measured."""
    measured: dict[int, float] = {}
    probes = 1
    while True:
        measured[probes] = measure(probes)
        if measured[probes] >= wanted or probes >= num_lists:
            return probes, measured
        probes = min(2 * probes, num_lists)


def _nearest(rows: Float32[np.ndarray, "row dim"], centroids: torch.Tensor) -> np.ndarray:
    """The list of each row."""
    places = [
        (torch.from_numpy(rows[i : i + _TILE_ROWS]).to(centroids.dtype) @ centroids.T).float().numpy().argmax(axis=1)
        for i in range(0, len(rows), _TILE_ROWS)
    ]
    return np.concatenate(places)


def _lists(num_sampled: int, num_rows: int, spec: IndexSpec) -> int:
    wanted = spec.num_lists or 1 << round(np.log2(max(4 * np.sqrt(num_rows), 1)))
    return int(max(1, min(wanted, num_sampled if spec.num_lists else num_sampled // 16)))


def _trained_ivf(faiss: ModuleType, sample: np.ndarray, num_lists: int, spec: IndexSpec, size: int = 0) -> Any:  # noqa: ANN401
    """An empty IVF whose lists are spherical k-means clusters of the sample."""
    dim = sample.shape[1]
    config = KMeansConfig(
        num_clusters=num_lists, seed=spec.seed, spherical=True, start="random", num_rounds=0, num_passes=3
    )
    lists = faiss.IndexFlatIP(dim)
    lists.add(kmeans(lambda: [Chunk(0, sample)], dim, config).centroids)
    if spec.kind == "ivf-sq":
        number = faiss.ScalarQuantizer.QT_fp16 if spec.bits == 16 else faiss.ScalarQuantizer.QT_8bit
        index = faiss.IndexIVFScalarQuantizer(lists, dim, num_lists, number, faiss.METRIC_INNER_PRODUCT, True)
    else:
        bits = _code_bits(len(sample))
        index = faiss.IndexIVFPQ(lists, dim, num_lists, size, bits, faiss.METRIC_INNER_PRODUCT)
        index.pq.cp.min_points_per_centroid = 1  # FAISS would print a warning below 39
    index.train(_thinned(sample, _PQ_SAMPLE))
    return index


def _rotation(faiss: ModuleType, sample: np.ndarray, size: int) -> Any:  # noqa: ANN401
    """OPQ: turned and cut to four numbers for each byte of code, as far as the width has them."""
    dim = sample.shape[1]
    if size > dim:
        raise ConfigurationError(f"code_bytes is {size}, the rows are {dim} wide; give at most that")
    rotation = faiss.OPQMatrix(dim, size, size * min(4, dim // size))
    rotation.niter, rotation.niter_pq, rotation.niter_pq_0 = 8, 2, 10
    some = _thinned(sample, _OPQ_SAMPLE)
    trial = faiss.ProductQuantizer(rotation.d_out, size, _code_bits(len(some)))
    trial.cp.min_points_per_centroid = 1  # FAISS would print warnings below 39
    rotation.pq = trial
    rotation.train(some)
    rotation.pq = None
    return rotation


def _code_bits(num_sampled: int) -> int:
    """Of each part of a code: 256 values, or as many as there are rows to learn them from."""
    return min(8, max(1, int(np.log2(num_sampled))))


def _thinned(sample: np.ndarray, num_rows: int) -> np.ndarray:
    """Every so-manieth row, `num_rows` at most."""
    return np.ascontiguousarray(sample[:: max(1, -(-len(sample) // num_rows))])
