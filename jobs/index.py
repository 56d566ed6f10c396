"""Indexes of a run's rows: made block by block, brought up to date, refused when stale; and the search that uses them.

`index/<name>/` holds `rows.faiss`, whose numbers are units and which FAISS alone opens; `trained.faiss`, the same
without rows, from which parts are made; and facts: the blocks that it covers with their digests, and its recall as
measured. An index only proposes: scores come from the run's own rows. Rows that it does not cover yet are scanned.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64

from ..attribution.search.faiss_backend import require_faiss
from ..attribution.search.index import IndexSpec, NearestIndex, least_probes, recall
from ..attribution.search.scan import scan
from ..errors import ConfigurationError, RunMismatchError
from ..storage.checked import fingerprint, require_same
from ..storage.run import Run, require_name
from .quanta.clustered import Quanta
from .stored_rows import StoredRows, Transform
from .workers.pool import WorkerPool
from .workers.progress import Listener, Stage, ignore
from .workers.ray_session import RayOptions, ray_session

_TRAINING_ROWS = 1 << 17
_TRAINING_STREAM, _RECALL_STREAM = 0x696E01, 0x696E02
_PART_BYTES = 1 << 26
"""Of stored rows, about, that one worker puts into one part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexConfig:
    """Which rows are indexed, how, and how good the index has to be."""

    name: str | None = None
    """Under which it is stored; None takes the kind."""
    rows: str | None = None
    """The row set; None takes the token rows."""
    quanta: str | None = None
    """Rows are whitened as these quanta's are, which is what traces compare; None takes them as stored."""
    spec: IndexSpec = field(default_factory=IndexSpec)
    recall: float = 0.95
    """Lists are searched until this share of the exact neighbours is found, as measured on sampled rows."""
    num_neighbours: int = 100
    """For which the recall is measured."""
    num_queries: int = 128
    """Rows that are drawn to measure it."""
    rescored: int = 4
    """Proposals for each neighbour that is asked for; the run's rows decide among them."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        require_name(self.stored_name)
        if not 0 < self.recall <= 1:
            raise ConfigurationError(f"--recall is {self.recall}; give a share above 0, at most 1.")
        for option in ("num_neighbours", "num_queries", "rescored"):
            if getattr(self, option) < 1:
                raise ConfigurationError(f"{option} is {getattr(self, option)}; give 1 or more.")

    @property
    def stored_name(self) -> str:
        """The index's name."""
        return self.name or self.spec.kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Units of a row set with the greatest cosines with each query, best first; equal ones by unit."""

    units: Int64[np.ndarray, "query neighbour"]
    """−1 where an index had no more to propose."""
    scores: Float32[np.ndarray, "query neighbour"]
    """Inner products of the query and the unit row, computed from the run's rows; −∞ beside −1."""
    index: str | None
    """Which index proposed; None for the exact scan."""


def search(
    run: Run,
    queries: Float[np.ndarray, "query dim"],
    num_neighbours: int,
    *,
    index: str | None = None,
    rows: str | None = None,
    transform: Transform | None = None,
) -> Found:
    """The units nearest to some queries: by an index of that name, or else by the exact scan of a row set.

    Queries of unit norm give cosines; they are in the same space as the indexed rows (whitened, if those are).
    `transform` is for the scan alone: an index knows its own. Raises RunNotFoundError where there is no such index or
    row set, RunMismatchError for an index of rows or quanta that have changed since, DamagedRunError for damaged bytes.
    """
    if index is not None:
        return Index(run, index).search(queries, num_neighbours)
    return exact(StoredRows(run.row_set(rows), transform), queries, num_neighbours)


def exact(
    stored: StoredRows,
    queries: Float[np.ndarray, "query dim"],
    num_neighbours: int,
    *,
    blocks: Sequence[int] | None = None,
) -> Found:
    """The same by reading every row (or every row of some blocks)."""
    found = scan(stored.chunks(blocks), queries, num_neighbours)
    return Found(units=found.rows, scores=found.scores / np.float32(stored.scale), index=None)


