"""Where k-means begins: candidates of a sample, and rounds that split and merge clusters of it. Arrays only.

Candidates by oversampling (k-means‖, Bahmani et al. 2012, algorithm 2), reduced by weighted k-means++ (Arthur &
Vassilvitskii 2007), then Lloyd's iterations. Then rounds that split the clusters with the largest error and merge the
pairs whose merging costs least (Ward's cost; "breathing", Fritzke 2020, merges by another measure), kept while they
lower the objective: they repair what Lloyd cannot, two centroids in one cluster and one in two.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32, Float64

from .lloyd import TILE_ROWS, Lloyd, Sums

Start = Literal["spread", "random"]

_OVERSAMPLING_ROUNDS = 5


def first_centroids(
    rows: torch.Tensor, num_clusters: int, generator: np.random.Generator, lloyd: Lloyd, *, start: Start
) -> Float32[np.ndarray, "cluster dim"]:
    """Centroids to begin with, from a sample."""
    if start == "random":
        return rows.numpy()[np.sort(generator.choice(len(rows), num_clusters, replace=False))]
    if len(rows) <= 16 * num_clusters:
        candidates, weight = rows.numpy(), np.ones(len(rows))
    else:
        candidates, weight = _oversampled(rows, num_clusters, generator, lloyd)
    return _plus_plus(candidates, weight, num_clusters, generator)


def improved(
    rows: torch.Tensor,
    centroids: Float32[np.ndarray, "cluster dim"],
    generator: np.random.Generator,
    lloyd: Lloyd,
    *,
    num_rounds: int,
) -> Float32[np.ndarray, "cluster dim"]:
    """Lloyd's iterations on a sample, and rounds of splitting and merging while they help."""
    centroids, sums = lloyd.repeated(rows, centroids, 6)
    best, number = lloyd.objective(sums), max(1, len(centroids) // 8)
    for _ in range(num_rounds if len(centroids) > 1 else 0):
        wider, more = lloyd.repeated(rows, _split(rows, centroids, sums, generator, lloyd, number=number), 2)
        found, after = lloyd.repeated(rows, _merged(wider, more, len(centroids)), 2)
        value = lloyd.objective(after)
        if value < best * (1 - 1e-4):
            centroids, sums, best = found, after, value
        elif number == 1:
            break
        else:
            number = -(-number // 3)
    return centroids


def _split(
    rows: torch.Tensor,
    centroids: Float32[np.ndarray, "cluster dim"],
    sums: Sums,
    generator: np.random.Generator,
    lloyd: Lloyd,
    *,
    number: int,
) -> Float32[np.ndarray, "more dim"]:
    """One more centroid for each of the clusters with the largest errors: one of its rows."""
    worst = np.argsort(-lloyd.errors(sums), kind="stable")[:number]
    place = lloyd.places(rows, centroids)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], worst)
    ends = np.searchsorted(place[order], worst, side="right")
    full = ends > starts
    chosen = order[starts[full] + (generator.random(full.sum()) * (ends - starts)[full]).astype(np.int64)]
    return np.concatenate([centroids, rows.numpy()[chosen]])


def _merged(centroids: Float32[np.ndarray, "more dim"], sums: Sums, wanted: int) -> Float32[np.ndarray, "cluster dim"]:
    """As many as wanted, by merging the pairs that cost least; none is merged twice."""
    size = np.maximum(sums.size, 1e-9)
    products = centroids @ centroids.T
    norms = np.diag(products)
    cost = (norms[:, None] + norms[None] - 2 * products) / (1 / size[:, None] + 1 / size[None])
    cost[np.tril_indices(len(cost))] = np.inf
    merged, gone = np.zeros(len(cost), bool), np.zeros(len(cost), bool)
    result = centroids.copy()
    for flat in np.argsort(cost, axis=None, kind="stable"):
        if gone.sum() == len(cost) - wanted:
            break
        a, b = divmod(int(flat), len(cost))
        if not (merged[a] or merged[b]):
            merged[[a, b]], gone[b] = True, True
            result[a] = (size[a] * centroids[a] + size[b] * centroids[b]) / (size[a] + size[b])
    return result[~gone]


def _oversampled(
    rows: torch.Tensor, num_clusters: int, generator: np.random.Generator, lloyd: Lloyd
) -> tuple[Float32[np.ndarray, "candidate dim"], Float64[np.ndarray, " candidate"]]:
    """Some rows for each cluster, drawn in rounds by squared distance to those before; how many each stands for."""
    squares = rows.square().sum(dim=1).double().numpy()
    candidates = chosen = np.array([generator.integers(len(rows))])
    far = np.full(len(rows), np.inf)
    for _ in range(_OVERSAMPLING_ROUNDS):
        far = np.minimum(far, _squared_distances(rows, rows.numpy()[chosen], squares, lloyd))
        far[chosen] = 0
        odds = far * (num_clusters / max(far.sum(), 1e-300))
        chosen = np.flatnonzero(generator.random(len(rows)) < odds)
        if not chosen.size:
            break
        candidates = np.concatenate([candidates, chosen])
    if len(candidates) < num_clusters:  # few different rows
        rest = np.setdiff1d(np.arange(len(rows)), candidates)
        candidates = np.concatenate([candidates, rest[: num_clusters - len(candidates)]])
    place = lloyd.places(rows, rows.numpy()[candidates])
    return rows.numpy()[candidates], np.bincount(place, minlength=len(candidates)).astype(np.float64)


def _squared_distances(
    rows: torch.Tensor, centres: np.ndarray, squares: np.ndarray, lloyd: Lloyd
) -> Float64[np.ndarray, " row"]:
    """Of each row to the nearest of some centres (all rows taken as of equal norm where spherical)."""
    place = lloyd.places(rows, centres)
    nearest = np.empty(len(rows))
    for start in range(0, len(rows), TILE_ROWS):
        part = slice(start, start + TILE_ROWS)
        nearest[part] = (rows[part] - torch.from_numpy(centres)[place[part]]).square().sum(dim=1).numpy()
    return np.minimum(nearest, 4 * squares.max())


def _plus_plus(
    candidates: Float32[np.ndarray, "candidate dim"],
    weight: Float64[np.ndarray, " candidate"],
    num_clusters: int,
    generator: np.random.Generator,
) -> Float32[np.ndarray, "cluster dim"]:
    """k-means++ with weights: each next one drawn by weight times squared distance to the nearest so far."""
    squares = (candidates.astype(np.float64) ** 2).sum(axis=1)
    chosen = np.empty(num_clusters, np.int64)
    chosen[0] = _drawn(weight, generator)
    far = np.full(len(candidates), np.inf)
    for i in range(1, num_clusters):
        last = chosen[i - 1]
        far = np.minimum(far, np.maximum(squares + squares[last] - 2.0 * (candidates @ candidates[last]), 0))
        far[last] = 0
        chosen[i] = _drawn(weight * far, generator)
    return candidates[chosen].copy()


def _drawn(odds: np.ndarray, generator: np.random.Generator) -> int:
    total = np.cumsum(odds)
    if total[-1] <= 0:  # no row differs from those chosen
        return int(generator.integers(len(odds)))
    return int(min(np.searchsorted(total, generator.random() * total[-1], side="right"), len(odds) - 1))
