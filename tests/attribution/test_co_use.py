import numpy as np
import pytest
from jaxtyping import TypeCheckError

from quantascope.attribution.quanta.co_use import BEYOND, _trade, co_use
from quantascope.errors import ConfigurationError

REFUSED = (ConfigurationError, TypeCheckError)  # shapes, where annotations are checked at run time


@pytest.fixture(scope="module")
def planted():
    """Sixty documents of six of twenty quanta drawn at random; where quantum 0 is, quantum 1 is too."""
    rng = np.random.default_rng(0)
    pairs = []
    for document in range(60):
        chosen = set(rng.permutation(np.arange(2, 20))[:6].tolist())
        if document < 20:
            chosen |= {0, 1}
        pairs += [(quantum, document) for quantum in sorted(chosen)]
    return np.array(pairs).T


def test_quanta_that_go_together_are_found_and_chance_is_not(planted):
    quantum, document = planted
    found = co_use(quantum, document)
    best = int(found.score.argmax())
    assert {int(found.quantum[best]), int(found.other[best])} == {0, 1}
    assert found.shared[best] == 20
    assert found.expected[best] < 15
    assert (found.score >= BEYOND).all()
    assert found.num_documents == 60
    shuffled = co_use(np.random.default_rng(1).permutation(quantum), document)
    assert shuffled.share_beyond < 0.05
    assert found.null_beyond < 0.05


def test_the_null_keeps_both_margins(planted):
    quantum, document = planted
    held = [set(quantum[document == d].tolist()) for d in range(60)]
    walk = [set(one) for one in held]
    _trade(walk, 300, np.random.default_rng(0))
    assert walk != held
    assert [len(one) for one in walk] == [len(one) for one in held]
    for q in range(20):
        assert sum(q in one for one in walk) == sum(q in one for one in held)


def test_is_deterministic_and_needs_no_second_document(planted):
    quantum, document = planted
    first, second = co_use(quantum, document), co_use(quantum, document)
    assert np.array_equal(first.score, second.score)
    alone = co_use(quantum, np.zeros_like(document))
    assert len(alone.quantum) == 0
    assert (alone.share_beyond, alone.num_documents) == (0.0, 1)
    assert len(co_use(np.zeros(3, np.int64), np.arange(3)).quantum) == 0


def test_more_documents_than_the_bound_are_thinned_out(planted, monkeypatch):
    monkeypatch.setattr("quantascope.attribution.quanta.co_use._MAX_DOCUMENTS", 10)
    assert co_use(*planted).num_documents == 10
    with pytest.raises(REFUSED):
        co_use(planted[0], planted[1][:-1])
