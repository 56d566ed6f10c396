"""The maps never change, are fixed by seed and name, and come back from their descriptions."""

import pytest
import torch

from quantascope.attribution.projection import Projection, from_description
from quantascope.errors import ConfigurationError
from tests.attribution.every_projection import DIM, EVERY, RANDOM, SHAPE, block_of, kinds, normal

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
