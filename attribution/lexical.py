"""Search by words, the rival beside every trace: BM25 over token ids (Robertson & Zaragoza 2009, equation 3.15)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

_SATURATION = 1.2
_LENGTH_WEIGHT = 0.75


def bm25(query: Int[np.ndarray, " token"], contexts: Sequence[Int[np.ndarray, " _"]]) -> Float[np.ndarray, " context"]:
    """BM25 score of each context for the distinct tokens of the query; k₁ = 1.2, b = 0.75; zero if none is shared."""
    lengths = np.array([len(c) for c in contexts])
    tokens = np.concatenate([*contexts, np.zeros(0, np.int64)]).astype(np.int64)
    wanted = np.unique(query)
    row = np.repeat(np.arange(len(contexts)), lengths)
    keep = np.isin(tokens, wanted)
    column = np.searchsorted(wanted, tokens[keep])
    counts = csr_array((np.ones(len(column)), (row[keep], column)), shape=(len(contexts), len(wanted)))
    counts.sum_duplicates()
    frequency = np.bincount(counts.indices, minlength=len(wanted))
    weight = np.log1p((len(contexts) - frequency + 0.5) / (frequency + 0.5))
    norm = _SATURATION * (1 - _LENGTH_WEIGHT + _LENGTH_WEIGHT * lengths / max(lengths.mean(), 1e-9))
    entry_row = np.repeat(np.arange(len(contexts)), np.diff(counts.indptr))
    scores = weight[counts.indices] * counts.data * (_SATURATION + 1) / (counts.data + norm[entry_row])
    return np.bincount(entry_row, weights=scores, minlength=len(contexts)).astype(np.float64)
