"""Every projection: factors and full gradients give the same row, and what cannot work is refused."""

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantascope.attribution.blocks import find_blocks
from quantascope.attribution.engine import GradientEngine
from quantascope.attribution.projection import (
    Dense,
    Identity,
    Pair,
    SparseJL,
    TensorSketch,
    TwoSided,
    Wide,
    in_full,
    member_columns,
)
from quantascope.attribution.projection import dense as dense_module
from quantascope.errors import ConfigurationError
from tests.attribution.every_projection import DIM, EVERY, SHAPE, assert_same, block_of, kinds, normal

# rows = 1, rows below a side, and dim ≥ rows · columns are all among these
shapes = st.tuples(st.integers(1, 14), st.integers(1, 14))
dims = st.integers(3, 60)
quick = settings(max_examples=25, deadline=None, derandomize=True)


@kinds
@quick
@given(shape=shapes, dim=dims, positions=st.integers(1, 4), constant=st.booleans())
def test_factors_give_the_row_of_the_full_gradient(kind, shape, dim, positions, constant):
    constant = constant and shape[1] > 1
    block = block_of(EVERY[kind](dim, 0), shape)
    g, x = normal(1, 3, positions, shape[0]), normal(2, 3, positions, shape[1] - constant)
    full = torch.cat([x, torch.ones(3, positions, 1)], dim=2) if constant else x
    found = block.combine(block.rows(g), block.columns(x, constant=constant))
    assert found.shape == (3, block.dim)
    assert_same(found, block.project(g.transpose(1, 2) @ full))


@kinds
@quick
@given(experts=st.integers(1, 5), width=st.integers(1, 5), columns=st.integers(1, 9), dim=dims)
def test_rows_that_start_anywhere_fall_on_their_own_rows(kind, experts, width, columns, dim):
    """As experts use it: positions of different experts, brought together."""
    block = block_of(EVERY[kind](dim, 0), (experts * width, columns))
    g, x = normal(1, 2, experts, width), normal(2, 2, experts, columns)
    rows = torch.cat([block.rows(g[:, e : e + 1], start=e * width) for e in range(experts)], dim=1)
    full = torch.einsum("new,nec->newc", g, x).flatten(1, 2)
    assert_same(block.combine(rows, block.columns(x)), block.project(full))


@kinds
@quick
@given(shape=shapes, dim=dims, data=st.data())
def test_one_hot_rows_fall_on_their_own_row_and_minus_one_on_none(kind, shape, dim, data):
    block = block_of(EVERY[kind](dim, 0), shape)
    index = torch.tensor(data.draw(st.lists(st.integers(-1, shape[0] - 1), min_size=6, max_size=6))).reshape(2, 3)
    x = normal(2, 2, 3, shape[1])
    full = torch.zeros(2, *shape, dtype=torch.float64)
    for example in range(2):
        for position in range(3):
            if index[example, position] >= 0:
                full[example, index[example, position]] += x[example, position]
    assert_same(block.combine(block.one_hot(index), block.columns(x)), block.project(full))


@pytest.mark.parametrize("kind", ["sparse-3", "dense"])
@pytest.mark.parametrize("way", ["rows", "start", "one_hot"])
def test_pieces_of_a_gradient_add_up(kind, way, monkeypatch):
    """The map does not depend on how much of a gradient, or of the map, exists at a time."""
    block = block_of(EVERY[kind](10, 0), (13, 6))
    g, x = normal(1, 2, 3, 13), normal(2, 2, 3, 6)
    if way == "start":
        g[..., :4] = g[..., 9:] = 0
    if way == "one_hot":
        g = torch.nn.functional.one_hot(torch.tensor([[0, 12, 5], [4, 4, 7]]), 13).double()
    whole = block.project(g.transpose(1, 2) @ x)
    monkeypatch.setattr(in_full, "_PIECE_NUMBERS", 25)
    monkeypatch.setattr(dense_module, "_STRETCH_NUMBERS", 70)
    assert list(block._pieces()) == [(0, 4), (4, 8), (8, 12), (12, 13)]
    rows = {
        "rows": lambda: block.rows(g),
        "start": lambda: block.rows(g[..., 4:9], start=4),
        "one_hot": lambda: block.one_hot(g.argmax(-1)),
    }[way]()
    assert_same(block.combine(rows, block.columns(x)), whole)
    assert_same(block.project(g.transpose(1, 2) @ x), whole)


def test_a_dense_block_is_the_matrix_of_its_bits_and_a_sparse_one_has_its_nonzeros():
    """Columns of the map, found by projecting every unit matrix."""
    units = torch.eye(35, dtype=torch.float64).reshape(35, 5, 7)
    dense = block_of(Dense(dim_per_block=9), (5, 7)).project(units)
    assert torch.equal(dense.abs(), torch.full((35, 9), 1 / 3, dtype=torch.float64))
    sparse = block_of(SparseJL(dim_per_block=8, nonzeros=3), (5, 7)).project(units)
    assert ((sparse != 0).sum(1) == 3).all()
    assert (sparse[sparse != 0].abs() - 3**-0.5).abs().max() < 1e-15
    ranges = torch.split(sparse != 0, [2, 3, 3], dim=1)
    assert all((part.sum(1) == 1).all() for part in ranges)


