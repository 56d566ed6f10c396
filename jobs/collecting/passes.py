"""The two passes that workers make over a run: finding units, computing rows. Both are committed in parts.

Knows pools and row sets; not what a collection checks before it begins.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ...attribution.blocks import find_blocks
from ...storage.rowset import RowSet, SelectedUnits
from ...storage.run import Run
from ...storage.selection import StoredSelection
from ..models.model import LoadedModel
from ..workers.metrics import Metrics
from ..workers.pool import WorkerPool
from ..workers.progress import Listener, Stage
from ..workers.ray_session import RayOptions, ray_session, worker_room
from .block_time import warn_of_long_blocks
from .collection import Collected, Collection
from .config import SetConfig
from .plan import require_space, unit_bytes
from .precondition import FACTORS_FILE, encode_factors, measure_factors
from .select import Scan, Selecting
from .worker import Worker


@contextmanager
def workers(
    collection: Collection, run: Run, options: RayOptions, listener: Listener, kind: type[Worker] = Worker
) -> Iterator[tuple[WorkerPool, Listener, int]]:
    """A pool of workers of one kind on Ray, a listener that also counts for Prometheus, and how many fit at first."""
    with ray_session(options) as num_workers:
        import ray

        actor = ray.remote(kind).options(
            num_cpus=options.threads_per_worker, num_gpus=options.gpus_per_worker, max_restarts=0
        )
        arguments = (str(run.store.root), collection.set_name, collection.model, collection.config)
        metrics = Metrics(run.name)
        pool = WorkerPool(
            lambda: actor.remote(*arguments),
            options.num_workers,
            room=lambda: worker_room(options),
            prepare=lambda worker: worker.prepare.remote(),
            on_change=metrics.pool,
        )
        with pool:
            yield pool, metrics.listen(listener), num_workers


def freeze_units(
    row_set: RowSet,
    selecting: Selecting,
    *,
    run: Run,
    plan: dict[str, Any],
    config: SetConfig,
    loaded: LoadedModel,
    scan: Scan,
) -> None:
    """Find the units and freeze the plan; NoSpaceError, before any row is computed, where their rows cannot fit."""
    units = row_set.write_selection(selecting.units(scan))
    require_space(units.num_units * unit_bytes(plan), run.store.free_bytes(), str(run.store.root))
    warn_of_long_blocks(plan, _largest_group(row_set.written(units)) if plan["unit_type"] == "group" else 1)
    run.upgrade()
    row_set.freeze(plan, units, _beside_the_plan(row_set, units, run=run, plan=plan, config=config, loaded=loaded))
    selecting.done()


def _largest_group(units: StoredSelection) -> int:
    """Windows of the group with the most."""
    return max(int(np.asarray(part["num_windows"]).max(initial=0)) for part in units.groups(["num_windows"]))


def _beside_the_plan(
    row_set: RowSet, units: SelectedUnits, *, run: Run, plan: dict[str, Any], config: SetConfig, loaded: LoadedModel
) -> dict[str, bytes]:
    """Files that the rows depend on, besides the plan: a preconditioner's factors."""
    if config.rows.precondition == "none":
        return {}
    blocks = find_blocks(loaded.model, config.rows.blocks).blocks
    return {FACTORS_FILE: encode_factors(measure_factors(run, row_set.written(units), plan, loaded, blocks))}


def scanner(pool: WorkerPool, selecting: Selecting, listener: Listener) -> Scan:
    """Has a selection's tasks done by the pool's workers."""

    def scan(tasks: list[int]) -> None:
        left = sum(last - first for first, last in map(selecting.task_range, tasks))
        total = selecting.num_windows
        stage = Stage(listener, "select", total=total, unit=selecting.counts_in, done_before=total - left)

        def done(task: int, _: dict[str, Any]) -> None:
            first, last = selecting.task_range(task)
            stage.advance(last - first)

        pool.run(tasks, lambda worker, task: worker.scan.remote(task), on_done=done, what="selection task")

    return scan


def collect_blocks(row_set: RowSet, pool: WorkerPool, listener: Listener) -> Collected:
    """Have every block computed that is not committed; what the row set then holds."""
    missing = row_set.missing_blocks()
    left = sum(b - a for a, b in map(row_set.block_range, missing))
    stage = Stage(listener, "collect", total=len(row_set), unit="rows", done_before=len(row_set) - left)
    tokens = 0

    def done(_: int, record: dict[str, Any]) -> None:
        nonlocal tokens
        tokens += record["num_tokens"]
        stage.advance(record["rows"])

    pool.run(missing, lambda worker, block: worker.collect.remote(block), on_done=done)
    return collected(row_set, rows_here=left, tokens_here=tokens, seconds=stage.state.seconds)


def collected(row_set: RowSet, *, rows_here: int = 0, tokens_here: int = 0, seconds: float = 0.0) -> Collected:
    """What a finished row set holds."""
    zero = refused = 0
    for record in map(row_set.record, range(row_set.num_blocks)):
        zero, refused = zero + record["zero"], refused + record["refused"]
    return Collected(
        num_units=len(row_set),
        dim=int(row_set.plan["dim"]),
        zero=zero,
        refused=refused,
        cut=_num_cut(row_set),
        rows_here=rows_here,
        tokens_here=tokens_here,
        seconds=seconds,
    )


def _num_cut(row_set: RowSet) -> int:
    selection = row_set.selected
    if "cut_tokens" not in selection.column_names:
        return 0
    return sum(int((np.asarray(group["cut_tokens"]) > 0).sum()) for group in selection.groups(["cut_tokens"]))
