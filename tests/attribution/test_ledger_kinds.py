"""Kinds that are permuted, split or merged: the entries follow."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantascope.attribution.ledger import Evaluation, Ledger
from tests.attribution.ledger_oracle import KINDS, batches, losses_of, positions

DATA = batches(4)


def keep(kinds, rename, *, evaluation=None, accumulate=False):
    """A short training whose labels are what `rename(step, example, label)` makes of them."""
    model = positions()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    ledger = Ledger(model, optimiser, kinds, evaluation=evaluation, period_steps=2)
    for number, (ids, labels) in enumerate(DATA):
        own = [rename(number, i, label) for i, label in enumerate(labels)]
        with ledger.step(None if accumulate else own) as step:
            for part in (slice(0, 2), slice(2, 5)) if accumulate else ():
                step.begin(own[part])
                step.backward(losses_of(model, ids[part]), divide_by=5)
            if not accumulate:
                step.backward(losses_of(model, ids))
            optimiser.step()
        optimiser.zero_grad()
    ledger.close()
    return ledger


def entry(ledger, account):
    return torch.cat([e.flatten() for e in ledger.entry(account).values()])


def close(first, second):
    return torch.allclose(first, second, rtol=1e-9, atol=1e-13)


@pytest.fixture(scope="module")
def whole():
    return keep(KINDS, lambda step, example, label: label)


@settings(max_examples=12, deadline=None)
@given(mask=st.lists(st.booleans(), min_size=20, max_size=20), order=st.permutations(range(4)))
def test_a_kind_split_in_two_adds_up_to_itself_and_leaves_the_others(whole, mask, order):
    halves = ("living/animal/wild", "living/animal/tame", "living/plant", "place")

    def split(step, example, label):
        if label == "living/animal":
            return f"{label}/{'wild' if mask[step * 5 + example] else 'tame'}"
        return label

    ledger = keep([halves[i] for i in order], split)
    assert close(entry(ledger, halves[0]) + entry(ledger, halves[1]), entry(whole, "living/animal"))
    for account in ("living/animal", "living/plant", "place", "decay"):
        assert close(entry(ledger, account), entry(whole, account)), account


@settings(max_examples=6, deadline=None)
@given(groups=st.lists(st.integers(0, 1), min_size=3, max_size=3))
def test_merged_kinds_have_the_sum_of_their_entries(whole, groups):
    ledger = keep(["one", "two"], lambda step, example, label: ("one", "two")[groups[KINDS.index(label)]])
    for number, name in enumerate(("one", "two")):
        expected = sum(entry(whole, k) for k, g in zip(KINDS, groups, strict=True) if g == number)
        assert close(entry(ledger, name), expected + torch.zeros_like(entry(whole, "place")))


def test_accumulated_batches_have_the_entries_of_the_whole_batch(whole):
    ledger = keep(KINDS, lambda step, example, label: label, accumulate=True)
    for account in (*KINDS, "decay"):
        assert close(entry(ledger, account), entry(whole, account)), account


def test_sheets_roll_up_exactly_along_kinds_and_modules():
    data = batches(2, seed=9)
    evaluation = Evaluation(batches=data, losses=losses_of)
    fine = keep(KINDS, lambda step, example, label: label, evaluation=evaluation)
    coarse = keep(["living", "place"], lambda step, example, label: label.split("/")[0], evaluation=evaluation)
    rolled, direct = fine.balance().roll_up(1), coarse.balance()
    assert rolled.accounts == direct.accounts == ("living", "place", "rounding", "decay")
    np.testing.assert_allclose(rolled.norms, direct.norms, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(rolled.shares, direct.shares, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(rolled.cosines[:2], direct.cosines[:2], rtol=1e-9)
    top = fine.balance().by_module(0 + 1)
    assert len(top.modules) <= len(fine.balance().modules)
    np.testing.assert_allclose(top.shares, fine.balance().shares, rtol=1e-12)
    np.testing.assert_allclose(top.norms, fine.balance().norms, rtol=1e-12)
    assert sum(fine.balance().within([m]).change_square[0] for m in fine.balance().modules) == pytest.approx(
        fine.balance().change_square.sum()
    )
    losses = fine.loss_sheet()
    living = losses.roll_up(1)
    rows = [losses.kinds.index(k) for k in ("living/animal", "living/plant")]
    shares = losses.counts[rows] / losses.counts[rows].sum()
    np.testing.assert_allclose(
        living.matrix[living.kinds.index("living"), 1], shares @ losses.matrix[rows, 2], rtol=1e-9
    )
    np.testing.assert_allclose(living.total - living.matrix.sum(1), living.residual, rtol=1e-12)
    np.testing.assert_allclose(losses.by_module(1).matrix, losses.matrix, rtol=1e-9, atol=1e-15)
    matrix = coarse.loss_sheet().roll_up(1).matrix
    np.testing.assert_allclose(living.matrix, matrix, rtol=1e-7, atol=1e-12)


def test_time_course_adds_up_to_the_balance():
    ledger = keep(KINDS, lambda step, example, label: label)
    course, sheet = ledger.course(), ledger.balance()
    assert course.steps.tolist() == [0, 2, 4]
    assert course.along.shape == (2, len(sheet.modules), 5)
    np.testing.assert_allclose(course.along.sum((1, 2)), course.change_square.sum(1), rtol=1e-9)
