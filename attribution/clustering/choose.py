"""How many quanta: the cut whose quanta come back, as the same groups, in documents that took no part in making them.

Prediction strength (Tibshirani & Walther 2005, Journal of Computational and Graphical Statistics 14, equation 2.1),
corrected for chance and averaged over the quanta instead of their minimum. The documents are halved, each half is
clustered by itself; then, for each quantum of one half, the share of its pairs of units from different documents that
the other half's centroids put together too. A cut that is too fine breaks up what is one group elsewhere; one that is
too coarse joins groups by accident, and elsewhere other accidents happen. Cuts are made at the cosine of centres
(heights.py), which means the same in every branch. Knows unit rows and their documents.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from ...errors import ConfigurationError
from ..whitening import unit_rows
from .base import group_sums
from .expectation import refine
from .heights import by_centre_cosine
from .linkage import average_linkage
from .tree import Tree

CUTS = np.arange(5, 100, 5) / 100
"""Centre cosines that are tried."""
_USUAL = 0.4
"""Where nothing speaks for another cut: planted directions come back whole from about 0.3 to 0.6."""
_NO_WORSE, _STRONG = 0.05, 0.7
"""Differences of strength below the first are no reason to leave the usual cut, nor is any above the second: broad
grains come back even more surely than the skills in them, wherever there are both."""

_MOST_SPLITS = 8
_DOUBTFUL = 0.25
"""Below this differences say little: the usual cut is taken, if there is structure at all."""
_MAX_REFINED_ROWS, _REFINED_SPLITS, _LEAST_AGREEMENT = 2_000, 4, 0.1
_NUM_NULLS, _NULL_SPLITS = 3, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class CutChoice:
    """Which cut comes back best, and how well."""

    cosine: float
    """Merges at this centre cosine or above are made; −1 (one quantum) where none beats rows without structure."""
    strength: float
    """The greatest prediction strength: 0 is chance, 1 perfect; units in quanta of one document count as 0."""
    cosines: Float[np.ndarray, " cut"]
    """The cuts that were tried."""
    strengths: Float[np.ndarray, " cut"]
    """Prediction strength at each."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Half:
    """Half of the documents: its tree, its rows in the tree's order, so that each group is a run of them."""

    tree: Tree
    order: Int[np.ndarray, " unit"]
    rows: Float[np.ndarray, "unit dim"]
    documents: Int[np.ndarray, " unit"]
    """From 0, in the tree's order too."""
    run_sums: Float[np.ndarray, "unit_and_one dim"]
    """Sums of the rows before each place: differences are sums over runs."""


