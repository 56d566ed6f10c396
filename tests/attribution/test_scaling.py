import numpy as np
import pytest

from quantascope.attribution.change.emergence import find_emergence, order_against_frequency
from quantascope.attribution.change.scaling import decompose, fit_scaling

SIZES = np.geomspace(70_000_000, 12_000_000_000, 8).astype(np.int64)


def of_power(exponent, *, units=400, documents=40, noise=0.1, seed=0):
    """Losses of units that fall as a power of the size, by a factor of each document's own."""
    chance = np.random.default_rng(seed)
    document = chance.integers(0, documents, units)
    own = np.exp(chance.normal(0, noise, (documents, len(SIZES))))
    return 3 * (SIZES / SIZES[0]) ** -exponent * own[document], document


def test_contributions_add_up_to_the_mean_over_all_units():
    losses, _ = of_power(0.1)
    quantum = np.repeat([0, 1, 2], [300, 90, 10])
    parts = decompose(losses, quantum)
    np.testing.assert_allclose(parts.sum(0), losses.mean(0), rtol=1e-12)
    np.testing.assert_allclose(parts[1], losses[300:390].sum(0) / 400, rtol=1e-12)


def test_a_power_of_the_size_is_found_again_with_intervals_that_hold_it():
    series = [of_power(0.2, seed=seed) for seed in range(60)]
    found = [fit_scaling(losses, SIZES, document) for losses, document in series]
    np.testing.assert_allclose([fit.exponent for fit in found], 0.2, atol=0.02)
    assert np.mean([fit.exponent_low <= 0.2 <= fit.exponent_high for fit in found]) > 0.8
    assert 0.005 < np.median([fit.exponent_high - fit.exponent_low for fit in found]) < 0.03
    assert min(fit.explained for fit in found) > 0.9
    assert found[0].expected_rank_slope == pytest.approx(-1 - found[0].exponent)


def test_units_of_one_document_have_no_interval():
    losses, document = of_power(0.1)
    found = fit_scaling(losses[:1], SIZES, document[:1])
    assert found.exponent == pytest.approx(-np.polyfit(np.log(SIZES), np.log(losses[0]), 1)[0])
    assert np.isnan(found.exponent_low)


def test_a_loss_that_does_not_fall_foretells_nothing_of_quanta():
    losses, document = of_power(-0.1)
    found = fit_scaling(losses, SIZES, document)
    assert found.exponent < 0
    assert found.expected_order_slope is None
    assert "quanta" not in found.sentence()
    losses[:, -1] = 0
    assert np.isnan(fit_scaling(losses, SIZES, document).exponent)


def test_quanta_learned_in_the_order_of_frequency_give_the_slopes_that_are_foretold():
    """A ladder as in Michaud et al., section 2: the quantum of rank k has the frequency k^−1.5 and needs k parameters.

    There are many more quanta than the largest model has, else the loss falls faster at the end.
    """
    ranks = np.arange(1, 200_001)
    frequency = ranks**-1.5
    sizes = np.unique(np.geomspace(10, 1_000, 16).astype(np.int64))
    whole = (frequency[:, None] * (ranks[:, None] > sizes)).sum(0, keepdims=True)
    found = fit_scaling(whole, sizes, np.zeros(1, np.int64))
    assert found.exponent == pytest.approx(0.5, abs=0.05)
    assert found.expected_rank_slope == pytest.approx(-1.5, abs=0.05)
    chosen = np.unique(np.geomspace(20, 500, 30).astype(int))
    losses = 1.0 * (chosen[:, None] > sizes)
    quanta = find_emergence(losses, sizes, np.arange(len(chosen)), np.zeros(len(chosen), np.int64))
    order = order_against_frequency(quanta, frequency[chosen - 1])
    assert order is not None
    assert order.slope == pytest.approx(found.expected_order_slope, abs=0.1)
    assert "parameters ∝ frequency^" in order.sentence("parameters")
