"""D is the user's: in total, by size, equally, or per block; and a D beyond the parameters keeps gradients whole."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantascope.attribution.blocks import find_blocks
from quantascope.attribution.engine import GradientEngine
from quantascope.attribution.projection.split import LEAST, split_dim
from quantascope.errors import ConfigurationError
from quantascope.jobs.collecting.collect import collect
from quantascope.jobs.collecting.config import PROJECTIONS, RowConfig
from quantascope.jobs.collecting.plan import shared_projection
from quantascope.jobs.workers.ray_session import RayOptions
from quantascope.storage import Run
from tests.here import workers_here
from tests.tiny import tiny_neox

ONE = RayOptions(num_workers=1)


class WithScalar(torch.nn.Module):
    """A block of one number, one of 31, and one of 600."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1.5))
        self.maps = torch.nn.Sequential(torch.nn.Linear(20, 30, bias=False), torch.nn.Tanh(), torch.nn.Linear(30, 1))

    def forward(self, x):
        return self.maps(x)[:, 0] * self.scale


def dims_of(model, **config):
    """Numbers that each block gets."""
    blocks = find_blocks(model, "all").blocks
    engine = GradientEngine(model, shared_projection(RowConfig(**config), blocks), blocks, prove=False)
    return {b.name: c.stop - c.start for b, c in zip(blocks, engine.columns, strict=True)}


def test_per_block_every_block_has_the_numbers_asked_for():
    dims = dims_of(tiny_neox(), dim=100, shares="each")
    sizes = {b.name: b.numel for b in find_blocks(tiny_neox(), "all").blocks}
    assert dims == {name: min(100, size) for name, size in sizes.items()}
    assert {32, 100} <= set(dims.values())  # norms are smaller, and kept whole
    halves = dims_of(tiny_neox(), dim=100, shares="each", projection="pair:tensor-sketch")
    assert halves == {name: 2 * min(50, size) for name, size in sizes.items()}


def test_by_size_and_equally_blocks_share_the_total():
    sizes = {b.name: b.numel for b in find_blocks(tiny_neox(), "all").blocks}
    equal, by_size = (dims_of(tiny_neox(), dim=2048, shares=shares) for shares in ("equal", "size"))
    assert 0.95 * 2048 < sum(equal.values()) <= 2048
    assert 0.95 * 2048 < sum(by_size.values()) <= 2048
    wide = [name for name, size in sizes.items() if size > 500]
    assert len({equal[name] for name in wide}) <= 2  # what rounding left over went to some
    largest, smaller = max(sizes, key=sizes.get), "gpt_neox.layers.0.attention.dense"
    assert by_size[largest] / by_size[smaller] == pytest.approx(sizes[largest] / sizes[smaller], rel=0.15)


@pytest.mark.parametrize("shares", ["size", "equal", "each"])
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_a_d_beyond_the_parameters_keeps_every_gradient_whole(projection, shares):
    model = WithScalar().double()
    blocks = find_blocks(model, "all").blocks
    made = shared_projection(RowConfig(projection=projection, dim=10**9, shares=shares), blocks)
    engine = GradientEngine(model, made, blocks)
    x = torch.randn(4, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = engine.rows(x, lambda m, x: m(x).square(), num_examples=4).rows
    assert engine.dim == sum(p.numel() for p in model.parameters()) == 632
    model.requires_grad_(True)
    for row, value in zip(rows, model(x).square(), strict=True):
        gradients = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        assert row.norm() == pytest.approx(float(norm), rel=1e-12)


@pytest.mark.parametrize("shares", ["size", "equal", "each"])
@pytest.mark.parametrize("projection", ["tensor-sketch", "two-sided", "wide", "sparse-jl", "dense"])
def test_a_block_of_one_number_is_kept_beside_others_that_are_compressed(projection, shares):
    dims = dims_of(WithScalar(), dim=40, shares=shares, projection=projection)
    assert dims["scale"] == 1
    assert dims["maps.0"] <= 40 < 600


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(1, 10**6)), min_size=1, max_size=8), st.integers(1, 1000))
def test_numbers_per_block_stay_between_their_bounds(blocks, dim):
    shares, sizes = np.array([s for s, _ in blocks]), [size for _, size in blocks]
    least = sum(min(LEAST, size) for size in sizes)
    if not shares.sum() > 0 or dim < least:
        with pytest.raises(ConfigurationError):
            split_dim(dim, shares, sizes)
        return
    found = split_dim(dim, shares, sizes)
    assert sum(found) <= dim
    assert all(min(LEAST, size) <= n <= size for n, size in zip(found, sizes, strict=True))
    if sum(sizes) <= dim:
        assert list(found) == sizes


def test_a_run_keeps_its_numbers_per_block(tiny_collection, tmp_path):
    rows = RowConfig(dim=20, shares="each", rows_per_block=8, batch_tokens=128)
    with workers_here():
        collect(tiny_collection(tmp_path / "run", rows=rows, max_units=8), ONE)
        assert collect(tiny_collection(tmp_path / "run", rows=rows, max_units=8), ONE).rows_here == 0
    plan = Run.open(tmp_path / "run").row_set("token-loss").plan
    assert {b["last_column"] - b["first_column"] + 1 for b in plan["blocks"]} == {20}
    assert plan["dim"] == 20 * len(plan["blocks"])