def test_an_orthonormal_factor_is_a_frame():
    """Pᵀ P = (width / k) · 1, to the rounding of a QR in float64."""
    factor = block_of(TwoSided(dim_per_block=16, factors="orthonormal"), (9, 30)).column_factor
    assert factor.shape == (30, 4)
    assert_same(factor.T @ factor, torch.eye(4, dtype=torch.float64) * 30 / 4)


@pytest.mark.parametrize("kind", ["pair", "mixed"])
def test_a_pairs_row_is_its_members_rows_over_root_two(kind):
    """So its inner products are their mean, with half the mean of their variances."""
    pair, gradient = EVERY[kind](DIM, 0), normal(0, 2, *SHAPE)
    rows = [block_of(member, SHAPE).project(gradient) for member in pair.members]
    assert_same(block_of(pair, SHAPE).project(gradient), torch.cat(rows, dim=1) / 2**0.5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SparseJL(dim_per_block=2, nonzeros=3),
        lambda: SparseJL(dim_per_block=2, nonzeros=0),
        lambda: Dense(dim_per_block=(4, 0)),
        lambda: Wide(dim_per_block=0),
        lambda: Wide(dim_per_block=4, side_factor=1),
        lambda: Pair(members=(TensorSketch(dim_per_block=4),)),
        lambda: Pair(members=(TensorSketch(dim_per_block=4), Dense(dim_per_block=4))),
        lambda: Pair(members=(Identity(), EVERY["pair"](4, 0))),
        lambda: block_of(Pair(members=(Dense(dim_per_block=5), TwoSided(dim_per_block=5, seed=1))), (6, 6)),
        lambda: member_columns([slice(0, 7)], 2),
    ],
)
def test_what_cannot_work_is_refused(make):
    with pytest.raises(ConfigurationError):
        make()


def test_factors_of_another_kind_are_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # it would refuse them first
    with pytest.raises(ConfigurationError, match="rademacher, gaussian, orthonormal"):
        TwoSided(dim_per_block=4, factors="cauchy")


class Words(torch.nn.Module):
    """An embedding, a linear map with bias, a norm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(11, 6)
        self.norm = torch.nn.LayerNorm(6)
        self.map = torch.nn.Linear(6, 5)
        self.double()

    def forward(self, ids):
        return self.map(self.norm(self.words(ids)).tanh())


def word_losses(model, ids):
    return model(ids).square().sum((1, 2))


@kinds
def test_the_engines_taps_hold_under_every_projection(kind):
    """Rows equal autograd's gradients, projected (1e-10: float64), and no block falls back to a slower way."""
    ids = torch.tensor([[0, 3, 3, 10], [1, 2, 0, 7], [5, 5, 5, 5]])
    projection = EVERY[kind]((12, 5, 9), 0)
    engine = GradientEngine(Words(), projection, find_blocks(Words(), "all").blocks)
    found = engine.rows(ids, word_losses)
    assert [engine.route.way(n) for n in range(3)] == ["tap", "tap", "tap"]
    contributions = engine.contributions(ids, word_losses, num_examples=3, num_positions=4)
    assert torch.allclose(contributions.rows.sum(1) + contributions.unplaced, found.rows, atol=1e-10)
    model = Words()
    for example in range(3):
        gradients = torch.autograd.grad(word_losses(model, ids)[example], list(model.parameters()))
        full = {n: g[None] for (n, _), g in zip(model.named_parameters(), gradients, strict=True)}
        wanted = [
            projection.block(
                b.name, number=i, shape=(b.rows, b.columns), dtype=torch.float64, device=engine.device
            ).project(b.matrix(full))[0]
            for i, b in enumerate(engine.blocks)
        ]
        assert torch.allclose(found.rows[example], torch.cat(wanted), atol=1e-10)


def test_the_columns_of_a_pairs_members():
    """Each member's columns, times √2, are that member's own rows, block by block."""
    ids = torch.tensor([[0, 3, 3, 10], [1, 2, 0, 7]])
    members = TensorSketch(dim_per_block=(12, 5, 9), seed=1), SparseJL(dim_per_block=(12, 5, 9), seed=2)
    engine = GradientEngine(Words(), Pair(members=members), find_blocks(Words(), "all").blocks)
    rows = engine.rows(ids, word_losses).rows * 2**0.5
    for member, columns in zip(members, member_columns(engine.columns, 2), strict=True):
        own = GradientEngine(Words(), member, find_blocks(Words(), "all").blocks).rows(ids, word_losses).rows
        assert torch.allclose(torch.cat([rows[:, c] for c in columns], dim=1), own, atol=1e-10)
