"""Single examples' entries: against a ledger with an account for every example, and against the weights."""

import pytest
import torch

from quantascope.attribution.ledger import Ledger, entries_by, example_entries, rank_one_entries
from quantascope.attribution.ledger.examples import shrinkage
from quantascope.errors import ConfigurationError
from tests.attribution.ledger_oracle import KINDS, batches, losses_of, positions

OPTIMISERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.3),
    "adam, l2": lambda p: torch.optim.Adam(p, lr=0.02, weight_decay=0.3),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1),
    "sgd, momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, dampening=0.2),
    "sgd, nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True),
}
DATA = batches(7)


def train(make, kinds, rename, *, keep_examples):
    model = positions()
    optimiser = make([p for n, p in model.named_parameters() if not n.startswith("unused")])
    ledger = Ledger(model, optimiser, kinds, keep_examples=keep_examples)
    for number, (ids, labels) in enumerate(DATA):
        optimiser.param_groups[0]["lr"] *= 0.9
        with ledger.step() as step:
            for part in (slice(0, 2), slice(2, 5)):
                step.begin([rename(number, i, labels[i]) for i in range(5)[part]])
                step.backward(losses_of(model, ids[part]), divide_by=5)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimiser.step()
        optimiser.zero_grad()
    return ledger


def flat(values):
    return torch.cat([v.flatten() for v in values.values()])


@pytest.mark.parametrize("name", OPTIMISERS)
def test_gross_entries_are_those_of_accounts_for_every_single_example(name):
    each = [f"{step}/{example}" for step in range(7) for example in range(5)]
    apart = train(OPTIMISERS[name], each, lambda step, example, _: f"{step}/{example}", keep_examples=False)
    ledger = train(OPTIMISERS[name], KINDS, lambda step, example, label: label, keep_examples=True)
    entries = example_entries(ledger.record)
    for row, account in zip(entries, each, strict=True):
        torch.testing.assert_close(row, flat(apart.entry(account)), rtol=1e-9, atol=1e-13)
    labels = [label for own in ledger.record.labels for label in own]
    for kind in KINDS:
        own = entries[[i for i, label in enumerate(labels) if label == kind]].sum(0)
        assert (own - flat(ledger.entry(kind))).norm() < 1e-10 * flat(ledger.entry(kind)).norm()
    assert ledger.record.step_of[4:6] == [0, 1]


@pytest.mark.parametrize("name", ["adamw", "sgd, momentum"])
def test_rank_one_entries_pass_through_probes_on_two_sides_and_state_their_error(name):
    ledger = train(OPTIMISERS[name], KINDS, lambda step, example, label: label, keep_examples=True)
    record = ledger.record
    exact, found = example_entries(record), rank_one_entries(record)
    error = (found.entries - exact).norm(dim=1) / exact.norm(dim=1)
    torch.testing.assert_close(found.error, error)
    if name == "sgd, momentum":  # one number for a parameter: nothing to lose
        assert (found.error < 1e-12).all()
    else:
        assert 1e-3 < found.error.max() < 1
    shape, first = record.shapes["inner.weight"], 0
    for parameter, size in record.parameters.items():
        if parameter == "inner.weight":
            break
        first += size
    rows, gradients = found.entries[:5, first : first + size], record.gradients[0][:, first : first + size]
    effect = (rows / gradients).reshape(5, *shape).mean(0)
    assert torch.linalg.matrix_rank(effect, rtol=1e-8) == 1
    left, sizes, right = torch.linalg.svd(effect)
    u, v = left[:, 0] * sizes[0], right[0]
    probes = torch.randn(shape[0], 2, dtype=torch.float64), torch.randn(shape[1], 2, dtype=torch.float64)
    outer = (u[:, None] * probes[0]).T @ gradients.reshape(5, *shape) @ (v[:, None] * probes[1])
    torch.testing.assert_close(probes[0].T @ rows.reshape(5, *shape) @ probes[1], outer, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("name", ["adamw", "sgd", "sgd, nesterov"])
def test_net_entries_sum_to_the_weights_without_what_is_left_of_the_first_ones(name):
    ledger = train(OPTIMISERS[name], KINDS, lambda step, example, label: label, keep_examples=True)
    entries = example_entries(ledger.record, net=True)
    first, last = flat(ledger.books.start), flat({n: p.detach() for n, p in ledger.books.parameters.items()})
    expected = last - shrinkage(ledger.record) * first
    assert (entries.sum(0) - expected).norm() < 1e-10 * expected.norm()
    assert (name == "sgd, nesterov") == bool((shrinkage(ledger.record) == 1).all())


def test_projecting_entries_is_projecting_the_kinds():
    ledger = train(OPTIMISERS["adamw"], KINDS, lambda step, example, label: label, keep_examples=True)
    entries = example_entries(ledger.record)
    chance = torch.Generator().manual_seed(0)
    projection = torch.randn(entries.shape[1], 16, dtype=torch.float64, generator=chance)
    labels = [label for own in ledger.record.labels for label in own]
    own = [i for i, label in enumerate(labels) if label == "place"]
    torch.testing.assert_close((entries @ projection)[own].sum(0), flat(ledger.entry("place")) @ projection)


def test_what_has_no_net_form_and_what_cannot_be_saved_is_refused():
    ledger = train(OPTIMISERS["adam, l2"], KINDS, lambda step, example, label: label, keep_examples=True)
    with pytest.raises(ConfigurationError, match="AdamW"):
        example_entries(ledger.record, net=True)
    with pytest.raises(ConfigurationError, match="keeps examples"):
        ledger.state_dict()


def test_accounts_that_are_named_afterwards_add_up_as_kinds_do():
    """Quanta, for instance: labels that the training knew nothing of."""
    ledger = train(OPTIMISERS["adamw"], KINDS, lambda _step, _example, label: label, keep_examples=True)
    labels = [label for own in ledger.record.labels for label in own]
    accounts, entries = entries_by(ledger.record, labels)
    for account, entry in zip(accounts, entries, strict=True):
        expected = torch.cat([v.flatten() for v in ledger.entry(account).values()])
        torch.testing.assert_close(entry, expected, rtol=1e-9, atol=1e-12)
    quanta = [f"quantum {i % 4}" for i in range(len(labels))]
    accounts, entries = entries_by(ledger.record, quanta)
    assert accounts == tuple(f"quantum {i}" for i in range(4))
    kinds = sum(torch.cat([v.flatten() for v in ledger.entry(k).values()]) for k in KINDS)
    torch.testing.assert_close(entries.sum(0), kinds, rtol=1e-9, atol=1e-12)
    net = entries_by(ledger.record, quanta, net=True)[1].sum(0)
    torch.testing.assert_close(net, example_entries(ledger.record, net=True).sum(0), rtol=1e-9, atol=1e-12)
    with pytest.raises(ConfigurationError, match="3 labels for 35 examples"):
        entries_by(ledger.record, quanta[:3])
