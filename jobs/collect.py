"""A collection from end to end: check, ingest, select, collect. Each stage is committed; the same command goes on.

The driver owns the plan and hands out blocks; Ray actors hold the model and commit rows themselves, so nothing large
travels. A worker's death costs its block, the driver's costs nothing that was committed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ..attribution.blocks import find_blocks
from ..errors import ConfigurationError
from ..storage.checked import require_same
from ..storage.rowset import RowSet
from ..storage.run import Run, require_name
from .config import SetConfig
from .data import DataSource, check_data
from .ingest import ingest
from .model import LoadedModel, ModelSource, check_model, load_model
from .plan import Estimate, estimate, make_plan, require_space, unit_bytes
from .pool import WorkerPool
from .precondition import FACTORS_FILE, encode_factors, measure_factors
from .progress import Listener, Stage, ignore
from .ray_session import RayOptions, ray_session, require_token
from .select import Scan, select_units
from .worker import Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """What to collect, and into which run."""

    out: str
    """The run's folder; made if it does not exist, gone on with if it does."""
    model: ModelSource
    data: DataSource
    config: SetConfig
    name: str | None = None
    """The row set's name; None takes the unit type."""
    keep_text: bool = True

    def __post_init__(self) -> None:
        require_name(self.set_name)
        label = self.config.selection.group_by
        if label is not None and label not in self.data.label_fields:
            raise ConfigurationError(
                f"--group-by is {label!r}; the labels kept are {', '.join(self.data.label_fields) or '(none)'}. "
                f"Add --label {label}."
            )

    @property
    def set_name(self) -> str:
        """The row set's name."""
        return self.name or self.config.selection.unit_type


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a collection did."""

    num_units: int
    dim: int
    zero: int
    refused: int
    cut: int
    """Documents and spans that were longer than what a unit reads."""
    rows_here: int
    """Rows that this process collected; the others were committed before."""
    tokens_here: int
    """Tokens that those rows read, each unit's context counted."""
    seconds: float
    """Of collecting them, start-up and selection left out."""


def collect(collection: Collection, ray_options: RayOptions, *, listener: Listener = ignore) -> Collected:
    """Collect a row set, or what is missing of it.

    Everything that can be known is checked before Ray starts or a file is written.
    """
    require_token(ray_options)
    check_model(collection.model)
    check_data(collection.data)
    loaded = load_model(collection.model)
    plan = make_plan(collection.config, loaded, _earlier_plans(collection))
    with _open(collection, loaded) as run:
        row_set = run.new_row_set(collection.set_name)
        _require_same_plan(row_set, plan)
        ingest(
            run,
            collection.data,
            loaded.tokenizer,
            keep_text=collection.keep_text,
            vocab_size=loaded.model.config.vocab_size,
            listener=listener,
        )
        if row_set.planned and not row_set.missing_blocks():
            return _collected(row_set, rows_here=0, tokens_here=0, seconds=0.0)
        with workers(collection, run, ray_options) as (pool, num_workers):
            if not row_set.planned:
                units = _select(run, collection.config, plan, scanner(pool, listener))
                run.upgrade()
                row_set.freeze(plan, units, _beside_the_plan(run, units, plan, collection.config, loaded))
            done = _collect_blocks(row_set, pool, listener)
        run.log("collect", rows=row_set.name, num_workers=num_workers, **asdict(done))
        return done


