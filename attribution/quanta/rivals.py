"""Other ways to group the same units, which quanta have to beat: by the words around them, or by nothing at all.

Knows token numbers and rows; models' activations come as rows like any others.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Int32
from scipy.sparse import csr_array
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfTransformer

from ...errors import ConfigurationError
from ..clustering.average import AverageLinkage
from ..clustering.mixture import Refined
from ..whitening import unit_rows


def tfidf_rows(
    contexts: Sequence[Int[np.ndarray, "..."]], *, dim: int = 256, seed: int = 0
) -> Float[np.ndarray, "unit dim"]:
    """Unit rows from the tokens of each unit's context: tf–idf, then its leading singular directions (Deerwester 1990).

    At most `dim` wide. A unit without a context, or none of whose tokens the directions hold, has a direction of its
    own, drawn at random. Deterministic in the seed. Raises ConfigurationError for no units.
    """
    if not len(contexts):
        raise ConfigurationError("no contexts; give one for each unit")
    tokens = np.concatenate([np.asarray(context, dtype=np.int64) for context in contexts])
    names, column = np.unique(tokens, return_inverse=True)
    row = np.repeat(np.arange(len(contexts)), [len(context) for context in contexts])
    rng = np.random.default_rng(seed)
    if len(names) < 2 or len(contexts) < 2:
        return unit_rows(rng.standard_normal((len(contexts), dim), dtype=np.float32))
    counts = csr_array((np.ones(len(row)), (row, column)), shape=(len(contexts), len(names)))
    weighted = TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    width = min(dim, len(names) - 1, len(contexts) - 1)
    rows = TruncatedSVD(n_components=max(width, 1), random_state=seed).fit_transform(weighted).astype(np.float32)
    empty = np.linalg.norm(rows, axis=1) < 1e-6
    rows[empty] = rng.standard_normal((int(empty.sum()), rows.shape[1]), dtype=np.float32)
    return unit_rows(rows)


def cluster_alike(rows: Float[np.ndarray, "unit dim"], num_quanta: int, *, seed: int = 0) -> Int32[np.ndarray, " unit"]:
    """Labels of a rival's rows by the default clusterer with as many groups, so that figures compare."""
    inner = AverageLinkage(num_quanta=min(num_quanta, len(rows)), seed=seed)
    return Refined(inner=inner, keep_all=True).cluster(rows).assignments
