"""Expectation and maximisation of a mixture of Gaussians around shrunken means, each row judged without itself.

Legend: n, S a quantum's weight and sum of rows; κ the mean cosine within quanta, so that a unit row is a centre of
squared length κ plus noise of squared length 1 − κ; d the effective dimension of the noise (1/d the mean squared cosine
of two rows' noise); ρ = κ / (1 − κ) the ratio of a centre's variance to the noise's. With a normal prior for centres,
the centre given the rows is a S, where a = ρ / (1 + n ρ), and a further row has the noise's variance (1 + a) times
(Bishop 2006, Pattern Recognition and Machine Learning, equations 2.141 and 2.142). κ and d are taken from the data in
each round and shared by all quanta. Knows unit rows and labels.
"""

import numpy as np
from jaxtyping import Float, Int, Int32
from scipy.sparse import csr_array, vstack

_CHUNK_CELLS = 4_000_000
_LEAST_WEIGHT = 1e-3
_DIMENSION_SAMPLE = 1_500
_PRIOR_ROWS = 0.1
"""Rows that a quantum is thought to have before any is seen; results hardly depend on it (0.01 to 1 tried)."""


def refine(
    rows: Float[np.ndarray, "unit dim"], labels: Int[np.ndarray, " unit"], *, num_iterations: int = 12
) -> Int32[np.ndarray, " unit"]:
    """Labels 0 … k − 1 after expectation and maximisation in turn; some of them may have no rows left.

    Rows are unit. Deterministic. Memory is that of one chunk of rows times k beside the rows.
    """
    num_rows, num_quanta = len(rows), int(labels.max()) + 1
    labels = labels.astype(np.int32)
    places = (np.arange(num_rows), labels)
    weights = csr_array((np.ones(num_rows, np.float32), places), shape=(num_rows, num_quanta))
    for _ in range(num_iterations if 1 < num_quanta < num_rows else 0):
        weights = _expectation(rows, weights, labels)
        before, labels = labels, np.asarray(weights.argmax(axis=1), dtype=np.int32).ravel()
        if np.array_equal(before, labels):
            break
    return labels


def _expectation(rows: np.ndarray, weights: csr_array, labels: np.ndarray) -> csr_array:
    """Posterior weights [row, quantum] of each row, from the other rows' sums; weights below 0.001 are dropped."""
    sizes = np.asarray(weights.sum(axis=0), dtype=np.float32)
    sums = (weights.T @ rows).astype(np.float32, copy=False)
    squares = np.einsum("ij,ij->i", sums, sums)
    coherence = _coherence(weights, sizes, squares)
    dim = np.float32(_effective_dimension(rows, sums, sizes, labels))
    step = max(_CHUNK_CELLS // len(sizes), 1)
    parts = []
    for start in range(0, len(rows), step):
        own = weights[start : start + step].tocoo()
        products = rows[start : start + step] @ sums.T
        density = _log_density(sizes, products, squares, coherence, dim)
        row, quantum, weight = own.row, own.col, own.data
        product = products[row, quantum]
        without = np.maximum(squares[quantum] - 2 * weight * product + weight**2, 0)
        density[row, quantum] = _log_density(
            np.maximum(sizes[quantum] - weight, 0), product - weight, without, coherence, dim
        )
        density -= density.max(axis=1, keepdims=True)
        posterior = np.exp(density)
        posterior /= posterior.sum(axis=1, keepdims=True)
        posterior[posterior < _LEAST_WEIGHT] = 0
        parts.append(csr_array(posterior))
    return csr_array(vstack(parts))


def _log_density(
    sizes: np.ndarray, products: np.ndarray, squares: np.ndarray, coherence: np.float32, dim: np.float32
) -> np.ndarray:
    """Logarithm of quantum's share times predicted density, up to a constant of the row."""
    ratio = coherence / (1 - coherence)
    shrunk = ratio / (1 + sizes * ratio)
    distance = 1 - 2 * shrunk * products + shrunk**2 * squares
    spread = (1 - coherence) * (1 + shrunk)
    return np.asarray(np.log(sizes + _PRIOR_ROWS) - dim / 2 * (np.log1p(shrunk) + distance / spread))


def _coherence(weights: csr_array, sizes: np.ndarray, squares: np.ndarray) -> np.float32:
    """κ: mean cosine over all pairs of rows within quanta."""
    own = float(np.square(weights.data, dtype=np.float64).sum())
    pairs = float(np.square(sizes, dtype=np.float64).sum()) - own
    return np.float32(np.clip((float(squares.sum(dtype=np.float64)) - own) / max(pairs, 1e-9), 0.001, 0.999))


def _effective_dimension(rows: np.ndarray, sums: np.ndarray, sizes: np.ndarray, labels: np.ndarray) -> float:
    """d: 1 over the mean squared cosine of two rows' remainders, from at most 1,500 rows at equal distances."""
    num_sampled = min(len(rows), _DIMENSION_SAMPLE)
    sample = np.arange(num_sampled) * len(rows) // num_sampled
    own = labels[sample]
    noise = rows[sample] - np.where(sizes[own] > 1, 1 / np.maximum(sizes[own], 1), 0)[:, None] * sums[own]
    norms = np.linalg.norm(noise, axis=1)
    noise = noise[norms > 1e-3] / norms[norms > 1e-3, None]
    if len(noise) < 2:
        return float(rows.shape[1])
    squared = float(np.square(noise @ noise.T, dtype=np.float64).sum())
    return float(len(noise) * (len(noise) - 1) / max(squared - len(noise), 1e-9))
