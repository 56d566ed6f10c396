"""Every projection: factors and full gradients give the same row; inner products have the mean and variance stated."""

# ruff: noqa: N803 - formulas with the docstrings' letters

from dataclasses import dataclass

import jaxtyping
import numpy as np
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
    Projection,
    SparseJL,
    TensorSketch,
    TwoSided,
    Wide,
    from_description,
    in_full,
    member_columns,
)
from quantascope.attribution.projection import dense as dense_module
from quantascope.errors import ConfigurationError

EVERY = {
    "none": lambda dim, seed: Identity(),
    "tensor-sketch": lambda dim, seed: TensorSketch(dim_per_block=dim, seed=seed),
    "rademacher": lambda dim, seed: TwoSided(dim_per_block=dim, seed=seed),
    "gaussian": lambda dim, seed: TwoSided(dim_per_block=dim, seed=seed, factors="gaussian"),
    "orthonormal": lambda dim, seed: TwoSided(dim_per_block=dim, seed=seed, factors="orthonormal"),
    "sparse": lambda dim, seed: SparseJL(dim_per_block=dim, seed=seed),
    "sparse-3": lambda dim, seed: SparseJL(dim_per_block=dim, seed=seed, nonzeros=3),
    "dense": lambda dim, seed: Dense(dim_per_block=dim, seed=seed),
    "wide": lambda dim, seed: Wide(dim_per_block=dim, seed=seed),
    "wide-2": lambda dim, seed: Wide(dim_per_block=dim, seed=seed, side_factor=2),
    "pair": lambda dim, seed: pair_of(TensorSketch, TensorSketch, dim, seed),
    "mixed": lambda dim, seed: pair_of(SparseJL, TensorSketch, dim, seed),
}
"""Each kind and option, from numbers per block and a seed."""
KINDS = list(EVERY)
RANDOM = KINDS[1:]


def pair_of(first, second, dim, seed):
    return Pair(members=(first(dim_per_block=dim, seed=seed), second(dim_per_block=dim, seed=seed + 2**32)))


def block_of(projection, shape, name="b", dtype=torch.float64):
    return projection.block(name, number=0, shape=shape, dtype=dtype, device=torch.device("cpu"))


