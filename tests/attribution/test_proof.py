"""What a first batch says nothing of is proved on a later one: planted wrong taps are found when they first matter."""

import pytest
import torch
from torch import nn

from quantascope.attribution.blocks import find_blocks
from quantascope.attribution.engine import GradientEngine
from quantascope.attribution.preconditioning import FactorMeter
from quantascope.attribution.projection import Identity, TensorSketch
from tests.plain_loop import assert_equal_rows, plain_rows


class Routed(nn.Module):
    """An expert that only positions above 1 reach; `past` uses its weight past the module, beside it or in its place.

    A tap on the expert is wrong then: it misses a part, or all, of the gradient. With `branches` the expert is not run
    for nothing, as real ones are not; what branches cannot run under vmap.
    """

    def __init__(self, past, *, branches=False):
        super().__init__()
        self.branches = branches
        self.past, self.expert, self.shared = past, nn.Linear(3, 3, bias=False), nn.Linear(3, 3)

    def forward(self, x):
        made = self.shared(x)
        reached = (x[..., :1] > 1).to(x.dtype)
        if self.branches and not reached.any():
            return made
        if self.past != "alone":
            made = made + reached * self.expert(x)
        if self.past != "never":
            made = made + reached * torch.sin(x @ self.expert.weight.T)
        return made


def squares(model, x):
    return model(x).square().sum((1, 2))


def batch_of(*, reached, seed):
    x = torch.rand(4, 5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[2, 1, 0] += reached
    return x


def engine_of(model, projection=None):
    return GradientEngine(model, projection or Identity(), find_blocks(model, "all").blocks)


def rows_of(engine, unit, x):
    if unit == "rows":
        return engine.rows(x, squares, num_examples=len(x)).rows
    made = engine.contributions(x, squares, num_examples=len(x), num_positions=x.shape[1])
    return made.rows.sum(1) + made.unplaced


@pytest.mark.parametrize("unit", ["rows", "contributions"])
@pytest.mark.parametrize("projection", [Identity(), TensorSketch(dim_per_block=5)], ids=["identity", "sketch"])
@pytest.mark.parametrize(
    ("past", "first_reached", "way"),
    [
        ("never", 3, "tap"),
        ("beside", 3, "copies"),  # its rows are no longer zero: compared at once
        ("beside", 6, "copies"),
        ("alone", 2, "copies"),  # its rows are zero, and wrong: found in batches 2, 4, 8 and so on
        ("alone", 4, "copies"),
        ("beside", 3, "loop"),
        ("alone", 4, "loop"),
    ],
)
def test_a_block_without_gradient_at_first_is_proved_when_it_has_one(past, first_reached, way, projection, unit):
    torch.manual_seed(0)
    engine = engine_of(Routed(past, branches=way != "copies").double(), projection)
    for number in range(1, first_reached):
        x = batch_of(reached=False, seed=number)
        assert_equal_rows(rows_of(engine, unit, x), plain_rows(engine, x, squares))
        assert engine.proof.open == {0}
        assert engine.route.way(0) == "tap"
    for number in range(2):
        x = batch_of(reached=True, seed=10 + number)
        assert_equal_rows(rows_of(engine, unit, x), plain_rows(engine, x, squares))
        assert engine.proof.open == set()
        assert engine.route.way(0) == way


def test_without_the_later_proof_those_rows_would_be_wrong(monkeypatch):
    torch.manual_seed(0)
    engine = engine_of(Routed("beside").double())
    rows_of(engine, "rows", batch_of(reached=False, seed=1))
    monkeypatch.setattr(engine.proof, "open", frozenset())
    x = batch_of(reached=True, seed=2)
    with pytest.raises(AssertionError, match="relative error"):
        assert_equal_rows(rows_of(engine, "rows", x), plain_rows(engine, x, squares))


def test_with_one_example_a_block_that_differs_is_differentiated_unit_by_unit():
    """One example does not tell how a module holds several."""
    torch.manual_seed(0)
    engine = engine_of(Routed("beside").double())
    rows_of(engine, "rows", batch_of(reached=False, seed=1))
    x = batch_of(reached=True, seed=2)[2:3]
    assert_equal_rows(rows_of(engine, "rows", x), plain_rows(engine, x, squares))
    assert engine.route.way(0) == "loop"
    x = batch_of(reached=True, seed=3)
    assert_equal_rows(rows_of(engine, "rows", x), plain_rows(engine, x, squares))


def test_rows_that_are_not_finite_prove_nothing_and_do_no_harm():
    torch.manual_seed(0)
    engine = engine_of(Routed("beside").double())
    rows_of(engine, "rows", batch_of(reached=False, seed=1))
    x = batch_of(reached=True, seed=2)
    x[0, 0, 1] = torch.nan
    assert not rows_of(engine, "rows", x)[0].isfinite().all()
    assert engine.proof.open == {0}
    x = batch_of(reached=True, seed=3)
    assert_equal_rows(rows_of(engine, "rows", x), plain_rows(engine, x, squares))


def test_an_adapter_behind_a_zero_stays_open_and_costs_a_comparison_now_and_then():
    class Adapter(nn.Module):
        def __init__(self):
            super().__init__()
            self.base, self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2, bias=False), nn.Linear(2, 3, bias=False)
            nn.init.zeros_(self.b.weight)

        def forward(self, x):
            return self.base(x) + self.b(self.a(x))

    engine = engine_of(Adapter().double())
    compared = 0
    for number in range(16):
        x = batch_of(reached=False, seed=number)
        assert_equal_rows(rows_of(engine, "rows", x), plain_rows(engine, x, squares))
        assert [engine.blocks[n].name for n in engine.proof.open] == ["a"]
        compared += bool(engine.proof._num_batches & (engine.proof._num_batches - 1) == 0)
    assert compared == 5


def test_kronecker_factors_do_not_count_what_is_only_compared():
    torch.manual_seed(0)
    model = Routed("never").double()
    batches = [batch_of(reached=n > 1, seed=n) for n in range(4)]
    found = []
    for order in (batches, batches[::-1]):
        meter = FactorMeter(model, find_blocks(model, "all").blocks)
        for x in order:
            meter.add(x, squares, num_examples=4)
        found.append(meter.factors())
    for name, roles in found[0].blocks.items():
        for role, factors in roles.items():
            torch.testing.assert_close(factors.rows, found[1].blocks[name][role].rows)
            assert factors.weight == found[1].blocks[name][role].weight
