"""What is known of each quantum: how big, how often used, how tight, where in the network, and which units show it.

Knows rows, assignments and per-unit numbers; units and documents are integers. Memory stays at one chunk of rows times
the number of quanta.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from ...errors import ConfigurationError
from ..clustering.base import group_sums

_CHUNK_CELLS = 8_000_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuantumFacts:
    """Facts about one quantum; units are positions in the arrays that were given."""

    quantum: int
    """Its number."""
    size: int
    """Units in it."""
    use: float
    """Share of all units, in (0, 1]."""
    mean_loss: float
    """Mean loss of its units, in the unit of the losses given (nats)."""
    coherence: float
    """Mean cosine over all pairs of its rows, in [−1, 1]; NaN for a single row."""
    num_documents: int
    """Documents that its units come from."""
    address: Float[np.ndarray, " block"]
    """Share of its rows' squared norm in each block (mean over units), sums to 1; NaN where all norms are 0."""
    exemplars: Int[np.ndarray, " exemplar"]
    """Units nearest the centroid, best first, from different documents where there are enough."""
    edge: Int[np.ndarray, " edge"]
    """Units of its own farthest from the centroid, farthest first, from different documents likewise."""
    counterexamples: Int[np.ndarray, " counterexample"]
    """Units of other quanta nearest to the centroid, nearest first, from different documents likewise."""
    neighbours: Int[np.ndarray, " neighbour"]
    """Quanta with the nearest centroids, nearest first."""
    neighbour_cosines: Float[np.ndarray, " neighbour"]
    """Cosines of their centroids with this one, float32."""


def describe_quanta(
    rows: Float[np.ndarray, "unit dim"],
    assignments: Int[np.ndarray, " unit"],
    centroids: Float[np.ndarray, "quantum dim"],
    *,
    losses: Float[np.ndarray, " unit"],
    documents: Int[np.ndarray, " unit"],
    block_norms: Float[np.ndarray, "unit block"],
    num_exemplars: int = 5,
    num_neighbours: int = 5,
) -> list[QuantumFacts]:
    """Facts about each quantum 0 … k − 1, from the unit rows that were clustered.

    `block_norms` are the norms of each block of the raw rows. Deterministic; ties go to the earlier unit. Raises
    ConfigurationError where arrays differ in length, or a quantum has no units.
    """
    num_quanta = len(centroids)
    sizes = np.bincount(assignments, minlength=num_quanta)
    if {len(assignments), len(losses), len(documents), len(block_norms)} != {len(rows)}:
        raise ConfigurationError(f"{len(rows)} rows need as many assignments, losses, documents and block norms")
    if len(sizes) != num_quanta or not sizes.all():
        raise ConfigurationError(f"{num_quanta} centroids for quanta of {len(sizes)} numbers, or one without units")
    own, outside = _similarities(rows, assignments, centroids, num_candidates=4 * num_exemplars)
    mean_loss = np.bincount(assignments, weights=losses, minlength=num_quanta) / sizes
    coherence = _coherence(rows, assignments, sizes)
    addresses = _addresses(block_norms, assignments, sizes)
    members = np.split(np.lexsort((-own, assignments)), np.cumsum(sizes)[:-1])
    near, cosines = _neighbours(centroids, num_neighbours)
    return [
        QuantumFacts(
            quantum=quantum,
            size=len(units),
            use=len(units) / len(rows),
            mean_loss=float(mean_loss[quantum]),
            coherence=float(coherence[quantum]),
            num_documents=len(np.unique(documents[units])),
            address=addresses[quantum],
            exemplars=_spread(units, documents, num_exemplars),
            edge=_spread(units[::-1], documents, num_exemplars),
            counterexamples=_spread(outside[quantum], documents, num_exemplars),
            neighbours=near[quantum],
            neighbour_cosines=cosines[quantum],
        )
        for quantum, units in enumerate(members)
    ]


def _similarities(
    rows: np.ndarray, assignments: np.ndarray, centroids: np.ndarray, *, num_candidates: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Each unit's cosine with its own centroid, and for each quantum the nearest units from elsewhere."""
    num_quanta = len(centroids)
    own = np.empty(len(rows), dtype=np.float32)
    best = np.full((num_quanta, 0), -np.inf, dtype=np.float32)
    units = np.zeros((num_quanta, 0), dtype=np.int64)
    step = max(_CHUNK_CELLS // max(num_quanta, rows.shape[1]), num_candidates)
    for start in range(0, len(rows), step):
        part = assignments[start : start + step]
        cosines = rows[start : start + step].astype(np.float32, copy=False) @ centroids.T
        here = np.arange(len(part))
        own[start : start + step] = cosines[here, part]
        cosines[here, part] = -np.inf
        pool = np.concatenate([best, cosines.T], axis=1)
        names = np.concatenate([units, np.broadcast_to(start + here, (num_quanta, len(part)))], axis=1)
        kept = min(num_candidates, pool.shape[1])
        top = np.argpartition(-pool, kept - 1, axis=1)[:, :kept]
        best, units = np.take_along_axis(pool, top, axis=1), np.take_along_axis(names, top, axis=1)
    outside = []
    for scores, candidates in zip(best, units, strict=True):
        order = np.lexsort((candidates, -scores))
        outside.append(candidates[order][np.isfinite(scores[order])])
    return own, outside


def _coherence(rows: np.ndarray, assignments: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(|S|² − Σ|x|²) / (n (n − 1)): the mean over pairs, from sums."""
    sums = group_sums(rows, assignments, len(sizes))
    lengths = np.einsum("ij,ij->i", rows, rows, dtype=np.float32)
    squares = np.einsum("ij,ij->i", sums, sums, dtype=np.float64)
    pairs = np.where(sizes > 1, sizes * (sizes - 1.0), np.nan)
    return np.asarray((squares - np.bincount(assignments, weights=lengths, minlength=len(sizes))) / pairs)


def _addresses(block_norms: np.ndarray, assignments: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    squares = np.square(block_norms.astype(np.float64))
    totals = squares.sum(axis=1, keepdims=True)
    shares = squares / np.where(totals > 0, totals, np.nan)
    columns = [np.bincount(assignments, weights=column, minlength=len(sizes)) / sizes for column in shares.T]
    return np.stack(columns, axis=1) if columns else np.empty((len(sizes), 0))


def _neighbours(centroids: np.ndarray, num_neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    cosines = centroids @ centroids.T
    np.fill_diagonal(cosines, -np.inf)
    near = np.argsort(-cosines, axis=1, kind="stable")[:, : min(num_neighbours, len(centroids) - 1)]
    return near, np.take_along_axis(cosines, near, axis=1)


def _spread(units: np.ndarray, documents: np.ndarray, num_wanted: int) -> np.ndarray:
    """The first units, one per document; where documents run out, the first of the rest."""
    seen: set[int] = set()
    chosen: list[int] = []
    for unit in units:
        if len(chosen) == num_wanted:
            break
        if int(documents[unit]) not in seen:
            seen.add(int(documents[unit]))
            chosen.append(int(unit))
    taken = set(chosen)
    chosen += [int(unit) for unit in units[: 2 * num_wanted] if int(unit) not in taken][: num_wanted - len(chosen)]
    return np.array(chosen, dtype=np.int64)
