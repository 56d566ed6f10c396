import numpy as np
import pytest

from quantascope.attribution.quanta.block_choice import BlockChoice, choose_blocks
from quantascope.errors import ConfigurationError

NAMES = ["model.embed_in", "model.layers.0.attention", "model.layers.0.norm", "model.layers.0.mlp", "lm_head"]
BLOCKS = [{"name": name, "first_column": 3 * i, "last_column": 3 * i + 2} for i, name in enumerate(NAMES)]


def chosen(**settings):
    shares = settings.pop("shares", None)
    return choose_blocks(BlockChoice(**settings), BLOCKS, shares)


def test_the_papers_blocks_are_all_but_embeddings_norms_and_head():
    found = chosen(blocks=("paper",))
    assert found.names == ("model.layers.0.attention", "model.layers.0.mlp")
    assert found.columns.tolist() == [3, 4, 5, 9, 10, 11]
    rows = np.arange(30, dtype=np.float32).reshape(2, 15)
    assert np.array_equal(found.apply(rows), rows[:, [3, 4, 5, 9, 10, 11]])
    assert chosen(blocks=("paper", "lm_head")).names[-1] == "lm_head"
    assert chosen().names == chosen(blocks=("all",)).names == tuple(NAMES)


def test_weights_multiply_inner_products():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((2, 15)).astype(np.float32)
    found = chosen(weights=(("*layers*", 4.0), ("*mlp", 0.25))).apply(rows)
    parts = [float(rows[0, i : i + 3] @ rows[1, i : i + 3]) for i in range(0, 15, 3)]
    assert float(found[0] @ found[1]) == pytest.approx(np.dot(parts, [1, 4, 4, 0.25, 1]), rel=1e-5)


def test_equal_shares_are_equal_on_average():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((4_000, 15)).astype(np.float32) * np.repeat([9, 1, 0.1, 3, 0.5], 3)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    squares = np.square(rows).reshape(-1, 5, 3).sum(axis=2).mean(axis=0)
    found = np.square(chosen(scale="equal", shares=squares).apply(rows)).reshape(-1, 5, 3).sum(axis=2).mean(axis=0)
    np.testing.assert_allclose(found, 1, rtol=1e-3)


def test_unit_blocks_are_unit_in_every_row_then_weighed():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((3, 15)).astype(np.float32) * np.repeat([9, 1, 0.1, 3, 0.5], 3).astype(np.float32)
    rows[1, 9:12] = 0  # a block of zero stays zero
    before = rows.copy()
    found = chosen(blocks=("*layers*", "lm_head"), scale="unit", weights=(("lm_head", 4.0),)).apply(rows)
    norms = np.linalg.norm(found.reshape(3, 4, 3), axis=2)
    np.testing.assert_allclose(norms, [[1, 1, 1, 2], [1, 1, 0, 2], [1, 1, 1, 2]], rtol=1e-6)
    np.testing.assert_allclose(found[0, 3:6], rows[0, 6:9] / np.linalg.norm(rows[0, 6:9]), rtol=1e-6)
    assert np.array_equal(rows, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blocks": ("*conv*",)}, "no block fits"),
        ({"weights": (("*conv*", 2.0),)}, "no block fits"),
        ({"weights": (("*", 0.0),)}, "above 0"),
        ({"weights": (("*", float("nan")),)}, "above 0"),
        ({"scale": "equal"}, "mean share"),
    ],
)
def test_refuses_what_fits_nothing(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        chosen(**settings)
    with pytest.raises(ConfigurationError, match="no block is left"):
        choose_blocks(BlockChoice(blocks=("paper",)), BLOCKS[:1])