class Index:
    """A stored index, opened; RunMismatchError if what it was made from has changed since."""

    def __init__(self, run: Run, name: str) -> None:
        self.run, self.name = run, name
        self._derived = run.derived("index", name)
        self.facts = self._derived.facts()
        if "covers" not in self.facts:
            raise RunMismatchError(
                f"index {name!r} of {run.store.root} belongs to the quanta of that name, and to their traces; "
                "make one with `quantascope index`, under another --name."
            )
        self.stored = StoredRows(run.row_set(self.facts["row_set"]), _transform(run, self.facts["config"]["quanta"]))
        self._require_current()

    def _require_current(self) -> None:
        quanta = self.facts["config"]["quanta"]
        changed = [b for b, digest in self.covers.items() if _digest(self.stored, b) != digest]
        if changed or _quanta_fingerprint(self.run, quanta) != self.facts["quanta_fingerprint"]:
            what = f"{len(changed)} blocks of row set {self.stored.row_set.name!r}" if changed else f"quanta {quanta!r}"
            raise RunMismatchError(
                f"index {self.name!r} of {self.run.store.root} is stale: {what} have changed since it was made. Make "
                f"it again: `quantascope index … --name {self.name}`."
            )

    @property
    def covers(self) -> dict[int, str]:
        """The blocks that are in it, with the digests of their rows."""
        return {int(block): digest for block, digest in self.facts["covers"].items()}

    @cached_property
    def nearest(self) -> NearestIndex:
        """The index itself, its bytes checked."""
        return NearestIndex.from_bytes(self._derived.file("rows.faiss"))

    def trained(self) -> NearestIndex:
        """The same without rows."""
        return NearestIndex.from_bytes(self._derived.file("trained.faiss"))

    def uncovered(self) -> list[int]:
        """Blocks that were committed since it was made."""
        return [b for b in self.stored.row_set.committed_blocks() if b not in self.covers]

    def search(self, queries: Float[np.ndarray, "query dim"], num_neighbours: int) -> Found:
        """See the module's `search`."""
        asked = np.ascontiguousarray(queries, dtype=np.float32)
        wanted = num_neighbours * int(self.facts["config"]["rescored"])
        _, proposed = self.nearest.search(asked, wanted)
        newer = self.uncovered()
        if newer:
            also = exact(self.stored, asked, num_neighbours, blocks=newer).units
            proposed = np.concatenate([proposed, also], axis=1)
        size = min(num_neighbours, proposed.shape[1])
        units, scores = np.full((len(asked), size), -1), np.full((len(asked), size), -np.inf, np.float32)
        for query, candidates, found, score in zip(asked, proposed, units, scores, strict=True):
            candidates = candidates[candidates >= 0]
            values = _scores(self.stored, query, candidates)
            order = np.lexsort((candidates, -values))[:size]
            found[: len(order)], score[: len(order)] = candidates[order], values[order]
        return Found(units=units, scores=scores, index=self.name)


def _scores(stored: StoredRows, query: np.ndarray, units: np.ndarray) -> Float32[np.ndarray, " unit"]:
    """As the scan gives them: float64 sums, rounded once to float32."""
    rows = stored.take(units).astype(np.float64)
    sums = np.einsum("ij,j->i", rows, query.astype(np.float64)).astype(np.float32)
    return np.asarray(sums / np.float32(stored.scale), dtype=np.float32)


def make_index(
    run: Run, config: IndexConfig, *, ray_options: RayOptions | None = None, listener: Listener = ignore
) -> Index:
    """Make an index of all committed blocks, or add what an index of that name lacks; under the run's lock.

    On Ray's workers where `ray_options` are given, in this process otherwise; the bytes are the same. A stale index is
    made anew. Raises RunMismatchError, with both sides, where the index of that name was made with another
    configuration; ConfigurationError where no row is fine; MissingDependencyError without FAISS.
    """
    require_faiss()
    older = _older(run, config)
    stored = older.stored if older else StoredRows(run.row_set(config.rows), _transform(run, config.quanta))
    blocks = stored.row_set.committed_blocks()
    missing = older.uncovered() if older else blocks
    if older and not missing:
        return older
    trained = older.trained() if older else _trained(stored, blocks, config)
    index = older.nearest if older else NearestIndex.from_bytes(trained.to_bytes())
    _add(run, index, trained, stored, missing, config, ray_options, listener)
    facts = _measure(index, stored, blocks, config) | {
        "row_set": stored.row_set.name,
        "kind": config.spec.kind,
        "config": _plain(config),
        "quanta_fingerprint": _quanta_fingerprint(run, config.quanta),
        "covers": {str(block): _digest(stored, block) for block in blocks},
        "num_rows": index.num_rows,
        "num_lists": index.num_lists,
    }
    files = {"rows.faiss": index.to_bytes(), "trained.faiss": trained.to_bytes()}
    source = fingerprint([facts["covers"], facts["quanta_fingerprint"]])
    run.derived("index", config.stored_name).write(facts, source=source, files=files)
    return Index(run, config.stored_name)


def _older(run: Run, config: IndexConfig) -> Index | None:
    """The index of that name, if it can be added to."""
    if not run.derived("index", config.stored_name).exists:
        return None
    facts = run.derived("index", config.stored_name).facts()
    if "covers" in facts:
        advice = "Choose another --name, or remove that index."
        require_same(facts["config"], _plain(config), f"index {config.stored_name!r} of {run.store.root}", advice)
        try:
            return Index(run, config.stored_name)
        except RunMismatchError:  # stale: it is made anew
            return None
    return Index(run, config.stored_name)  # of quanta: which says so


