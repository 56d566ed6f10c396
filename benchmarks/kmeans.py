"""k-means over a run's rows beside scikit-learn's KMeans and MiniBatchKMeans on the same rows in memory.

Rows have planted clusters of Zipf sizes (planted_rows.py). Every objective is computed alike: the sum over all rows of
the squared distance to the nearest centroid, in float32. Ours reads the run's chunks and is timed with that; the others
get the rows as float32 in memory. `--clock cpu` counts processor time instead of time, for a machine that is busy with
other things; it says the same only with `--threads 1`.
"""

import os
import resource
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from planted_rows import Planted, planted_run
from result import Bar, arguments, finish
from threadpoolctl import threadpool_limits

from quantascope.attribution.search.coarse import fastest_precision
from quantascope.attribution.search.kmeans import KMeans, KMeansConfig, assign, kmeans
from quantascope.jobs.stored_rows import StoredRows

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def timed(clock: Callable[[], float], function: Callable[[], Any]) -> tuple[float, Any]:
    start = clock()
    value = function()
    return clock() - start, value


def objective(stored: StoredRows, centroids: np.ndarray) -> float:
    """Mean squared distance to the nearest centroid, rows of unit norm."""
    total, count = 0.0, 0
    for chunk in stored.chunks():
        for start in range(0, len(chunk.rows), 8_192):
            rows = chunk.rows[start : start + 8_192].astype(np.float32)
            total += float(((rows - centroids[assign(rows, centroids)]) ** 2).sum(dtype=np.float64))
            count += len(rows)
    return total / count / stored.scale**2


def in_memory(stored: StoredRows) -> np.ndarray:
    rows = np.empty((len(stored.row_set), stored.dim), np.float32)
    for chunk in stored.chunks():
        rows[chunk.first : chunk.first + len(chunk.rows)] = chunk.rows
    return rows


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def scikit(name: str, num_clusters: int, seed: int, rows: np.ndarray) -> np.ndarray:
    from sklearn.cluster import KMeans as Whole
    from sklearn.cluster import MiniBatchKMeans

    whole = name == "KMeans"
    estimator = (
        Whole(num_clusters, random_state=seed, copy_x=False)
        if whole
        else MiniBatchKMeans(num_clusters, random_state=seed)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return estimator.fit(rows).cluster_centers_


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, help="instead of a million")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--float32", action="store_true", help="also time ours without the processor's bfloat16")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock, load = CLOCKS[options.clock], os.getloadavg()[0]
    num_rows, num_clusters = (20_000, 100) if options.quick else (1_000_000, 1_000)
    num_rows = options.rows or num_rows
    planted = Planted(256, num_clusters, zipf=True, seed=options.seed)
    rows: list[dict[str, Any]] = []
    with threadpool_limits(options.threads), planted_run(planted, num_rows) as run:
        stored = StoredRows(run.row_set())
        touch, _ = timed(clock, lambda: sum(len(c.rows) for c in stored.chunks()))
        before = peak_bytes()
        rows.append({"what": "first touch (checksums)", "seconds": touch})
        for precision in ("auto", "float32") if options.float32 else ("auto",):
            config = KMeansConfig(num_clusters=num_clusters, seed=options.seed, precision=precision)
            took, found = timed(clock, lambda config=config: kmeans(stored.chunks, stored.dim, config))
            rows.append(_row(f"ours, {fastest_precision() if precision == 'auto' else precision}", took, stored, found))
        rows[1] |= {"peak MB": peak_bytes() / 1e6, "MB before": before / 1e6}
        matrix = in_memory(stored)
        for name in ("MiniBatchKMeans", "KMeans"):
            took, centroids = timed(clock, lambda name=name: scikit(name, num_clusters, options.seed, matrix))
            rows.append({"what": f"scikit-learn {name}", "seconds": took, "objective": objective(stored, centroids)})
            rows[-1]["peak MB"] = peak_bytes() / 1e6
    ours, batch, whole = rows[1], rows[-2], rows[-1]
    rows.append({"what": f"{options.clock} clock", "load before": load, "load after": os.getloadavg()[0]})
    bars = [
        _bar("objective over MiniBatchKMeans'", ours["objective"] / batch["objective"], 1.0),
        _bar("time over MiniBatchKMeans'", ours["seconds"] / batch["seconds"], 1.0),
        _bar("objective over KMeans'", ours["objective"] / whole["objective"], 1.001),
        _bar("time over KMeans'", ours["seconds"] / whole["seconds"], 0.2),
    ]
    if options.quick or options.rows:
        bars = []  # so few rows say nothing about a million
    finish("kmeans", ["what", "seconds", "objective", "passes", "peak MB", "MB before"], rows, bars, options)


def _row(what: str, took: float, stored: StoredRows, found: KMeans) -> dict[str, Any]:
    return {"what": what, "seconds": took, "objective": objective(stored, found.centroids)} | {
        "passes": len(found.objectives)
    }


def _bar(name: str, value: float, limit: float) -> Bar:
    return Bar(name=name, value=value, limit=limit, holds=value <= limit)


if __name__ == "__main__":
    main()
