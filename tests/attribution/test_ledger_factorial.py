from itertools import permutations

import numpy as np
import pytest

from quantascope.attribution.ledger.factorial import interactions, shapley_values, subsets
from quantascope.errors import ConfigurationError

VALUES = np.random.default_rng(0).normal(size=(8, 2, 3))


def test_interactions_add_up_to_the_values_again():
    effects = interactions(VALUES)
    for number, subset in enumerate(subsets(3)):
        inside = [n for n, other in enumerate(subsets(3)) if set(other) <= set(subset)]
        np.testing.assert_allclose(effects[inside].sum(0), VALUES[number], atol=1e-12)


def test_what_adds_has_no_interactions():
    own = np.array([1.0, 2.0, -4.0])
    values = np.array([5 + own[list(s)].sum() for s in subsets(3)])
    found = interactions(values)
    np.testing.assert_allclose(found, [5, 1, 2, 0, -4, 0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(shapley_values(values), own)


def test_shares_are_means_over_all_orders_of_joining():
    number = {subset: i for i, subset in enumerate(subsets(3))}
    expected = np.zeros((3, 2, 3))
    for order in permutations(range(3)):
        for place, kind in enumerate(order):
            before, after = (tuple(sorted(order[:n])) for n in (place, place + 1))
            expected[kind] += (VALUES[number[after]] - VALUES[number[before]]) / 6
    np.testing.assert_allclose(shapley_values(VALUES), expected, atol=1e-12)
    np.testing.assert_allclose(shapley_values(VALUES).sum(0), VALUES[-1] - VALUES[0], atol=1e-12)


def test_values_of_some_subsets_alone_are_refused():
    with pytest.raises(ConfigurationError, match="There are 6 values"):
        interactions(VALUES[:6])
