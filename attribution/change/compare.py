"""What differs between two models, quantum by quantum: which quanta they share, and whose loss changed beyond chance.

Weights of two models cannot be laid beside each other, but units can: the same token of the same document. Quanta of
one clustering are matched with those of another through the units that both hold. A quantum's change is the mean
change of its units' losses, and there are two measures of chance:

- *seeds*: models that differ in nothing but their seed. Their changes have a variance for each quantum; one or a few
  pairs say little about each, so it is shrunk towards what quanta of its size have (moderated variances of Smyth 2004,
  "Linear models and empirical Bayes methods", sections 4 and 6), and the change over its root is a Student's t;
- *documents*: the signs of documents' changes are flipped at random. That shows that the change is not a matter of a
  few documents; it does not show that another seed would not have made it.

Knows numbers over units; nothing of models or runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64
from scipy import optimize, special, stats

from ...errors import ConfigurationError

_FLIP_CELLS = 20_000_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Matching:
    """Quanta of one clustering with their partners in another, one to one."""

    partner: Int64[np.ndarray, " quantum"]
    """The other clustering's quantum; −1 where there is none beyond chance."""
    jaccard: Float64[np.ndarray, " quantum"]
    """Units in both over units in either, with the partner that the best assignment gives; 0 without one."""
    null_99: float
    """99th percentile of the same over shuffles of the other clustering."""


def match_quanta(
    first: Int[np.ndarray, " unit"], second: Int[np.ndarray, " unit"], *, num_shuffles: int = 20, seed: int = 0
) -> Matching:
    """Match two clusterings of the same units so that the sum of Jaccard indices is greatest (Hungarian method).

    Partners whose index is not above that of shuffled units are none. Quanta are numbered from 0; some may be empty.
    """
    if len(first) != len(second) or not len(first):
        raise ConfigurationError(f"{len(first)} and {len(second)} units: two clusterings are matched on the same ones.")
    chance = np.random.default_rng(seed)
    nulls = [_assign(first, chance.permutation(second))[1] for _ in range(num_shuffles)]
    null = float(np.percentile(np.concatenate(nulls), 99))
    partner, jaccard = _assign(first, second)
    return Matching(partner=np.where(jaccard > null, partner, -1), jaccard=jaccard, null_99=null)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Changes:
    """How much each quantum's mean loss changed, and whether that is more than chance."""

    change: Float64[np.ndarray, " quantum"]
    """In nats: negative where the second model is better."""
    spread: Float64[np.ndarray, " quantum"]
    """What chance makes of it: a standard deviation, between seeds or over documents."""
    score: Float64[np.ndarray, " quantum"]
    """Change over spread."""
    p_value: Float64[np.ndarray, " quantum"]
    """Two-sided."""
    q_value: Float64[np.ndarray, " quantum"]
    """Least false discovery rate at which the quantum counts as changed (Benjamini & Hochberg 1995)."""
    against: str
    """`seeds` or `documents`."""
    degrees: float
    """Of freedom of the t; infinite where spreads don't differ beyond their own noise, NaN against documents."""

    def changed(self, level: float = 0.05) -> Bool[np.ndarray, " quantum"]:
        """Quanta that count as changed, of which a share of about `level` did not."""
        return self.q_value <= level


def changes_against_seeds(
    change: Float[np.ndarray, " unit"],
    seeds: Sequence[Float[np.ndarray, " unit"]],
    quantum: Int[np.ndarray, " unit"],
) -> Changes:
    """Test every quantum's change of loss against the changes between models that differ in their seed alone.

    Two fine-tunes differ by two seeds' noise, as a pair of seeds does; against a base model the test is conservative.
    ConfigurationError without pairs, or for fewer than three quanta.
    """
    if not seeds:
        raise ConfigurationError("Give the losses of at least one pair of models that differ in their seed alone.")
    sizes = _sizes(quantum)
    if len(sizes) < 3:
        raise ConfigurationError(f"There are {len(sizes)} quanta; what seeds do is estimated over 3 at least.")
    means = _means(change, quantum, sizes)
    null = np.stack([_means(own, quantum, sizes) for own in seeds])
    variance, degrees = moderated_variance(null, sizes)
    spread = np.sqrt(variance)
    score = means / spread
    law = stats.norm if np.isinf(degrees) else stats.t(degrees)
    p = 2 * law.sf(np.abs(score))
    return Changes(
        change=means,
        spread=spread,
        score=score,
        p_value=p,
        q_value=false_discovery_rate(p),
        against="seeds",
        degrees=degrees,
    )


