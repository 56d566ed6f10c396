"""The whole job over the floor: tokenising, Ray, selecting, writing and committing included, start-up stated apart.

One local Ray holds a worker of one thread that, after each block, also runs the floor (a forward pass, and the backward
pass through activations) on as many tokens, and a pair of such workers without it; they take turns, so that what else
the machine does strikes all alike. Memory, cutting a million documents, and planning 10^9 units by simulation are
measured in processes of their own, on runs whose rows are made up. bergson's command line, where it is installed, has
the same model and as many tokens of the same documents; what it takes beside its import and its start is the difference
of two runs, one of few documents and one of many.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from collect import floor, window_batch
from made_up_runs import (
    MadeUpWorker,
    Nowhere,
    SimulatedSelecting,
    candidates,
    peak_bytes,
    save_model,
    texts,
    write_documents,
)
from models import neox
from peer_command import measure_peer
from result import Bar, arguments, finish

from quantascope.jobs.collecting.collection import Collection
from quantascope.jobs.collecting.config import RowConfig, SelectionConfig, SetConfig
from quantascope.jobs.collecting.ingest import ingest
from quantascope.jobs.collecting.opening import open_run
from quantascope.jobs.collecting.passes import collect_blocks, freeze_units, scanner, workers
from quantascope.jobs.collecting.plan import make_plan
from quantascope.jobs.collecting.worker import Worker, make_selecting
from quantascope.jobs.data.source import DataSource
from quantascope.jobs.models.model import LoadedModel, ModelSource, load_model
from quantascope.jobs.workers.failures import Tasks
from quantascope.jobs.workers.pool import WorkerPool
from quantascope.jobs.workers.progress import ignore
from quantascope.jobs.workers.ray_session import RayOptions, ray_session
from quantascope.storage.rowset import RowSet
from quantascope.storage.run import Run

LENGTH, FLOOR_WINDOWS = 256, 4


class TimedWorker(Worker):
    """Says how long it works, and runs the floor after a block where asked."""

    def build(self) -> None:
        """All that happens once: model, engine, its proof, a first floor."""
        self._floor(FLOOR_WINDOWS)
        self._engine  # noqa: B018 - read for its effect
        time.sleep(2)  # so that the next such task goes to another worker

    def timed(self, block: int, with_floor: bool) -> dict[str, float]:
        start = time.perf_counter()
        record = self.collect(block)
        worked = time.perf_counter()
        if with_floor:
            self._floor(record["rows"])
        return {
            "tokens": record["num_tokens"],
            "work": worked - start,
            "floor": time.perf_counter() - worked if with_floor else 0.0,
        }

    def _floor(self, num_windows: int) -> None:
        for first in range(0, num_windows, FLOOR_WINDOWS):
            floor(self._loaded.model, window_batch(self._loaded.model, min(FLOOR_WINDOWS, num_windows - first), LENGTH))


WINDOWS = SetConfig(
    selection=SelectionConfig(unit_type="window", window_tokens=LENGTH),
    rows=RowConfig(batch_tokens=FLOOR_WINDOWS * LENGTH),
)
SMALL_ROWS = RowConfig(dim=64, rows_per_block=2048, shares="size")


def collection(folder: Path, model: str, config: SetConfig) -> Collection:
    return Collection(
        out=str(folder / "run"),
        model=ModelSource(model=str(folder / model)),
        data=DataSource(dataset=str(folder / "data.jsonl")),
        config=config,
        name="rows",
    )


def measure_job(folder: Path, *, rounds: int, blocks: int, seed: int) -> dict[str, Any]:
    """Seconds and tokens of each part of one job; segments of one worker and of two, in turns."""
    begun = time.perf_counter()
    job = collection(folder, "model", WINDOWS)
    loaded = load_model(job.model)
    plan = make_plan(job.config, loaded)
    per_block = plan["rows_per_block"]
    num_windows = rounds * 3 * blocks * per_block
    with (folder / "data.jsonl").open("w") as out:
        for text in texts(seed, num_documents=-(-num_windows * LENGTH // 2500), num_words=2000):
            out.write(json.dumps({"text": text}) + "\n")
    options = RayOptions(num_workers=3)
    with open_run(job, loaded) as run, ray_session(options):
        row_set = run.new_row_set(job.set_name)
        before_reading = time.perf_counter()
        ingest(run, job.data, loaded.tokenizer, keep_text=True)
        reading = time.perf_counter() - before_reading
        with (
            workers(job, run, RayOptions(num_workers=1), ignore, TimedWorker) as (one, _, _),
            workers(job, run, RayOptions(num_workers=2), ignore, TimedWorker) as (two, _, _),
        ):
            startup = ready(one, 1) + ready(two, 2)
            before_selecting = time.perf_counter()
            freeze(row_set, run, job, plan, loaded, one)
            selecting = time.perf_counter() - before_selecting
            built(one, 1)
            built(two, 2)
            startup = time.perf_counter() - begun - reading - selecting
            segments = take_turns(row_set, one, two, rounds=rounds, blocks=blocks)
    return {
        "startup": startup,
        "reading": reading / run.documents.index["num_tokens"],
        "selecting": selecting / run.documents.index["num_tokens"],
        "segments": segments,
        "rows_per_block": per_block,
    }


def ready(pool: WorkerPool, count: int) -> float:
    start = time.perf_counter()
    pool.run(range(count), lambda worker, _: worker.prepare.remote(), on_done=lambda *_: None)
    return time.perf_counter() - start


def built(pool: WorkerPool, count: int) -> None:
    pool.run(range(count), lambda worker, _: worker.build.remote(), on_done=lambda *_: None)


def freeze(
    row_set: RowSet, run: Run, job: Collection, plan: dict[str, Any], loaded: LoadedModel, pool: WorkerPool
) -> None:
    selecting = make_selecting(run, row_set.name, job.config, loaded)
    freeze_units(
        row_set,
        selecting,
        run=run,
        plan=plan,
        config=job.config,
        loaded=loaded,
        scan=scanner(pool, selecting, ignore),
    )


def take_turns(
    row_set: RowSet, one: WorkerPool, two: WorkerPool, *, rounds: int, blocks: int
) -> list[dict[str, float]]:
    """For each round the seconds per token of the floor, of one worker, of two; and what is lost between blocks."""
    left = row_set.missing_blocks()
    segments = []
    for _ in range(rounds):
        single, alone = segment(one, left[:blocks], with_floor=True)
        double, together = segment(two, left[blocks : 3 * blocks], with_floor=False)
        left = left[3 * blocks :]
        tokens, work, floors = (sum(record[key] for record in single) for key in ("tokens", "work", "floor"))
        segments.append(
            {
                "floor": floors / tokens,
                "one": (alone - floors) / tokens,
                "two": together / sum(record["tokens"] for record in double),
                "between": (alone - floors - work) / len(single),
                "block": work / len(single),
            }
        )
    return segments


def segment(pool: WorkerPool, blocks: list[int], *, with_floor: bool) -> tuple[list[dict[str, float]], float]:
    """What a pool's workers say of some blocks, and the seconds that they took in all."""
    found: list[dict[str, float]] = []
    start = time.perf_counter()
    pool.run(
        blocks,
        lambda worker, block: worker.timed.remote(block, with_floor),
        on_done=lambda _, record: found.append(record),
    )
    return found, time.perf_counter() - start


