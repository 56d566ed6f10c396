import numpy as np
import pytest
import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from quantascope.attribution.ledger import Chart, Ledger
from quantascope.errors import BadWeightsError, ConfigurationError, CoverageError, RunMismatchError
from tests.attribution.ledger_oracle import KINDS, batches, kind_gradients, losses_of, neox, positions, weights

OPTIMISERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd, decay": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1),
    "sgd, momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.05),
    "sgd, nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.05),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adam, l2": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, betas=(0.8, 0.95)),
    "adam, up": lambda p: torch.optim.Adam(p, lr=0.01, maximize=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw, one by one": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=False),
    "adamw, fused": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
}


def adamw(model, **options):
    return torch.optim.AdamW(model.parameters(), **({"lr": 0.01, "weight_decay": 0.1} | options))


def train(model, optimiser, data, ledger=None, clip=0.3, warmup=4, accumulate=1):
    """One training loop, with a ledger and without; returns the losses."""
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (step + 1) / warmup))
    seen = []
    for first in range(0, len(data), accumulate):
        own = data[first : first + accumulate]
        total = sum(len(labels) for _, labels in own)
        if ledger is None:
            for ids, _ in own:
                losses = losses_of(model, ids)
                (losses.mean() if accumulate == 1 else losses.sum() / total).backward()
                seen.append(losses.detach())
            clip_grad_norm_(model.parameters(), clip)
            optimiser.step()
        else:
            with ledger.step() as step:
                for ids, labels in own:
                    step.begin(labels)
                    losses = losses_of(model, ids)
                    step.backward(losses, divide_by=None if accumulate == 1 else total)
                    seen.append(losses.detach())
                clip_grad_norm_(model.parameters(), clip)
                optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    return seen


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-10), ("float32", 1e-5)])
def test_books_of_a_transformer_balance_and_its_training_is_the_plain_one_bit_for_bit(dtype, limit):
    data = batches(80, vocab=32, examples=4, length=8)
    plain, kept = neox(dtype), neox(dtype)
    losses = train(plain, adamw(plain), data, warmup=10, accumulate=2)
    optimiser = adamw(kept)
    ledger = Ledger(kept, optimiser, KINDS)
    same_losses = train(kept, optimiser, data, ledger, warmup=10, accumulate=2)
    assert all(torch.equal(a, b) for a, b in zip(losses, same_losses, strict=True))
    assert same(weights(plain), weights(kept))
    sheet = ledger.balance()
    assert (sheet.num_steps, sheet.num_skipped) == (40, 0)
    assert sheet.residual < limit
    assert sheet.shares.sum() == pytest.approx(1, abs=1e-5)
    assert sheet.norms[-2] < 1e-4 * np.sqrt(sheet.change_square.sum())  # rounding
    assert sheet.norms[-1] > 1e-3  # decay


