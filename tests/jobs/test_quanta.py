"""What make_quanta stores and refuses, and the tree asked at other grains."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch

from quantascope import connect
from quantascope.attribution.clustering import AverageLinkage, Refined
from quantascope.attribution.quanta.block_choice import BlockChoice
from quantascope.attribution.quanta.interference import BEYOND
from quantascope.errors import ConfigurationError, RunMismatchError, RunNotFoundError
from quantascope.jobs.models.model import ModelSource, load_model
from quantascope.jobs.quanta.cluster import QuantaConfig, make_quanta, measure
from quantascope.jobs.quanta.clustered import Quanta
from quantascope.jobs.quanta.contexts import Contexts
from quantascope.jobs.quanta.grains import groups_of_units
from quantascope.jobs.quanta.rivals import checkpoint_of, unit_activations
from quantascope.storage.rowset import RowSet, Status
from quantascope.storage.run import Run
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def client(clustered_run):
    return connect(clustered_run)


@pytest.fixture(scope="module")
def quanta(clustered_run):
    return Quanta(Run.open(clustered_run))


def descendants(nodes, node):
    by_number = {n.node: n for n in nodes}
    waiting, found = [node], set()
    while waiting:
        here = by_number[waiting.pop()]
        found.add(here.node)
        waiting += here.sides or ()
    return found


def test_the_tree_holds_every_quantum_once_with_its_persistence(client, quanta):
    nodes = client.tree()
    leaves = [n for n in nodes if n.sides is None]
    assert sorted(n.quantum for n in leaves) == [q.id for q in client.quanta()]
    assert nodes[0].size == 200
    sizes = {n.node: n.size for n in nodes}
    for n in nodes:
        if n.sides:
            assert n.size == sum(sizes[side] for side in n.sides)
        else:
            one = client.quantum(n.quantum)
            assert (n.size, n.node, n.persistence) == (one.size, one.node, one.persistence)
        assert n.persistence is None or 0 <= n.persistence <= 1
    fine = client.tree(fine=True)
    assert len(fine) == 2 * len([n for n in fine if n.sides is None]) - 1
    assert {n.node for n in nodes} <= {n.node for n in fine}
    assert len(quanta.tree_table) == quanta.tree.num_leaves - 1


def test_any_grain_can_be_asked_and_nests_in_the_next(client):
    table = client._quanta
    before = np.zeros(200, int)
    for grain in (1, 2, 5, len(client.quanta()), 60, 200):
        groups = client.quanta(grain=grain)
        labels = groups_of_units(table, grain)
        assert [g.size for g in groups] == np.bincount(labels).tolist()
        assert [g.size for g in groups] == sorted((g.size for g in groups), reverse=True)
        assert len(np.unique(np.stack([before, labels]), axis=1).T) == grain  # each lies in one of the coarser ones
        before = labels
        units = table.units["unit"].to_pylist()
        for group in groups[:3]:
            assert set(group.exemplars) <= {units[i] for i in np.flatnonzero(labels == group.id)}
    assert client.quanta(grain=len(client.quanta())) == [replace(q, facts=None) for q in client.quanta()]
    at = client.quanta(grain=0.3)
    assert 1 < len(at) <= 200


@pytest.mark.parametrize("grain", [0, -3, 201, 2.5, float("nan"), float("inf")])
def test_a_grain_that_the_tree_does_not_have_is_refused(client, grain):
    with pytest.raises(ConfigurationError, match="from 1 to 200"):
        client.quanta(grain=grain)


def test_the_same_skill_at_every_grain_for_a_unit_a_document_a_group_and_a_quantum(client):
    tree = client.tree(fine=True)
    for unit in list(client.units())[:5]:
        steps = client.ancestors(unit=unit.unit)
        assert steps[0].size == 1
        assert steps[-1].node == tree[0].node
        assert unit.quantum in [s.quantum for s in steps]
        assert [s.size for s in steps] == sorted(s.size for s in steps)
        for narrow, wide in pairwise(steps):
            assert narrow.node in descendants(tree, wide.node)
        assert all(s.share == 1 for s in steps)
        assert [s.expected for s in steps] == pytest.approx([s.size / 200 for s in steps])
    for asked in ({"document": 0}, {"group": ("kind", "k1")}):
        steps = client.ancestors(**asked)
        assert steps[-1].share == 1
        assert all(s.share > 0.5 for s in steps)
        assert [s.share for s in steps] == sorted(s.share for s in steps)
    steps = client.ancestors(quantum=2)
    assert (steps[0].quantum, steps[0].size) == (2, client.quantum(2).size)
    assert all(s.label for s in steps)


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({}, ConfigurationError),
        ({"unit": 0, "document": 0}, ConfigurationError),
        ({"unit": 10**9}, RunNotFoundError),
        ({"document": 99}, RunNotFoundError),
        ({"group": ("kind", "none")}, RunNotFoundError),
        ({"group": ("colour", "red")}, RunNotFoundError),
        ({"quantum": 10**6}, RunNotFoundError),
    ],
)
def test_ancestors_of_nothing_are_refused(client, asked, error):
    with pytest.raises(error):
        client.ancestors(**asked)


def test_codes_are_those_of_the_rows(client, quanta):
    rows = quanta.rows
    for unit in list(client.units())[:20]:
        code = client.codes(unit.unit)
        weights = [w for _, w in code.quanta]
        assert weights == sorted(weights, reverse=True)
        assert (code.monogenic is None) == (not weights)
        if len(weights) == 1:
            assert code.monogenic == 1
        place = client._place[unit.unit]
        if code.quanta and code.quanta[0][0] != unit.quantum:
            cosine = float(rows[place] @ quanta.centroids[code.quanta[0][0]])
            assert weights[0] == pytest.approx(cosine, abs=0.3)
        assert 0 <= code.explained <= 1
    with pytest.raises(RunNotFoundError, match="not clustered"):
        client.codes(10**9)


def test_interference_is_the_mean_cosine_of_the_rows(client, quanta):
    met = client.interference()
    labels, rows = np.asarray(quanta.units["quantum"]), quanta.rows
    for a, b in ((0, 1), (2, 0), (1, 3)):
        expected = (rows[labels == a] @ rows[labels == b].T).mean()
        assert met.mean_cosine[a, b] == pytest.approx(expected, abs=1e-4)
    assert np.isnan(np.diag(met.mean_cosine)).all()
    assert len(met.community) == len(client.quanta())
    for quantum in client.quanta():
        for other, cosine, low in quantum.facts.interferes:
            assert cosine == pytest.approx(met.mean_cosine[quantum.id, other], abs=1e-6)
            assert cosine <= low == pytest.approx(met.null_mean - BEYOND * met.null_spread[quantum.id, other], abs=1e-6)
        assert sum(quantum.facts.address.values()) == pytest.approx(1, abs=1e-4)
        assert 0 <= quantum.facts.own_share <= 1


def test_activations_are_a_rival_where_the_checkpoint_is_at_hand(tiny_run, tiny_model_folder, tmp_path):
    quanta = make_quanta(Run.open(tiny_run), QuantaConfig(clusterer=AverageLinkage(num_quanta=4), num_halves=0))
    assert checkpoint_of(quanta).model == str(tiny_model_folder)
    found = measure(quanta, num_shuffles=5, model=checkpoint_of(quanta))
    names = [row["name"] for row in found["rows"]]
    assert [name for name in names if "activations" in name] == names[-2:]
    assert [row["num_clusters"] for row in found["rows"][-2:]] == [4, 4]
    with pytest.raises(RunMismatchError, match="activations are left out"):
        measure(quanta, num_shuffles=5, model=ModelSource(model=str(save_tiny(tmp_path / "other", seed=1))))


def test_hidden_states_are_those_before_the_predicted_token(tiny_run, tiny_model_folder):
    quanta = make_quanta(Run.open(tiny_run), QuantaConfig(clusterer=AverageLinkage(num_quanta=4), num_halves=0))
    loaded = load_model(ModelSource(model=str(tiny_model_folder)))
    found = unit_activations(quanta, loaded)
    units = quanta.units.to_pylist()
    for layer, rows in found.items():
        states = []
        for unit in units[::9]:
            ids = Contexts(quanta.run).document(unit["document"]).tokens[unit["first_token"] : unit["last_token"]]
            with torch.no_grad():
                out = loaded.model(torch.as_tensor(ids.astype(np.int64))[None], output_hidden_states=True)
            states.append(out.hidden_states[layer][0, -1].numpy())
        differences = np.stack(states) - rows[::9]
        np.testing.assert_allclose(differences, np.broadcast_to(differences[0], differences.shape), atol=2e-4)


def test_two_runs_of_the_same_give_the_same_bytes(tiny_run):
    run = Run.open(tiny_run)
    config = QuantaConfig(clusterer=Refined(inner=AverageLinkage(num_quanta=5)))
    first = make_quanta(run, config).fingerprint()
    assert make_quanta(run, config).fingerprint() == first


def with_rows(monkeypatch, change):
    """Makes row sets hand out other rows than are stored."""
    whole = RowSet.unit_rows
    monkeypatch.setattr(RowSet, "unit_rows", lambda self: change(*whole(self)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda kept, rows: (kept, np.repeat(rows[:1], len(rows), axis=0)), "rows are equal"),
        (lambda kept, rows: (kept[:1], rows[:1]), "There is one row"),
        (lambda kept, rows: (kept[:0], rows[:0]), "can be clustered: of 40 units 0 have"),
    ],
)
def test_rows_that_say_nothing_are_refused(tiny_run, monkeypatch, change, message):
    with_rows(monkeypatch, change)
    with pytest.raises(ConfigurationError, match=message):
        make_quanta(Run.open(tiny_run), QuantaConfig())
    assert Run.open(tiny_run).derived_names("quanta") == []


def test_rows_of_one_document_need_a_number_and_then_have_quanta(tiny_run, monkeypatch):
    run = Run.open(tiny_run)
    own = np.flatnonzero(np.asarray(run.row_set().units()["document"]) == 0)
    assert len(own) > 3
    with_rows(monkeypatch, lambda kept, rows: (kept[np.isin(kept, own)], rows[np.isin(kept, own)]))
    with pytest.raises(ConfigurationError, match="one document"):
        make_quanta(run, QuantaConfig())
    found = make_quanta(run, QuantaConfig(clusterer=Refined(inner=AverageLinkage(num_quanta=2), keep_all=True)))
    assert found.facts["num_quanta"] == 2
    assert found.facts["stability"] is None
    assert [q.facts.own_share for q in connect(tiny_run).quanta()] == [1, 1]


def test_rows_of_zero_and_refused_rows_are_left_out(tiny_run, monkeypatch):
    status = RowSet.units

    def units(self):
        table = status(self)
        values = np.asarray(table["status"]).copy()
        values[[0, 3]] = Status.ZERO, Status.REFUSED
        at = table.column_names.index("status")
        return table.set_column(at, "status", pa.array(values))

    monkeypatch.setattr(RowSet, "units", units)
    found = make_quanta(Run.open(tiny_run), QuantaConfig(clusterer=AverageLinkage(num_quanta=3)))
    assert found.units["unit"].to_pylist() == [u for u in range(40) if u not in (0, 3)]


def test_more_quanta_than_different_rows_leave_none_empty(tiny_run, monkeypatch):
    with_rows(monkeypatch, lambda kept, rows: (kept, rows[np.arange(len(rows)) % 3]))
    for keep in (True, False):
        inner = AverageLinkage(num_quanta=9)
        found = make_quanta(Run.open(tiny_run), QuantaConfig(clusterer=Refined(inner=inner, keep_all=keep)))
        sizes = found.table["size"].to_pylist()
        assert min(sizes) > 0
        assert len(sizes) <= 9


def test_another_projection_of_the_same_units_is_compared(tiny_collection, tmp_path, ray_cluster):
    from quantascope.jobs.collecting.collect import collect
    from quantascope.jobs.collecting.config import RowConfig
    from quantascope.jobs.workers.ray_session import RayOptions

    out = tmp_path / "run"
    for seed in (0, 1):
        rows = RowConfig(dim=128, rows_per_block=8, batch_tokens=128, seed=seed)
        collect(replace(tiny_collection(out, rows=rows), name=f"s{seed}"), RayOptions())
    for scale in ("kept", "equal", "unit"):
        config = QuantaConfig(
            rows="s0", blocks=BlockChoice(scale=scale), clusterer=AverageLinkage(num_quanta=3), name=scale
        )
        found = make_quanta(Run.open(out), config)
        assert list(found.facts["stability"]["projections"]) == ["s1"]
        assert -1 <= found.facts["stability"]["projections"]["s1"] <= 1
