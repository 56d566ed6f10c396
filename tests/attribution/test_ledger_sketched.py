import numpy as np
import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from quantascope.attribution.ledger import Ledger
from quantascope.attribution.ledger.sketched import SketchedLedger
from quantascope.attribution.ledger.tapped import GradientTaps
from quantascope.errors import BadWeightsError, ConfigurationError, RunMismatchError
from tests.attribution.ledger_oracle import KINDS, batches, kind_gradients, losses_of, neox, weights
from tests.attribution.test_lesions import gpt2, llama


def train(ledger, model, optimiser, data, *, clip=0.3, accumulate=1):
    for first in range(0, len(data), accumulate):
        own = data[first : first + accumulate]
        with ledger.step() as step:
            for ids, labels in own:
                step.begin(labels)
                step.backward(losses_of(model, ids), divide_by=sum(len(labels) for _, labels in own))
            clip_grad_norm_(model.parameters(), clip)
            optimiser.step()
        optimiser.zero_grad()
    ledger.close()
    return ledger


def data(num_steps=12):
    return batches(num_steps, vocab=32, examples=6, length=8)


@pytest.mark.parametrize("make", [neox, llama, gpt2])
def test_projected_gradients_are_the_projections_of_each_group_s_gradient(make):
    model = make().double().train(False)
    parameters = dict(model.named_parameters())
    taps = GradientTaps(model, parameters, k=3, seed=1)
    assert taps.uncovered == []
    (ids, labels), *_ = data(1)
    losses = losses_of(model, ids)
    expected = kind_gradients(model, losses, labels)
    for name, sides in taps.sides.items():
        sides.scale(tuple(torch.rand(size, dtype=torch.float64) + 0.5 for size in parameters[name].shape))
    sums = taps.zeros(len(KINDS))
    with taps.listening(torch.tensor([KINDS.index(label) for label in labels]), sums):
        losses_of(model, ids).mean().backward()
    for name, found in sums.items():
        for kind in range(len(KINDS)):
            torch.testing.assert_close(
                found[kind], taps.sides[name].project(expected[name][kind], scaled=True), rtol=1e-5, atol=1e-8
            )  # Llama's norm works in float32 whatever the model's dtype


SGD = {
    "sgd": {},
    "momentum": {"momentum": 0.9, "dampening": 0.2},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.05},
    "decay": {"weight_decay": 0.1},
    "momentum, decay": {"momentum": 0.9, "weight_decay": 0.1},
}


@pytest.mark.parametrize("name", SGD)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_with_sgd_the_entries_are_the_exact_ones_projected(name, accumulate):
    exact_model, model = neox(), neox()
    exact_optimiser, optimiser = (torch.optim.SGD(m.parameters(), lr=0.1, **SGD[name]) for m in (exact_model, model))
    exact = train(
        Ledger(exact_model, exact_optimiser, KINDS), exact_model, exact_optimiser, data(), accumulate=accumulate
    )
    ledger = SketchedLedger(model, optimiser, KINDS, k=4, refresh_steps=1)
    train(ledger, model, optimiser, data(), accumulate=accumulate)
    assert all(torch.equal(a, b) for a, b in zip(weights(model).values(), weights(exact_model).values(), strict=True))
    for account in (*KINDS, "decay", "living"):
        for parameter, found in ledger.entry(account).items():
            expected = ledger.taps.sides[parameter].project(exact.entry(account)[parameter])
            torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10)
    assert ledger.balance().residual < 1e-8


def test_with_adamw_the_residual_is_small_and_shares_are_the_exact_ledger_s():
    exact_model, model = neox("float32"), neox("float32")
    options = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.9, 0.99)}
    exact_optimiser, optimiser = (torch.optim.AdamW(m.parameters(), **options) for m in (exact_model, model))
    exact = train(Ledger(exact_model, exact_optimiser, KINDS), exact_model, exact_optimiser, data(60))
    ledger = train(SketchedLedger(model, optimiser, KINDS), model, optimiser, data(60))
    assert all(torch.equal(a, b) for a, b in zip(weights(model).values(), weights(exact_model).values(), strict=True))
    sheet, expected = ledger.balance(), exact.balance()
    assert 0.01 < sheet.residual < 0.6  # batches of a few dozen tokens: as rough as it gets
    assert sheet.accounts == (*KINDS, "decay")
    shares = dict(zip(expected.accounts, expected.shares, strict=True))
    for account, share in zip(sheet.accounts, sheet.shares, strict=True):
        assert share == pytest.approx(shares[account], abs=0.1)
    assert np.sqrt(sheet.change_square.sum()) == pytest.approx(np.sqrt(expected.change_square.sum()), rel=0.2)
    rolled = sheet.roll_up(1)
    assert rolled.accounts == ("living", "place", "decay")
    assert rolled.along.sum() == pytest.approx(sheet.along.sum())


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_sampled_steps_are_held_against_the_exact_grade(optimiser, accumulate):
    def make(model):
        if optimiser == "sgd":
            return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return torch.optim.AdamW(model.parameters(), lr=0.01)

    audited, plain = neox(), neox()
    ledgers = [
        train(SketchedLedger(m, o, KINDS, k=4, refresh_steps=4, audit_steps=n), m, o, data(36), accumulate=accumulate)
        for m, o, n in ((audited, make(audited), 3), (plain, make(plain), None))
    ]
    assert all(torch.equal(a, b) for a, b in zip(audited.parameters(), plain.parameters(), strict=True))
    for name, entry in ledgers[0].entry("place").items():  # the audit books nothing
        assert torch.equal(entry, ledgers[1].entry("place")[name])
    assert ledgers[1].grade["audit"] is None
    audit = ledgers[0].grade["audit"]
    assert audit["steps"] == 36 // accumulate // 3
    if optimiser == "sgd":  # what is not elementwise is projected exactly
        assert audit["residual"] < 1e-6
        assert 0.5 < audit["norm"] < 1.5
    else:
        assert 0.01 < audit["residual"] < 0.8