def choose_cut(
    rows: Float[np.ndarray, "unit dim"],
    documents: Int[np.ndarray, " unit"] | None = None,
    *,
    seed: int = 0,
    max_rows: int = 6_000,
    num_splits: int | None = None,
) -> CutChoice:
    """The centre cosine at which to cut an average linkage of these unit rows.

    Of 19 cuts the one with the greatest prediction strength wins, or the one nearest to 0.4 among those that are within
    0.05 of it, or within a standard error of the paired difference where there are several splits to tell it, or that
    reach 0.7 (Tibshirani & Walther take the finest clustering that reaches 0.8 to 0.9, not corrected for chance). Where
    none reaches 0.25, it is 0.4 if refined quanta of the halves agree better than those of shuffled columns do, and
    otherwise there is one quantum. Strength is averaged over both directions between the halves and over `num_splits`
    ways to halve (None: as many as add up to 4,000 rows, 1 to 8). Without `documents` every row is one. At most
    `max_rows` rows are looked at, drawn without replacement. Deterministic in the seed. Raises ConfigurationError for
    fewer than 4 rows or 2 documents.
    """
    if documents is None:
        documents = np.arange(len(rows))
    rng = np.random.default_rng(seed)
    names = np.unique(documents)
    if len(rows) < 4 or len(names) < 2:
        raise ConfigurationError(
            f"{len(rows)} rows of {len(names)} documents are too few to choose a number of quanta; name num_quanta."
        )
    picked = np.sort(rng.permutation(len(rows))[:max_rows])
    rows, documents = rows[picked], documents[picked]
    several = num_splits or int(np.clip(4_000 // len(picked), 1, _MOST_SPLITS))
    measured = _measured(rows, documents, rng, several)
    strengths = measured.mean(axis=0)
    best = int(strengths.argmax())
    errors = (measured[:, [best]] - measured).std(axis=0) / np.sqrt(len(measured)) if several > 1 else 0.0
    no_worse = np.flatnonzero(strengths >= np.minimum(strengths[best] - np.maximum(errors, _NO_WORSE), _STRONG))
    chosen = float(CUTS[no_worse[np.abs(CUTS[no_worse] - _USUAL).argmin()]])
    if strengths[best] < _DOUBTFUL:
        chosen = _USUAL if _has_structure(rows, documents, rng) else -1.0
    return CutChoice(
        cosine=chosen,
        strength=float(strengths[best]),
        cosines=CUTS,
        strengths=strengths,
    )


def _measured(
    rows: np.ndarray, documents: np.ndarray, rng: np.random.Generator, num_splits: int
) -> Float[np.ndarray, "direction cut"]:
    """Prediction strength at each cut, in both directions of each split of the documents."""
    names = np.unique(documents)
    found = []
    for _ in range(num_splits):
        in_first = np.isin(documents, rng.permutation(names)[: len(names) // 2])
        found.append(
            _both_ways(_half(rows[in_first], documents[in_first]), _half(rows[~in_first], documents[~in_first]), CUTS)
        )
    return np.concatenate(found)


def _has_structure(rows: np.ndarray, documents: np.ndarray, rng: np.random.Generator) -> bool:
    """Whether refined quanta of half of the documents agree with those of the other half, and shuffled columns don't.

    Linkage alone hardly tells weak structure from none: on 64 numbers with noise of three times a centre's length its
    strength is 0.06, and that of shuffled columns up to 0.12. Refined, the same rows agree at 0.15 to 0.43, and
    shuffled ones at 0.05 at most.
    """
    picked = np.sort(rng.permutation(len(rows))[:_MAX_REFINED_ROWS])
    rows, documents = rows[picked], documents[picked]
    found = _refined_agreement(rows, documents, rng, _REFINED_SPLITS)
    if found < _LEAST_AGREEMENT:
        return False
    nulls = [
        _refined_agreement(unit_rows(rng.permuted(rows, axis=0)), documents, rng, _NULL_SPLITS)
        for _ in range(_NUM_NULLS)
    ]
    return found > 2 * max(nulls)


def _refined_agreement(rows: np.ndarray, documents: np.ndarray, rng: np.random.Generator, num_splits: int) -> float:
    """Mean over splits of how far pairs of units that one half's quanta put together, the other half's do too."""
    names = np.unique(documents)
    found = []
    for _ in range(num_splits):
        in_first = np.isin(documents, rng.permutation(names)[: len(names) // 2])
        halves = [(rows[part], documents[part]) for part in (in_first, ~in_first)]
        labels = [refine(part, by_centre_cosine(average_linkage(part)).cut_at(_USUAL)) for part, _ in halves]
        for (test, own_documents), own, (training, _), theirs in (
            (halves[0], labels[0], halves[1], labels[1]),
            (halves[1], labels[1], halves[0], labels[0]),
        ):
            sums = group_sums(training, theirs, int(theirs.max()) + 1)
            centroids = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), np.finfo(np.float32).tiny)
            found.append(_agreement(own, (test @ centroids.T).argmax(axis=1), own_documents))
    return float(np.mean(found))


def _agreement(own: np.ndarray, found: np.ndarray, documents: np.ndarray) -> float:
    """Adjusted Rand index that counts pairs of different documents alone; 0 where either is one group."""
    if min(len(np.unique(own)), len(np.unique(found))) < 2:
        return 0.0
    one = np.zeros_like(own)
    both, first, second, every = (
        float(_pairs_across(a, b, documents).sum()) for a, b in ((own, found), (own, one), (found, one), (one, one))
    )
    chance = first * second / max(every, 1.0)
    return (both - chance) / max((first + second) / 2 - chance, 1e-9)


def _half(rows: np.ndarray, documents: np.ndarray) -> _Half:
    tree = by_centre_cosine(average_linkage(rows))
    order = tree.leaf_order
    named = np.unique(documents, return_inverse=True)[1]
    return _Half(tree=tree, order=order, rows=rows[order], documents=named[order], run_sums=_sums_before(rows[order]))


def _both_ways(first: _Half, second: _Half, cosines: np.ndarray) -> np.ndarray:
    """Prediction strength at each cut, [2, cut]: first by second, second by first."""
    cross = first.rows @ second.rows.T
    there, back = _sums_before(cross.T), _sums_before(cross)
    return np.array(
        [[_strength(first, second, there, c), _strength(second, first, back, c)] for c in cosines.tolist()]
    ).T


def _sums_before(values: Float[np.ndarray, "row column"]) -> Float[np.ndarray, "row_and_one column"]:
    """Sums of the rows before each place, in float64."""
    sums = np.zeros((values.shape[0] + 1, values.shape[1]))
    np.cumsum(values, axis=0, dtype=np.float64, out=sums[1:])
    return sums


def _strength(test: _Half, training: _Half, cross: np.ndarray, cosine: float) -> float:
    """How well the training half's quanta keep the test half's together, at one cut.

    `cross` holds the inner products of the training half's rows with the test half's, summed over the rows before.
    """
    own = test.tree.cut_at(cosine)[test.order]
    found = _nearest(training, cross, training.tree.cut_at(cosine)[training.order])
    chance = float(np.square(np.bincount(found) / len(found)).sum())
    pairs = _pairs_across(own, np.zeros_like(own), test.documents)
    together = _pairs_across(own, found, test.documents)
    several = pairs > 0
    if chance >= 1 or not several.any():
        return 0.0
    share = together[several] / pairs[several]
    coverage = float(several[own].mean())
    return float(((share - chance) / (1 - chance)).mean() * coverage)


def _pairs_across(own: np.ndarray, found: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """For each group of `own`: pairs of its units with equal `found` and different documents, counted both ways."""
    found, documents = found.astype(np.int64), documents.astype(np.int64)
    pairs = np.zeros(int(own.max()) + 1)
    for sign, key in ((1.0, found), (-1.0, found * (int(documents.max()) + 1) + documents)):
        width = int(key.max()) + 1
        keys, counts = np.unique(own.astype(np.int64) * width + key, return_counts=True)
        np.add.at(pairs, keys // width, sign * np.square(counts.astype(np.float64)))
    return pairs


def _nearest(training: _Half, cross: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The group (as the place of its run) whose centroid has the greatest cosine with each test row."""
    ends = np.append(np.flatnonzero(labels[1:] != labels[:-1]) + 1, len(labels))
    norms = np.linalg.norm(np.diff(training.run_sums[ends], axis=0, prepend=0), axis=1)
    products = np.diff(cross[ends], axis=0, prepend=0) / np.maximum(norms, np.finfo(np.float32).tiny)[:, None]
    return np.asarray(products.argmax(axis=0))
