import numpy as np
import pytest
from jaxtyping import TypeCheckError

from quantascope.attribution.clustering.base import group_sums
from quantascope.attribution.quanta.interference import (
    BEYOND,
    find_communities,
    measure_interference,
    modularity,
    strongest,
)
from quantascope.attribution.whitening import unit_rows
from quantascope.errors import ConfigurationError

REFUSED = (ConfigurationError, TypeCheckError)  # shapes, where annotations are checked at run time

SIZES = [9, 7, 5, 3, 1]


@pytest.fixture(scope="module")
def opposed():
    """Rows of four directions: the second is against the first, the third near it, the fourth beside them."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 30)
    first, beside, mix = rng.standard_normal((3, 200))
    centres = np.stack([first, -first, first + 0.5 * mix, beside])
    return unit_rows(centres[labels] + 2 * rng.standard_normal((120, 200))), labels


def centroids(rows, labels):
    sums = group_sums(rows, labels, int(labels.max()) + 1)
    return sums / np.linalg.norm(sums, axis=1, keepdims=True)


def test_mean_cosines_equal_those_of_all_pairs(opposed):
    rows, labels = opposed
    found = measure_interference(rows, labels)
    cosines = found.cosines(centroids(rows, labels))
    gram = rows @ rows.T
    for a in range(4):
        assert np.isnan(cosines[a, a])
        for b in set(range(4)) - {a}:
            assert cosines[a, b] == pytest.approx(gram[np.ix_(labels == a, labels == b)].mean(), abs=1e-6)
    chosen = np.array([2, 0])
    np.testing.assert_allclose(found.cosines(centroids(rows, labels), chosen), cosines[chosen])
    np.testing.assert_allclose(found.spread(chosen), found.spread()[chosen])
    assert found.mean == pytest.approx(gram[~np.eye(120, dtype=bool)].mean(), abs=1e-6)


def test_the_null_is_that_of_units_dealt_out_at_random():
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(5), SIZES)
    rows = unit_rows(rng.standard_normal((25, 6)) + 0.7)
    gram = rows @ rows.T
    draws = []
    for _ in range(4_000):
        again = rng.permutation(labels)
        member = (again[:, None] == np.arange(5)).astype(float)
        draws.append(member.T @ gram @ member / np.outer(SIZES, SIZES))
    found = measure_interference(rows, labels)
    off = ~np.eye(5, dtype=bool)
    np.testing.assert_allclose(np.mean(draws, axis=0)[off], found.mean, atol=0.02)
    np.testing.assert_allclose(np.std(draws, axis=0)[off], found.spread()[off], rtol=0.05)


def test_opposed_quanta_interfere_and_shuffled_ones_do_not(opposed):
    rows, labels = opposed
    scores = measure_interference(rows, labels).scores(centroids(rows, labels))
    assert scores[0, 1] < -10
    assert scores[0, 2] > 10
    assert strongest(-scores[0], num=5, least=BEYOND).tolist()[0] == 1
    shuffled = np.random.default_rng(0).permutation(labels)
    noise = measure_interference(rows, shuffled).scores(centroids(rows, shuffled))
    assert np.abs(noise[~np.eye(4, dtype=bool)]).max() < BEYOND


def test_communities_are_those_planted_and_random_graphs_have_none():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(4), 12)
    same = group[:, None] == group
    graph = np.triu(rng.random((48, 48)) < np.where(same, 0.7, 0.03), 1).astype(float)
    graph += graph.T
    found = find_communities(graph)
    assert len({(int(g), int(c)) for g, c in zip(group, found.community, strict=True)}) == 4
    assert found.modularity == pytest.approx(modularity(graph, group))
    assert found.modularity > found.null.max() + 0.2
    assert found.num_edges == int(graph.sum() / 2)
    again = find_communities(graph)
    assert np.array_equal(again.community, found.community)
    assert np.array_equal(again.null, found.null)


def test_modularity_is_newmans():
    # two triangles joined by one edge: 7 edges, 6 inside, degrees 7 and 7: 6/7 - 2 (1/2)²
    graph = np.zeros((6, 6))
    for a, b in [(0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5), (2, 3)]:
        graph[a, b] = graph[b, a] = 1
    assert modularity(graph, np.array([0, 0, 0, 1, 1, 1])) == pytest.approx(6 / 7 - 1 / 2)
    assert find_communities(graph).modularity == pytest.approx(6 / 7 - 1 / 2)


def test_quanta_that_meet_nobody_are_alone():
    found = find_communities(np.full((3, 3), np.nan))
    assert sorted(found.community.tolist()) == [0, 1, 2]
    assert (found.modularity, found.num_edges, len(found.null)) == (0.0, 0, 0)


def test_refuses_what_does_not_fit():
    with pytest.raises(REFUSED):
        measure_interference(np.eye(2, dtype=np.float32), np.arange(3))
    with pytest.raises(ConfigurationError, match="at least 2"):
        measure_interference(np.eye(1, dtype=np.float32), np.zeros(1, np.int64))
    assert np.isnan(measure_interference(np.eye(3, dtype=np.float32), np.arange(3)).spread()).all()
