import numpy as np
import pytest

from quantascope.attribution.change.monogenic import monogenic_curves, sharpness
from quantascope.errors import ConfigurationError


def logistic(steps, middle, width=0.3):
    return 1 / (1 + np.exp((np.log(steps) - np.log(middle)) / width))


STEPS = np.geomspace(1, 1_000, 12)


def planted(rng, num_units=400):
    """Units of one quantum fall once; the others in two halves that lie far apart."""
    one = rng.random(num_units) < 0.6
    first, second = rng.uniform(5, 30, num_units), rng.uniform(100, 300, num_units)
    curves = np.where(
        one[:, None],
        logistic(STEPS[None], first[:, None]),
        (logistic(STEPS[None], first[:, None]) + logistic(STEPS[None], second[:, None])) / 2,
    )
    return 3 * curves + 0.01 * rng.standard_normal(curves.shape), one, np.arange(num_units) // 4


def test_the_share_of_the_largest_fall():
    losses = np.array([[4.0, 3, 0, 1], [4, 4, 4, 3.95], [1, 2, 0.5, 0]])
    found = sharpness(losses)
    np.testing.assert_allclose(found[[0, 2]], [0.75, 1.5])
    assert np.isnan(found[1])


def test_units_of_one_quantum_fall_more_at_once_than_those_of_several():
    losses, one, document = planted(np.random.default_rng(0))
    found = monogenic_curves(losses, one, document)
    assert 0 < found.low < found.difference < found.high
    assert found.difference > found.null_high > found.null_low
    assert found.difference == pytest.approx(found.one - found.several)
    assert (found.num_one, found.num_several, found.num_left_out) == (one.sum(), (~one).sum(), 0)
    assert found == monogenic_curves(losses, one, document)
    assert f"{100 * found.difference:+.1f} points" in found.sentence()


def test_kinds_that_mean_nothing_lie_within_the_null():
    rng = np.random.default_rng(1)
    losses, one, document = planted(rng)
    found = monogenic_curves(losses, rng.permutation(one), document)
    assert found.low < 0 < found.high
    assert found.null_low < found.difference < found.null_high


def test_units_of_no_kind_and_without_a_fall_are_left_out():
    losses, one, document = planted(np.random.default_rng(0))
    known = np.arange(len(one)) >= 10
    losses[10:15] = 1.0
    found = monogenic_curves(losses, one, document, known=known)
    assert found.num_left_out == 15
    assert monogenic_curves(losses, np.ones(len(one), bool), document) is None
    assert monogenic_curves(losses, one, np.zeros_like(document)) is None  # one document has no interval


def test_what_shows_no_curve_is_refused():
    with pytest.raises(ConfigurationError, match="three checkpoints"):
        monogenic_curves(np.zeros((4, 2)), np.ones(4, bool), np.arange(4))
