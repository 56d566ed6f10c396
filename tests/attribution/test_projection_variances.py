"""Inner products under each projection have the mean and the variance that its docstring states."""

# ruff: noqa: N803 - formulas with the docstrings' letters

from dataclasses import dataclass

import jaxtyping
import numpy as np
import pytest
import torch

from quantascope.attribution.projection import SparseJL, TensorSketch, member_columns
from tests.attribution.every_projection import DIM, EVERY, SHAPE, block_of, pair_of

SEEDS = 2000


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
