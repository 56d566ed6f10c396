"""What every clusterer must do, and what the refinement, the nested trees and the centre cosines are worth."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.metrics import adjusted_rand_score

from quantascope.attribution.clustering import (
    AverageLinkage,
    Clusterer,
    Density,
    Leiden,
    Refined,
    Spectral,
    average_linkage,
    branch_persistence,
    by_centre_cosine,
    centre_cosines,
    neighbour_graph,
    nested_clustering,
    refine,
)
from quantascope.attribution.clustering.base import group_sums
from quantascope.attribution.clustering.flat import checked_rows, claim_unclaimed
from quantascope.attribution.whitening import unit_rows
from quantascope.errors import ConfigurationError

CLUSTERERS = {
    "linkage": AverageLinkage(),
    "linkage of 6": AverageLinkage(num_quanta=6),
    "refined": Refined(),
    "refined, of 6": Refined(inner=AverageLinkage(num_quanta=6)),
    "refined, micro": Refined(inner=AverageLinkage(num_quanta=6, max_pairs_rows=10, micro_clusters=30)),
    "leiden": Leiden(),
    "density": Density(),
    "spectral": Spectral(num_quanta=6),
    "spectral, squared": Spectral(num_quanta=6, affinity="squared cosine"),
}
every = pytest.mark.parametrize("clusterer", CLUSTERERS.values(), ids=CLUSTERERS.keys())


def planted(num_quanta, largest, sigma, *, seed=0, dim=200, width=200):
    """Unit rows around normal directions, sizes largest / rank, noise of `sigma`, projected from `width` to `dim`."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(num_quanta), largest // np.arange(1, num_quanta + 1))
    rows = rng.standard_normal((num_quanta, width))[labels] + sigma * rng.standard_normal((len(labels), width))
    return unit_rows(rows if dim == width else rows @ rng.standard_normal((width, dim))), labels


@every
def test_finds_clear_groups_and_gives_them_a_tree(clusterer):
    rows, labels = planted(6, 40, 0.3)
    result = clusterer.cluster(rows * 3)
    assert isinstance(clusterer, Clusterer)
    assert adjusted_rand_score(labels, result.assignments) > 0.8
    assert list(result.sizes) == sorted(result.sizes, reverse=True)
    assert result.sizes.min() > 0
    assert np.array_equal(result.quanta_tree.leaf_counts, result.sizes)
    again = result.tree.cut(result.num_quanta)[result.groups]
    assert adjusted_rand_score(again, result.assignments) == 1
    assert (np.diff(result.tree.merges[:, 2]) <= 1e-5).all()
    assert result.tree.merges[-1, 3] == len(rows)


@every
def test_is_deterministic(clusterer):
    rows, _ = planted(8, 30, 2)
    first, second = clusterer.cluster(rows), clusterer.cluster(rows)
    assert np.array_equal(first.assignments, second.assignments)
    assert np.array_equal(first.tree.merges, second.tree.merges)


@every
def test_equal_rows_are_no_trouble(clusterer):
    result = clusterer.cluster(unit_rows(np.ones((30, 5))))
    assert len(result.assignments) == 30
    assert result.similarity == pytest.approx(1, abs=1e-5)


@every
def test_rows_of_one_document_only_are_no_trouble(clusterer):
    rows, _ = planted(6, 20, 0.3)
    result = clusterer.cluster(rows, np.zeros(len(rows), np.int64))
    assert len(result.assignments) == len(rows)
    if clusterer in (CLUSTERERS["linkage"], CLUSTERERS["refined"]):
        assert result.num_quanta == 1  # nothing comes back in other documents
    with pytest.raises(ConfigurationError):
        result.tree.cut(result.tree.num_leaves + 1)


@every
@pytest.mark.parametrize("rows", [np.zeros((9, 4)), np.full((9, 4), np.nan), np.empty((0, 4))], ids=["0", "nan", "no"])
def test_refuses_rows_that_say_nothing(clusterer, rows):
    with pytest.raises(ConfigurationError):
        clusterer.cluster(rows.astype(np.float32))


@pytest.mark.parametrize("name", ["linkage of 6", "refined, of 6", "spectral", "spectral, squared"])
def test_refuses_more_quanta_than_rows(name):
    with pytest.raises(ConfigurationError, match="there are 4 rows"):
        CLUSTERERS[name].cluster(np.eye(4, dtype=np.float32))


