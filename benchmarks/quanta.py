"""Clusterers on planted directions, where the truth is known: adjusted Rand index, number of quanta found, and time.

N clusters of sizes ⌊A/i⌋ (A = 100 for N = 30, 1,000 for N = 300); centres are drawn from a normal distribution in 1,000
dimensions, rows are centres plus σ times such noise, projected to fewer dimensions by a normal matrix, and made unit.
Every clusterer gets the same rows (20 seeds, 3 with --quick; where N = 300, most get fewer: the table says how many).
Stopped and given again, it goes on with the seed that it was at.
`nearest centre` knows the true centres; all but `default, N unknown`, Leiden and density know N. Bars compare the
default with scipy's average linkage of all pairs: means of paired differences, with 95 % intervals (Student's t); the
interval's lower end counts, with --quick the mean.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from planted.keep import kept
from planted.statistics import half_interval
from result import Bar, arguments, finish
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits

from quantascope.attribution.clustering import AverageLinkage, Clusterer, Density, Leiden, Refined, Spectral
from quantascope.attribution.search.kmeans import KMeansConfig, assign, kmeans
from quantascope.attribution.search.tiles import Chunk
from quantascope.attribution.whitening import unit_rows

SETTINGS = [(n, sigma, dim) for n in (30, 300) for sigma in (2, 3) for dim in (1_000, 256, 64)]
HEADROOM = [(30, 2, 64), (30, 3, 256), (300, 2, 64)]
SEEDS_ALONE, SEEDS_OF_RIVALS, SEEDS_OF_SPECTRAL = 5, 3, 1
"""At N = 300: seeds with N unknown, and of all others but the default and scipy's linkage; spectral, a minute each, at
σ = 2."""
RECIPE = 1
"""Raised when what is measured changes: figures in the cache are then made again."""
LEAST_SIZE = 5
DEFAULT, LINKAGE, ALONE = "default", "scipy average linkage", "default, N unknown"

Labels = np.ndarray


def planted(num_quanta: int, sigma: float, dim: int, seed: int, largest: int | None = None) -> tuple[np.ndarray, ...]:
    """Unit rows, the true labels, and the label of the nearest true centre."""
    rng = np.random.default_rng(seed)
    largest = largest or {30: 100, 300: 1_000}[num_quanta]
    labels = np.repeat(np.arange(num_quanta), largest // np.arange(1, num_quanta + 1))
    width = max(dim, 1_000)
    centres = rng.standard_normal((num_quanta, width), dtype=np.float32)
    rows = centres[labels] + np.float32(sigma) * rng.standard_normal((len(labels), width), dtype=np.float32)
    if dim < width:
        projection = rng.standard_normal((width, dim), dtype=np.float32)
        rows, centres = rows @ projection, centres @ projection
    rows, centres = unit_rows(rows), unit_rows(centres)
    return rows, labels, (rows @ centres.T).argmax(axis=1)


def by_scipy(rows: np.ndarray, num_quanta: int) -> Labels:
    """Average linkage of all pairs on cosine distances, the mark to beat."""
    unit = rows.astype(np.float64)
    distances = np.clip(1 - unit @ unit.T, 0, 2)
    np.fill_diagonal(distances, 0)
    return fcluster(linkage(squareform(distances, checks=False), method="average"), num_quanta, criterion="maxclust")


def of(clusterer: Clusterer) -> Callable[[np.ndarray], Labels]:
    return lambda rows: clusterer.cluster(rows).assignments


def by_kmeans(rows: np.ndarray, num_quanta: int) -> Labels:
    config = KMeansConfig(num_clusters=num_quanta, spherical=True, start="random", num_rounds=0)
    found = kmeans(lambda: [Chunk(0, rows)], rows.shape[1], config)
    return assign(rows, found.centroids, spherical=True)


def methods(num_quanta: int) -> dict[str, Callable[[np.ndarray], Labels]]:
    """All that is compared, by name."""
    micro = AverageLinkage(num_quanta=num_quanta, max_pairs_rows=0, micro_clusters=6 * num_quanta)
    return {
        LINKAGE: lambda rows: by_scipy(rows, num_quanta),
        DEFAULT: of(Refined(inner=AverageLinkage(num_quanta=num_quanta))),
        "micro-clusters": of(micro),
        "micro-clusters, refined": of(Refined(inner=micro)),
        "spherical k-means": lambda rows: by_kmeans(rows, num_quanta),
        "the paper's": of(Spectral(num_quanta=num_quanta)),
        "spectral, cos squared": of(Spectral(num_quanta=num_quanta, affinity="squared cosine")),
        ALONE: of(Refined()),
        "Leiden": of(Leiden()),
        "density": of(Density()),
    }


def is_run(name: str, setting: tuple[int, int, int], turn: int) -> bool:
    """Whether a method is run on the seed of this turn."""
    num_quanta, sigma, _ = setting
    if num_quanta == 30 or name in (LINKAGE, DEFAULT):
        return True
    if name in ("the paper's", "spectral, cos squared"):
        return sigma == 2 and turn < SEEDS_OF_SPECTRAL
    return turn < (SEEDS_ALONE if name == ALONE else SEEDS_OF_RIVALS)


def measure(setting: tuple[int, int, int], options: argparse.Namespace, num_seeds: int) -> dict[str, dict[str, Any]]:
    """For each method: index, quanta of five rows and more over the true number of such, seconds; one per seed."""
    found: dict[str, dict[str, Any]] = {}
    folder = Path(options.cache).expanduser() / "planted-directions"
    for turn in range(num_seeds):
        name = "-".join(str(part) for part in (RECIPE, *setting, options.seed + turn, turn, int(options.no_rivals)))
        made = kept(folder / f"{name}.json", partial(of_seed, setting, options, turn), again=options.again)
        for method, figures in made.items():
            for figure, value in figures.items():
                found.setdefault(method, {}).setdefault(figure, []).append(value)
    print(f"N={setting[0]} σ={setting[1]} D={setting[2]}: done", flush=True)
    return found


def of_seed(setting: tuple[int, int, int], options: argparse.Namespace, turn: int) -> dict[str, dict[str, float]]:
    """The figures of one seed."""
    num_quanta, sigma, dim = setting
    rows, truth, nearest = planted(num_quanta, sigma, dim, options.seed + turn)
    large = (np.bincount(truth) >= LEAST_SIZE).sum()
    timed = {"nearest centre": (nearest, 0.0)}
    for name, cluster in methods(num_quanta).items():
        if not is_run(name, setting, turn) or (options.no_rivals and name not in (LINKAGE, DEFAULT, ALONE)):
            continue
        start = time.perf_counter()
        timed[name] = cluster(rows), time.perf_counter() - start
    return {
        name: {
            "index": float(adjusted_rand_score(truth, labels)),
            "found": float((np.bincount(labels) >= LEAST_SIZE).sum() / large),
            "seconds": seconds,
        }
        for name, (labels, seconds) in timed.items()
    }


def at_least(name: str, values: np.ndarray, limit: float, *, quick: bool) -> Bar:
    low = float(values.mean()) - (0.0 if quick else half_interval(values))
    return Bar(name=name, value=low, limit=limit, holds=low >= limit)


def bars_of(
    setting: tuple[int, int, int], found: dict[str, dict[str, list[float]]], options: argparse.Namespace
) -> list[Bar]:
    num_quanta, sigma, dim = setting
    where = f"N = {num_quanta}, σ = {sigma}, {dim} dimensions"
    gain = np.array(found[DEFAULT]["index"]) - np.array(found[LINKAGE]["index"])
    bars = [at_least(f"{where}: default − linkage", gain, -0.01, quick=options.quick)]
    if setting in HEADROOM:
        bars.append(at_least(f"{where}: default − linkage, headroom", gain, 0.10, quick=options.quick))
    if dim == 1_000:
        wrong = float(np.abs(np.array(found[ALONE]["found"]) - 1).max())
        bars.append(Bar(name=f"{where}: worst error of the number found", value=wrong, limit=0.2, holds=wrong <= 0.2))
    return bars


def main() -> None:
    parser = arguments("Clusterers on planted directions.")
    parser.add_argument("--seeds", type=int, help="seeds per setting; the default is 20, or 3 with --quick")
    parser.add_argument("--num-quanta", type=int, choices=(30, 300), help="only the settings of this N")
    parser.add_argument("--cache", default="~/.cache/quantascope", help="where the figures of each seed are kept")
    parser.add_argument("--again", action="store_true", help="measure again what the cache has figures of")
    parser.add_argument("--no-rivals", action="store_true", help="only the default, scipy's linkage, nearest centres")
    options = parser.parse_args()
    num_seeds = options.seeds or (3 if options.quick else 20)
    wanted = [options.num_quanta] if options.num_quanta else [30] if options.quick else [30, 300]
    rows, bars = [], []
    with threadpool_limits(options.threads):
        for setting in [s for s in SETTINGS if s[0] in wanted]:
            found = measure(setting, options, num_seeds)
            bars += bars_of(setting, found, options)
            for name, figures in found.items():
                index = np.array(figures["index"])
                gain = index - np.array(found[LINKAGE]["index"])[: len(index)]
                rows.append(
                    {
                        "setting": "N={} σ={} D={}".format(*setting),
                        "method": name,
                        "index": float(index.mean()),
                        "±": half_interval(index),
                        "over linkage": float(gain.mean()),
                        "± of it": half_interval(gain),
                        "number found / true": float(np.mean(figures["found"])),
                        "seconds": float(np.median(figures["seconds"])),
                        "seeds": len(index),
                    }
                )
    columns = ["setting", "method", "index", "±", "over linkage", "± of it", "number found / true", "seconds", "seeds"]
    finish("quanta", columns, rows, bars, options)


if __name__ == "__main__":
    main()
