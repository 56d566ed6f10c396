"""Which quanta are used in the same documents more often than chance has them meet.

Counted are documents that hold units of both. The null keeps how many documents each quantum is in, and how many quanta
each document has, and deals out the rest anew: pairs of documents trade the quanta that only one of them has (the
curveball walk of Strona et al. 2014, Nature Communications 5:4114). Knows labels and documents.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int, Int32

from ...errors import ConfigurationError

_MAX_DOCUMENTS = 2_000
_MAX_QUANTA = 1_000
_CHECKS = 20
BEYOND = 2.326
"""Standard deviations above the null from which on a pair counts; 1 in 100 pairs reaches them by chance."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CoUse:
    """Pairs of quanta that share documents, the most surprising first for each quantum."""

    quantum: Int32[np.ndarray, " pair"]
    other: Int32[np.ndarray, " pair"]
    shared: Int32[np.ndarray, " pair"]
    """Documents that hold units of both."""
    expected: Float32[np.ndarray, " pair"]
    """Mean of the same over the null."""
    score: Float32[np.ndarray, " pair"]
    """How many of the null's standard deviations lie between."""
    share_beyond: float
    """Share of all pairs whose score is at least 2.326."""
    null_beyond: float
    """The same for further draws of the null."""
    num_documents: int
    """Documents looked at."""


def co_use(
    assignments: Int[np.ndarray, " unit"],
    documents: Int[np.ndarray, " unit"],
    *,
    num_partners: int = 5,
    num_samples: int = 200,
    seed: int = 0,
) -> CoUse:
    """For each quantum, the partners with the greatest scores of at least 2.326, at most `num_partners`.

    At most 2,000 documents (at equal distances) and the 1,000 first quanta are looked at. Deterministic in the seed.
    Raises ConfigurationError where lengths differ.
    """
    if len(assignments) != len(documents) or not len(documents):
        raise ConfigurationError(f"{len(assignments)} assignments and {len(documents)} documents; as many, at least 1")
    held = _presence(assignments, documents)
    rng = np.random.default_rng(seed)
    width = min(int(assignments.max()) + 1, _MAX_QUANTA)
    observed = _together(held, width)
    walk = [set(quanta) for quanta in held]
    _trade(walk, 5 * len(walk), rng)
    total, squares, checks = np.zeros((width, width)), np.zeros((width, width)), []
    for turn in range(num_samples + _CHECKS):
        _trade(walk, len(walk), rng)
        counts = _together(walk, width)
        if turn < num_samples:
            total += counts
            squares += np.square(counts)
        else:
            checks.append(counts)
    mean = total / num_samples
    spread = np.sqrt(np.maximum(squares / num_samples - np.square(mean), 1 / num_samples))
    scores = (observed - mean) / spread
    np.fill_diagonal(scores, -np.inf)
    off = ~np.eye(width, dtype=bool)
    beyond = [float(((counts - mean) / spread >= BEYOND)[off].mean()) if off.any() else 0.0 for counts in checks]
    pairs = []
    for quantum, row in enumerate(scores):
        best = np.argsort(-row, kind="stable")[:num_partners]
        pairs += [(quantum, int(other)) for other in best if row[other] >= BEYOND]
    first, second = np.array(pairs, dtype=np.int32).reshape(-1, 2).T
    return CoUse(
        quantum=first,
        other=second,
        shared=observed[first, second].astype(np.int32),
        expected=mean[first, second].astype(np.float32),
        score=scores[first, second].astype(np.float32),
        share_beyond=float((scores[off] >= BEYOND).mean()) if off.any() else 0.0,
        null_beyond=float(np.mean(beyond)),
        num_documents=len(held),
    )


def _presence(assignments: np.ndarray, documents: np.ndarray) -> list[list[int]]:
    """The quanta of each document that is looked at, sorted."""
    named = np.unique(documents, return_inverse=True)[1]
    num_documents = int(named.max()) + 1
    kept = np.arange(min(num_documents, _MAX_DOCUMENTS)) * num_documents // min(num_documents, _MAX_DOCUMENTS)
    width = int(assignments.max()) + 1
    counts = np.isin(named, kept) & (assignments < _MAX_QUANTA)
    keys = np.unique(named[counts].astype(np.int64) * width + assignments[counts])
    held: dict[int, list[int]] = {int(document): [] for document in kept}
    for document, quantum in zip((keys // width).tolist(), (keys % width).tolist(), strict=True):
        held[document].append(quantum)
    return list(held.values())


def _together(held: list[set[int]] | list[list[int]], width: int) -> np.ndarray:
    """Documents that hold both, for each pair of quanta."""
    member = np.zeros((len(held), width), dtype=np.float32)
    for row, quanta in zip(member, held, strict=True):
        row[list(quanta)] = 1
    return np.asarray(member.T @ member, dtype=np.float64)


def _trade(held: list[set[int]], num_trades: int, rng: np.random.Generator) -> None:
    """Pairs of documents deal out anew what only one of them has; each keeps its number."""
    if len(held) < 2:
        return
    first = rng.integers(0, len(held), num_trades)
    second = (first + rng.integers(1, len(held), num_trades)) % len(held)
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        mine, theirs = held[a] - held[b], held[b] - held[a]
        if mine and theirs:
            pool = np.array(sorted(mine | theirs))[rng.permutation(len(mine) + len(theirs))].tolist()
            held[a] = (held[a] - mine) | set(pool[: len(mine)])
            held[b] = (held[b] - theirs) | set(pool[len(mine) :])