def _trained(stored: StoredRows, blocks: Sequence[int], config: IndexConfig) -> NearestIndex:
    generator = np.random.default_rng([_TRAINING_STREAM, config.spec.seed])
    sample, _ = stored.sampled(blocks, _TRAINING_ROWS, generator)
    return NearestIndex.train(sample, len(stored.row_set), config.spec)


def _add(
    run: Run,
    index: NearestIndex,
    trained: NearestIndex,
    stored: StoredRows,
    blocks: Sequence[int],
    config: IndexConfig,
    ray_options: RayOptions | None,
    listener: Listener,
) -> None:
    """Put blocks into an index, in order."""
    stage = Stage(listener, "index", total=len(blocks), unit="blocks")
    if ray_options is None:
        for block in blocks:
            index.add(*stored.block_rows(block))
            stage.advance(1)
        return
    size = max(1, _PART_BYTES // (2 * int(stored.row_set.plan["dim"]) * int(stored.row_set.plan["rows_per_block"])))
    parts = [list(blocks[i : i + size]) for i in range(0, len(blocks), size)]
    waiting: dict[int, bytes] = {}
    merged = 0

    def done(part: int, data: bytes) -> None:
        nonlocal merged
        waiting[part] = data
        while merged in waiting:
            index.merge(NearestIndex.from_bytes(waiting.pop(merged)))
            stage.advance(len(parts[merged]))
            merged += 1

    arguments = (str(run.store.root), stored.row_set.name, config.quanta, trained.to_bytes())
    with _workers(arguments, ray_options) as pool:
        pool.run(range(len(parts)), lambda worker, part: worker.part.remote(parts[part]), on_done=done)


@contextmanager
def _workers(arguments: tuple[Any, ...], options: RayOptions) -> Iterator[WorkerPool]:
    with ray_session(options) as num_workers:
        import ray

        actor = ray.remote(IndexWorker).options(num_cpus=options.threads_per_worker, max_restarts=0)
        with WorkerPool(lambda: actor.remote(*arguments), num_workers) as pool:
            yield pool


class IndexWorker:
    """Makes parts of an index from blocks of a run; a Ray actor."""

    def __init__(self, path: str, rows: str, quanta: str | None, trained: bytes) -> None:
        run = Run.open(path)
        self._stored, self._trained = StoredRows(run.row_set(rows), _transform(run, quanta)), trained

    def part(self, blocks: Sequence[int]) -> bytes:
        """An index of some blocks alone."""
        index = NearestIndex.from_bytes(self._trained)
        for block in blocks:
            index.add(*self._stored.block_rows(block))
        return index.to_bytes()


def _measure(index: NearestIndex, stored: StoredRows, blocks: Sequence[int], config: IndexConfig) -> dict[str, Any]:
    """Search so many lists that the recall is as wanted, and say what it is: sampled rows against the exact scan.

    A sampled row is its own nearest neighbour, and left out of what it has to find.
    """
    generator = np.random.default_rng([_RECALL_STREAM, config.spec.seed])
    queries, units = stored.sampled(blocks, config.num_queries, generator)
    wanted = min(config.num_neighbours, max(index.num_rows - 1, 1))
    truth = _without(exact(stored, queries, wanted + 1, blocks=blocks).units, units)[:, :wanted]

    def measure(num_probes: int) -> float:
        _, found = index.search(queries, (wanted + 1) * config.rescored, num_probes=num_probes)
        return recall(found, truth)

    index.num_probes, measured = least_probes(measure, index.num_lists, config.recall)
    return {
        "num_probes": index.num_probes,
        "recall": measured[index.num_probes],
        "recalls": {str(probes): value for probes, value in measured.items()},
        "recall_neighbours": wanted,
        "recall_queries": len(queries),
    }


def _without(
    found: Int64[np.ndarray, "query found"], own: Int64[np.ndarray, " query"]
) -> Int64[np.ndarray, "query less"]:
    """Each line without the query's own unit, or without its last where that is not there (copies of it are)."""
    drop = found == own[:, None]
    drop[~drop.any(axis=1), -1] = True
    return found[~drop].reshape(len(found), -1)


def _transform(run: Run, quanta: str | None) -> Transform | None:
    if quanta is None:
        return None
    return Quanta(run, quanta).preparation.apply


def _quanta_fingerprint(run: Run, quanta: str | None) -> str | None:
    return None if quanta is None else run.derived("quanta", quanta).fingerprint()


def _digest(stored: StoredRows, block: int) -> str:
    files = stored.row_set.record(block)["files"]
    return str(files[stored.row_set.block_files(block)[0]])


def _plain(config: IndexConfig) -> dict[str, Any]:
    return asdict(config)