@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_account_is_what_the_formulas_say_step_by_step(name):
    """Each kind's gradient by autograd, each account moved through a momentum of its own, as the papers have it."""
    model = positions()
    optimiser = OPTIMISERS[name](model.parameters())
    ledger = Ledger(model, optimiser, KINDS)
    rows = len(KINDS) + 1
    entries = {n: torch.zeros(rows, *p.shape, dtype=p.dtype) for n, p in model.named_parameters()}
    momentum = {n: torch.zeros_like(e) for n, e in entries.items()}
    group = optimiser.param_groups[0]
    start = weights(model)
    for number, (ids, labels) in enumerate(batches(12), 1):
        group["lr"] = 0.01 / number
        with ledger.step(labels) as step:
            losses = losses_of(model, ids)
            parts = kind_gradients(model, losses, labels)
            step.backward(losses)
            norm = clip_grad_norm_(model.parameters(), 0.05)
            factor = min(1.0, 0.05 / (float(norm) + 1e-6))
            before = weights(model)
            optimiser.step()
        for n, p in model.named_parameters():
            if p.grad is None:
                continue
            sign = -1 if group["maximize"] else 1
            g = torch.cat([parts[n] * factor * sign, torch.zeros_like(before[n])[None]])
            if isinstance(optimiser, torch.optim.AdamW):
                entries[n][-1] -= group["lr"] * group["weight_decay"] * before[n]
            else:
                g[-1] = group["weight_decay"] * before[n]
            if isinstance(optimiser, torch.optim.SGD):
                mu = group["momentum"]
                momentum[n] = g if number == 1 else mu * momentum[n] + (1 - group["dampening"]) * g
                moved = g if mu == 0 else g + mu * momentum[n] if group["nesterov"] else momentum[n]
                entries[n] -= group["lr"] * moved
            else:
                first, second = group["betas"]
                momentum[n] = first * momentum[n] + (1 - first) * g
                v = optimiser.state[p]["exp_avg_sq"] / (1 - second**number)
                entries[n] -= group["lr"] * momentum[n] / (1 - first**number) / (v.sqrt() + group["eps"])
        optimiser.zero_grad()
    for n, p in model.named_parameters():
        found = ledger.books.entries(n)
        assert torch.allclose(found[:3], entries[n][:3], rtol=1e-9, atol=1e-12), n
        assert torch.allclose(found[-1], entries[n][-1], rtol=1e-9, atol=1e-12), n
        assert torch.allclose(found.sum(0), p.detach() - start[n], rtol=1e-9, atol=1e-12), n
        assert found[-2].abs().max() < 1e-12


def test_gradients_of_kinds_are_autograds_whatever_the_module_and_what_differs_is_differentiated():
    model = positions()
    optimiser = adamw(model)
    ledger = Ledger(model, optimiser, KINDS)
    for ids, labels in batches(4):
        with ledger.step(labels) as step:
            losses = losses_of(model, ids)
            expected = kind_gradients(model, losses, labels)
            step.backward(losses)
            for name, found in ledger.books.kinds().items():
                assert torch.allclose(found, expected[name], atol=1e-13), name
            optimiser.step()
        optimiser.zero_grad()
    assert ledger._splitter.looped == {"gain"}


class Backwards(torch.nn.Module):
    """Holds positions first and examples second, as many of the one as of the other."""

    def __init__(self):
        super().__init__()
        self.map = torch.nn.Linear(3, 3)
        self.words = torch.nn.Embedding(7, 3)

    def forward(self, ids):
        return self.map(self.words(ids).transpose(0, 1)).transpose(0, 1)


def test_a_module_that_holds_examples_elsewhere_is_found_out_and_differentiated():
    model = Backwards().double()
    optimiser = adamw(model)
    ledger = Ledger(model, optimiser, ["a", "b"])
    ids = torch.arange(16).reshape(4, 4) % 7
    labels = ["a", "b", "b", "a"]
    with ledger.step(labels) as step:
        losses = model(ids).square().sum((1, 2))
        expected = kind_gradients(model, losses, labels, ("a", "b"))
        step.backward(losses)
        for name, found in ledger.books.kinds().items():
            assert torch.allclose(found, expected[name]), name
        optimiser.step()
    assert ledger._splitter.looped == {"map.weight", "map.bias"}


class Past(torch.nn.Module):
    """Uses a weight past its module as well."""

    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(7, 3)
        self.map = torch.nn.Linear(3, 3)

    def forward(self, ids):
        x = self.words(ids)
        return self.map(x) + x @ self.map.weight


def test_a_weight_that_is_used_past_its_module_is_found_out_and_counted_once():
    model = Past().double()
    optimiser = adamw(model)
    ledger = Ledger(model, optimiser, ["a", "b"])
    for _ in range(2):
        with ledger.step(["a", "b", "a"]) as step:
            losses = model(torch.arange(12).reshape(3, 4) % 7).square().sum((1, 2))
            expected = kind_gradients(model, losses, ["a", "b", "a"], ("a", "b"))
            step.backward(losses)
            for name, found in ledger.books.kinds().items():
                assert torch.allclose(found, expected[name]), name
            optimiser.step()
        optimiser.zero_grad()
    assert ledger._splitter.looped == {"map.weight"}


