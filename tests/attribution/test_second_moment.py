"""Rows divided by an optimiser's second moment, and where that moment comes from."""

import copy

import numpy as np
import pytest
import torch

from quantascope.attribution.blocks import find_blocks
from quantascope.attribution.engine import GradientEngine
from quantascope.attribution.losses import mean_losses, token_losses
from quantascope.attribution.preconditioning import SecondMoment, block_moments, factorisation_error, second_moments
from quantascope.attribution.projection import Identity, TensorSketch
from quantascope.errors import ConfigurationError
from tests.attribution.preconditioned import assert_close, full_gradients, kinds, models, neox, token_batch, wanted_rows


def random_moments(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.rand(p.shape, generator=generator).double() ** 3 for n, p in model.named_parameters()}


@models
@kinds
@pytest.mark.parametrize("max_exact", [0, 100_000], ids=["factored", "exact"])
def test_second_moment_rows_are_divided_gradients_projected(model, projection, max_exact):
    model, epsilon = model(), 1e-3
    blocks = find_blocks(model, "all").blocks
    moments = block_moments(blocks, random_moments(model))
    batch = token_batch()
    gradients = full_gradients(model, blocks, token_losses, batch)
    made = SecondMoment(base=projection, moments=moments, epsilon=epsilon, max_exact=max_exact)
    engine = GradientEngine(model, made, blocks)
    found = engine.rows(batch, token_losses, batch.example).rows
    assert not engine.route.looped
    divided = {}
    for block in blocks:
        divisor = moments[block.name].sqrt() + epsilon
        kept_whole = isinstance(projection, Identity) or block.numel <= 23
        if not (max_exact or kept_whole or block.rows == 1):
            square = divisor**2
            divisor = (torch.outer(square.sum(1), square.sum(0)) / square.sum()).sqrt()
        divided[block.name] = gradients[block.name] / divisor
    small = [b for b in blocks if 16 < b.numel <= 23]
    assert not small  # else the two bases differ in what they keep whole
    assert_close(found, wanted_rows(blocks, projection, divided))


def test_a_second_moment_of_rank_one_factorises_without_error():
    torch.manual_seed(0)
    rows, columns = torch.rand(7, 1).double() + 0.1, torch.rand(1, 5).double() + 0.1
    assert factorisation_error(rows @ columns, epsilon=1e-12) < 1e-10
    assert factorisation_error(torch.rand(1, 9).double()) < 1e-15
    assert factorisation_error(torch.zeros(3, 3)) == 0
    moment = torch.tensor([[1.0, 4.0], [4.0, 1.0]]).double()
    # the factorised one is 2.5 everywhere, against 1 and 4: half of the entries each
    wanted = np.sqrt(((1 / 2.5**0.5 - 1) ** 2 + 4 * (1 / 2.5**0.5 - 0.5) ** 2) / 2)
    assert factorisation_error(moment, epsilon=1e-12) == pytest.approx(wanted)


def test_the_factorisation_error_is_that_of_preconditioned_gradients():
    torch.manual_seed(0)
    moment = torch.rand(6, 5).double() ** 4
    gradients = torch.randn(20_000, 6, 5).double() * moment.sqrt()
    made = [
        SecondMoment(base=TensorSketch(dim_per_block=29), moments={"map": moment}, max_exact=exact).block(
            "map", number=0, shape=(6, 5), dtype=torch.float64, device=torch.device("cpu")
        )
        for exact in (0, 30)
    ]
    exact = made[1].project(gradients)
    error = (made[0].project(gradients) - exact).norm() / exact.norm()
    assert error == pytest.approx(factorisation_error(moment), rel=0.05)  # 29 buckets for 30 numbers keep norms


def trained(model, optimizer, steps=3):
    batch = token_batch()
    for _ in range(steps):
        optimizer.zero_grad()
        mean_losses(model, batch).sum().backward()
        optimizer.step()
    return optimizer


