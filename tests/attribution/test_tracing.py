import numpy as np
import pytest

from quantascope.attribution.lexical import bm25
from quantascope.attribution.tracing import extremes, nearest_elsewhere, novelty, quantum_weights


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_a_mixture_of_two_centroids_is_found_with_its_weights():
    generator = np.random.default_rng(0)
    centroids = unit(generator.normal(size=(30, 2000)))
    found = quantum_weights(0.8 * centroids[4] + 0.5 * centroids[21], centroids)
    assert found.quantum[:2].tolist() == [4, 21]
    np.testing.assert_allclose(found.weight[:2], [0.8, 0.5], atol=1e-4)
    assert (found.low <= found.weight + 1e-6).all()
    assert (found.weight <= found.high + 1e-6).all()
    noisy = quantum_weights((0.8 * centroids[4] + generator.normal(size=2000) / 60).astype(np.float32), centroids)
    assert noisy.low[0] < 0.8 < noisy.high[0]


def test_a_row_without_relation_to_any_quantum_has_no_weights():
    generator = np.random.default_rng(1)
    centroids = unit(generator.normal(size=(300, 4000)))
    found = [len(quantum_weights(row, centroids).quantum) for row in unit(generator.normal(size=(20, 4000)))]
    assert sum(found) <= 8


def test_extremes_are_sorted_and_only_negative_scores_oppose():
    most, least = extremes(np.array([0.1, -0.5, 0.9, -0.2]), 3)
    assert most.tolist() == [2, 0, 3]
    assert least.tolist() == [1, 3]


def test_the_nearest_is_looked_for_in_other_documents():
    rows = unit(np.array([[1, 0], [1, 0.01], [0, 1], [1, 1]]))
    document = np.array([0, 0, 1, 2])
    found = nearest_elsewhere(rows, document, queries=np.arange(4), chunk=3)
    expected = [max(rows[i] @ rows[j] for j in range(4) if document[i] != document[j]) for i in range(4)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_novelty_is_a_share_of_the_training_units():
    rows = unit(np.eye(4) + 0.5)
    reference = np.array([0.9, 0.5, 0.2, 0.1], np.float32)
    assert novelty(rows[0], rows, reference) == 0
    assert novelty(-rows[0], rows, reference) == 1


def test_bm25_equals_its_formula():
    contexts = [np.array([1, 2, 2, 3]), np.array([3, 4]), np.array([5, 6, 7])]
    found = bm25(np.array([2, 3, 3, 9]), contexts)
    average, n = 3, 3
    expected = np.zeros(3)
    for i, context in enumerate(contexts):
        for token in (2, 3, 9):
            frequency = sum(token in c for c in contexts)
            count = (context == token).sum()
            idf = np.log(1 + (n - frequency + 0.5) / (frequency + 0.5))
            expected[i] += idf * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * len(context) / average))
    assert found == pytest.approx(expected)
    assert bm25(np.array([1]), [np.array([], np.int64)]).tolist() == [0]
