"""Which tokens become units: low loss, and no third token of a trigram that was seen before (Michaud et al. 2023).

The paper keeps tokens whose loss is below 0.1 nats and that do not end a trigram already seen in the document, since
those are learned by copying, and takes every n-th of them. Knows token ids and losses; no models, no files.
"""

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32


def ends_seen_trigram(tokens: Int32[np.ndarray, " token"]) -> Bool[np.ndarray, " token"]:
    """For each token of a document: whether it ends a trigram that ended earlier in the same document."""
    seen = np.zeros(len(tokens), np.bool_)
    if len(tokens) < 3:
        return seen
    trigrams = np.stack([tokens[:-2], tokens[1:-1], tokens[2:]], axis=1)
    _, first, inverse = np.unique(trigrams, axis=0, return_index=True, return_inverse=True)
    seen[2:] = first[inverse.reshape(-1)] < np.arange(len(trigrams))
    return seen


def thin(
    window: Int[np.ndarray, " unit"], *, max_per_window: int | None, max_units: int | None
) -> Int[np.ndarray, " kept"]:
    """Indices of the candidates to keep, evenly spaced: first within each window, then over all of them.

    `window` is sorted. Deterministic; without limits everything stays.
    """
    kept = np.arange(len(window))
    if max_per_window is not None and len(window):
        _, first, count = np.unique(window, return_index=True, return_counts=True)
        kept = np.concatenate([f + _even(int(c), max_per_window) for f, c in zip(first, count, strict=True)])
    if max_units is not None:
        kept = kept[_even(len(kept), max_units)]
    return kept


def low_loss(
    losses: Float32[np.ndarray, " token"], seen: Bool[np.ndarray, " token"], *, max_loss: float
) -> Int[np.ndarray, " kept"]:
    """Positions whose loss in nats is below `max_loss` (exclusive) and whose trigram is new."""
    return np.flatnonzero((losses < max_loss) & ~seen)


def thin_part(first: int, last: int, *, count: int, limit: int | None) -> Int[np.ndarray, " kept"]:
    """Of `count` candidates at most `limit`, evenly spaced: those among `first` to before `last`, counted from `first`.

    Parts of the candidates can so be thinned one by one, to what `thin` keeps of all.
    """
    if limit is None or count <= limit:
        return np.arange(last - first)
    lowest, highest = (-(-place * limit // count) for place in (first, last))
    return np.arange(lowest, highest) * count // limit - first


def _even(count: int, limit: int) -> Int[np.ndarray, " kept"]:
    """At most `limit` of `count` indices, evenly spaced."""
    return thin_part(0, count, count=count, limit=limit)
