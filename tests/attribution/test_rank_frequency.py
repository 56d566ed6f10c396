import numpy as np
import pytest
from scipy import special

from quantascope.attribution.quanta.rank_frequency import fit_rank_frequency, fit_tail
from quantascope.errors import ConfigurationError


def zipf_sizes(num_quanta, slope, largest):
    return np.floor(largest * np.arange(1, num_quanta + 1) ** slope).astype(int)


def test_finds_the_slope_of_an_exact_law():
    fit = fit_rank_frequency(zipf_sizes(200, -1.2, 1_000_000)[::-1])
    assert fit.slope == pytest.approx(-1.2, abs=1e-3)
    assert fit.alpha == pytest.approx(0.2, abs=1e-3)
    assert fit.slope_low <= fit.slope <= fit.slope_high
    assert fit.slope_high - fit.slope_low < 0.02
    assert "-1.20" in fit.sentence()
    assert "no null was given" in fit.sentence()


def test_only_the_ranks_asked_for_count():
    sizes = np.r_[np.full(10, 5_000), zipf_sizes(100, -1.0, 4_000)]
    ranks = np.arange(1, 111)
    expected = np.polyfit(np.log(ranks[20:60]), np.log(np.sort(sizes)[::-1][20:60]), 1)
    fit = fit_rank_frequency(sizes, first_rank=21, last_rank=60)
    assert [fit.slope, fit.intercept] == pytest.approx(expected)


def test_the_interval_covers_the_slope_of_sampled_sizes():
    rng = np.random.default_rng(0)
    shares = np.arange(1, 101) ** -1.3
    covered = 0
    for seed in range(20):
        fit = fit_rank_frequency(
            rng.multinomial(50_000, shares / shares.sum()), last_rank=30, num_resamples=200, seed=seed
        )
        covered += fit.slope_low <= -1.3 <= fit.slope_high
        assert (fit.line_low <= fit.line_high).all()
    assert covered >= 15


def test_nulls_stand_beside_the_fit():
    nulls = [np.full(100, 40), np.full(90, 44)]
    fit = fit_rank_frequency(zipf_sizes(100, -1.1, 2_000), null_sizes=nulls, last_rank=80)
    np.testing.assert_allclose(fit.null_slopes, 0, atol=1e-12)
    assert fit.null_high[0] <= 44
    assert fit.null_low[99] < 40
    assert "nulls give" in fit.sentence()


def test_same_seed_same_interval():
    sizes = zipf_sizes(50, -1.0, 500)
    first, again, other = (fit_rank_frequency(sizes, seed=s) for s in (1, 1, 2))
    assert first.slope_low == again.slope_low != other.slope_low


def test_refuses_too_few_ranks():
    with pytest.raises(ConfigurationError, match="3 ranks"):
        fit_rank_frequency(np.array([5, 3]))


def power_law_sample(rng, exponent, min_size, count):
    values = np.arange(min_size, 200_000)
    return rng.choice(values, count, p=(w := values**-exponent / special.zeta(exponent, min_size)) / w.sum())


def test_tail_finds_a_power_law():
    sizes = power_law_sample(np.random.default_rng(0), 2.2, 5, 3_000)
    fit = fit_tail(sizes, min_size=5)
    assert fit.exponent == pytest.approx(2.2, abs=0.1)
    assert fit.num_tail == 3_000
    exponential = fit.rivals[1]
    assert exponential.log_likelihood_ratio > 0
    assert exponential.p_value < 0.01
    assert "better than exponential" in fit.sentence()


def test_tail_tells_other_laws_from_a_power_law():
    rng = np.random.default_rng(0)
    geometric = fit_tail(rng.geometric(0.02, 2_000), min_size=1)
    assert geometric.rivals[1].log_likelihood_ratio < 0
    assert geometric.rivals[1].p_value < 0.01
    lognormal = fit_tail(np.maximum(rng.lognormal(3, 0.5, 2_000).round().astype(int), 1), min_size=5)
    assert lognormal.rivals[0].log_likelihood_ratio < 0
    assert lognormal.rivals[0].p_value < 0.01


def test_tail_finds_where_the_law_begins():
    rng = np.random.default_rng(1)
    sizes = np.r_[power_law_sample(rng, 2.5, 20, 1_000), rng.integers(1, 20, 1_500)]
    fit = fit_tail(sizes)
    assert 15 <= fit.min_size <= 40
    assert fit.exponent == pytest.approx(2.5, abs=0.25)
    assert fit.distance < 0.05


def test_tail_refuses_too_little():
    with pytest.raises(ConfigurationError):
        fit_tail(np.full(100, 7))
    with pytest.raises(ConfigurationError):
        fit_tail(np.arange(1, 6))
