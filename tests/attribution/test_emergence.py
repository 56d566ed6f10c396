import numpy as np
import pytest

from quantascope.attribution.change.emergence import (
    EmergenceConfig,
    find_bursts,
    find_emergence,
    order_against_frequency,
)
from quantascope.attribution.change.transitions import TransitionGrid, half_way
from quantascope.errors import ConfigurationError

STEPS = np.unique(np.geomspace(10, 10_000, 25).round().astype(int))


def curves(midpoints, widths, steps=STEPS, high=2.0, drop=1.5):
    x = np.log(steps)[None]
    m, w = np.log(np.asarray(midpoints, float))[:, None], np.asarray(widths, float)[:, None]
    return high - drop / (1 + np.exp(-(x - m) / w))


def noisy_units(midpoints, *, units=40, documents=20, noise=0.3, seed=0, **shape):
    """Losses of units, their quanta and their documents; documents have deviations of their own, over all steps."""
    chance = np.random.default_rng(seed)
    means = curves(midpoints, np.full(len(midpoints), 0.15), **shape)
    quantum = np.repeat(np.arange(len(midpoints)), units)
    document = chance.integers(0, documents, len(quantum))
    own = chance.normal(0, noise, (documents, 1))
    return means[quantum] + own[document] + chance.normal(0, noise, (len(quantum), means.shape[1])), quantum, document


@pytest.mark.parametrize("scale", ["log", "linear"])
def test_a_logistic_is_found_again(scale):
    grid = TransitionGrid(STEPS, scale)
    x = np.log(STEPS) if scale == "log" else STEPS
    m, w = (np.log([60, 300, 2000]), [0.1, 0.4, 0.7]) if scale == "log" else ([2000, 4000, 6000], [150, 500, 900])
    found = grid.fit(3 - 1.2 / (1 + np.exp(-(x[None] - np.array(m)[:, None]) / np.array(w)[:, None])))
    middle = np.exp(m) if scale == "log" else np.array(m)
    np.testing.assert_allclose(found.midpoint, middle, rtol=0.02)
    np.testing.assert_allclose(found.drop, 1.2, rtol=0.03)
    np.testing.assert_allclose(found.high, 3, rtol=0.02)
    ends = np.array(m) + np.log(9) * np.array(w)
    np.testing.assert_allclose(found.end, np.exp(ends) if scale == "log" else ends, rtol=0.05)
    assert (found.explained > 0.999).all()
    assert (found.edge == 0).all()


def test_what_lies_outside_of_the_series_is_not_made_up():
    found = TransitionGrid(STEPS).fit(curves([12_000, 8, 300], [0.4, 0.4, 0.2]))
    assert found.edge.tolist() == [1, -1, 0]
    assert found.end[0] <= STEPS[-1] * 1.001
    assert found.drop[0] < 1  # what was seen of 1.5
    rising = TransitionGrid(STEPS).fit(-curves([300], [0.2]))
    assert rising.drop[0] == 0
    assert rising.explained[0] == 0


def test_half_way_is_interpolated_on_the_curve_itself():
    steps = np.array([0, 10, 20, 40])
    found = half_way(np.array([[2.0, 2.0, 1.0, 0.0], [1.0, 1.5, 1.2, 1.0], [1.0, 0.0, 0.5, 0.5]]), steps)
    np.testing.assert_allclose(found, [20, np.nan, 5])


def test_times_of_noisy_units_are_found_with_intervals_that_hold_them():
    true = np.geomspace(40, 3000, 24)
    losses, quantum, document = noisy_units(true)
    found = find_emergence(losses, STEPS, quantum, document, config=EmergenceConfig(num_resamples=100))
    assert set(found.status) == {"learned"}
    np.testing.assert_allclose(found.fits.midpoint, true, rtol=0.2)
    inside = (found.low <= true) & (true <= found.high)
    assert inside.mean() > 0.8
    assert np.median(found.high / found.low) < 1.6
    again = find_emergence(losses, STEPS, quantum, document, config=EmergenceConfig(num_resamples=100))
    np.testing.assert_array_equal(found.low, again.low)


def test_curves_without_a_fall_are_flat_and_one_document_has_no_interval():
    losses, quantum, document = noisy_units([100, 100, 100])
    losses[quantum == 1] = np.random.default_rng(1).normal(1, 0.3, losses[quantum == 1].shape)
    document[quantum == 2] = 0
    found = find_emergence(losses, STEPS, quantum, document)
    assert found.status == ("learned", "flat", "learned")
    assert np.isnan(found.low[2])
    assert np.isfinite(found.low[:2]).all()


