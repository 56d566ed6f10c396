import numpy as np
import pytest
from jaxtyping import TypeCheckError

from quantascope.attribution.quanta.dimension import effective_dimension
from quantascope.attribution.whitening import unit_rows
from quantascope.errors import ConfigurationError

REFUSED = (ConfigurationError, TypeCheckError)  # shapes, where annotations are checked at run time


def rows_of(dimension, count, *, rng, width):
    """Unit rows that spread evenly over so many directions of a wide space."""
    basis = np.linalg.qr(rng.standard_normal((width, dimension)))[0]
    return rng.standard_normal((count, dimension)) @ basis.T


@pytest.mark.parametrize("dimension", [3, 30, 150])
def test_a_projection_does_not_bound_it(dimension):
    """At D = 128 the plain participation ratio of 150 directions is about 70: 1/150 + 1/128."""
    rng = np.random.default_rng(dimension)
    wide = rows_of(dimension, 240, rng=rng, width=3_000)
    rows = unit_rows(wide @ rng.standard_normal((3_000, 128)))
    labels, documents = np.zeros(240, np.int64), np.arange(240)
    found = effective_dimension(rows, labels, documents)
    gram = np.square(rows @ rows.T)[~np.eye(240, dtype=bool)]
    true = np.square(unit_rows(wide) @ unit_rows(wide).T)[~np.eye(240, dtype=bool)]
    assert found.value[0] == pytest.approx(1 / true.mean(), rel=0.15)
    assert found.low[0] < found.value[0] < found.high[0]
    if dimension == 150:
        assert 1 / gram.mean() < 0.6 * found.value[0]


def test_each_quantum_has_its_own_and_all_together_the_null():
    rng = np.random.default_rng(0)
    rows = unit_rows(np.concatenate([rows_of(2, 60, rng=rng, width=400), rows_of(20, 60, rng=rng, width=400)]))
    found = effective_dimension(rows, np.repeat([0, 1], 60), np.arange(120) // 2)
    assert found.value[0] == pytest.approx(2, rel=0.2)
    assert found.value[1] == pytest.approx(20, rel=0.3)
    assert found.null > found.value[0]


def test_units_of_one_document_say_nothing():
    rows = unit_rows(np.random.default_rng(0).standard_normal((7, 50)))
    found = effective_dimension(rows, np.array([0, 0, 0, 1, 1, 1, 2]), np.array([0, 0, 0, 1, 1, 2, 3]))
    assert np.isnan(found.value[[0, 2]]).all()
    assert not np.isnan(found.value[1])
    equal = effective_dimension(unit_rows(np.ones((6, 50))), np.zeros(6, np.int64), np.arange(6))
    assert equal.value[0] == pytest.approx(1)


def test_is_deterministic_where_units_are_drawn():
    rows = unit_rows(np.random.default_rng(0).standard_normal((90, 40)))
    labels, documents = np.zeros(90, np.int64), np.arange(90)
    first, second = (effective_dimension(rows, labels, documents, max_units=30) for _ in range(2))
    assert np.array_equal(first.value, second.value)
    with pytest.raises(REFUSED):
        effective_dimension(rows, labels[:3], documents)