def dry_run(collection: Collection, ray_options: RayOptions) -> Estimate:
    """What the collection would cost, by reading the data's sizes and timing one batch; writes nothing.

    Raises NoSpaceError if the rows cannot fit, and whatever the collection itself would refuse beforehand.
    """
    import os

    check_model(collection.model)
    facts = check_data(collection.data)
    loaded = load_model(collection.model)
    if Run.exists(collection.out):
        plan = make_plan(collection.config, loaded, _earlier_plans(collection))
        with _open(collection, loaded) as run:
            _require_same_plan(run.new_row_set(collection.set_name), plan)
    num_workers = ray_options.num_workers or max(1, (os.cpu_count() or 1) // ray_options.threads_per_worker)
    result = estimate(
        collection.config,
        loaded,
        num_tokens=_count_tokens(collection.data, loaded, facts.size_bytes),
        num_workers=num_workers,
    )
    from ..storage.local import LocalStore

    require_space(result.num_bytes, LocalStore(collection.out).free_bytes(), collection.out)
    return result


def _earlier_plans(collection: Collection) -> list[dict[str, Any]]:
    """Plans of the run's row sets, this one's first: rows of one run are comparable where they can be.

    RunMismatchError where this row set itself is one that this version cannot go on with.
    """
    if not Run.exists(collection.out):
        return []
    run = Run.open(collection.out)
    names = sorted(run.row_sets(), key=lambda name: name != collection.set_name)
    if collection.set_name in names:
        run.row_set(collection.set_name).require_current()
    row_sets = [run.row_set(name) for name in names]
    return [row_set.plan for row_set in row_sets if row_set.is_current]


@contextmanager
def _open(collection: Collection, loaded: LoadedModel) -> Iterator[Run]:
    data = asdict(collection.data)
    config = {
        "data": data,
        "tokenizer_fingerprint": loaded.tokenizer_fingerprint,
        "keep_text": collection.keep_text,
    }
    versions = {
        "quantascope": _version("quantascope"),
        "torch": _version("torch"),
        "transformers": _version("transformers"),
    }
    with Run.create(collection.out, config=config, model=asdict(collection.model), versions=versions) as run:
        yield run


def _require_same_plan(row_set: RowSet, plan: dict[str, Any]) -> None:
    """Refuse, with both sides, to go on with a row set that was planned otherwise."""
    if row_set.planned:
        require_same(
            {key: row_set.plan[key] for key in plan},
            plan,
            f"Row set {row_set.name!r}",
            "Choose another --name, or remove it with `quantascope rm RUN --rows NAME`.",
        )


@contextmanager
def workers(
    collection: Collection, run: Run, options: RayOptions, kind: type[Worker] = Worker
) -> Iterator[tuple[WorkerPool, int]]:
    """A pool of workers of one kind on Ray, and how many they are."""
    with ray_session(options) as num_workers:
        import ray

        actor = ray.remote(kind).options(
            num_cpus=options.threads_per_worker, num_gpus=options.gpus_per_worker, max_restarts=0
        )
        arguments = (str(run.store.root), collection.set_name, collection.model, collection.config)
        with WorkerPool(lambda: actor.remote(*arguments), num_workers) as pool:
            yield pool, num_workers


def _select(run: Run, config: SetConfig, plan: dict[str, Any], scan: Scan) -> pa.Table:
    """The units, and room for their rows; NoSpaceError before any row is computed."""
    selection = select_units(run, config.selection, plan["window_tokens"], scan)
    require_space(len(selection) * unit_bytes(plan), run.store.free_bytes(), str(run.store.root))
    return selection


def _beside_the_plan(
    run: Run, units: pa.Table, plan: dict[str, Any], config: SetConfig, loaded: LoadedModel
) -> dict[str, bytes]:
    """Files that the rows depend on, besides the plan: a preconditioner's factors."""
    if config.rows.precondition == "none":
        return {}
    blocks = find_blocks(loaded.model, config.rows.blocks).blocks
    return {FACTORS_FILE: encode_factors(measure_factors(run, units, plan, loaded, blocks))}


def scanner(pool: WorkerPool, listener: Listener) -> Scan:
    """Looks at windows on the pool's workers."""

    def scan(tasks: list[np.ndarray]) -> list[pa.Table]:
        stage = Stage(listener, "select", total=sum(len(t) for t in tasks), unit="windows")
        found: dict[int, pa.Table] = {}

        def done(task: int, table: pa.Table) -> None:
            found[task] = table
            stage.advance(len(tasks[task]))

        pool.run(range(len(tasks)), lambda worker, task: worker.scan.remote(tasks[task]), on_done=done)
        return [found[i] for i in range(len(tasks))]

    return scan


def _collect_blocks(row_set: RowSet, pool: WorkerPool, listener: Listener) -> Collected:
    missing = row_set.missing_blocks()
    left = sum(b - a for a, b in map(row_set.block_range, missing))
    stage = Stage(listener, "collect", total=len(row_set), unit="rows", done_before=len(row_set) - left)
    tokens = 0

    def done(_: int, record: dict[str, Any]) -> None:
        nonlocal tokens
        tokens += record["num_tokens"]
        stage.advance(record["rows"])

    pool.run(missing, lambda worker, block: worker.collect.remote(block), on_done=done)
    return _collected(row_set, rows_here=left, tokens_here=tokens, seconds=stage.state.seconds)


def _collected(row_set: RowSet, *, rows_here: int, tokens_here: int, seconds: float) -> Collected:
    records = [row_set.record(b) for b in range(row_set.num_blocks)]
    return Collected(
        num_units=len(row_set),
        dim=int(row_set.plan["dim"]),
        zero=sum(r["zero"] for r in records),
        refused=sum(r["refused"] for r in records),
        cut=_num_cut(row_set),
        rows_here=rows_here,
        tokens_here=tokens_here,
        seconds=seconds,
    )


def _num_cut(row_set: RowSet) -> int:
    selection = row_set.selection()
    return int((np.asarray(selection["cut_tokens"]) > 0).sum()) if "cut_tokens" in selection.column_names else 0


def _count_tokens(source: DataSource, loaded: LoadedModel, size_bytes: int | None) -> int:
    """About how many tokens the data has: its size over the bytes per token of its first documents."""
    from .data import read_documents
    from .tokens import tokenise

    reader = read_documents(source, loaded.tokenizer)
    num_bytes = num_tokens = 0
    for document in reader:
        num_bytes += len(document.text.encode())
        num_tokens += len(tokenise(loaded.tokenizer, document).ids)
        if num_bytes > 1_000_000:
            break
    else:
        return num_tokens
    if size_bytes is None:
        raise ConfigurationError("The data's size is not known: give --max-documents to bound it.")
    return int(size_bytes / num_bytes * num_tokens)


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
