"""What pairs of accounts did together: against Hessians written down, and against the loss books."""

import numpy as np
import pytest
import torch
from torch import nn

from quantascope.attribution.ledger import Evaluation, Ledger
from quantascope.errors import ConfigurationError
from tests.attribution.ledger_oracle import KINDS, batches, losses_of, neox

NAMES = ("a", "b")


def squares(model, batch):
    x, y = batch
    return (model(x)[:, 0] - y).square()


def test_of_a_quadratic_loss_they_are_products_of_parts_with_its_hessian():
    """One weight vector, x · w: the Hessian is 2 mean(x xᵀ), and SGD's parts are −η times the kinds' gradients."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    x, y = torch.randn(12, 3, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    labels = [NAMES[i % 2] for i in range(12)]
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    held_out = Evaluation(batches=[((x[:6], y[:6]), labels[:6])], losses=squares, interactions=True)
    ledger = Ledger(model, optimiser, NAMES, evaluation=held_out, period_steps=1)
    parts, start = [], model.weight.detach().clone()[0]
    for _ in range(5):
        own = []
        for name in NAMES:
            chosen = [i for i in range(12) if labels[i] == name]
            gap = (x[chosen] @ model.weight.detach()[0]) - y[chosen]
            own.append(-0.05 * 2 * (gap[:, None] * x[chosen]).sum(0) / 12)
        parts.append(torch.stack(own))
        with ledger.step(labels) as step:
            step.backward(squares(model, (x, y)))
            optimiser.step()
        optimiser.zero_grad()
    ledger.close()
    found, sheet = ledger.interactions(), ledger.loss_sheet()
    moved = torch.stack(parts)  # [period, account, weight]
    for number, kind in enumerate(found.kinds):
        chosen = [i for i in range(6) if labels[i] == kind]
        hessian = 2 * x[chosen].T @ x[chosen] / len(chosen)
        first = 2 * ((x[chosen] @ start - y[chosen])[:, None] * x[chosen]).mean(0)
        across = torch.zeros(2, 2, dtype=torch.float64)
        for later in range(5):
            for earlier in range(later):
                across += moved[later] @ hessian @ moved[earlier].T
        within = sum(own @ hessian @ own.T for own in moved) / 2
        np.testing.assert_allclose(found.first[number, :2], moved.sum(0) @ first, rtol=1e-9)
        np.testing.assert_allclose(found.across[number, :2, :2], across, rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(found.within[number, :2, :2], within, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(found.matrix, sheet.matrix, rtol=1e-7, atol=1e-12)
    assert (found.missed < 1e-6).all()
    both = found.pairs
    np.testing.assert_allclose(both[0, 0, 1], both[0, 1, 0])
    np.testing.assert_allclose(both[0, 0, 1], (found.across + found.within)[0][[0, 1], [1, 0]].sum())


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_with_adamw_they_add_up_to_the_loss_books_of_a_transformer(dtype):
    def books(*, interactions):
        model = neox(dtype)
        optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
        held_out = batches(1, vocab=32, examples=9, length=8, seed=5)
        evaluation = Evaluation(batches=held_out, losses=losses_of, interactions=interactions)
        ledger = Ledger(model, optimiser, KINDS, evaluation=evaluation, period_steps=2)
        for ids, labels in batches(8, vocab=32, examples=6, length=8):
            with ledger.step(labels) as step:
                step.backward(losses_of(model, ids))
                optimiser.step()
            optimiser.zero_grad()
        ledger.close()
        return ledger, model

    ledger, model = books(interactions=True)
    plain, other = books(interactions=False)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert plain.interactions() is None
    found, sheet = ledger.interactions(), ledger.loss_sheet()
    np.testing.assert_array_equal(sheet.matrix, plain.loss_sheet().matrix)
    size = np.linalg.norm(sheet.matrix)
    error = np.linalg.norm(found.matrix - sheet.matrix)
    if dtype == "float64":
        assert error < 1e-3 * size
    else:  # differences of float32 gradients; and large terms of both signs sum up to little
        assert error < 5e-3 * np.linalg.norm(found.across)
    assert np.abs(found.across).sum() > 0.05 * size  # they are no small matter
    np.testing.assert_allclose(found.within, found.within.transpose(0, 2, 1), atol=2e-2 * np.abs(found.within).max())
    assert (found.missed < 5e-2).all()
    with pytest.raises(ConfigurationError, match="with interactions cannot be saved"):
        ledger.state_dict()
