import numpy as np
import pytest
from scipy.optimize import nnls

from quantascope.attribution.quanta.codes import null_codes, null_units, unit_codes
from quantascope.attribution.whitening import unit_rows
from quantascope.errors import ConfigurationError


@pytest.fixture(scope="module")
def sums_of_two():
    """Rows of twenty directions; every fourth holds a second one at 0.8 of the first's length."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((20, 1_000))
    first = np.repeat(np.arange(20), 20)
    second = np.where(np.arange(400) % 4 == 0, (first + 7) % 20, -1)
    rows = centres[first] + 0.8 * np.where(second >= 0, 1, 0)[:, None] * centres[second]
    return unit_rows(rows + 1.5 * rng.standard_normal((400, 1_000))), first, second


def test_sums_of_two_directions_have_two_quanta(sums_of_two):
    rows, first, second = sums_of_two
    codes = unit_codes(rows, first)
    both = second >= 0
    assert (codes.quantum[:, 0] == first).mean() > 0.99
    assert (codes.quantum[both, 1] == second[both]).mean() > 0.98
    assert (codes.num_used[~both] == 1).mean() > 0.9
    assert (codes.num_used[both] == 2).mean() > 0.9
    assert np.median(codes.monogenic[~both]) == 1
    ratio = codes.weight[both, 1] / codes.weight[both, 0]
    # a quarter of each quantum's rows hold the second direction, so the centroid does too: 0.8 / 4 of it
    assert np.median(ratio) == pytest.approx(0.6, abs=0.1)
    assert np.median(codes.monogenic[both]) == pytest.approx(1 / (1 + 0.6**2), abs=0.1)


def test_codes_are_the_least_squares_without_the_row_itself(sums_of_two):
    rows, first, second = sums_of_two
    codes = unit_codes(rows, first)
    for unit in np.flatnonzero(second >= 0)[:10]:
        used = codes.quantum[unit][codes.quantum[unit] >= 0]
        others = [rows[(first == q) & (np.arange(len(rows)) != unit)].mean(axis=0) for q in used]
        basis = np.stack([m / np.linalg.norm(m) for m in others], axis=1).astype(float)
        weights, remainder = nnls(basis, rows[unit].astype(float))
        np.testing.assert_allclose(codes.weight[unit][: len(used)], weights, atol=1e-4)
        assert codes.explained[unit] == pytest.approx(1 - remainder**2, abs=1e-4)


def test_a_row_alone_in_its_quantum_is_not_explained_by_itself():
    rows = unit_rows(np.eye(5) + 0.01)
    codes = unit_codes(rows, np.arange(5), noise_dim=1e6)
    assert not (codes.quantum == np.arange(5)[:, None]).any()
    far = unit_codes(np.eye(5, dtype=np.float32), np.arange(5))
    assert far.num_used.tolist() == [0] * 5
    assert np.isnan(far.monogenic).all()
    assert far.explained.tolist() == [0] * 5


def test_equal_rows_have_one_quantum_of_weight_one():
    codes = unit_codes(unit_rows(np.ones((6, 8))), np.zeros(6, np.int64))
    np.testing.assert_allclose(codes.weight[:, 0], 1, atol=1e-5)
    assert codes.monogenic.tolist() == [1] * 6
    twins = unit_codes(unit_rows(np.ones((6, 8))), np.array([0, 0, 0, 1, 1, 1]))
    np.testing.assert_allclose(twins.explained, 1, atol=1e-5)


def test_more_noise_and_fewer_places_leave_fewer_quanta(sums_of_two):
    rows, first, _ = sums_of_two
    assert unit_codes(rows, first, max_quanta=1).num_used.max() == 1
    assert unit_codes(rows, first, noise_dim=20.0).num_used.sum() < unit_codes(rows, first).num_used.sum()


def test_refuses_what_does_not_fit():
    rows = np.eye(3, dtype=np.float32)
    with pytest.raises(ConfigurationError, match="none of them empty"):
        unit_codes(rows, np.array([0, 0, 2]))
    with pytest.raises(ConfigurationError, match="0 rows"):
        unit_codes(rows[:0], np.empty(0, dtype=np.int64))
    with pytest.raises(ConfigurationError, match="max_quanta"):
        unit_codes(rows, np.arange(3), max_quanta=0)


def test_the_null_claims_few_second_quanta(sums_of_two):
    rows, first, _ = sums_of_two
    drawn = null_units(rows, first)
    claimed = (null_codes(rows, first, drawn).num_used >= 2).mean()
    found = (unit_codes(rows, first).num_used >= 2).mean()
    assert claimed < 0.1
    assert found > claimed + 0.1  # a quarter of the rows hold a second direction
    assert np.array_equal(drawn.rows, null_units(rows, first).rows)


def test_null_units_keep_their_part_along_the_centroid_and_every_quantum_has_some(sums_of_two):
    rows, first, _ = sums_of_two
    labels = np.where(np.arange(400) == 399, 20, first)  # the last row is alone in its quantum
    drawn = null_units(rows, labels, per_quantum=7)
    assert np.bincount(labels[drawn.unit]).tolist() == [7] * 20 + [1]
    sums = np.stack([rows[labels == q].sum(axis=0) for q in range(21)])
    own = unit_rows(sums)[labels[drawn.unit]]
    along = np.einsum("ij,ij->i", rows[drawn.unit], own)
    np.testing.assert_allclose(np.einsum("ij,ij->i", drawn.rows, own), along, atol=0.1)  # signs change it a little
    np.testing.assert_allclose(np.linalg.norm(drawn.rows, axis=1), 1, atol=1e-5)


def test_some_units_are_coded_as_they_are_among_all(sums_of_two):
    rows, first, _ = sums_of_two
    every, some = unit_codes(rows, first), unit_codes(rows, first, units=np.array([399, 3]))
    assert np.array_equal(some.quantum, every.quantum[[399, 3]])
    np.testing.assert_allclose(some.weight, every.weight[[399, 3]], atol=1e-6)
