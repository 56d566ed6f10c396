import numpy as np
import pytest

from quantascope.attribution.quanta.codes import null_units, unit_codes
from quantascope.attribution.quanta.dictionary import _RIDGE, codes_of_null, learn_dictionary
from quantascope.attribution.whitening import unit_rows
from quantascope.errors import ConfigurationError


@pytest.fixture(scope="module")
def sums_of_two():
    """Rows of twenty directions; half of each one's rows hold the next direction too, at 0.8 of the first's length."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((20, 600))
    first = np.repeat(np.arange(20), 20)
    second = np.where(np.arange(400) % 2 == 0, (first + 1) % 20, -1)
    rows = centres[first] + 0.8 * np.where(second >= 0, 1, 0)[:, None] * centres[second]
    return unit_rows(rows + rng.standard_normal((400, 600))), unit_rows(centres), first, second


def test_the_directions_are_purer_than_the_centroids_and_so_are_the_codes(sums_of_two):
    rows, centres, first, second = sums_of_two
    found = learn_dictionary(rows, first)
    means = unit_rows(np.stack([rows[first == q].sum(axis=0) for q in range(20)]))
    own, other = np.arange(20), (np.arange(20) + 1) % 20
    assert np.mean(np.einsum("qd,qd->q", means[own], centres[other])) > 0.25  # half of its rows hold that one too
    assert np.abs(np.einsum("qd,qd->q", found.atoms[own], centres[other])).mean() < 0.1
    assert np.einsum("qd,qd->q", found.atoms, centres).mean() > np.einsum("qd,qd->q", means, centres).mean() + 0.03
    both = second >= 0
    plain = unit_codes(rows, first)
    assert (found.codes.quantum[both, 1] == second[both]).mean() > 0.98
    assert (found.codes.num_used[~both] == 1).mean() > 0.9
    ratio = np.median(found.codes.weight[both, 1] / found.codes.weight[both, 0])
    known = np.median(plain.weight[both, 1] / plain.weight[both, 0])
    assert abs(ratio - 0.8) < min(0.05, abs(known - 0.8) / 3)
    assert (np.diff(found.explained) > 0).all()


def test_codes_leave_out_the_row_itself_as_fitting_without_it_does(sums_of_two):
    rows, _, first, _ = sums_of_two
    found = learn_dictionary(rows, first, num_rounds=1)
    weights = np.zeros((len(rows), 20))
    unit, place = np.nonzero((codes := unit_codes_with_own(rows, first)).quantum >= 0)
    weights[unit, codes.quantum[unit, place]] = codes.weight[unit, place]
    for unit in (0, 7, 133, 399):
        others = np.arange(len(rows)) != unit
        gram = weights[others].T @ weights[others] + _RIDGE * np.eye(20)
        atoms = unit_rows(np.linalg.solve(gram, weights[others].T @ rows[others]))
        used = found.codes.quantum[unit][found.codes.quantum[unit] >= 0]
        least = np.linalg.lstsq(atoms[used].T.astype(float), rows[unit].astype(float), rcond=None)[0]
        np.testing.assert_allclose(found.codes.weight[unit][: len(used)], least, atol=1e-4)


def unit_codes_with_own(rows, labels):
    """Codes over the centroids with the row itself in them: what a dictionary's first round is fitted to."""
    from quantascope.attribution.quanta import dictionary

    sums = np.stack([rows[labels == q].sum(axis=0) for q in range(labels.max() + 1)]).astype(float)
    atoms = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return dictionary._plain_codes(rows, atoms, dictionary.weight_floor(len(atoms), float(rows.shape[1])), 5)


def test_a_row_alone_in_its_quantum_is_not_explained_by_itself():
    found = learn_dictionary(np.eye(6, dtype=np.float32), np.arange(6), noise_dim=1e6)
    assert found.codes.num_used.tolist() == [0] * 6
    assert found.codes.explained.tolist() == [0] * 6


def test_the_null_claims_few_second_quanta(sums_of_two):
    rows, _, first, _ = sums_of_two
    found = learn_dictionary(rows, first)
    drawn = null_units(rows, first, directions=found.atoms)
    assert (codes_of_null(found, drawn).num_used >= 2).mean() < 0.1 < (found.codes.num_used >= 2).mean()


def test_refuses_what_does_not_fit():
    rows = np.eye(3, dtype=np.float32)
    with pytest.raises(ConfigurationError, match="none of them empty"):
        learn_dictionary(rows, np.array([0, 0, 2]))
    with pytest.raises(ConfigurationError, match="num_rounds"):
        learn_dictionary(rows, np.arange(3), num_rounds=0)
    with pytest.raises(ConfigurationError, match="max_quanta"):
        learn_dictionary(rows, np.arange(3), max_quanta=11)