def test_an_audit_is_of_the_kind_s_own_part_of_its_step():
    """One step of AdamW from zero momentum: the exact part is −η g / (|g| + ε) times the kind's share of g."""
    model = neox()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0)
    ledger = SketchedLedger(model, optimiser, KINDS, k=8, refresh_steps=1, audit_steps=1)
    (ids, labels), *_ = data(1)
    gradients = kind_gradients(model, losses_of(model, ids), labels)
    audited = min(KINDS.index(label) for label in labels)
    with ledger.step(labels) as step:
        step.backward(losses_of(model, ids))
        optimiser.step()
    missed = whole = 0.0
    for name, sides in ledger.taps.sides.items():
        total = gradients[name].sum(0)
        exact = sides.project(-0.01 * gradients[name][audited] / (total.abs() + 1e-8))
        missed += float((ledger.entry(KINDS[audited])[name] - exact).square().sum())
        whole += float(exact.square().sum())
    assert ledger.grade["audit"]["residual"] == pytest.approx((missed / whole) ** 0.5, rel=1e-6)


def test_an_optimiser_that_is_not_known_is_named_and_its_residual_says_how_far_it_is():
    model = neox("float32")
    optimiser = torch.optim.Adagrad(model.parameters(), lr=0.05)
    ledger = SketchedLedger(model, optimiser, KINDS)
    assert "torch.optim.adagrad.Adagrad is not known" in ledger.assumption
    assert "taken for SGD's" in ledger.assumption
    assert train(ledger, model, optimiser, data(5)).balance().residual > 0.5
    other = neox("float32")
    nadam = torch.optim.NAdam(other.parameters(), lr=0.002)
    ledger = train(SketchedLedger(other, nadam, KINDS), other, nadam, data(40))
    assert "taken for AdamW's" in ledger.assumption
    assert ledger.balance().residual < 0.6
    with pytest.raises(ConfigurationError, match="Adagrad"):
        Ledger(model, optimiser, KINDS)


def test_what_cannot_be_booked_is_refused_or_named():
    model = neox("float32")
    optimiser = torch.optim.AdamW(model.parameters())
    ledger = SketchedLedger(model, optimiser, KINDS)
    ids, labels = data(1)[0]
    with pytest.raises(ConfigurationError, match=r"outside of ledger\.step"):
        optimiser.step()
    with ledger.step(labels) as step:
        with pytest.raises(ConfigurationError, match=r"before Step\.backward"):
            optimiser.step()
        step.backward(losses_of(model, ids))
    assert (ledger.num_steps, ledger.num_skipped) == (0, 1)
    with pytest.raises(ConfigurationError, match="has no labels"), ledger.step([]):
        pass
    with pytest.raises(ConfigurationError, match="no account for"), ledger.step(["other"] * 6):
        pass
    ledger.close()
    with pytest.raises(ConfigurationError, match="ledger is closed"), ledger.step(labels):
        pass
    with pytest.raises(ConfigurationError, match="refresh_steps is 0"):
        SketchedLedger(model, optimiser, KINDS, refresh_steps=0)
    with pytest.raises(ConfigurationError, match="k is 0"):
        SketchedLedger(model, optimiser, KINDS, k=0)
    bare = torch.nn.Conv1d(2, 2, 1)
    with pytest.raises(ConfigurationError, match="None of the model's parameters"):
        SketchedLedger(bare, torch.optim.SGD(bare.parameters(), lr=0.1), KINDS)


def test_steps_that_cannot_be_booked_or_are_skipped():
    model = neox("float32")
    optimiser = torch.optim.AdamW(model.parameters())
    ledger = SketchedLedger(model, optimiser, KINDS)
    ids, labels = data(1)[0]
    with ledger.step(labels) as step:
        step.backward(losses_of(model, ids))
        with pytest.raises(ConfigurationError, match="closure"):
            optimiser.step(lambda: None)
    optimiser.zero_grad()
    scaler = torch.amp.GradScaler("cpu")
    before = weights(model)
    with ledger.step(labels) as step:
        step.backward(scaler.scale(losses_of(model, ids) * float("inf")))
        scaler.step(optimiser)
        scaler.update()
    assert (ledger.num_steps, ledger.num_skipped) == (0, 2)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), weights(model).values(), strict=True))
    optimiser.zero_grad()
    with ledger.step(labels) as step:
        step.backward(losses_of(model, ids) * float("nan"))
        with pytest.raises(BadWeightsError, match="NaN or infinite"):
            optimiser.step()
    optimiser.zero_grad()
    with ledger.step(labels) as step:
        step.backward(scaler.scale(losses_of(model, ids)))
        scaler.unscale_(optimiser)
        scaler.step(optimiser)
    ledger.close()
    assert ledger.num_steps == 1
    late = SketchedLedger(model, optimiser, KINDS)
    with late.step(labels) as step:
        step.backward(losses_of(model, ids))
        with pytest.raises(RunMismatchError, match="has made 1 steps, the ledger has booked 0"):
            optimiser.step()
