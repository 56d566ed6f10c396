"""Searching a run's rows: the exact scan beside the machine's limits and FAISS's flat index, and IVFs beside the scan.

Everything is measured in one run. The limit of a scan is the greater of two times: reading the rows' bytes at the speed
at which this machine reads them, and multiplying matrices of the scan's shape, in the precision that the scan
multiplies in. Where the processor is fastest in bfloat16 the scan sifts in that, and is held to bfloat16's limit as
well as to float32's, which it may beat; a scan in float32 stands beside it. Timings alternate, and the least of each
counts. `--clock cpu` counts processor time instead of time, for a machine that is busy with other things; it says the
same only with `--threads 1`.
"""

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import faiss
import numpy as np
import torch
from planted_rows import Planted, planted_run
from result import Bar, arguments, finish

from quantascope.attribution.search.coarse import fastest_precision
from quantascope.attribution.search.index import IndexSpec, recall
from quantascope.attribution.search.scan import scan
from quantascope.jobs.index import Found, Index, IndexConfig, exact, make_index
from quantascope.jobs.stored_rows import StoredRows
from quantascope.storage import Run

NUM_NEIGHBOURS = 100
NUM_QUERIES = 256


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
clock = CLOCKS["wall"]


def seconds(function: Callable[[], Any]) -> float:
    start = clock()
    function()
    return clock() - start


