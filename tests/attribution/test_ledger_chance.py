"""Flows beyond chance: on noise as rare as promised, and found where they were planted."""

import numpy as np
import pytest

from quantascope.attribution.ledger.chance import centre, flows_beyond_chance
from quantascope.errors import ConfigurationError


def halves(seed, *, runs=2, kinds=10, planted=0.0):
    """Halves whose sum has rows and columns of its own, noise of deviation 1, and one helper."""
    chance = np.random.default_rng(seed)
    whole = chance.normal(size=(kinds, 1)) * 5 + chance.normal(size=(1, kinds)) * 5 + np.eye(kinds) * 99
    whole[2, 7] += planted
    return whole / 2 + chance.normal(size=(runs, 2, kinds, kinds)) * 0.5**0.5


def test_noise_is_seldom_called_a_flow():
    false = [bool(flows_beyond_chance(halves(seed)).found(0.05)) for seed in range(200)]
    assert np.mean(false) < 0.09  # of families without any flow one in twenty, and 2.6 standard errors


def test_a_planted_flow_is_found_with_its_size_and_its_error():
    found = [flows_beyond_chance(halves(seed, planted=-7.0)) for seed in range(20)]
    assert all(flows.found()[0] == (2, 7) for flows in found)
    own = np.array([flows.centred[2, 7] for flows in found])
    assert own.mean() == pytest.approx(-7 * (1 - 2 / 9), abs=0.6)  # its own part of the means is taken out
    errors = np.array([flows.error for flows in found])
    assert np.sqrt((errors**2).mean()) == pytest.approx(0.5**0.5, rel=0.1)  # of the mean of two runs


def test_centring_takes_out_rows_and_columns_but_not_the_diagonal():
    chance = np.random.default_rng(0)
    matrix = chance.normal(size=(6, 6))
    shifted = matrix + chance.normal(size=(6, 1)) + chance.normal(size=(1, 6)) + np.diag(chance.normal(size=6) * 9)
    np.testing.assert_allclose(centre(shifted), centre(matrix), atol=1e-10)
    assert (np.diag(centre(matrix)) == 0).all()


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (1, 2, 4, 5), (1, 2, 2, 2)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ConfigurationError, match="with 2 halves and as many accounts as kinds"):
        flows_beyond_chance(np.zeros(shape))
