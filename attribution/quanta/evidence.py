"""Do quanta tell apart what matters? Each figure has an interval over documents and a null of shuffled clusters.

Knows integer codes only: what a target token, a role or a document is, is the caller's affair. Rivals (clusters by
target token alone, by previous token) go through the same functions. A document never votes on itself.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Int64
from sklearn.metrics import adjusted_mutual_info_score

from ...errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One figure beside its null."""

    name: str
    """What was measured: `next token`, `role`, or what the caller named it."""
    value: float
    """Accuracy over the units that count, in [0, 1]."""
    low: float
    """2.5th percentile over resampled documents."""
    high: float
    """97.5th percentile over resampled documents."""
    null_99: float
    """99th percentile of the same accuracy over shuffles of the cluster labels."""
    num_units: int
    """Units that count."""

    @property
    def beats_null(self) -> bool:
        """Whether the whole interval lies above the null."""
        return self.low > self.null_99

    def sentence(self) -> str:
        """The result with its interval and its null, as plain words."""
        return (
            f"{self.name}: {self.value:.3f} (95 % interval over documents {self.low:.3f} to {self.high:.3f}), "
            f"99th percentile of shuffled clusters {self.null_99:.3f}, {self.num_units} units"
        )


def next_token_evidence(
    assignments: Int[np.ndarray, " unit"],
    target: Int[np.ndarray, " unit"],
    document: Int[np.ndarray, " unit"],
    *,
    name: str = "next token",
    num_shuffles: int = 200,
    num_resamples: int = 1_000,
    seed: int = 0,
) -> Evidence:
    """How often the commonest target token of a unit's quantum, in other documents, is the unit's own.

    A quantum without units in other documents falls back to the commonest target token of other documents. The null
    shuffles the assignments over all units. Ties go to the token that is commoner overall. Raises ConfigurationError
    for arrays of unequal length or none.
    """
    _check(assignments, target, document)
    target, document = _by_frequency(target), _codes(document)
    everywhere = np.zeros(len(target), dtype=np.int64)
    fallback = majority_elsewhere(everywhere, document, target)
    rng = np.random.default_rng(seed)
    clusters = _codes(assignments)

    def correct(labels: np.ndarray) -> np.ndarray:
        voted = majority_elsewhere(labels, document, target)
        return np.asarray(np.where(voted >= 0, voted, fallback) == target)

    null = [correct(rng.permutation(clusters)).mean() for _ in range(num_shuffles)]
    return _evidence(name, correct(clusters), document, null=null, rng=rng, num_resamples=num_resamples)


def role_evidence(
    assignments: Int[np.ndarray, " unit"],
    target: Int[np.ndarray, " unit"],
    role: Int[np.ndarray, " unit"],
    document: Int[np.ndarray, " unit"],
    *,
    name: str = "role",
    min_units: int = 20,
    num_shuffles: int = 200,
    num_resamples: int = 1_000,
    seed: int = 0,
) -> Evidence:
    """How often the commonest role of a unit's (target token, quantum), in other documents, is the unit's own.

    Only target tokens with at least two roles and `min_units` units count. Where no other document has that pair, the
    target token's commonest role in other documents is taken. The null shuffles the assignments within each target
    token, so it keeps what the target token alone gives away. Raises ConfigurationError for arrays of unequal length,
    or where no target token counts.
    """
    _check(assignments, target, role, document)
    counts = _ambiguous(target, role, min_units)
    if not counts.any():
        raise ConfigurationError(f"no target token has two roles and {min_units} units; lower min_units")
    target, role, document = _codes(target[counts]), _by_frequency(role[counts]), _codes(document[counts])
    clusters = _codes(assignments[counts])
    fallback = majority_elsewhere(target, document, role)
    rng = np.random.default_rng(seed)
    by_target = np.argsort(target, kind="stable")

    def correct(labels: np.ndarray) -> np.ndarray:
        voted = majority_elsewhere(_pairs(target, labels), document, role)
        return np.asarray(np.where(voted >= 0, voted, fallback) == role)

    def shuffled() -> np.ndarray:
        labels = np.empty_like(clusters)
        labels[by_target] = clusters[np.lexsort((rng.random(len(target)), target))]
        return labels

    null = [correct(shuffled()).mean() for _ in range(num_shuffles)]
    return _evidence(name, correct(clusters), document, null=null, rng=rng, num_resamples=num_resamples)


