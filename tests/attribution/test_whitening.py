import numpy as np
import pytest
from jaxtyping import TypeCheckError

from quantascope.attribution.whitening import Whitener, WhiteningConfig, unit_rows
from quantascope.errors import ConfigurationError

REFUSED = (ConfigurationError, TypeCheckError)  # shapes and literals, where annotations are checked at run time


def rows_with_decay(num_rows, dim, decay, seed=0):
    scales = np.arange(1, dim + 1) ** (-decay / 2)
    return (np.random.default_rng(seed).standard_normal((num_rows, dim)) * scales).astype(np.float32)


def dense_oracle(rows, power, damping):
    """Whitening by the definition, in float64."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    values, vectors = np.linalg.eigh(unit.T.astype(float) @ unit / len(unit))
    whitened = unit @ (vectors * (np.maximum(values, 0) + damping * values.mean()) ** -power) @ vectors.T
    return whitened / np.linalg.norm(whitened, axis=1, keepdims=True)


@pytest.mark.parametrize(("strength", "power"), [("none", 0), ("half", 0.25), ("full", 0.5)])
@pytest.mark.parametrize("shape", [(200, 40), (30, 80)])
def test_equals_the_definition_where_exact(strength, power, shape):
    rows = rows_with_decay(*shape, decay=1)
    whitener = Whitener.fit(rows, WhiteningConfig(strength=strength))
    whitened = whitener.apply(rows)
    assert whitened.dtype == np.float32
    # the definition's null space has eigenvalues of 1e-17 that ours leaves out: float32 rounding is what remains
    np.testing.assert_allclose(whitened, dense_oracle(rows, power, 0.1), atol=2e-5)


def test_exact_and_randomised_agree_on_cosines():
    rows = rows_with_decay(600, 300, decay=1.5)
    exact = Whitener.fit(rows).apply(rows)
    close = Whitener.fit(rows, WhiteningConfig(max_exact=10, rank=100)).apply(rows)
    raw = unit_rows(rows)
    pairs = np.triu_indices(len(rows), 1)
    error = np.sqrt(np.mean((exact @ exact.T - close @ close.T)[pairs] ** 2))
    untouched = np.sqrt(np.mean((exact @ exact.T - raw @ raw.T)[pairs] ** 2))
    assert error < 0.01 < 0.1 < untouched


def test_full_whitening_flattens_the_spectrum():
    rows = rows_with_decay(2_000, 50, decay=2)
    before = Whitener.fit(rows).eigenvalues
    after = Whitener.fit(Whitener.fit(rows, WhiteningConfig(strength="full", damping=1e-3)).apply(rows)).eigenvalues
    assert before[0] / before[-1] > 100
    assert after[0] / after[-1] < 3


def test_scale_of_rows_and_order_do_not_matter():
    rows = rows_with_decay(100, 20, decay=1)
    scaled = rows * np.random.default_rng(1).uniform(0.01, 100, (100, 1)).astype(np.float32)
    np.testing.assert_allclose(Whitener.fit(rows).apply(rows), Whitener.fit(scaled[::-1]).apply(scaled), atol=1e-5)


def test_same_seed_same_whitener_other_seed_another():
    rows = rows_with_decay(120, 100, decay=0.5)
    first, again, other = (Whitener.fit(rows, WhiteningConfig(max_exact=1, rank=20, seed=s)) for s in (0, 0, 1))
    assert np.array_equal(first.basis, again.basis)
    assert not np.array_equal(first.basis, other.basis)


def test_arrays_make_the_same_whitener():
    rows = rows_with_decay(50, 30, decay=1)
    whitener = Whitener.fit(rows)
    arrays = whitener.to_arrays()
    assert np.array_equal(Whitener.from_arrays(arrays).apply(rows), whitener.apply(rows))
    del arrays["gains"]
    with pytest.raises(ConfigurationError, match="gains"):
        Whitener.from_arrays(arrays)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_refuses_rows_without_a_direction(bad):
    rows = rows_with_decay(10, 5, decay=1)
    whitener = Whitener.fit(rows)
    rows[7] = bad
    with pytest.raises(ConfigurationError, match="row 7"):
        whitener.apply(rows)
    with pytest.raises(ConfigurationError, match="row 7"):
        Whitener.fit(rows)


def test_refuses_another_width_and_bad_options():
    whitener = Whitener.fit(rows_with_decay(10, 5, decay=1))
    with pytest.raises(ConfigurationError, match="6 wide"):
        whitener.apply(rows_with_decay(10, 6, decay=1))
    for options in ({"strength": "most"}, {"damping": 0.0}, {"rank": 0}):
        with pytest.raises(REFUSED):
            WhiteningConfig(**options)