def test_half_precision_inside_autocast_is_booked_to_its_own_rounding():
    model = neox("float32")
    optimiser = adamw(model)
    ledger = Ledger(model, optimiser, KINDS)
    for ids, labels in batches(5, vocab=32, length=8):
        with ledger.step(labels) as step:
            with torch.autocast("cpu", torch.bfloat16):
                losses = losses_of(model, ids)
            step.backward(losses)
            optimiser.step()
        optimiser.zero_grad()
    assert ledger.balance().residual < 1e-4


@pytest.mark.parametrize("overflow", [0, 2])
def test_an_overflow_skips_the_step_and_is_booked_as_nothing(overflow):
    model = positions(torch.float32)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    ledger = Ledger(model, optimiser, KINDS)
    for number, (ids, labels) in enumerate(batches(6)):
        before = weights(model)
        entries = {n: ledger.books.entries(n) for n in before}
        with ledger.step(labels) as step:
            losses = losses_of(model, ids) * (float("inf") if number == overflow else 1)
            step.backward(scaler.scale(losses))
            scaler.unscale_(optimiser)
            clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimiser)
            scaler.update()
        optimiser.zero_grad()
        unmoved = same(before, weights(model)) and same(entries, {n: ledger.books.entries(n) for n in before})
        assert unmoved == (number == overflow)
    sheet = ledger.balance()
    assert (sheet.num_steps, sheet.num_skipped) == (5, 1)
    assert sheet.residual < 1e-5
    assert ledger._splitter.looped == {"gain"}


@pytest.mark.parametrize("period_steps", [None, 1, 4])
def test_going_on_from_a_state_gives_the_same_bits(period_steps):
    data = batches(10)
    model = positions(torch.float32)
    optimiser = adamw(model)
    whole = Ledger(model, optimiser, KINDS, period_steps=period_steps)
    train(model, optimiser, data, whole, warmup=1)
    first = positions(torch.float32)
    before = adamw(first)
    ledger = Ledger(first, before, KINDS, period_steps=period_steps)
    train(first, before, data[:6], ledger, warmup=1)
    second = positions(torch.float32, seed=7)
    after = adamw(second)
    resumed = Ledger(second, after, KINDS, period_steps=period_steps)
    second.load_state_dict(first.state_dict())
    after.load_state_dict(before.state_dict())
    state = ledger.state_dict()
    resumed.load_state_dict(state)
    train(second, after, data[6:], resumed, warmup=1)
    assert same(weights(model), weights(second))
    there, here = whole.state_dict(), resumed.state_dict()
    assert there["facts"] == here["facts"]
    assert same(there["tensors"], here["tensors"])


def test_states_of_other_ledgers_and_other_weights_are_refused():
    model = positions()
    optimiser = adamw(model)
    ledger = Ledger(model, optimiser, KINDS)
    train(model, optimiser, batches(3), ledger)
    state = ledger.state_dict()
    other = positions()
    with pytest.raises(RunMismatchError, match=r"another kinds: there .*place.*, here"):
        Ledger(other, adamw(other), ["a", "b"]).load_state_dict(state)
    with pytest.raises(RunMismatchError, match="another optimizer: there 'AdamW', here 'Adam'"):
        Ledger(other, torch.optim.Adam(other.parameters()), KINDS).load_state_dict(state)
    with pytest.raises(RunMismatchError, match="saved with other weights"):
        Ledger(other, adamw(other), KINDS).load_state_dict(state)


def test_an_optimiser_with_steps_of_no_account_is_refused():
    model = positions()
    optimiser = adamw(model)
    train(model, optimiser, batches(3))
    ledger = Ledger(model, optimiser, KINDS)
    ids, labels = batches(1)[0]
    with ledger.step(labels) as step:
        step.backward(losses_of(model, ids))
        with pytest.raises(RunMismatchError, match="has made 3 steps, the ledger has booked 0"):
            optimiser.step()