def changes_against_documents(
    change: Float[np.ndarray, " unit"],
    quantum: Int[np.ndarray, " unit"],
    document: Int[np.ndarray, " unit"],
    *,
    num_flips: int = 2_000,
    seed: int = 0,
) -> Changes:
    """Test every quantum's change by flipping the signs of whole documents' changes (a permutation test)."""
    sizes = _sizes(quantum)
    means = _means(change, quantum, sizes)
    _, place = np.unique(document, return_inverse=True)
    sums = np.zeros((int(place.max()) + 1, len(sizes)))
    np.add.at(sums, (place, quantum), np.asarray(change, np.float64))
    sums /= sizes
    chance = np.random.default_rng(seed)
    extreme, square, done = np.zeros(len(sizes)), np.zeros(len(sizes)), 0
    while done < num_flips:
        count = min(num_flips - done, max(1, _FLIP_CELLS // len(sums)))
        flips = chance.integers(0, 2, (count, len(sums))).astype(np.float64) * 2 - 1
        found = flips @ sums
        extreme += (np.abs(found) >= np.abs(means) * (1 - 1e-12)).sum(0)
        square += np.square(found).sum(0)
        done += count
    p = (1 + extreme) / (1 + num_flips)
    spread = np.sqrt(square / num_flips)
    return Changes(
        change=means,
        spread=spread,
        score=np.divide(means, spread, out=np.zeros_like(means), where=spread > 0),
        p_value=p,
        q_value=false_discovery_rate(p),
        against="documents",
        degrees=float("nan"),
    )


def moderated_variance(
    null: Float[np.ndarray, "pair quantum"], sizes: Int[np.ndarray, " quantum"]
) -> tuple[Float64[np.ndarray, " quantum"], float]:
    """Each quantum's variance between seeds, and the degrees of freedom of a change over its root.

    A pair's squared difference estimates it with one degree of freedom. The expected one is a + b/size, fitted over
    all quanta with a, b ≥ 0; the ratio to that is shrunk towards the ratios' common value as Smyth 2004 has it, by as
    much as they agree among each other.
    """
    pairs = len(null)
    square = np.square(np.asarray(null, np.float64)).mean(0)
    if not square.any():
        raise ConfigurationError("The models that should differ in their seed are equal; give models of two seeds.")
    expected = _by_size(square, sizes)
    ratio = np.maximum(square / expected, 1e-12)
    own = np.log(ratio) - special.digamma(pairs / 2) + np.log(pairs / 2)
    excess = float(own.var(ddof=1)) - float(special.polygamma(1, pairs / 2))
    if excess <= 1e-6:
        return expected * square.sum() / expected.sum(), float("inf")
    prior = 2 * _inverse_trigamma(excess)
    common = float(np.exp(own.mean() + special.digamma(prior / 2) - np.log(prior / 2)))
    return expected * (prior * common + pairs * ratio) / (prior + pairs), prior + pairs


def false_discovery_rate(p_values: Float[np.ndarray, " test"]) -> Float64[np.ndarray, " test"]:
    """Benjamini & Hochberg's q-values."""
    order = np.argsort(p_values, kind="stable")
    ranked = np.asarray(p_values, np.float64)[order] * len(order) / np.arange(1, len(order) + 1)
    result = np.empty(len(order))
    result[order] = np.minimum(np.minimum.accumulate(ranked[::-1])[::-1], 1)
    return result


def _assign(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = int(first.max()) + 1, int(second.max()) + 1
    both = np.zeros((rows, columns))
    np.add.at(both, (first, second), 1)
    either = both.sum(1)[:, None] + both.sum(0)[None] - both
    jaccard = np.divide(both, either, out=np.zeros_like(both), where=either > 0)
    own, other = optimize.linear_sum_assignment(jaccard, maximize=True)
    partner, value = np.full(rows, -1, np.int64), np.zeros(rows)
    partner[own], value[own] = other, jaccard[own, other]
    return partner, value


def _sizes(quantum: np.ndarray) -> np.ndarray:
    sizes = np.bincount(quantum)
    if not len(sizes) or not sizes.all():
        raise ConfigurationError("Quanta are numbered from 0, and each needs units; number them anew.")
    return sizes


def _means(values: np.ndarray, quantum: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    if len(values) != len(quantum):
        raise ConfigurationError(f"{len(values)} changes for {len(quantum)} units.")
    return np.bincount(quantum, weights=np.asarray(values, np.float64)) / sizes


def _by_size(square: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """a + b / size, by least squares on relative errors, in two rounds."""
    design = np.stack([np.ones(len(sizes)), 1 / sizes], axis=1)
    expected = np.full(len(sizes), square.mean())
    for _ in range(3):
        found, _ = optimize.nnls(design / expected[:, None], square / expected)
        expected = np.maximum(design @ found, 1e-6 * square.mean())
    return np.asarray(expected)


def _inverse_trigamma(value: float) -> float:
    """x with ψ′(x) = value, by Newton's method on 1/ψ′ (Smyth 2004, appendix)."""
    x = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(special.polygamma(1, x))
        move = trigamma * (1 - trigamma / value) / float(special.polygamma(2, x))
        x += move
        if abs(move) < 1e-10 * x:
            break
    return x