@every
def test_two_points_leave_no_empty_quanta(clusterer):
    result = clusterer.cluster(np.repeat(np.eye(7, dtype=np.float32)[:2], 12, axis=0))
    assert result.sizes.min() > 0
    assert result.assignments.max() == result.num_quanta - 1
    assert adjusted_rand_score(np.repeat([0, 1], 12), result.assignments) > 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: Refined(num_iterations=0),
        lambda: Spectral(num_quanta=0),
        lambda: Density(min_size=1),
        lambda: Leiden(resolution=0.0),
        lambda: Leiden(num_neighbours=0),
    ],
)
def test_refuses_options_that_cannot_work(make):
    with pytest.raises(ConfigurationError):
        make()


@pytest.mark.parametrize("clusterer", [Spectral(num_quanta=3, max_rows=20), Density(max_rows=20)])
def test_refuses_more_rows_than_it_can_compare(clusterer):
    with pytest.raises(ConfigurationError, match="at most 20"):
        clusterer.cluster(np.eye(21, dtype=np.float32))


def over_linkage(num_quanta, largest, sigma, dim, seed):
    """Adjusted Rand index of the default, given N, less that of scipy's average linkage."""
    rows, labels = planted(num_quanta, largest, sigma, seed=seed, dim=dim, width=1_000)
    theirs = fcluster(linkage(rows, method="average", metric="cosine"), num_quanta, criterion="maxclust")
    ours = Refined(inner=AverageLinkage(num_quanta=num_quanta)).cluster(rows).assignments
    return adjusted_rand_score(labels, ours) - adjusted_rand_score(labels, theirs)


@pytest.mark.parametrize(("sigma", "dim", "least"), [(2, 1_000, -0.01), (2, 64, 0.1), (3, 256, 0.1)])
def test_refinement_wins_back_what_linkage_loses(sigma, dim, least):
    assert np.mean([over_linkage(30, 100, sigma, dim, seed) for seed in range(4)]) > least


def test_refinement_keeps_separate_what_is_separate_and_drops_what_is_empty():
    rows, labels = planted(5, 40, 0.3)
    assert np.array_equal(refine(rows, labels), labels)
    halves = labels * 2 + np.arange(len(labels)) % 2
    refined = refine(rows, halves)
    assert adjusted_rand_score(labels, refined) >= adjusted_rand_score(labels, halves)
    assert np.array_equal(refine(rows, np.zeros(len(rows), np.int64)), np.zeros(len(rows)))
    assert np.array_equal(refine(rows[:4], np.arange(4)), np.arange(4))


def test_refinement_keeps_the_number_of_quanta_where_asked():
    rows, _ = planted(30, 60, 3, dim=64, width=1_000)
    inner = AverageLinkage(num_quanta=60)
    dropped, kept = Refined(inner=inner).cluster(rows), Refined(inner=inner, keep_all=True).cluster(rows)
    assert dropped.num_quanta < 60
    assert kept.num_quanta == 60
    assert adjusted_rand_score(dropped.assignments, kept.assignments) > 0.7


def test_refinement_in_chunks_is_the_same(monkeypatch):
    rows, _ = planted(8, 40, 2, dim=64, width=200)
    start = AverageLinkage(num_quanta=8).cluster(rows).assignments
    whole = refine(rows, start)
    monkeypatch.setattr("quantascope.attribution.clustering.expectation._CHUNK_CELLS", 40)
    assert np.array_equal(refine(rows, start), whole)
    assert not np.array_equal(whole, start)


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_nested_trees_hold_any_partition(seed, num_rows, num_labels):
    rng = np.random.default_rng(seed)
    rows = unit_rows(rng.standard_normal((num_rows, 6)))
    labels = rng.integers(-3, num_labels, num_rows)
    groups = rng.integers(0, 5, num_rows) if seed % 2 else None
    result = nested_clustering(rows, labels, groups)
    assert adjusted_rand_score(labels, result.assignments) == 1
    assert result.num_quanta == len(set(labels))
    assert result.tree.leaf_counts.sum() == num_rows
    children = result.tree.merges[:, :2].astype(int).ravel()
    assert sorted(children) == list(range(len(children)))  # every node but the root is joined once
    assert (result.tree.merges[:, :2].max(axis=1) < result.tree.num_leaves + np.arange(len(result.tree.merges))).all()
    if groups is not None:
        pairs = set(zip(result.assignments.tolist(), groups.tolist(), strict=True))
        assert result.tree.num_leaves == len(pairs) == len(set(result.groups.tolist()))


