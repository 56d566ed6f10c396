"""What each figure of a quantum is in rows without its cause: the nulls that stand beside persistence and codes.

Knows prepared rows and their clustering; stores nothing.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float64, Int

from ...attribution.clustering import average_linkage, branch_persistence
from ...attribution.clustering.persistence import COMES_BACK, LEAST_JACCARD
from ...attribution.quanta.codes import UnitCodes, null_codes, null_units, unit_codes
from ...attribution.quanta.dictionary import codes_of_null, learn_dictionary

LEAST_SIZE = 5
"""Units from which on a quantum counts where shares of quanta are given."""
_LEAST_BRANCHES = 20

CodesOver = Literal["centroids", "dictionary"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NullBranches:
    """Branches of the tree of rows whose columns were shuffled: how large they are, and how often they come back."""

    sizes: Int[np.ndarray, " branch"]
    persistence: Float[np.ndarray, " branch"]

    @property
    def num_back(self) -> int:
        """How many come back as often as a quantum has to."""
        return int((self.persistence >= COMES_BACK).sum())

    def beside(self, sizes: Int[np.ndarray, " quantum"]) -> Float64[np.ndarray, " quantum"]:
        """For each size: the persistence that 95 % of such branches of like size do not exceed; NaN without any.

        Of like size are those of half to twice as many units, and the twenty nearest in any case.
        """
        known = np.isfinite(self.persistence)
        if not known.any():
            return np.full(len(sizes), np.nan)
        logs, values = np.log2(self.sizes[known]), self.persistence[known]
        found = np.empty(len(sizes))
        for size in np.unique(sizes):
            far = np.abs(logs - np.log2(size))
            reach = max(1.0, float(np.sort(far)[min(_LEAST_BRANCHES, len(far)) - 1]))
            found[sizes == size] = np.quantile(values[far <= reach], 0.95)
        return found


def null_branches(
    rows: Float[np.ndarray, "unit dim"], document: Int[np.ndarray, " unit"], *, seed: int, max_rows: int = 1_500
) -> NullBranches:
    """Of at most `max_rows` rows, each column shuffled by itself: the branches of two units to a tenth of all."""
    rng = np.random.default_rng(seed)
    picked = np.sort(rng.permutation(len(rows))[:max_rows])
    shuffled = rng.permuted(rows[picked], axis=0)
    shuffled /= np.maximum(np.linalg.norm(shuffled, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    tree = average_linkage(shuffled)
    again = branch_persistence(shuffled, tree, np.arange(len(picked)), document[picked], seed=seed)
    counted = tree.merges[:, 3] <= max(len(picked) // 10, LEAST_SIZE)
    return NullBranches(sizes=tree.merges[counted, 3].astype(np.int64), persistence=again[counted])


def persistence_facts(
    sizes: Int[np.ndarray, " quantum"], persistence: Float[np.ndarray, " quantum"], null: NullBranches
) -> dict[str, Any]:
    """How many quanta of five units and more come back, and how many such branches of shuffled columns do."""
    large = sizes >= LEAST_SIZE
    counted = NullBranches(
        sizes=null.sizes[null.sizes >= LEAST_SIZE], persistence=null.persistence[null.sizes >= LEAST_SIZE]
    )
    return {
        "num_quanta": int(large.sum()),
        "num_back": int((persistence[large] >= COMES_BACK).sum()),
        "null_branches": len(counted.sizes),
        "null_back": counted.num_back,
        "num_resamples": 20,
        "least_share": COMES_BACK,
        "least_jaccard": LEAST_JACCARD,
    }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CodesWithNull:
    """What units use, beside what units that use one quantum by construction are said to use."""

    codes: UnitCodes
    monogenic: Float64[np.ndarray, " quantum"]
    """Mean over each quantum's units; NaN where none uses any."""
    null_monogenic: Float64[np.ndarray, " quantum"]
    share_several: float
    """Units that use two quanta or more."""
    null_share_several: float
    mean_monogenic: float
    null_mean_monogenic: float


def coded(
    rows: Float[np.ndarray, "unit dim"],
    assignments: Int[np.ndarray, " unit"],
    *,
    over: CodesOver = "centroids",
    seed: int = 0,
) -> CodesWithNull:
    """Codes over centroids or over a dictionary that starts from them, each with the null of the same kind."""
    if over == "dictionary":
        found = learn_dictionary(rows, assignments)
        drawn = null_units(rows, assignments, directions=found.atoms, seed=seed)
        codes, null = found.codes, codes_of_null(found, drawn)
    else:
        drawn = null_units(rows, assignments, seed=seed)
        codes, null = unit_codes(rows, assignments), null_codes(rows, assignments, drawn)
    sizes = np.bincount(assignments)
    owner = assignments[drawn.unit]
    means, null_means = _means(codes.monogenic, assignments, len(sizes)), _means(null.monogenic, owner, len(sizes))
    several = _means((null.num_used >= 2).astype(np.float64), owner, len(sizes))
    known = np.isfinite(null_means)
    return CodesWithNull(
        codes=codes,
        monogenic=means,
        null_monogenic=null_means,
        share_several=float((codes.num_used >= 2).mean()),
        null_share_several=float(several @ sizes / sizes.sum()),  # quanta are sampled alike, whatever their size
        mean_monogenic=float(np.nanmean(codes.monogenic)) if np.isfinite(codes.monogenic).any() else float("nan"),
        null_mean_monogenic=float(null_means[known] @ sizes[known] / max(sizes[known].sum(), 1))
        if known.any()
        else float("nan"),
    )


def _means(values: np.ndarray, owner: np.ndarray, num_quanta: int) -> np.ndarray:
    """Mean of the finite values of each quantum; NaN where there are none."""
    finite = np.isfinite(values)
    counts = np.bincount(owner[finite], minlength=num_quanta)
    sums = np.bincount(owner[finite], weights=values[finite].astype(np.float64), minlength=num_quanta)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
