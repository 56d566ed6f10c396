"""Preconditioners by name, and that rows of different ones are never taken for comparable."""

import numpy as np
import pytest
import torch

from quantascope.attribution.preconditioning import (
    PRECONDITIONERS,
    Kronecker,
    KroneckerFactors,
    SecondMoment,
    fisher_whitener,
    precondition_projection,
    precondition_rows,
)
from quantascope.attribution.projection import Identity, TensorSketch
from quantascope.attribution.whitening import Whitener, WhiteningConfig, unit_rows
from quantascope.errors import ConfigurationError
from tests.attribution.preconditioned import one_map


def test_rows_of_other_factors_are_described_as_another_map():
    factors = KroneckerFactors(blocks=one_map(), num_units=1)
    others = KroneckerFactors(blocks=one_map(rows=torch.ones(3).double() + 1e-12), num_units=1)
    base = TensorSketch(dim_per_block=4)
    made = [
        Kronecker(base=base, factors=factors),
        Kronecker(base=base, factors=others),
        Kronecker(base=base, factors=factors, damping=0.3),
        Kronecker(base=Identity(), factors=factors),
        SecondMoment(base=base, moments={"map": torch.ones(3, 2)}),
        SecondMoment(base=base, moments={"map": torch.ones(3, 2) * 2}),
        SecondMoment(base=base, moments={"map": torch.ones(3, 2)}, epsilon=0.1),
        base,
    ]
    described = [repr(m.describe()) for m in made]
    assert len(set(described)) == len(made)
    assert Kronecker(base=base, factors=factors).describe() == made[0].describe()


def test_preconditioners_are_chosen_by_name():
    rows = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    base = TensorSketch(dim_per_block=4)
    factors = KroneckerFactors(blocks=one_map(), num_units=1)
    moments = {"map": torch.ones(3, 2)}
    for name in PRECONDITIONERS:
        made = precondition_projection(name, base, factors=factors, moments=moments)
        assert (made is base) == (name not in ("kfac", "second-moment"))
        found = precondition_rows(name, rows)(rows)
        wanted = {"unit": unit_rows(rows), "fisher": fisher_whitener(rows).apply(rows)}.get(name, rows)
        np.testing.assert_array_equal(found, wanted)
    wanted = Whitener.fit(rows, WhiteningConfig(strength="full", damping=0.3)).apply(rows)
    np.testing.assert_array_equal(precondition_rows("fisher", rows, damping=0.3)(rows), wanted)
    for name, message in (("kfac", "needs factors"), ("second-moment", "this checkpoint has none"), ("x", "accepted")):
        with pytest.raises(ConfigurationError, match=message):
            precondition_projection(name, base)
    with pytest.raises(ConfigurationError, match="accepted are none, unit, fisher, kfac, second-moment"):
        precondition_rows("x", rows)