def test_a_nested_tree_is_the_linkage_where_the_labels_are_a_cut_of_it():
    rows, _ = planted(6, 30, 1)
    plain = AverageLinkage(num_quanta=6).cluster(rows)
    nested = nested_clustering(rows, plain.assignments)
    for wanted in (2, 6, 20):
        assert adjusted_rand_score(plain.tree.cut(wanted)[plain.groups], nested.tree.cut(wanted)[nested.groups]) == 1
    np.testing.assert_allclose(nested.tree.cosines, plain.tree.cosines, atol=1e-5)


def test_a_centre_cosine_is_that_of_the_centres_whatever_the_noise():
    rng = np.random.default_rng(0)
    for sigma, planned in ((1, 0.0), (1, 0.5), (2, 0.5)):
        first = rng.standard_normal(4_000)
        second = planned * first + np.sqrt(1 - planned**2) * rng.standard_normal(4_000)
        rows = unit_rows(np.stack([first, second])[np.repeat([0, 1], 60)] + sigma * rng.standard_normal((120, 4_000)))
        tree = average_linkage(rows)
        assert np.array_equal(np.sort(np.bincount(tree.cut(2))), [60, 60])
        assert centre_cosines(tree)[-1] == pytest.approx(planned, abs=0.06)
        assert np.median(centre_cosines(tree)) > 0.7


def test_centre_cosines_of_micro_clusters_are_those_of_their_rows():
    rows, labels = planted(4, 40, 1)
    groups = labels * 2 + np.arange(len(labels)) % 2
    counts = np.bincount(groups)
    sums = group_sums(rows, groups, len(counts))
    pairs = ((sums.astype(float) ** 2).sum(axis=1) - counts) / 2
    tree = average_linkage(sums, counts)
    top = centre_cosines(tree, pairs)[-3:]
    assert np.abs(top).max() < 0.3
    assert (centre_cosines(tree, pairs)[:-3] > 0.8).all()


def test_heights_by_centre_cosine_keep_the_branches():
    rows, _ = planted(10, 30, 2)
    tree = average_linkage(rows)
    local = by_centre_cosine(tree)
    assert (np.diff(local.merges[:, 2]) <= 0).all()

    assert set(branches_of(local)) == set(branches_of(tree))
    assert by_centre_cosine(average_linkage(rows[:1])).num_leaves == 1


def test_a_loose_quantum_and_a_tight_family_are_cut_each_at_its_own_height():
    """The loose one's rows have a mean cosine of 0.1, the family's quanta join at 0.36: no mean cosine fits both."""
    rng = np.random.default_rng(0)
    family, loose = rng.standard_normal(2_000), rng.standard_normal(2_000)
    centres = np.stack([0.8 * family + rng.standard_normal(2_000) for _ in range(3)])
    tight = centres[np.repeat([0, 1, 2], 40)] + 0.3 * rng.standard_normal((120, 2_000))
    rows = unit_rows(np.concatenate([tight, loose + 3 * rng.standard_normal((80, 2_000))]))
    truth = np.repeat([0, 1, 2, 3], [40, 40, 40, 80])
    tree = average_linkage(rows)
    best = max(adjusted_rand_score(truth, tree.cut(wanted)) for wanted in range(1, 100))
    assert adjusted_rand_score(truth, by_centre_cosine(tree).cut_at(0.55)) > 0.95 > best


def branches_of(tree):
    """The leaves below each node."""
    found = [frozenset([leaf]) for leaf in range(tree.num_leaves)]
    for left, right in tree.merges[:, :2].astype(int).tolist():
        found.append(found[left] | found[right])
    return found


def test_planted_quanta_come_back_in_resamples_and_noise_does_not():
    rows, labels = planted(6, 60, 1.5, dim=1_000, width=1_000)
    tree = average_linkage(rows)
    back = branch_persistence(rows, tree, np.arange(len(rows)))
    below = branches_of(tree)[tree.num_leaves :]
    whole = [frozenset(np.flatnonzero(labels == label).tolist()) for label in range(6)]
    assert all(back[below.index(quantum)] >= 0.8 for quantum in whole)
    halves = [i for i, branch in enumerate(below) if any(5 <= len(branch) < 0.5 * len(q) and branch < q for q in whole)]
    assert np.mean(back[halves] >= 0.8) < 0.2
    assert np.array_equal(back, branch_persistence(rows, tree, np.arange(len(rows))), equal_nan=True)
    assert back[-1] == 1  # everything always comes back


