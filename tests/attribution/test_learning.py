from typing import ClassVar

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from quantascope.attribution.learning import (
    TransferTotals,
    beyond_last,
    co_emergence,
    co_emergence_gain,
    group_by_opposition,
    mates_in_groups,
    measure_steps,
    nearest_mates,
    partial_correlations,
    split_documents,
)
from quantascope.attribution.whitening import unit_rows
from quantascope.errors import BadWeightsError, ConfigurationError

REFUSED = (ConfigurationError, TypeCheckError)  # shapes, where annotations are checked at run time


@pytest.fixture(scope="module")
def units():
    """Five target tokens with four skills each; curves and rows follow the skill, with noise."""
    rng = np.random.default_rng(0)
    target, skill, document = rng.integers(0, 5, 800), rng.integers(0, 4, 800), rng.integers(0, 60, 800)
    quantum = target * 4 + skill
    curves = rng.standard_normal((20, 6))[quantum] + 0.5 * rng.standard_normal((800, 6))
    rows = unit_rows(rng.standard_normal((20, 40))[quantum] + 0.5 * rng.standard_normal((800, 40)))
    return target, quantum, document, curves, rows


def slow_mates(rows, target, document, count):
    found = np.zeros((len(rows), len(rows)))
    for unit in range(len(rows)):
        able = np.flatnonzero((target == target[unit]) & (document != document[unit]))
        best = able[np.argsort(-(rows[able] @ rows[unit]), kind="stable")][:count]
        found[unit, best] = 1 / max(len(best), 1)
    return found


def test_nearest_mates_equal_the_plain_loop(units):
    target, _, document, _, rows = units
    found = nearest_mates(rows[:200], target[:200], document[:200], num_neighbours=7)
    np.testing.assert_allclose(found.toarray(), slow_mates(rows[:200], target[:200], document[:200], 7))


def test_group_mates_are_of_the_same_group_and_token_in_other_documents(units):
    target, quantum, document, _, _ = units
    found = mates_in_groups(quantum % 3, target, document).toarray()
    for unit in range(0, 800, 37):
        able = (quantum % 3 == quantum[unit] % 3) & (target == target[unit]) & (document != document[unit])
        np.testing.assert_allclose(found[unit], able / max(able.sum(), 1))


def test_a_unit_without_mates_has_none():
    found = nearest_mates(np.eye(3, dtype=np.float32), np.array([0, 0, 1]), np.array([0, 0, 1]), num_neighbours=2)
    assert found.nnz == 0


def test_co_emergence_is_what_the_formula_says(units):
    target, quantum, document, curves, _ = units
    error = alone = 0.0
    for unit in range(800):
        other = (target == target[unit]) & (document != document[unit])
        mates = other & (quantum == quantum[unit])
        error += np.square(curves[unit] - curves[mates].mean(axis=0)).sum()
        alone += np.square(curves[unit] - curves[other].mean(axis=0)).sum()
    found = co_emergence(curves, mates_in_groups(quantum, target, document), target, document)
    assert found.value == pytest.approx(1 - error / alone)
    assert found.low < found.value < found.high
    assert found.coverage == 1


def test_true_groups_co_emerge_and_shuffled_ones_do_not(units):
    target, quantum, document, curves, rows = units
    rng = np.random.default_rng(1)
    true = co_emergence(curves, mates_in_groups(quantum, target, document), target, document)
    near = co_emergence(curves, nearest_mates(rows, target, document, num_neighbours=5), target, document)
    shuffled = co_emergence(curves, mates_in_groups(rng.permutation(quantum), target, document), target, document)
    random_rows = unit_rows(rng.standard_normal((800, 10)))
    null = co_emergence(curves, nearest_mates(random_rows, target, document, num_neighbours=5), target, document)
    assert true.value > 0.6
    assert near.value > 0.5
    assert shuffled.high < 0
    assert null.value == pytest.approx(-1 / 5, abs=0.05)  # the variance of a mean of five
    gain, low, high = co_emergence_gain(true, null)
    assert low < gain < high
    assert low > 0.5


