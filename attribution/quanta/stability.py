"""Do the same quanta come out again: of half of the documents, with another seed, under another projection?

Agreement is the adjusted Rand index (Hubert & Arabie 1985) on the units that both clusterings have: 1 is the same
partition, 0 is chance. Its null clusters rows of random directions in the same two ways. Knows rows, documents and
clusterers; not where another projection's rows come from.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from sklearn.metrics import adjusted_rand_score

from ...errors import ConfigurationError
from ..clustering.base import Clusterer
from ..whitening import unit_rows


def agreement(first: Int[np.ndarray, " unit"], second: Int[np.ndarray, " unit"]) -> float:
    """Adjusted Rand index of two partitions of the same units; NaN for fewer than two units."""
    if len(first) != len(second):
        raise ConfigurationError(f"partitions of {len(first)} and {len(second)} units; give the same units")
    return float(adjusted_rand_score(first, second)) if len(first) > 1 else float("nan")


def half_agreement(
    clusterer: Clusterer,
    rows: Float[np.ndarray, "unit dim"],
    documents: Int[np.ndarray, " unit"],
    assignments: Int[np.ndarray, " unit"],
    *,
    num_halves: int = 4,
    seed: int = 0,
) -> list[float]:
    """Agreement of each half's own clustering with the whole's, on that half; halves come in pairs of complements.

    Documents are halved, not units. Empty for fewer than two documents. Deterministic in the seed.
    """
    named = np.unique(documents, return_inverse=True)[1]
    num_documents = int(named.max()) + 1
    found: list[float] = []
    rng = np.random.default_rng(seed)
    while num_documents > 1 and len(found) < num_halves:
        drawn = np.isin(named, rng.permutation(num_documents)[: num_documents // 2])
        for half in (drawn, ~drawn)[: num_halves - len(found)]:
            again = clusterer.cluster(rows[half], documents[half]).assignments
            found.append(agreement(assignments[half], again))
    return found


def with_seed(clusterer: Clusterer, seed: int) -> Clusterer:
    """The same clusterer with another seed, its inner one's where it has one."""
    settings: Any = clusterer
    inner = getattr(clusterer, "inner", None)
    made: Clusterer = replace(settings, seed=seed) if inner is None else replace(settings, inner=with_seed(inner, seed))
    return made


def random_directions(num_rows: int, dim: int, *, seed: int) -> Float[np.ndarray, "unit dim"]:
    """Unit rows of random directions, float32: the null of everything that is said of rows' directions."""
    return unit_rows(np.random.default_rng(seed).standard_normal((num_rows, dim), dtype=np.float32))
