import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from sklearn.metrics import adjusted_rand_score

from quantascope.attribution.clustering import AverageLinkage, Leiden, local_graph, local_neighbours
from quantascope.attribution.clustering.local_graph import recall
from quantascope.attribution.whitening import unit_rows
from quantascope.errors import ConfigurationError

REFUSED = (ConfigurationError, TypeCheckError)  # shapes, where annotations are checked at run time


@pytest.fixture(scope="module")
def planted():
    """Forty directions of falling sizes, in micro-clusters."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(40), 400 // np.arange(1, 41)))
    rows = unit_rows(rng.standard_normal((40, 128))[labels] + 1.5 * rng.standard_normal((len(labels), 128)))
    groups = AverageLinkage(max_pairs_rows=10, micro_clusters=120, num_quanta=1).cluster(rows).groups
    return rows, groups


def exact(rows, num):
    products = rows @ rows.T
    np.fill_diagonal(products, -np.inf)
    places = np.argsort(-products, axis=1)[:, :num]
    return np.take_along_axis(products, places, axis=1), places


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_most_neighbours_are_found_with_their_exact_cosines(planted, monkeypatch, dtype):
    rows, groups = planted
    monkeypatch.setattr(local_graph, "fastest_precision", lambda: str(dtype).removeprefix("torch."))
    found = local_neighbours(rows, groups)
    assert found.num_pairs < 0.5 * len(rows) ** 2
    assert recall(found, rows, np.arange(0, len(rows), 3)) > 0.9
    cosines = np.einsum("ud,und->un", rows, rows[found.rows])
    np.testing.assert_allclose(found.cosines, cosines, atol=1e-5)
    assert (np.diff(found.cosines, axis=1) <= 0).all()
    assert not (found.rows == np.arange(len(rows))[:, None]).any()


def test_with_all_groups_near_it_is_exact_whatever_the_blocks(planted, monkeypatch):
    rows, groups = planted
    monkeypatch.setattr(local_graph, "fastest_precision", lambda: "float32")
    found = local_neighbours(rows, groups, num_neighbours=5, least_cosine=-1.0)
    scores, places = exact(rows, 5)
    np.testing.assert_allclose(found.cosines, scores, atol=1e-5)
    assert (found.rows == places).mean() > 0.999
    monkeypatch.setattr(local_graph, "_CANDIDATES", 400)
    monkeypatch.setattr(local_graph, "_QUERIES", 50)
    again = local_neighbours(rows, groups, num_neighbours=5, least_cosine=-1.0)
    assert np.array_equal(again.rows, found.rows)


def test_fewer_rows_than_neighbours_leave_gaps():
    found = local_neighbours(unit_rows(np.eye(3) + 0.1), np.arange(3, dtype=np.int32), num_neighbours=4)
    assert (np.sort(found.rows, axis=1)[:, :2] == -1).all()
    assert np.isinf(found.cosines[:, 2:]).all()
    with pytest.raises(REFUSED):
        local_neighbours(np.eye(3, dtype=np.float32), np.array([0, 0, 2]))


def test_leiden_of_many_rows_finds_what_it_finds_with_exact_neighbours(planted):
    rows, _ = planted
    exactly = Leiden().cluster(rows)
    among = Leiden(max_exact_rows=100, micro_clusters=120)
    found = among.cluster(rows)
    assert adjusted_rand_score(exactly.assignments, found.assignments) > 0.9
    assert np.array_equal(among.cluster(rows).assignments, found.assignments)
    assert found.num_quanta <= found.tree.num_leaves < len(rows)  # micro-clusters, cut by quanta, are its leaves
    with pytest.raises(ConfigurationError, match="micro_clusters"):
        Leiden(micro_clusters=0)