def test_what_is_in_one_document_only_does_not_come_back():
    rng = np.random.default_rng(0)
    documents = np.repeat(np.arange(20), 6)
    kinds = rng.standard_normal((4, 500))[documents % 4]
    rows = unit_rows(kinds + rng.standard_normal((20, 500))[documents] + 0.3 * rng.standard_normal((120, 500)))
    groups = np.arange(120) // 2  # leaves of two rows
    tree = average_linkage(group_sums(rows, groups, 60), np.bincount(groups))
    back = branch_persistence(rows, tree, groups, documents)
    leaves = [np.array(sorted(branch)) // 3 for branch in branches_of(tree)[60:]]  # three leaves to a document
    for share, found in zip(back, leaves, strict=True):
        if len(set(found)) == 1:
            assert share == 0 or np.isnan(share)
        elif len(found) == 15 and len(set(found % 4)) == 1:
            assert share > 0.6  # where one of its five documents is drawn, it has not come back
    assert sum(len(set(found)) == 1 for found in leaves) == 40


def test_persistence_is_the_best_jaccard_of_every_pair_of_branches():
    rows, _ = planted(4, 12, 1.5, dim=50)
    tree = average_linkage(rows)
    back = branch_persistence(rows, tree, np.arange(len(rows)), num_resamples=3, seed=5)
    rng = np.random.default_rng(5)
    rng.permutation(len(rows))
    order = tree.leaf_order
    hits, asked = np.zeros(len(back)), np.zeros(len(back))
    for _ in range(3):
        drawn = order[np.isin(order, rng.permutation(len(rows))[: (len(rows) + 1) // 2])]
        again = [frozenset(drawn[sorted(b)].tolist()) for b in branches_of(average_linkage(rows[drawn]))]
        for i, branch in enumerate(branches_of(tree)[tree.num_leaves :]):
            here = branch & set(drawn.tolist())
            if len(here) > 1:
                asked[i] += 1
                hits[i] += max(len(here & other) / len(here | other) for other in again) >= 0.6
    np.testing.assert_allclose(back[asked > 0], (hits / np.maximum(asked, 1))[asked > 0])
    assert np.array_equal(np.isnan(back), asked == 0)


def test_rows_of_no_cluster_join_the_nearest():
    rows = unit_rows(np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [1, 0.3], [0.2, 1]]))
    assert claim_unclaimed(rows, np.array([7, 7, 3, 3, -1, -1])).tolist() == [7, 7, 3, 3, 7, 3]
    assert claim_unclaimed(rows, np.full(6, -1)).tolist() == [0] * 6


def test_large_unit_rows_are_not_copied(monkeypatch):
    rows, _ = planted(5, 20, 1)
    assert checked_rows(rows) is not rows
    monkeypatch.setattr("quantascope.attribution.clustering.flat._LARGE", 100)
    assert checked_rows(rows) is rows
    assert checked_rows(rows * 2) == pytest.approx(rows, abs=1e-6)
    rows[3, 1] = np.nan
    with pytest.raises(ConfigurationError):
        checked_rows(rows)


def test_the_neighbour_graph_is_symmetric_and_exact():
    rows, _ = planted(5, 20, 1)
    graph = neighbour_graph(rows, num_neighbours=3).toarray()
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -1)
    nearest = np.argsort(-cosines, axis=1)[:, :3]
    for unit, near in enumerate(nearest):
        assert set(near[cosines[unit, near] > 0]) <= set(np.flatnonzero(graph[unit]))
    assert np.array_equal(graph, graph.T)
    assert np.trace(graph) == 0


def test_seeds_reach_the_inner_clusterer():
    inner = AverageLinkage(seed=7)
    assert Refined(inner=inner).seed == 7
    assert replace(Refined(), inner=inner).inner is inner


def test_weak_structure_is_found_where_linkage_alone_does_not_see_it_and_noise_is_one_quantum():
    rows, labels = planted(30, 100, 3, dim=64, width=1_000)
    assert adjusted_rand_score(labels, Refined().cluster(rows).assignments) > 0.3
    noise = unit_rows(np.random.default_rng(0).standard_normal((399, 64)))
    assert Refined().cluster(noise).num_quanta == 1
