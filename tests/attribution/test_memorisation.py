import numpy as np
import pytest
from jaxtyping import TypeCheckError

from quantascope.attribution.quanta.memorisation import null_medians, own_share, self_influence
from quantascope.attribution.whitening import Whitener, WhiteningConfig, unit_rows
from quantascope.errors import ConfigurationError

REFUSED = (ConfigurationError, TypeCheckError)  # shapes, where annotations are checked at run time


def test_own_share_equals_the_plain_loop():
    rng = np.random.default_rng(0)
    labels, documents = rng.integers(0, 4, 80), rng.integers(0, 9, 80)
    rows = unit_rows(rng.standard_normal((4, 30))[labels] + rng.standard_normal((80, 30)))
    found = own_share(rows, labels, documents)
    for quantum in range(4):
        own = np.flatnonzero(labels == quantum)
        gram = rows[own] @ rows[own].T
        same = documents[own][:, None] == documents[own]
        assert found.value[quantum] == pytest.approx(gram[same].sum() / gram.sum(), rel=1e-4)
        cosine = gram[~np.eye(len(own), dtype=bool)].mean()
        expected = np.where(np.eye(len(own)), 1, cosine)
        assert found.null[quantum] == pytest.approx(expected[same].sum() / expected.sum(), rel=1e-4)


def test_what_one_document_teaches_is_memorised_and_what_many_teach_is_general():
    rng = np.random.default_rng(0)
    centre = rng.standard_normal((2, 100))
    labels = np.repeat([0, 1], 40)
    rows = unit_rows(centre[labels] + rng.standard_normal((80, 100)))
    documents = np.where(labels == 0, 0, 1 + np.arange(80))
    found = own_share(rows, labels, documents)
    assert found.value[0] == 1
    assert found.value[1] < 0.1
    assert own_share(np.eye(2, dtype=np.float32), np.arange(2), np.arange(2)).value.tolist() == [1, 1]
    with pytest.raises(REFUSED):
        own_share(rows, labels[:2], documents)


@pytest.mark.parametrize("max_exact", [1_024, 1])
def test_self_influence_is_the_length_in_the_inverse_second_moment(max_exact):
    rng = np.random.default_rng(0)
    rows = unit_rows(rng.standard_normal((300, 12)) * np.geomspace(1, 9, 12))
    norms = rng.random(300).astype(np.float32) + 0.1
    whitener = Whitener.fit(rows, WhiteningConfig(max_exact=max_exact, rank=12))
    found = self_influence(rows, norms, whitener, 0.1)
    inverse = np.linalg.inv(rows.T @ rows / 300 + 0.1 / 12 * np.eye(12))
    expected = np.einsum("ij,jk,ik->i", rows, inverse, rows) * norms**2
    np.testing.assert_allclose(found, expected / np.median(expected), rtol=1e-3)


def test_without_fitted_directions_only_norms_count():
    rows = unit_rows(np.random.default_rng(0).standard_normal((9, 5)))
    norms = np.arange(1, 10, dtype=np.float32)
    found = self_influence(rows, norms, Whitener.fit(rows, WhiteningConfig(strength="none")), 0.1)
    np.testing.assert_allclose(found, norms**2 / 25, rtol=1e-4)


def test_the_null_of_medians_is_that_of_units_drawn_at_random():
    rng = np.random.default_rng(0)
    influence = rng.lognormal(0, 1, 2_000).astype(np.float32)
    sizes = np.array([1, 5, 41])
    low, high = null_medians(influence, sizes).T
    for size, least, most in zip(sizes, low, high, strict=True):
        medians = np.median(influence[rng.integers(0, 2_000, (8_000, size))], axis=1)
        np.testing.assert_allclose([least, most], np.quantile(medians, [0.025, 0.975]), rtol=0.12)
    assert (np.diff(high) < 0).all()
    assert (np.diff(low) > 0).all()
