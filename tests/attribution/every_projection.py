"""Every kind and option of a projection, and blocks of them, for tests."""

import numpy as np
import pytest
import torch

from quantascope.attribution.projection import Dense, Identity, Pair, SparseJL, TensorSketch, TwoSided, Wide

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


SHAPE, DIM = (6, 7), 9
kinds = pytest.mark.parametrize("kind", KINDS)