def two_groups(model):
    """Matrices and vectors apart, as trainers do for weight decay."""
    matrices = [(n, p) for n, p in model.named_parameters() if p.dim() > 1]
    vectors = [(n, p) for n, p in model.named_parameters() if p.dim() < 2]
    return matrices, vectors


def test_second_moments_come_from_an_optimiser_or_its_state():
    model = neox(layers=1)
    beta = 0.8
    matrices, vectors = two_groups(model)
    groups = [{"params": [p for _, p in part]} for part in (matrices, vectors)]
    optimizer = trained(model, torch.optim.AdamW(groups, betas=(0.9, beta), lr=1e-3))
    found = second_moments(optimizer, model)
    assert set(found) == {n for n, _ in model.named_parameters()}
    name, parameter = matrices[1]
    torch.testing.assert_close(found[name], optimizer.state[parameter]["exp_avg_sq"] / (1 - beta**3))
    names = [n for n, _ in (*matrices, *vectors)]
    other = neox(layers=1)
    assert_same(second_moments(optimizer.state_dict(), other, names=names), found)
    with pytest.raises(ConfigurationError, match=r"2 groups .* no names.*give names="):
        second_moments(optimizer.state_dict(), other)
    with pytest.raises(ConfigurationError, match="give names= in the optimiser's order"):
        second_moments(optimizer.state_dict(), other, names=names[::-1])
    with pytest.raises(ConfigurationError, match="there are 2 names"):
        second_moments(optimizer.state_dict(), other, names=names[:2])
    with pytest.raises(ConfigurationError, match="parameters that the model does not"):
        second_moments(optimizer, other)


def test_second_moments_by_name_and_by_the_models_order():
    model = neox(layers=1)
    first, second = copy.deepcopy(model), copy.deepcopy(model)
    plain = trained(first, torch.optim.Adam(first.parameters()))
    matrices, vectors = two_groups(second)
    by_name = trained(second, torch.optim.Adam([{"params": matrices}, {"params": vectors}]))
    assert_same(second_moments(plain.state_dict(), model), second_moments(by_name.state_dict(), model))


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, moment in wanted.items():
        assert torch.equal(found[name], moment)


def test_one_step_of_adam_has_the_squared_gradient_as_second_moment():
    model = neox(layers=1)
    optimizer = trained(model, torch.optim.Adam(model.parameters(), lr=0.0), steps=1)
    for name, moment in second_moments(optimizer, model).items():
        torch.testing.assert_close(moment, model.get_parameter(name).grad.square())


def test_optimisers_and_moments_that_cannot_serve_are_refused():
    model = neox(layers=1)
    with pytest.raises(ConfigurationError, match=r"no second moment for .*momentum_buffer"):
        second_moments(trained(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)), model)
    with pytest.raises(ConfigurationError, match="after at least one step"):
        second_moments(torch.optim.Adam(model.parameters()), model)
    with pytest.raises(ConfigurationError, match="has state and param_groups; this one has model"):
        second_moments({"model": {}}, model)
    blocks = find_blocks(model, "linear").blocks
    moments = random_moments(model)
    del moments[blocks[1].parameters[0]]
    with pytest.raises(ConfigurationError, match=rf"the first is {blocks[1].parameters[0]}"):
        block_moments(blocks, moments)
    for value in (-1e-9, torch.nan):
        with pytest.raises(ConfigurationError, match="of map has negative, NaN or infinite"):
            SecondMoment(base=Identity(), moments={"map": torch.full((2, 2), value)})
    with pytest.raises(ConfigurationError, match="epsilon is 0"):
        SecondMoment(base=Identity(), moments={}, epsilon=0.0)
    made = SecondMoment(base=Identity(), moments={"map": torch.ones(2, 3)})
    for name, message in (("other", "No second moment for block other"), ("map", "Block map is 3 × 2")):
        with pytest.raises(ConfigurationError, match=message):
            made.block(name, number=0, shape=(3, 2), dtype=torch.float64, device=torch.device("cpu"))