def measure_memory(folder: Path, num_units: int, seed: int) -> dict[str, float]:
    """Peak memory of the driver and of a worker over a whole job with so many units."""
    selection = SelectionConfig(max_loss=1.0, window_tokens=LENGTH, max_units=num_units)
    job = collection(folder, "tiny", SetConfig(selection=selection, rows=SMALL_ROWS))
    loaded = load_model(job.model)
    plan = make_plan(job.config, loaded)
    with open_run(job, loaded) as run:
        num_documents = -(-num_units // (LENGTH - 6))  # a few tokens end a trigram that was seen
        write_documents(run, num_documents=num_documents, num_tokens=LENGTH, seed=seed)
        row_set = run.new_row_set(job.set_name)
        peaks: list[int] = []
        start = time.perf_counter()
        with workers(job, run, RayOptions(num_workers=1), ignore, MadeUpWorker) as (pool, listener, _):
            freeze(row_set, run, job, plan, loaded, pool)
            done = collect_blocks(row_set, pool, listener)
            pool.run([0], lambda worker, _: worker.peak_bytes.remote(), on_done=lambda _, peak: peaks.append(peak))
    return {
        "units": done.num_units,
        "driver": peak_bytes(),
        "worker": peaks[0],
        "seconds": time.perf_counter() - start,
    }


def measure_cutting(folder: Path, num_documents: int, seed: int) -> dict[str, float]:
    """Seconds from documents whose units are found to blocks that wait for workers."""
    selection = SelectionConfig(unit_type="document", window_tokens=LENGTH)
    job = collection(folder, "tiny", SetConfig(selection=selection, rows=SMALL_ROWS))
    loaded = load_model(job.model)
    plan = make_plan(job.config, loaded)
    with open_run(job, loaded) as run:
        write_documents(run, num_documents=num_documents, num_tokens=50, seed=seed)
        selecting = make_selecting(run, job.set_name, job.config, loaded)
        for task in range(selecting.num_tasks):
            first, last = selecting.task_range(task)
            selecting.shards.commit(task, candidates(first, last - first))
        start = time.perf_counter()
        row_set = run.new_row_set(job.set_name)
        freeze_units(
            row_set,
            make_selecting(run, job.set_name, job.config, loaded),
            run=run,
            plan=plan,
            config=job.config,
            loaded=loaded,
            scan=lambda tasks: None if not tasks else sys.exit("the tasks are done"),
        )
        blocks = len(row_set.missing_blocks())
        return {"documents": len(row_set), "blocks": blocks, "seconds": time.perf_counter() - start}


def measure_planning(folder: Path, num_units: int) -> dict[str, float]:
    """Peak memory of a driver that plans so many units and hands out their blocks; none of their bytes is kept."""
    store = Nowhere(folder / "run")
    row_set = RowSet(store, "rows")
    start = time.perf_counter()
    units = row_set.write_selection(SimulatedSelecting(num_units).units(lambda _: None))
    blocks = [{"name": "all", "first_column": 0, "last_column": 4095}]
    row_set.freeze({"dim": 4096, "rows_per_block": 1953, "blocks": blocks}, units)
    tasks = Tasks(row_set.missing_blocks(), "block")
    num_blocks = len(tasks)
    while len(tasks):
        tasks.next()
        tasks.num_done += 1
    return {
        "units": len(row_set),
        "blocks": num_blocks,
        "selection": store.num_bytes,
        "driver": peak_bytes(),
        "seconds": time.perf_counter() - start,
    }


def in_process(folder: Path, what: str, number: int, seed: int) -> dict[str, Any]:
    """What a process of its own measures."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    command = [sys.executable, __file__, "--only", what, "--number", str(number), "--folder", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--seed", str(seed)], stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    return json.loads(done.stdout.splitlines()[-1])


def only(options: argparse.Namespace) -> dict[str, Any]:
    folder = Path(options.folder)
    if options.only == "job":
        return measure_job(folder, rounds=options.number, blocks=4, seed=options.seed)
    if options.only == "peer":
        save_model(folder / "model", neox(512, 6, 8192), options.seed)
        return {"peer": measure_peer(folder, num_tokens=LENGTH, seed=options.seed)}
    if options.only == "memory":
        return measure_memory(folder, options.number, options.seed)
    if options.only == "cutting":
        return measure_cutting(folder, options.number, options.seed)
    return measure_planning(folder, options.number)


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--only", choices=("job", "peer", "memory", "cutting", "planning"), help="one part, as one JSON object"
    )
    parser.add_argument("--number", type=int, default=1, help="rounds, units or documents of that part")
    parser.add_argument("--folder", help="where that part works")
    parser.set_defaults(threads=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    if options.only:
        print(json.dumps(only(options)))
        return
    with tempfile.TemporaryDirectory(prefix="qs") as name:
        folder = Path(name)
        save_model(folder / "model", neox(192, 4, 4096) if options.quick else neox(512, 6, 8192), options.seed)
        save_model(folder / "tiny", neox(64, 1, 320), options.seed)
        load = os.getloadavg()[0]
        quick = options.quick
        job = in_process(folder, "job", 1 if quick else 4, options.seed)
        job["load"] = (load, os.getloadavg()[0])
        job["peer"] = "left out of quick runs" if quick else measure_peer(folder, num_tokens=LENGTH, seed=options.seed)
        sizes = (10_000, 30_000) if quick else (10_000, 100_000, 1_000_000)
        memory = [in_process(folder, "memory", size, options.seed) for size in sizes]
        cutting = in_process(folder, "cutting", 20_000 if quick else 1_000_000, options.seed)
        planning = in_process(folder, "planning", 10_000_000 if quick else 1_000_000_000, options.seed)
    rows, bars = report(job, memory, cutting, planning)
    finish("pipeline", ["what", "value", "unit"], rows, bars, options)


def report(
    job: dict[str, Any], memory: list[dict[str, Any]], cutting: dict[str, Any], planning: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[Bar]]:
    """The table, and the figures that were asked for."""
    rows: list[dict[str, Any]] = []

    def row(what: str, value: float, unit: str) -> None:
        rows.append({"what": what, "value": float(value), "unit": unit})

    segments = job["segments"]
    around = job["reading"] + job["selecting"]
    over = float(np.median([s["floor"] / (s["one"] + around) for s in segments]))
    speedup = float(np.median([s["one"] / s["two"] for s in segments]))
    row("floor", 1 / np.median([s["floor"] for s in segments]), "tokens/s")
    row("whole job, one worker", 1 / np.median([s["one"] + around for s in segments]), "tokens/s")
    row("rows alone, two workers", 1 / np.median([s["two"] for s in segments]), "tokens/s")
    row("reading and tokenising", 1 / job["reading"], "tokens/s")
    row("selecting and planning", 1 / job["selecting"], "tokens/s")
    row("start-up, left out above", job["startup"], "s")
    row("one block", np.median([s["block"] for s in segments]), "s")
    row("between blocks", 1e3 * np.median([s["between"] for s in segments]), "ms")
    row("load before and after", job["load"][0], f"{job['load'][1]:.1f} after")
    if isinstance(peer := job["peer"], str):
        rows.append({"what": "bergson's command line", "value": peer, "unit": ""})
    else:
        row("bergson's command line, its loop", peer["tokens_per_second"], "tokens/s")
        row(f"the same, {peer['tokens']:,.0f} tokens, start included", peer["all"], "tokens/s")
        row("its start, import included", peer["start"], "s")
        row("its import", peer["import"], "s")
    for found in memory:
        row(f"driver's peak, {found['units']:,} units", found["driver"] / 1e6, "MB")
        row(f"worker's peak, {found['units']:,} units", found["worker"] / 1e6, "MB")
        row(f"rows committed, start-up included, {found['units']:,} units", found["units"] / found["seconds"], "rows/s")
    row(f"cutting {cutting['documents']:,} documents into {cutting['blocks']:,} blocks", cutting["seconds"], "s")
    row(f"planning {planning['units']:,} units in {planning['blocks']:,} blocks", planning["seconds"], "s")
    row("driver's peak in that", planning["driver"] / 1e6, "MB")
    row("selection.parquet of that", planning["selection"] / 1e9, "GB")
    bars = [
        Bar(name="whole job's tokens/s over the floor's", value=over, limit=0.87, holds=over >= 0.87),
        Bar(name="two workers over one", value=speedup, limit=1.8, holds=speedup >= 1.8),
    ]
    for who in ("driver", "worker"):
        growth = memory[-1][who] / memory[0][who]
        name = f"{who}'s peak memory at {memory[-1]['units']:,} units over {memory[0]['units']:,}"
        bars.append(Bar(name=name, value=growth, limit=1.15, holds=growth <= 1.15))
    seconds, peak = cutting["seconds"], planning["driver"] / 2**30
    bars.append(Bar(name="seconds to cut the documents", value=seconds, limit=60, holds=seconds < 60))
    bars.append(Bar(name="GiB of the driver that plans", value=peak, limit=2, holds=peak < 2))
    return rows, bars


if __name__ == "__main__":
    main()