def test_a_target_token_alone_says_nothing_beyond_itself(units):
    target, _, document, curves, _ = units
    found = co_emergence(curves, mates_in_groups(np.zeros_like(target), target, document), target, document)
    assert found.value == 0


def test_beyond_last_leaves_nothing_that_the_last_loss_foretells():
    rng = np.random.default_rng(0)
    target, last = rng.integers(0, 3, 300), rng.standard_normal(300)
    other = rng.standard_normal((300, 4))
    curves = np.concatenate([last[:, None] * np.array([0.1, 0.4, 0.7, 0.9]) + other, last[:, None]], axis=1)
    left = beyond_last(curves, target)
    assert left.shape == (300, 4)
    centred = last - np.bincount(target, weights=last)[target] / np.bincount(target)[target]
    np.testing.assert_allclose(centred @ left, 0, atol=1e-9)
    assert np.corrcoef(left[:, 2], other[:, 2])[0, 1] > 0.98


@pytest.mark.parametrize(
    ("curves", "target", "document"),
    [
        (np.full((3, 2), np.nan), np.zeros(3, int), np.arange(3)),
        (np.zeros((3, 2)), np.arange(3), np.arange(3)),
        (np.zeros((3, 2)), np.zeros(4, int), np.arange(3)),
    ],
    ids=["not finite", "no token in two documents", "unequal lengths"],
)
def test_curves_that_cannot_be_foretold_are_refused(curves, target, document):
    with pytest.raises(REFUSED):
        co_emergence(curves, mates_in_groups(np.zeros(3, int), np.zeros(3, int), np.arange(3)), target, document)


def test_figures_of_other_units_are_not_compared(units):
    target, quantum, document, curves, _ = units
    first = co_emergence(curves, mates_in_groups(quantum, target, document), target, document)
    second = co_emergence(
        curves + 1e-3 * quantum[:, None], mates_in_groups(quantum, target, document), target, document
    )
    with pytest.raises(ConfigurationError, match="same units"):
        co_emergence_gain(first, second)


class TestOpposition:
    """Skills of four parts whose gradients cancel."""

    @pytest.fixture
    def parts(self):
        rng = np.random.default_rng(0)
        means = rng.standard_normal((6, 4, 200))
        means -= means.mean(axis=1, keepdims=True)
        quanta = rng.permutation(np.repeat(np.arange(24), 30))
        rows = means.reshape(24, 200)[quanta] + 0.5 * rng.standard_normal((720, 200))
        return rows, quanta, quanta // 4

    def test_parts_that_cancel_are_found(self, parts):
        rows, quanta, skill = parts
        found = group_by_opposition(rows, quanta, 6)
        assert len(np.unique(found * 6 + skill)) == 6

    def test_parts_that_are_merely_drawn_are_not(self, parts):
        rows, quanta, _ = parts
        rng = np.random.default_rng(1)
        free = rng.standard_normal((24, 200))[quanta] + 0.1 * rng.standard_normal(rows.shape)
        means = np.stack([free[quanta == q].mean(axis=0) for q in range(24)])
        assert np.abs(partial_correlations(means)).max() < 0.35
        cancelling = np.stack([rows[quanta == q].mean(axis=0) for q in range(24)])
        assert np.abs(partial_correlations(cancelling)).max() > 0.8

    def test_two_opposites_are_fully_dependent(self):
        means = np.array([[1.0, 0, 0], [-1.0, 0, 0], [0, 1.0, 0]])
        found = partial_correlations(means, damping=1e-6)
        assert abs(found[0, 1]) > 0.999
        assert abs(found[0, 2]) < 1e-6
        assert not np.diag(found).any()

    def test_bad_input_is_refused(self, parts):
        rows, quanta, _ = parts
        with pytest.raises(ConfigurationError, match="25 groups"):
            group_by_opposition(rows, quanta, 25)
        with pytest.raises(ConfigurationError, match="damping"):
            partial_correlations(rows[:3], damping=0.0)
        with pytest.raises(ConfigurationError, match="zero or not finite"):
            partial_correlations(np.zeros((2, 3)))