def test_an_interval_is_never_finer_than_the_checkpoints():
    losses = np.where(STEPS[None] < 300, 2.0, 0.5) + np.zeros((10, 1))
    found = find_emergence(losses, STEPS, np.zeros(10, int), np.arange(10))
    after = STEPS[STEPS >= 300][0]
    before = STEPS[STEPS < 300][-1]
    assert found.low[0] <= before < after <= found.high[0]
    assert found.largest_fall[0] > 0.95
    assert found.largest_fall_step[0] == after


def test_forgetting_is_measured_on_documents_that_did_not_choose_the_best_checkpoint():
    losses, quantum, document = noisy_units([100, 100], units=200, documents=50)
    losses[quantum == 1] += np.where(STEPS > 3000, 0.5, 0.0)
    found = find_emergence(losses, STEPS, quantum, document)
    assert found.forgotten[1] == pytest.approx(0.5, abs=0.1)
    assert found.forgotten_low[1] > 0.3
    assert found.forgotten_low[0] < 0 < found.forgotten_high[0]
    chosen_and_measured_alike = losses[quantum == 0].mean(0)
    assert chosen_and_measured_alike[-1] - chosen_and_measured_alike.min() > abs(found.forgotten[0])


def test_frequent_quanta_first_stands_beside_its_null():
    frequency = np.arange(1, 25) ** -1.4
    losses, quantum, document = noisy_units(20 * frequency**-0.8)
    found = find_emergence(losses, STEPS, quantum, document)
    order = order_against_frequency(found, frequency)
    assert order.correlation < -0.95 < order.null_low < 0 < order.null_high
    assert order.p_value < 0.001
    assert order.slope == pytest.approx(-0.8, abs=0.05)
    assert order.slope_low < -0.8 < order.slope_high
    shuffled = order_against_frequency(found, np.random.default_rng(0).permutation(frequency))
    assert shuffled.null_low < shuffled.correlation < shuffled.null_high
    assert shuffled.p_value > 0.02
    assert "Spearman -1.00" in order.sentence()


def test_a_burst_is_a_gap_with_more_quanta_than_its_neighbours():
    even = np.geomspace(30, 4000, 30)
    losses, quantum, document = noisy_units([*even, *np.full(15, 500.0)], noise=0.05)
    found = find_emergence(losses, STEPS, quantum, document, config=EmergenceConfig(num_resamples=20))
    (burst,) = find_bursts(found)
    assert burst.first_step < 500 < burst.last_step
    assert burst.count >= 15 > 3 > burst.expected
    losses, quantum, document = noisy_units(even, noise=0.05)
    assert find_bursts(find_emergence(losses, STEPS, quantum, document)) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a | {"steps": STEPS[::-1]}, "rising steps"),
        (lambda a: a | {"steps": STEPS[:3], "losses": a["losses"][:, :3]}, "at least 4 checkpoints"),
        (lambda a: a | {"losses": np.where(np.arange(len(STEPS)) == 2, np.nan, a["losses"])}, "Unit 0 has a loss"),
        (lambda a: a | {"quantum": a["quantum"] + 1}, "numbered from 0"),
    ],
)
def test_bad_arrays_are_refused(change, message):
    losses, quantum, document = noisy_units([100])
    given = change({"losses": losses, "steps": STEPS, "quantum": quantum, "document": document})
    with pytest.raises(ConfigurationError, match=message):
        find_emergence(given["losses"], given["steps"], given["quantum"], given["document"])


def test_bad_options_are_refused():
    with pytest.raises(ConfigurationError, match="num_resamples is 3"):
        EmergenceConfig(num_resamples=3)
    with pytest.raises(ConfigurationError, match=r"confidence is 95\.0"):
        EmergenceConfig(confidence=95.0)


def test_the_fit_is_the_best_of_a_far_denser_grid():
    """Few checkpoints and noise leave several optima: the one found explains as much as any."""
    steps = np.array([10, 18, 37, 75, 140, 289, 649, 1370])
    rng = np.random.default_rng(5)
    grid = TransitionGrid(steps)
    middle, width = rng.uniform(3, 6.5, 60), rng.uniform(0.1, 1.0, 60)
    curves = 6 / (1 + np.exp((np.log(steps)[None] - middle[:, None]) / width[:, None])) + rng.normal(0, 0.5, (60, 8))
    shapes, _, _ = grid._basis(np.linspace(grid.x[0], grid.x[-1], 1_000), np.geomspace(*grid._widths[[0, -1]], 100))
    _, best = grid._best(curves, shapes)
    assert (grid.fit(curves).explained > best**2 - 2e-3).all()
