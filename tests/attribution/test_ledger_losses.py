"""Loss books: against the path integral written out, and against the losses themselves."""

import numpy as np
import pytest
import torch

from quantascope.attribution.ledger import Evaluation, Ledger
from quantascope.errors import ConfigurationError
from tests.attribution.ledger_oracle import KINDS, batches, kind_gradients, losses_of, neox, positions, weights

HELD_OUT = batches(2, seed=5, examples=6)


def mean_losses(model, kinds):
    """Each kind's mean held-out loss and its gradient, by autograd over all held-out examples at once."""
    labels = [label for _, own in HELD_OUT for label in own]
    losses = torch.cat([losses_of(model, ids) for ids, _ in HELD_OUT])
    gradients = kind_gradients(model, losses, labels, kinds)
    scale = torch.tensor([len(labels) / labels.count(k) for k in kinds], dtype=torch.float64)
    values = torch.stack([losses[[i for i, x in enumerate(labels) if x == k]].mean() for k in kinds]).detach()
    return values, {n: g * scale.reshape(-1, *[1] * (g.dim() - 1)) for n, g in gradients.items()}


def set_weights(model, values):
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.copy_(values[n])


@pytest.mark.parametrize("period", [1, 3])
def test_every_entry_is_simpsons_mean_gradient_times_the_accounts_part_of_the_step(period):
    model = positions()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)
    ledger = Ledger(
        model,
        optimiser,
        KINDS,
        evaluation=Evaluation(batches=HELD_OUT, losses=losses_of, max_panels=1),
        period_steps=period,
    )
    kinds = tuple(dict.fromkeys(label for _, own in HELD_OUT for label in own))
    expected = np.zeros((len(kinds), 5))
    start, entries, readings = weights(model), None, [mean_losses(model, kinds)[0]]
    modules = {n.rpartition(".")[0] for n in start}
    by_module = {m: np.zeros((len(kinds), 5)) for m in modules}
    for number, (ids, labels) in enumerate(batches(6), 1):
        before = {n: ledger.books.entries(n) for n in start}
        entries = entries or before
        with ledger.step(labels) as step:
            step.backward(losses_of(model, ids))
            optimiser.step()
        optimiser.zero_grad()
        if number % period:
            continue
        end = weights(model)
        points = []
        for at in (0.0, 0.5, 1.0):
            set_weights(model, {n: start[n] + at * (end[n] - start[n]) for n in end})
            points.append(mean_losses(model, kinds)[1])
        set_weights(model, end)
        for n in end:
            mean = (points[0][n] + 4 * points[1][n] + points[2][n]) / 6
            moved = ledger.books.entries(n) - entries[n]
            part = (mean.flatten(1) @ moved.flatten(1).T).numpy()
            expected += part
            by_module[n.rpartition(".")[0]] += part
        readings.append(mean_losses(model, kinds)[0])
        start, entries = end, None
        entries = {n: ledger.books.entries(n) for n in end}
    ledger.close()
    sheet = ledger.loss_sheet()
    assert sheet.kinds == kinds
    np.testing.assert_allclose(sheet.matrix, expected, rtol=1e-8, atol=1e-13)
    for place, module in enumerate(sheet.modules):
        np.testing.assert_allclose(sheet.changes[place], by_module[module], rtol=1e-8, atol=1e-13)
    np.testing.assert_allclose(sheet.losses, torch.stack(readings).numpy(), rtol=1e-12)
    np.testing.assert_allclose(sheet.booked.sum(0), sheet.matrix, rtol=1e-9, atol=1e-13)
    assert sheet.steps.tolist() == list(range(0, 7, period))


def kept(period, steps=18, dtype="float64", learn=7.5e-4, max_panels=4):
    model = neox(dtype)
    optimiser = torch.optim.AdamW(model.parameters(), lr=learn, weight_decay=0.1)
    data = batches(steps, vocab=32, length=8, examples=6)
    held_out = Evaluation(
        batches=batches(1, vocab=32, length=8, examples=12, seed=3), losses=losses_of, max_panels=max_panels
    )
    ledger = Ledger(model, optimiser, KINDS, evaluation=held_out, period_steps=period)
    for ids, labels in data:
        with ledger.step(labels) as step:
            step.backward(losses_of(model, ids))
            optimiser.step()
        optimiser.zero_grad()
    ledger.close()
    return ledger, model


def test_loss_books_close_and_the_model_is_left_as_it_is_without_them():
    ledger, model = kept(1)
    sheet = ledger.loss_sheet()
    assert (sheet.missed <= 1e-4 * sheet.path).all()
    assert (np.abs(sheet.residual) <= sheet.missed + 1e-15).all()
    assert (sheet.total < 0).any()
    rare, same = kept(7)
    for name, value in weights(model).items():
        assert torch.equal(value, weights(same)[name])
    assert model.training
    other = rare.loss_sheet()
    assert other.steps.tolist() == [0, 7, 14, 18]
    np.testing.assert_allclose(other.total, sheet.total, rtol=1e-12)
    assert (other.missed <= 2e-3 * other.path).all()
    coarse = kept(7, max_panels=1)[0].loss_sheet()
    assert (coarse.missed > 3 * other.missed).all()


def test_going_on_with_loss_books_gives_the_same_bits():
    whole, _ = kept(4, steps=6)
    model = neox()
    optimiser = torch.optim.AdamW(model.parameters(), lr=7.5e-4, weight_decay=0.1)
    held_out = Evaluation(batches=batches(1, vocab=32, length=8, examples=12, seed=3), losses=losses_of)
    ledger = Ledger(model, optimiser, KINDS, evaluation=held_out, period_steps=4)
    for number, (ids, labels) in enumerate(batches(6, vocab=32, length=8, examples=6)):
        if number == 3:
            state = ledger.state_dict()
            state["tensors"] = {n: t.clone() for n, t in state["tensors"].items()}
            ledger.close = None
            for hook in ledger._hooks:
                hook.remove()
            ledger = Ledger(model, optimiser, KINDS, evaluation=held_out, period_steps=4)
            ledger.load_state_dict(state)
        with ledger.step(labels) as step:
            step.backward(losses_of(model, ids))
            optimiser.step()
        optimiser.zero_grad()
    ledger.close()
    for field in ("changes", "losses", "booked", "steps"):
        np.testing.assert_array_equal(getattr(ledger.loss_sheet(), field), getattr(whole.loss_sheet(), field))


def test_an_evaluation_without_examples_is_refused():
    with pytest.raises(ConfigurationError, match="max_panels is 3"):
        Evaluation(batches=[], losses=losses_of, max_panels=3)
    model = positions()
    optimiser = torch.optim.AdamW(model.parameters())
    with pytest.raises(ConfigurationError, match="no examples"):
        Ledger(model, optimiser, KINDS, evaluation=Evaluation(batches=[], losses=losses_of))
