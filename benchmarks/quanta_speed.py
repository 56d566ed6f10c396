"""What clustering costs: beside the paper's way on 10,000 rows, and for a million rows, in time, memory and quality.

Rows are planted as in quanta.py: N directions of sizes ⌊A/i⌋, noise of twice their length.

*Ten thousand* rows of 6,144 numbers: the default clustering with its tree and its choice of N, and scikit-learn's
spectral clustering as the paper has it (affinity 1 − arccos(cos)/π, thirty starts), at the true N and through the
paper's sweep of thirty counts, the smallest and quickest first. The sweep stops where its bar is passed, so that its
time is a lower bound.

*A million* rows of 1,024 numbers, 1,000 directions: micro-clusters, the tree above them with its choice of N, and the
graph of ten nearest neighbours; the same on 50,000 and 200,000 of the rows. Memory is the greatest that the process
ever had, the rows themselves included.
"""

import argparse
import resource
import time

import numpy as np
from quanta import planted
from result import Bar, arguments, finish
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits

from quantascope.attribution.clustering import AverageLinkage, Refined, Spectral, local_neighbours
from quantascope.attribution.clustering.local_graph import recall

COUNTS = np.unique(np.geomspace(10, 1_500, 30).round().astype(int))
"""Thirty cluster counts from 10 to 1,500."""
NEIGHBOURS, SAMPLED = 10, 1_000


class Clock:
    """Seconds by the wall and of processor time since it was made."""

    def __init__(self) -> None:
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        return {
            "seconds": time.perf_counter() - self._wall,
            "processor seconds": time.process_time() - self._processor,
        }


def beside_the_paper(options: argparse.Namespace) -> tuple[list[dict[str, object]], list[Bar]]:
    """The default on 10,000 rows, the paper's way with N given, and its sweep."""
    num_rows, dim = (1_500, 512) if options.quick else (10_000, 6_144)
    rows, truth, _ = planted(300, 2, dim, options.seed, largest=1_640)
    picked = np.sort(np.random.default_rng(options.seed).permutation(len(rows))[:num_rows])
    rows, truth = np.ascontiguousarray(rows[picked, :dim]), truth[picked]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    setting = f"{num_rows:,} x {dim:,}"

    def timed(name: str, clusterer: Refined | Spectral) -> dict[str, object]:
        clock = Clock()
        labels = clusterer.cluster(rows).assignments
        index = float(adjusted_rand_score(truth, labels))
        row = {"setting": setting, "method": name, "index": index} | clock.read()
        print(row, flush=True)
        return row

    ours = timed("default, N unknown", Refined())
    theirs = timed("the paper's, N given", Spectral(num_quanta=300))
    table, seconds = [ours, theirs], float(str(ours["seconds"]))
    swept, done = 0.0, 0
    for count in COUNTS:
        row = timed(f"the paper's, {count} clusters", Spectral(num_quanta=int(count)))
        table.append(row)
        swept, done = swept + float(str(row["seconds"])), done + 1
        if swept > 30 * seconds or options.quick:
            break
    once = float(str(theirs["seconds"])) / seconds
    gain = float(str(ours["index"])) - float(str(theirs["index"]))
    return table, [
        Bar(name=f"{setting}: seconds of the default", value=seconds, limit=30, holds=seconds < 30),
        Bar(name=f"{setting}: one count of the paper's over it", value=once, limit=8, holds=once >= 8 or options.quick),
        Bar(
            name=f"{setting}: {done} of {len(COUNTS)} counts of the sweep over it, at least",
            value=swept / seconds,
            limit=30,
            holds=swept >= 30 * seconds or options.quick,
        ),
        Bar(name=f"{setting}: index less the paper's", value=gain, limit=0.0, holds=gain >= 0),
    ]


def many_planted(num_rows: int, dim: int, num_quanta: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The same rows as `planted`, made in place: a million of them are 4 GB."""
    rng = np.random.default_rng(seed)
    sizes = 1 / np.arange(1, num_quanta + 1)
    sizes = np.maximum(num_rows * sizes / sizes.sum(), 1).astype(np.int64)
    sizes[0] += num_rows - sizes.sum()
    labels = rng.permutation(np.repeat(np.arange(num_quanta), sizes))
    centres = rng.standard_normal((num_quanta, dim), dtype=np.float32)
    rows = np.empty((num_rows, dim), dtype=np.float32)
    for start in range(0, num_rows, 8_192):
        part = rows[start : start + 8_192]
        rng.standard_normal(out=part, dtype=np.float32)
        part *= 2
        part += centres[labels[start : start + 8_192]]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return rows, labels


def of_many(options: argparse.Namespace) -> tuple[list[dict[str, object]], list[Bar]]:
    """Micro-clusters, tree and graph, on all rows and on parts of them."""
    num_rows, dim, num_quanta = (30_000, 256, 100) if options.quick else (options.rows, 1_024, 1_000)
    rows, truth = many_planted(num_rows, dim, num_quanta, options.seed)
    micro = 512 if options.quick else 4_096
    clusterer = AverageLinkage(max_pairs_rows=min(20_000, num_rows // 10), micro_clusters=micro, seed=options.seed)
    table: list[dict[str, object]] = []
    rng = np.random.default_rng(options.seed)
    parts = [num_rows // 20, num_rows // 5, num_rows]
    for size in parts:
        picked = np.sort(rng.permutation(num_rows)[:size]) if size < num_rows else None
        part, labels = (rows, truth) if picked is None else (rows[picked], truth[picked])
        clock = Clock()
        made = clusterer.cluster(part)
        tree = clock.read()
        groups = np.unique(made.groups, return_inverse=True)[1]
        found = local_neighbours(part, groups, num_neighbours=NEIGHBOURS)
        whole = clock.read()
        table.append(
            {
                "setting": f"{size:,} x {dim:,}",
                "method": "micro-clusters, tree, graph",
                "index": float(adjusted_rand_score(labels, made.assignments)),
                "quanta": made.num_quanta,
                "micro-clusters": made.tree.num_leaves,
                "of them for the graph": whole["seconds"] - tree["seconds"],
                "pairs compared": found.num_pairs / size**2,
                "recall@10": recall(found, part, np.sort(rng.permutation(size)[:SAMPLED])),
                "GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            }
            | whole
        )
        print(table[-1], flush=True)
    small, last = table[0], table[-1]
    near, seconds, gib = (float(str(last[k])) for k in ("recall@10", "seconds", "GiB"))
    gain = float(str(last["index"])) - float(str(small["index"]))
    where = str(last["setting"])
    return table, [
        Bar(name=f"{where}: minutes", value=seconds / 60, limit=20, holds=seconds < 1_200),
        Bar(name=f"{where}: GiB", value=gib, limit=8, holds=gib <= 8),
        Bar(name=f"{where}: recall@10", value=near, limit=0.9, holds=near >= 0.9),
        Bar(name=f"{where}: index less that of {parts[0]:,} rows", value=gain, limit=-0.03, holds=gain >= -0.03),
    ]


def main() -> None:
    parser = arguments("What clustering costs.")
    parser.add_argument("--only", choices=("ten-thousand", "million"), help="one of the two parts")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the second part")
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    bars: list[Bar] = []
    with threadpool_limits(options.threads):
        for name, part in (("million", of_many), ("ten-thousand", beside_the_paper)):
            if options.only in (None, name):
                more, holds = part(options)
                rows += more
                bars += holds
    columns = ["setting", "method", "index", "seconds", "processor seconds", "recall@10", "GiB", "quanta"]
    finish("quanta_speed", columns, rows, bars, options)


if __name__ == "__main__":
    main()
