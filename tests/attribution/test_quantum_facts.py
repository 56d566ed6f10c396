import numpy as np
import pytest
from jaxtyping import TypeCheckError

from quantascope.attribution.clustering import AverageLinkage
from quantascope.attribution.quanta import facts as quantum_facts
from quantascope.attribution.quanta.facts import describe_quanta
from quantascope.attribution.whitening import unit_rows
from quantascope.errors import ConfigurationError

REFUSED = (ConfigurationError, TypeCheckError)  # shapes and literals, where annotations are checked at run time


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)
    sizes = [40, 30, 20, 9, 1]
    labels = np.repeat(np.arange(5), sizes)
    rows = unit_rows(3 * rng.standard_normal((5, 50))[labels] + rng.standard_normal((100, 50)))
    result = AverageLinkage(num_quanta=5).cluster(rows)
    extra = {
        "losses": rng.random(100),
        "documents": rng.integers(0, 30, 100),
        "block_norms": rng.random((100, 3)),
    }
    return rows, result, extra


def test_equals_the_plain_loop(world):
    rows, result, extra = world
    facts = describe_quanta(rows, result.assignments, result.centroids, **extra)
    cosines = rows @ result.centroids.T
    shares = extra["block_norms"] ** 2 / (extra["block_norms"] ** 2).sum(axis=1, keepdims=True)
    for quantum, fact in enumerate(facts):
        own = np.flatnonzero(result.assignments == quantum)
        assert (fact.quantum, fact.size, fact.use) == (quantum, len(own), len(own) / 100)
        assert fact.mean_loss == pytest.approx(extra["losses"][own].mean())
        assert fact.num_documents == len(set(extra["documents"][own]))
        np.testing.assert_allclose(fact.address, shares[own].mean(axis=0))
        assert fact.exemplars[0] == own[cosines[own, quantum].argmax()]
        assert fact.edge[0] == own[cosines[own, quantum].argmin()]
        outside = np.flatnonzero(result.assignments != quantum)
        assert fact.counterexamples[0] == outside[cosines[outside, quantum].argmax()]
        if len(own) > 1:
            gram = rows[own] @ rows[own].T
            expected = gram[np.triu_indices(len(own), 1)].mean()
            assert fact.coherence == pytest.approx(expected, abs=1e-5)
        else:
            assert np.isnan(fact.coherence)
        near = result.centroids @ result.centroids[quantum]
        near[quantum] = -2
        assert fact.neighbours.tolist() == np.argsort(-near).tolist()[:4]
        np.testing.assert_allclose(fact.neighbour_cosines, np.sort(near)[::-1][:4], atol=1e-6)


def test_examples_come_from_different_documents_where_they_can(world):
    rows, result, extra = world
    for fact in describe_quanta(rows, result.assignments, result.centroids, **extra):
        for examples in (fact.exemplars, fact.edge):
            documents = extra["documents"][examples]
            assert len(set(documents)) == min(5, fact.num_documents)
            assert len(set(examples)) == len(examples) == min(5, fact.size)
    one_document = {**extra, "documents": np.zeros(100, dtype=int)}
    fact = describe_quanta(rows, result.assignments, result.centroids, **one_document)[0]
    best = np.argsort(-result.similarity[result.assignments == 0])
    assert fact.exemplars.tolist() == np.flatnonzero(result.assignments == 0)[best[:5]].tolist()


def test_chunks_change_nothing(world, monkeypatch):
    rows, result, extra = world
    whole = describe_quanta(rows, result.assignments, result.centroids, **extra)
    monkeypatch.setattr(quantum_facts, "_CHUNK_CELLS", 1)
    for one, other in zip(whole, describe_quanta(rows, result.assignments, result.centroids, **extra), strict=True):
        assert np.array_equal(one.counterexamples, other.counterexamples)
        assert np.array_equal(one.exemplars, other.exemplars)


def test_one_quantum_has_no_neighbours(world):
    rows, _, extra = world
    result = AverageLinkage(num_quanta=1).cluster(rows)
    fact = describe_quanta(rows, result.assignments, result.centroids, **extra)[0]
    assert len(fact.neighbours) == len(fact.counterexamples) == 0


def test_refuses_what_does_not_fit(world):
    rows, result, extra = world
    with pytest.raises(REFUSED):
        describe_quanta(rows[:50], result.assignments, result.centroids, **extra)
    with pytest.raises(ConfigurationError, match="without units"):
        describe_quanta(rows, np.minimum(result.assignments, 3), result.centroids, **extra)