def role_information(
    assignments: Int[np.ndarray, " unit"],
    target: Int[np.ndarray, " unit"],
    role: Int[np.ndarray, " unit"],
    *,
    min_units: int = 20,
) -> float:
    """Adjusted mutual information of role and quantum within each target token, averaged with the units as weights.

    About 0 for labels without relation, 1 for equal partitions; the adjustment for chance takes the place of shuffles.
    The same units count as in `role_evidence`; NaN where none does.
    """
    counts = _ambiguous(target, role, min_units)
    if not counts.any():
        return float("nan")
    total = 0.0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # many small quanta are fine
        for token in np.unique(target[counts]):
            units = np.flatnonzero(counts & (target == token))
            total += len(units) * adjusted_mutual_info_score(role[units], assignments[units])
    return float(total / counts.sum())


def majority_elsewhere(
    group: Int[np.ndarray, " unit"], document: Int[np.ndarray, " unit"], label: Int[np.ndarray, " unit"]
) -> Int64[np.ndarray, " unit"]:
    """The commonest label among the units of each unit's group in other documents, −1 where there are none.

    All three are codes from 0; ties go to the lower label. Each (group, document) pair is joined with each (group,
    label) pair of the same group, so the cost is the sum over groups of the product of the two counts.
    """
    num_labels = int(label.max()) + 1
    entries, entry_counts = np.unique(_pairs(group, label, num_labels), return_counts=True)
    entry_group, entry_label = np.divmod(entries, num_labels)
    num_documents = int(document.max()) + 1
    pairs, pair_of_unit = np.unique(_pairs(group, document, num_documents), return_inverse=True)
    pair_group = pairs // num_documents
    starts = np.searchsorted(entry_group, pair_group)
    widths = np.searchsorted(entry_group, pair_group, side="right") - starts
    offsets = np.cumsum(widths) - widths
    joined = np.repeat(starts - offsets, widths) + np.arange(int(widths.sum()))
    votes = entry_counts[joined]
    # take off the pair's own document: its units sit at the entry of their own label
    own = np.searchsorted(entries, _pairs(group, label, num_labels))
    place = offsets[pair_of_unit] + own - starts[pair_of_unit]
    votes = votes - np.bincount(place, minlength=len(votes))
    key = votes * num_labels + (num_labels - 1 - entry_label[joined])
    best = np.maximum.reduceat(key, offsets)
    winner = np.where(best >= num_labels, num_labels - 1 - best % num_labels, -1)
    return winner[pair_of_unit].astype(np.int64)


def _pairs(first: np.ndarray, second: np.ndarray, width: int | None = None) -> np.ndarray:
    return np.asarray(first.astype(np.int64) * (int(second.max()) + 1 if width is None else width) + second)


def _codes(values: np.ndarray) -> np.ndarray:
    return np.unique(values, return_inverse=True)[1]


def _by_frequency(values: np.ndarray) -> np.ndarray:
    """Codes from 0 for the commonest value; ties by the value itself."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), dtype=np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return rank[inverse]


def _ambiguous(target: np.ndarray, role: np.ndarray, min_units: int) -> Bool[np.ndarray, " unit"]:
    """Units whose target token has at least two roles and `min_units` units."""
    codes = _codes(target)
    seen = np.unique(_pairs(codes, _codes(role), len(role))) // len(role)
    enough = (np.bincount(seen) >= 2) & (np.bincount(codes) >= min_units)
    return np.asarray(enough[codes])


def _evidence(
    name: str,
    correct: np.ndarray,
    document: np.ndarray,
    *,
    null: list[float],
    rng: np.random.Generator,
    num_resamples: int,
) -> Evidence:
    right, units = np.bincount(document, weights=correct), np.bincount(document)
    draws = rng.multinomial(len(units), np.full(len(units), 1 / len(units)), size=num_resamples)
    resampled = (draws @ right) / (draws @ units)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Evidence(
        name=name,
        value=float(correct.mean()),
        low=float(low),
        high=float(high),
        null_99=float(np.percentile(null, 99)),
        num_units=len(correct),
    )


def _check(*arrays: np.ndarray) -> None:
    lengths = {len(array) for array in arrays}
    if len(lengths) > 1 or 0 in lengths:
        raise ConfigurationError(f"arrays of {sorted(lengths)} units; one entry for each unit, and at least one unit")
