"""Rows of a float32 model are those of the same weights in float64, to the rounding that a user may count on."""

import copy

import pytest
import torch
from torch.utils._pytree import tree_map

from quantascope.attribution.blocks import find_blocks
from quantascope.attribution.engine import GradientEngine
from quantascope.attribution.projection import TensorSketch
from tests.architectures import ARCHITECTURES, NO_POSITIONS
from tests.attribution.test_architectures import InDouble

pytestmark = [
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
QUICK = ("gpt2", "mixtral", "mamba")


def cast(value, dtype):
    """Inputs that are no token ids, in another precision."""
    return tree_map(lambda x: x.to(dtype) if torch.is_tensor(x) and x.is_floating_point() else x, value)


def rows_of(subject, model, dtype):
    """Rows of all units that the architecture has, under the default projection."""
    blocks = find_blocks(model, subject.choice).blocks
    engine = GradientEngine(model, TensorSketch(dim_per_block=16), blocks)
    batch = cast(subject.batch, dtype)
    sizes = {"num_examples": subject.num_examples}
    made = [
        engine.rows(batch, subject.losses, subject.example, **sizes).rows,
        engine.rows(batch, subject.mean, **sizes).rows,
    ]
    if subject.num_positions is not None:
        shares = engine.contributions(batch, subject.mean, **sizes, num_positions=subject.num_positions)
        made += [shares.rows.flatten(0, 1), shares.rows.sum(1) + shares.unplaced]
    assert all(rows.dtype == dtype for rows in made)
    return torch.cat(made)


@pytest.mark.parametrize(
    "architecture", [pytest.param(a, marks=() if a in QUICK else pytest.mark.slow) for a in ARCHITECTURES]
)
def test_float32_rows_are_float64_rows(architecture):
    subject = ARCHITECTURES[architecture]()
    single = copy.deepcopy(subject.model).float()
    double = copy.deepcopy(single).double()  # the same weights, so that only the arithmetic differs
    with InDouble():
        wanted = rows_of(subject, double, torch.float64)
    found = rows_of(subject, single, torch.float32).double()
    is_zero = wanted.norm(dim=1) == 0  # contributions of positions that no loss looks back to
    assert found[is_zero].norm() == 0
    error = (found - wanted)[~is_zero].norm(dim=1) / wanted[~is_zero].norm(dim=1)
    assert len(error) >= 8 - 2 * (architecture in NO_POSITIONS)
    assert error.median() <= 1e-5
    assert error.max() <= 1e-3
    assert error.max() > 0