def least(repeats: int, functions: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """The least time of each, all measured in turn."""
    found = {name: [seconds(f) for f in [function]] for name, function in functions.items()}
    for _ in range(repeats - 1):
        for name, function in functions.items():
            found[name].append(seconds(function))
    return {name: min(values) for name, values in found.items()}


def read_all(blocks: list[np.ndarray], threads: int) -> None:
    """Read every byte once, on all threads."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda rows: np.bitwise_or.reduce(rows.view(np.uint64), axis=None), blocks))


def multiply(dtype: torch.dtype, dim: int) -> tuple[Callable[[], Any], int]:
    """A product of the scan's shape, and its operations."""
    rows, queries = torch.randn(8192, dim).to(dtype), torch.randn(NUM_QUERIES, dim).to(dtype)
    out = torch.empty(8192, NUM_QUERIES, dtype=dtype)
    return lambda: torch.mm(rows, queries.T, out=out), 2 * rows.numel() * NUM_QUERIES


def flat_seconds(stored: StoredRows, queries: np.ndarray, repeats: int) -> tuple[float, np.ndarray]:
    """FAISS's exact float32 index over all rows, a quarter at a time to fit in memory; building it is not counted."""
    blocks, total, parts = stored.row_set.committed_blocks(), 0.0, []
    for quarter in np.array_split(blocks, min(4, len(blocks))):
        index = faiss.IndexFlatIP(stored.dim)
        for chunk in stored.chunks(quarter.tolist()):
            index.add(chunk.rows.astype(np.float32))
        search = partial(index.search, queries, NUM_NEIGHBOURS)
        total += min(seconds(search) for _ in range(min(repeats, 2)))
        scores, places = search()
        parts.append((scores, places + stored.row_set.block_range(int(quarter[0]))[0]))
    scores, places = (np.concatenate(p, axis=1) for p in zip(*parts, strict=True))
    order = np.argsort(-scores, axis=1)[:, :NUM_NEIGHBOURS]
    return total, np.take_along_axis(places, order, 1)


def latencies(search: Callable[[np.ndarray], Found], queries: np.ndarray) -> float:
    """Median seconds of a single query."""
    search(queries[:1])
    return float(np.median([seconds(lambda q=q: search(q[None])) for q in queries]))


def measure(run: Run, planted: Planted, options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[Bar]]:
    stored, queries = StoredRows(run.row_set()), planted.queries(NUM_QUERIES)
    num_rows, dim = len(stored.row_set), stored.dim
    num_bytes, operations = 2 * num_rows * dim, 2 * num_rows * dim * NUM_QUERIES
    blocks: list[np.ndarray] = []
    touch = seconds(lambda: blocks.extend(c.rows for c in stored.chunks()))
    wide, work = multiply(torch.float32, dim)
    fast, _ = multiply(torch.bfloat16, dim)
    found: dict[str, Any] = {}
    times = least(
        options.repeats,
        {
            "read": lambda: read_all(blocks, options.threads),
            "float32": wide,
            "bfloat16": fast,
            "scan": lambda: found.update(scan=scan(stored.chunks(), queries, NUM_NEIGHBOURS)),
            "scan32": lambda: found.update(wide=scan(stored.chunks(), queries, NUM_NEIGHBOURS, precision="float32")),
        },
    )
    flat, flat_units = flat_seconds(stored, queries, options.repeats)
    assert np.array_equal(found["scan"].rows, found["wide"].rows)
    assert np.array_equal(found["scan"].scores, found["wide"].scores)
    reading = times["read"]
    limits = {name: max(reading, times[name] * operations / work) for name in ("float32", "bfloat16")}
    rows = [
        {"what": "first touch (checksums)", "seconds": touch, "GB/s": num_bytes / touch / 1e9},
        {"what": "limit: reading", "seconds": reading, "GB/s": num_bytes / reading / 1e9},
        *(
            {"what": f"limit: {name} products", "seconds": limits[name], "GFLOP/s": operations / limits[name] / 1e9}
            for name in limits
        ),
        {"what": f"scan, {fastest_precision()}", "seconds": times["scan"], "GFLOP/s": operations / times["scan"] / 1e9}
        | {"settled per query": found["scan"].num_settled / NUM_QUERIES},
        {"what": "scan, float32", "seconds": times["scan32"], "GFLOP/s": operations / times["scan32"] / 1e9}
        | {"settled per query": found["wide"].num_settled / NUM_QUERIES},
        {"what": "FAISS flat, float32", "seconds": flat, "GFLOP/s": operations / flat / 1e9}
        | {"recall": recall(flat_units, found["scan"].rows)},
    ]
    fastest = fastest_precision()
    bars = [
        _bar(f"scan: share of the {fastest} limit", limits[fastest] / times["scan"], 0.7),
        _bar("scan: share of the float32 limit", limits["float32"] / times["scan"], 0.7),
        _bar("scan in float32: share of the float32 limit", limits["float32"] / times["scan32"], 0.7),
        _bar("scan: times faster than FAISS flat", flat / times["scan"], 1.3),
    ]
    blocks.clear()
    more, more_bars = measure_indexes(run, stored, queries, options)
    return rows + more, bars + more_bars


def measure_indexes(
    run: Run, stored: StoredRows, queries: np.ndarray, options: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[Bar]]:
    truth = exact(stored, queries, NUM_NEIGHBOURS).units
    single = latencies(lambda q: exact(stored, q, NUM_NEIGHBOURS), queries[: options.singles])
    rows: list[dict[str, Any]] = [{"what": "one query: scan", "seconds": single, "recall": 1.0}]
    bars = []
    for spec in (IndexSpec(kind=kind) for kind in options.kinds):
        config = IndexConfig(spec=spec, recall=0.98 if spec.kind == "ivf-sq" else 0.95)
        took = seconds(lambda config=config: make_index(run, config))
        index = Index(run, spec.kind)
        found = np.concatenate([index.search(q[None], NUM_NEIGHBOURS).units for q in queries])
        one = latencies(lambda q, index=index: index.search(q, NUM_NEIGHBOURS), queries[: 4 * options.singles])
        facts = index.facts
        size = run.store.size_bytes(f"index/{spec.kind}/rows.faiss")
        rows.append(
            {"what": f"one query: {spec.kind}", "seconds": one, "recall": recall(found, truth)}
            | {"recall stored": facts["recall"], "lists searched": f"{facts['num_probes']} of {facts['num_lists']}"}
            | {"made in s": took, "GB": size / 1e9}
        )
        if spec.kind == "ivf-sq":
            bars.append(_bar("ivf-sq: recall", rows[-1]["recall"], 0.95))
            bars.append(_bar("ivf-sq: times faster than the scan, one query", single / one, 20))
    return rows, bars


def _bar(name: str, value: float, limit: float) -> Bar:
    return Bar(name=name, value=value, limit=limit, holds=value >= limit)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, help="instead of a million")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", default=["ivf-sq", "opq-ivf-pq"], help="of index")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    globals()["clock"] = CLOCKS[options.clock]
    options.singles = 3 if options.quick else 10
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    num_rows, dim, clusters = (60_000, 256, 60) if options.quick else (1_000_000, 1_024, 1_000)
    num_rows = options.rows or num_rows
    planted = Planted(dim, clusters, zipf=False, seed=options.seed)
    load = os.getloadavg()[0]
    with planted_run(planted, num_rows) as run:
        rows, bars = measure(run, planted, options)
    rows.append({"what": f"{options.clock} clock", "load before": load, "load after": os.getloadavg()[0]})
    if options.quick or options.rows:
        bars = []  # so few rows say nothing about a million
    columns = ["what", "seconds", "GB/s", "GFLOP/s", "settled per query", "recall", "lists searched", "made in s"]
    finish("scan", columns, rows, bars, options)


if __name__ == "__main__":
    main()