def test_optimisers_that_cannot_be_read_are_named():
    model = positions()
    for optimiser, name in (
        (torch.optim.Adagrad(model.parameters()), "Adagrad"),
        (torch.optim.AdamW(model.parameters(), amsgrad=True), "amsgrad"),
        (torch.optim.SGD(positions().parameters(), lr=1), "very model"),
    ):
        with pytest.raises(ConfigurationError, match=name):
            Ledger(model, optimiser, KINDS)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "labels first"),
        ([], "no labels"),
        (["place"] * 4 + [None], "Example 4 .* no label"),
        (["place", "fungus", "place", "place", "place"], "Example 1 .* 'fungus', .* no account"),
        (["place"] * 3, r"shape \(5,\), the batch has 3 labels"),
        (["place"] * 6, r"shape \(5,\), the batch has 6 labels"),
    ],
)
def test_labels_that_are_missing_or_new_are_refused(labels, message):
    model = neox()
    ledger = Ledger(model, adamw(model), KINDS)
    with pytest.raises(ConfigurationError, match=message), ledger.step(labels) as step:
        step.backward(losses_of(model, batches(1)[0][0]))
    assert ledger.num_skipped == 0


def refused_step(error, message, use, model=None):
    model = model or positions()
    optimiser = adamw(model)
    ledger = Ledger(model, optimiser, KINDS)
    ids, labels = batches(1)[0]
    before = weights(model)
    with pytest.raises(error, match=message), ledger.step(labels) as step:
        use(model, optimiser, step, ids)
    assert same(before, weights(model))


def test_steps_that_cannot_be_booked_are_refused_before_they_are_made():
    def clip_by_value(model, optimiser, step, ids):
        step.backward(losses_of(model, ids))
        clip_grad_value_(model.parameters(), 1e-3)
        optimiser.step()

    def leave_gradients(model, optimiser, step, ids):
        losses_of(model, ids[:2]).mean().backward()
        step.backward(losses_of(model, ids))
        optimiser.step()

    def diverge(model, optimiser, step, ids):
        step.backward(losses_of(model, ids) * float("nan"))
        optimiser.step()

    def forget_backward(_model, optimiser, _step, _ids):
        optimiser.step()

    def give_the_mean(model, _optimiser, step, ids):
        step.backward(losses_of(model, ids).mean())

    def give_no_gradient(model, _optimiser, step, ids):
        step.backward(losses_of(model, ids).detach())

    def begin_again(_model, _optimiser, step, _ids):
        step.begin(["place"])

    refused_step(CoverageError, "not one factor", clip_by_value)
    refused_step(CoverageError, "zero the gradients", leave_gradients, neox())
    refused_step(BadWeightsError, "NaN or infinite", diverge)
    refused_step(ConfigurationError, "before Step.backward", forget_backward)
    refused_step(ConfigurationError, "one loss per example", give_the_mean)
    refused_step(ConfigurationError, "no gradient", give_no_gradient)
    refused_step(ConfigurationError, "no backward pass", begin_again)


def test_steps_outside_of_the_ledger_twice_or_after_its_end_are_refused():
    model = positions()
    optimiser = adamw(model)
    ledger = Ledger(model, optimiser, KINDS)
    ids, labels = batches(1)[0]
    losses_of(model, ids).mean().backward()
    with pytest.raises(ConfigurationError, match=r"outside of ledger\.step"):
        optimiser.step()
    optimiser.zero_grad()
    with ledger.step(labels) as step:
        step.backward(losses_of(model, ids))
        with pytest.raises(ConfigurationError, match="open already"), ledger.step(labels):
            pass
        optimiser.step()
        with pytest.raises(ConfigurationError, match="twice"):
            optimiser.step()
        with pytest.raises(ConfigurationError, match="between two steps"):
            ledger.state_dict()
    ledger.close()
    ledger.close()
    optimiser.step()
    with pytest.raises(ConfigurationError, match="closed"), ledger.step(labels):
        pass


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ([], "at least one"),
        (["a", "a"], "twice: a"),
        (["living", "living/animal"], "'living' cannot have entries"),
        (["decay"], "every ledger has"),
        (["a//b"], "no kind"),
    ],
)
def test_kinds_that_make_no_chart_are_refused(kinds, message):
    with pytest.raises(ConfigurationError, match=message):
        Chart(tuple(kinds))