def normal(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def assert_same(found, wanted):
    """1e-12 of the larger: rounding of float64 sums of some hundred terms."""
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 1e-12 * max(1, float(wanted.abs().max()))


# rows = 1, rows below a side, and dim ≥ rows · columns are all among these
shapes = st.tuples(st.integers(1, 14), st.integers(1, 14))
dims = st.integers(3, 60)
kinds = pytest.mark.parametrize("kind", KINDS)
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


# --- mean and variance of inner products over seeds ---

SHAPE, DIM, SEEDS = (6, 7), 9, 2000


@dataclass
class Matrices:
    """Two gradients, [row, column]."""

    A: np.ndarray
    B: np.ndarray


def cases():
    rng = np.random.default_rng(5)
    A, B = rng.standard_normal((2, *SHAPE))
    g, x = rng.standard_normal(SHAPE[0]), rng.standard_normal((2, SHAPE[1]))
    few = np.zeros((2, *SHAPE))
    few[:, 0, 3], few[:, 1, 2], few[:, 4, 6] = (1, 1), (2, 1), (-1, 2)
    return {
        "general": Matrices(A, A + B),
        "equal outputs' gradients": Matrices(np.outer(g, x[0]), np.outer(g, x[0] + x[1])),
        "itself": Matrices(A, A),
        "few entries": Matrices(*few),
        "sparse": Matrices(A * (np.abs(A) > 1), B * (np.abs(B) > 0.5)),
    }


CASES = cases()


def sketch_variance(A, B):
    """Of a count sketch with hashed buckets, and of dense signs: over m."""
    return (A**2).sum() * (B**2).sum() + (A * B).sum() ** 2 - 2 * (A**2 * B**2).sum()


def tensor_sketch_variance(A, B):
    """Σ over pairs of rows and pairs of columns of the squared coefficient of their signs' product.

    ⟨SA, SB⟩ = Σ σᵢσᵢ′τⱼτⱼ′ Aᵢⱼ Bᵢ′ⱼ′ over the entries (i, j), (i′, j′) that share a bucket. Products of signs of
    different pairs {i, i′}, {j, j′} are orthonormal, so the variance is the sum of their squared coefficients; a pair
    {i, i} or {j, j} has the constant product 1.
    """
    units = torch.eye(A.size, dtype=torch.float64).reshape(-1, *SHAPE)
    bucket = block_of(TensorSketch(dim_per_block=DIM), SHAPE).project(units).abs().argmax(1).reshape(SHAPE).numpy()
    W = np.einsum("ij,kl,ijkl->ikjl", A, B, bucket[:, :, None, None] == bucket[None, None])
    W = W + W.transpose(1, 0, 2, 3)
    W = W + W.transpose(0, 1, 3, 2)  # [i, i′, j, j′], with each unordered pair's coefficient in both of its orders
    rows, columns = np.arange(SHAPE[0]), np.arange(SHAPE[1])
    W[rows, rows] /= 2
    W[:, :, columns, columns] /= 2
    total = 0.0
    above, right = np.triu_indices(SHAPE[0], 1), np.triu_indices(SHAPE[1], 1)
    total += (W[above][:, *right] ** 2).sum()
    total += (W[rows, rows].sum(0)[right] ** 2).sum()
    total += (W[:, :, columns, columns].sum(2)[above] ** 2).sum()
    return total


def moments(factors, width, side):
    """Of M = P Pᵀ: α, β, β, γ of the two-sided projection's docstring."""
    if side >= width:
        return np.array([1, 0, 0, 0])
    if factors == "orthonormal":
        beta = width * (width - side) / (side * (width - 1) * (width + 2))
        return np.array([1 - 2 * beta / width, beta, beta, 0])
    return np.array([1, 1 / side, 1 / side, -2 / side if factors == "rademacher" else 0])


def table(A, B):
    """The matrix K of the two-sided projection's docstring."""
    inner, S, T = (A * B).sum(), A @ B.T, A.T @ B
    over_columns, over_rows = ((A @ A.T) * (B @ B.T)).sum(), ((A.T @ A) * (B.T @ B)).sum()
    diagonal_columns, diagonal_rows = (np.diag(T) ** 2).sum(), (np.diag(S) ** 2).sum()
    squares = (A**2).sum() * (B**2).sum()
    columns, rows = ((A**2).sum(0) * (B**2).sum(0)).sum(), ((A**2).sum(1) * (B**2).sum(1)).sum()
    return np.array(
        [
            [inner**2, over_columns, np.trace(S @ S), diagonal_columns],
            [over_rows, squares, over_rows, columns],
            [np.trace(T @ T), over_columns, inner**2, diagonal_columns],
            [diagonal_rows, rows, diagonal_rows, (A**2 * B**2).sum()],
        ]
    )


def contractions(A, B, C, D):
    """K of E⟨a, b⟩⟨c, d⟩, index by index: M's four indices pair in three ways or are all equal, N's likewise."""

    def one(r, c):
        return np.einsum(f"{r[1]}{c[1]},{r[0]}{c[0]},{r[3]}{c[3]},{r[2]}{c[2]}->", A, B, C, D)

    return np.array([[one(r, c) for c in ("ccdd", "cdcd", "cddc", "cccc")] for r in ("aabb", "abab", "abba", "aaaa")])


def two_sided_variance(A, B, factors="rademacher", sides=(3, 3)):
    u, v = (moments(factors, width, side) for width, side in zip(SHAPE, sides, strict=True))
    return u @ table(A, B) @ v - (A * B).sum() ** 2


def wide_variance(A, B, sides, dim):
    """Two-sided with signs and these sides, then a count sketch of the result."""
    u, v = (moments("rademacher", width, side) for width, side in zip(SHAPE, sides, strict=True))
    # Σ over the result's entries of fourth moments: of a column of signs over √p, or of the identity
    fourth = [
        np.array([1, 1, 1, -2]) / side if side < width else np.array([0, 0, 0, 1])
        for width, side in zip(SHAPE, sides, strict=True)
    ]
    crossed = contractions(A, A, B, B)
    second = u @ contractions(A, B, A, B) @ v
    squares, quartic = u @ crossed @ v, fourth[0] @ crossed @ fourth[1]
    return second - (A * B).sum() ** 2 + (squares + second - 2 * quartic) / dim


VARIANCES = {
    "tensor-sketch": tensor_sketch_variance,
    "rademacher": two_sided_variance,
    "gaussian": lambda A, B: two_sided_variance(A, B, "gaussian"),
    "orthonormal": lambda A, B: two_sided_variance(A, B, "orthonormal"),
    "sparse": lambda A, B: sketch_variance(A, B) / DIM,
    "sparse-3": lambda A, B: sketch_variance(A, B) / DIM,
    "dense": lambda A, B: sketch_variance(A, B) / DIM,
    "wide": lambda A, B: wide_variance(A, B, (6, 6), DIM),  # isqrt(4 · 9) = 6: rows whole, columns 7 → 6
    "wide-2": lambda A, B: wide_variance(A, B, (4, 4), DIM),
}


@pytest.fixture
def unchecked(monkeypatch):
    """No shape checks, for thousands of maps: other tests have them."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def rows_over_seeds(make, gradients):
    """[seed, gradient, dim]."""
    stacked = torch.from_numpy(np.stack(gradients))
    return torch.stack([block_of(make(DIM, seed), SHAPE).project(stacked) for seed in range(SEEDS)]).numpy()


@pytest.mark.parametrize("kind", list(VARIANCES))
def test_inner_products_are_unbiased_and_vary_as_stated(kind, unchecked):
    """Mean and variance within 4 of their standard errors, those of independent draws: √(σ²/n), √((m₄ − σ⁴)/n)."""
    rows = rows_over_seeds(EVERY[kind], [matrix for case in CASES.values() for matrix in (case.A, case.B)])
    products = np.einsum("scd,scd->cs", rows[:, ::2], rows[:, 1::2])
    for (name, case), found in zip(CASES.items(), products, strict=True):
        wanted, variance = (case.A * case.B).sum(), VARIANCES[kind](case.A, case.B)
        assert abs(found.mean() - wanted) <= 4 * np.sqrt(variance / SEEDS), name
        deviations = found - wanted
        error = np.sqrt(((deviations**4).mean() - variance**2) / SEEDS)
        assert abs((deviations**2).mean() - variance) <= 4 * error, name
        assert error <= 0.2 * variance, f"{name}: too few seeds to tell"


def test_the_two_sided_table_is_what_index_by_index_contraction_gives():
    for case in CASES.values():
        np.testing.assert_allclose(table(case.A, case.B), contractions(case.A, case.B, case.A, case.B), rtol=1e-10)


def test_where_a_side_is_shared_the_two_sided_variance_is_of_lower_order():
    """Why tensor sketches are the default: 1/k against 1/k², for any factors."""
    A, B = CASES["equal outputs' gradients"].A, CASES["equal outputs' gradients"].B
    for factors in ("rademacher", "gaussian", "orthonormal"):
        assert two_sided_variance(A, B, factors) > 2 * sketch_variance(A, B) / DIM


def test_products_of_a_pairs_inner_products_are_unbiased(unchecked):
    """E⟨a₁, b₁⟩⟨a₂, b₂⟩ = ⟨A, B⟩², within 4 standard errors, where one projection's square is too large by more."""
    case = CASES["general"]
    rows = rows_over_seeds(lambda dim, seed: pair_of(SparseJL, SparseJL, dim, seed), [case.A, case.B])
    halves = [rows[..., columns[0]] * 2**0.5 for columns in member_columns([slice(0, 2 * DIM)], 2)]
    first, second = ((half[:, 0] * half[:, 1]).sum(1) for half in halves)
    wanted, product, square = (case.A * case.B).sum() ** 2, first * second, first**2
    assert abs(product.mean() - wanted) < 4 * product.std() / SEEDS**0.5
    assert square.mean() - wanted > 4 * square.std() / SEEDS**0.5


@pytest.mark.parametrize("kind", ["pair", "mixed"])
def test_a_pairs_row_is_its_members_rows_over_root_two(kind):
    """So its inner products are their mean, with half the mean of their variances."""
    pair, gradient = EVERY[kind](DIM, 0), normal(0, 2, *SHAPE)
    rows = [block_of(member, SHAPE).project(gradient) for member in pair.members]
    assert_same(block_of(pair, SHAPE).project(gradient), torch.cat(rows, dim=1) / 2**0.5)


# --- the maps themselves ---

GOLDEN = {
    "tensor-sketch": [4.0, 16.0, -40.0, 6.0, -10.0, 39.0, 19.0, -10.0, 11.0],
    "rademacher": [-5.0, 26.333333, -13.666667, -19.666667, 17.0, 21.0, 7.666667, -11.666667, -9.0],
    "gaussian": [-2.617735, 2.628784, 21.985754, -14.786694, 7.861678, 3.323301, 4.910308, -32.789196, 4.955252],
    "orthonormal": [-2.926549, 2.58222, 34.149546, -19.099456, 8.52009, 7.539254, 10.484139, -32.361725, 13.36715],
    "sparse": [-14.0, 14.0, 3.0, -27.0, -21.0, -9.0, 9.0, 9.0, 25.0],
    "sparse-3": [-18.475209, 1.154701, 10.969655, -40.414519, -6.350853, 9.237604, 5.773503, -6.928203, 13.279056],
    "dense": [1.666667, -1.0, 34.333333, -11.666667, -29.0, 10.333333, -18.333333, -13.666667, 21.0],
    "wide": [22.166667, 11.166667, -7.5, 58.833333, 47.333333, 45.833333, -10.833333, -16.0, -15.0],
    "wide-2": [56.5, 4.75, -25.25, -3.5, -19.25, 12.0, -11.75, 0.0, 0.0],
    "pair": [
        2.828427,
        11.313708,
        -28.284271,
        4.242641,
        -7.071068,
        27.577164,
        13.435029,
        -7.071068,
        7.778175,
        -46.669048,
        -32.526912,
        1.414214,
        -12.727922,
        16.970563,
        -12.020815,
        31.819805,
        -21.213203,
        -14.849242,
    ],
    "mixed": [
        -9.899495,
        9.899495,
        2.12132,
        -19.091883,
        -14.849242,
        -6.363961,
        6.363961,
        6.363961,
        17.67767,
        -46.669048,
        -32.526912,
        1.414214,
        -12.727922,
        16.970563,
        -12.020815,
        31.819805,
        -21.213203,
        -14.849242,
    ],
}


@pytest.mark.parametrize("kind", RANDOM)
def test_the_maps_never_change(kind):
    """Golden, six decimals: a change here makes every stored row incomparable with new ones."""
    gradient = torch.arange(24 * 17, dtype=torch.float64).mul(7).remainder(11).sub(5).reshape(1, 24, 17)
    row = block_of(EVERY[kind](9, 3), (24, 17), name="model.layers.1.mlp").project(gradient)[0]
    assert [round(v, 6) for v in row.tolist()] == GOLDEN[kind]


@pytest.mark.parametrize("kind", RANDOM)
def test_maps_are_fixed_by_seed_and_name(kind):
    gradient = normal(0, 1, *SHAPE)

    def row(seed, name):
        return block_of(EVERY[kind](DIM, seed), SHAPE, name).project(gradient)

    assert torch.equal(row(1, "x"), row(1, "x"))
    assert not torch.equal(row(1, "x"), row(2, "x"))
    assert not torch.equal(row(1, "x"), row(1, "y"))


@kinds
def test_a_description_gives_its_projection_back(kind):
    for dims_ in (9, (9, 4, 30)):
        projection = EVERY[kind](dims_, 0)
        assert isinstance(projection, Projection)
        assert from_description(projection.describe()) == projection


@pytest.mark.parametrize(
    "description",
    [
        {"kind": "hashed"},
        {},
        {"kind": "dense", "seed": 0},
        {"kind": "dense", "dim_per_block": 4, "seed": 0, "scale": 2},
        {"kind": "dense", "dim_per_block": 4},
        {"kind": "pair", "members": [{"kind": "none"}]},
        {"kind": "pair"},
    ],
    ids=str,
)
def test_a_description_that_fixes_no_projection_is_refused(description):
    with pytest.raises(ConfigurationError):
        from_description(description)


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


def test_factors_of_another_kind_are_refused(unchecked):
    with pytest.raises(ConfigurationError, match="rademacher, gaussian, orthonormal"):
        TwoSided(dim_per_block=4, factors="cauchy")


# --- through the engine ---


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