class TestSteps:
    """Units whose losses are squared distances of weights from points: gradients are known exactly."""

    points: ClassVar = torch.tensor([[1.0, 0], [1.1, 0], [0.9, 0], [0, 5.0]], dtype=torch.float64)

    def losses(self, weight):
        return lambda units: (weight - self.points[torch.from_numpy(units)]).square().sum(dim=1)

    def test_a_step_does_what_its_gradient_says(self):
        weight = torch.tensor([0.1, 0.2], dtype=torch.float64)
        before = weight.clone()
        steps = measure_steps(
            self.losses(weight), [weight], np.array([0, 1]), np.array([2, 3]), steps=((None, 1e-3), (None, 1e-2))
        )
        assert torch.equal(weight, before)
        assert not weight.requires_grad
        gradient = 2 * (before - self.points[:2].mean(dim=0))
        for step in steps:
            moved = before - step.length * before.norm() * gradient / gradient.norm()
            falls = torch.log((before - self.points).square().sum(1)) - torch.log((moved - self.points).square().sum(1))
            np.testing.assert_allclose(step.falls, falls[2:], rtol=1e-9)
            assert step.taught == pytest.approx(float(falls[:2].mean()), rel=1e-9)
        assert steps[1].falls[0] > steps[0].falls[0] > abs(steps[0].falls[1])

    def test_another_direction_is_taken(self):
        weight = torch.tensor([0.1, 0.2], dtype=torch.float64)
        (step,) = measure_steps(
            self.losses(weight), [weight], np.array([0]), np.array([3]), steps=((torch.sign, 1e-2),)
        )
        moved = weight + 1e-2 * weight.norm() * torch.tensor([1.0, -1.0]).double() / 2**0.5
        fall = ((weight - self.points[3]).square().sum() / (moved - self.points[3]).square().sum()).log()
        assert step.falls[0] == pytest.approx(float(fall), rel=1e-6)

    def test_no_gradient_no_step(self):
        weight = torch.tensor([1.0, 0.0], dtype=torch.float64)
        with pytest.raises(BadWeightsError, match="no step"):
            measure_steps(self.losses(weight), [weight], np.array([0]), np.array([1]), steps=((None, 1e-2),))
        with pytest.raises(ConfigurationError, match="lengths"):
            measure_steps(self.losses(weight), [weight], np.array([1]), np.array([2]), steps=((None, 0.0),))

    def test_weights_come_back_after_a_failure(self):
        weight = torch.tensor([0.1, 0.2], dtype=torch.float64)
        inner, calls = self.losses(weight), []

        def failing(units):
            calls.append(1)
            if len(calls) == 3:
                raise RuntimeError("in the middle of a step")
            return inner(units)

        with pytest.raises(RuntimeError, match="middle"):
            measure_steps(failing, [weight], np.array([0]), np.array([1]), steps=((None, 0.1),))
        assert weight.tolist() == [0.1, 0.2]

    def test_selectivity_is_a_ratio_of_sums(self):
        totals = TransferTotals(carried=np.array([0.3, 0.1]), spilled=np.array([0.1, 0.1]))
        assert totals.selectivity == pytest.approx(2)
        low, high = totals.interval()
        assert 1 - 1e-9 <= low < 2 < high <= 3 + 1e-9


def test_halves_share_no_document():
    rng = np.random.default_rng(0)
    for _ in range(30):
        document = rng.integers(0, rng.integers(2, 9), 40)
        document[:2] = [0, 1]
        members = np.sort(rng.permutation(1_000)[:40])
        first, second = split_documents(members, document, rng, max_units=12)
        of = dict(zip(members.tolist(), document.tolist(), strict=True))
        assert not {of[u] for u in first.tolist()} & {of[u] for u in second.tolist()}
        assert 0 < len(first) <= 12
        assert 0 < len(second) <= 12
    with pytest.raises(ConfigurationError, match="one document"):
        split_documents(np.arange(3), np.zeros(3, int), rng, max_units=2)
