from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.metrics import adjusted_rand_score

from quantascope.attribution import clustering
from quantascope.attribution.clustering import (
    AverageLinkage,
    Clusterer,
    Tree,
    average_linkage,
    choose,
    choose_cut,
    cut_clustering,
    group_sums,
    order_by_size,
)
from quantascope.attribution.whitening import Whitener, unit_rows
from quantascope.errors import ConfigurationError


def planted(num_quanta, largest, sigma, seed=0, dim=1_000):
    """Centres drawn from a normal distribution in 1,000 dimensions, sizes largest / rank, noise of `sigma`."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(num_quanta), largest // np.arange(1, num_quanta + 1))
    rows = rng.standard_normal((num_quanta, 1_000))[labels] + sigma * rng.standard_normal((len(labels), 1_000))
    if dim < 1_000:
        rows = rows @ rng.standard_normal((1_000, dim))
    return unit_rows(rows), labels


def mean_cosine(rows, first, second):
    return (rows[first].astype(float) @ rows[second].astype(float).T).mean()


def members(tree, node):
    if node < tree.num_leaves:
        return [int(node)]
    left, right = tree.merges[int(node) - tree.num_leaves, :2]
    return members(tree, left) + members(tree, right)


@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(2, 12))
@settings(max_examples=40, deadline=None)
def test_linkage_equals_scipy(seed, num_rows, dim):
    rows = unit_rows(np.random.default_rng(seed).standard_normal((num_rows, dim)))
    ours = average_linkage(rows)
    theirs = linkage(rows.astype(float), method="average", metric="cosine")
    np.testing.assert_allclose(1 - ours.merges[:, 2], theirs[:, 2], atol=2e-6)
    for wanted in {1, num_rows // 2 or 1, num_rows}:
        labels = fcluster(theirs, wanted, criterion="maxclust")
        if len(set(labels)) == wanted:
            assert adjusted_rand_score(labels, ours.cut(wanted)) == 1


def test_a_merge_is_the_mean_cosine_of_its_two_sides():
    rows, _ = planted(5, 12, 2)
    tree = average_linkage(rows)
    for left, right, cosine, count in tree.merges:
        one, other = members(tree, left), members(tree, right)
        assert cosine == pytest.approx(mean_cosine(rows, one, other), abs=1e-6)
        assert count == len(one) + len(other)


def test_linkage_of_micro_clusters_counts_their_rows():
    rows, labels = planted(6, 20, 2)
    groups = np.unique(labels * 2 + np.arange(len(labels)) % 2, return_inverse=True)[1]
    counts = np.bincount(groups)
    tree = average_linkage(group_sums(rows, groups, len(counts)), counts)
    for left, right, cosine, _ in tree.merges:
        one, other = (np.flatnonzero(np.isin(groups, members(tree, side))) for side in (left, right))
        assert cosine == pytest.approx(mean_cosine(rows, one, other), abs=1e-6)
    assert tree.merges[-1, 3] == len(rows)


def test_equal_rows_and_single_rows_are_no_trouble():
    same = unit_rows(np.ones((50, 3)))
    np.testing.assert_allclose(average_linkage(same).merges[:, 2], 1, atol=1e-6)
    assert AverageLinkage().cluster(same[:1]).num_quanta == 1
    assert AverageLinkage(num_quanta=2).cluster(same[:2]).sizes.tolist() == [1, 1]


def test_cuts_nest_and_count():
    rows, _ = planted(10, 30, 2)
    tree = average_linkage(rows)
    finer = tree.cut(20)
    for wanted in (1, 7, 20, tree.num_leaves):
        coarse = tree.cut(wanted)
        assert set(coarse) == set(range(wanted))
        if wanted <= 20:
            assert len(set(zip(finer, coarse, strict=True))) == 20
    cosine = float(tree.cosines[-10])
    assert np.array_equal(tree.cut_at(cosine), tree.cut(tree.num_leaves_at(cosine)))
    assert tree.num_leaves_at(1.1) == tree.num_leaves
    assert tree.num_leaves_at(-1.0) == 1
    with pytest.raises(ConfigurationError):
        tree.cut(0)
    with pytest.raises(ConfigurationError):
        Tree(merges=tree.merges[1:], leaf_counts=tree.leaf_counts)


def test_the_tree_above_has_the_quanta_as_leaves():
    rows, _ = planted(8, 30, 2)
    result = AverageLinkage(num_quanta=8).cluster(rows)
    upper = result.quanta_tree
    assert np.array_equal(upper.leaf_counts, result.sizes)
    for left, right, cosine, count in upper.merges:
        one, other = (np.flatnonzero(np.isin(result.assignments, members(upper, side))) for side in (left, right))
        assert cosine == pytest.approx(mean_cosine(rows, one, other), abs=1e-6)
        assert count == len(one) + len(other)
    again = Tree.from_arrays(result.tree.to_arrays())
    assert np.array_equal(cut_clustering(rows, result.groups, again, 8).assignments, result.assignments)


def test_quanta_are_ordered_and_described():
    rows, _ = planted(9, 20, 1)
    order = np.random.default_rng(0).permutation(len(rows))
    result = AverageLinkage(num_quanta=9).cluster(rows[order] * 7)
    assert isinstance(AverageLinkage(), Clusterer)
    assert result.assignments.dtype == np.int32
    assert list(result.sizes) == sorted(result.sizes, reverse=True)
    np.testing.assert_allclose(np.linalg.norm(result.centroids, axis=1), 1, atol=1e-5)
    for unit in range(0, len(rows), 7):
        mean = rows[order][result.assignments == result.assignments[unit]].mean(axis=0)
        assert result.similarity[unit] == pytest.approx(rows[order][unit] @ mean / np.linalg.norm(mean), abs=1e-5)
    assert order_by_size(np.array([5, 5, 2, 2, 9, 7, 7, 7])).tolist() == [1, 1, 2, 2, 3, 0, 0, 0]


def test_permuted_rows_give_the_same_partition():
    rows, _ = planted(12, 40, 2)
    order = np.random.default_rng(1).permutation(len(rows))
    straight = AverageLinkage(num_quanta=12).cluster(rows).assignments
    shuffled = AverageLinkage(num_quanta=12).cluster(rows[order]).assignments
    assert adjusted_rand_score(straight[order], shuffled) == 1


@cache
def thirty_clustered(whiten, seed):
    """Thirty planted quanta and the chosen clustering of their rows, whose draws are what takes the time."""
    rows, labels = planted(30, 100, 2, seed=seed)
    rows = Whitener.fit(rows).apply(rows) if whiten else rows
    return labels, AverageLinkage().cluster(rows)


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_number_of_planted_quanta_is_found(whiten, seed):
    _, result = thirty_clustered(whiten, seed)
    assert abs(int((result.sizes >= 5).sum()) - 20) <= 4
    assert abs(result.num_quanta - 30) <= 6


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_planted_quanta_are_found_whole(whiten, seed):
    labels, result = thirty_clustered(whiten, seed)
    assert adjusted_rand_score(labels, result.assignments) > 0.95


def test_three_hundred_planted_quanta_are_found():
    rows, labels = planted(300, 1_000, 2)
    result = AverageLinkage().cluster(rows)
    assert abs(int((result.sizes >= 5).sum()) - 200) <= 40
    assert adjusted_rand_score(labels, result.assignments) > 0.95


def test_rows_without_structure_are_one_quantum():
    rows = unit_rows(np.random.default_rng(0).standard_normal((200, 300)))
    assert AverageLinkage().cluster(rows).num_quanta == 1
    assert choose_cut(rows).strength < 0.05
    narrow = unit_rows(np.random.default_rng(0).standard_normal((100, 16)))
    assert choose_cut(narrow).strength > 0.1  # so no one bound would do
    assert AverageLinkage().cluster(narrow).num_quanta == 1


def test_the_chosen_cut_is_the_strongest_and_needs_two_documents():
    rows, _ = planted(30, 100, 2)
    choice = choose_cut(rows, num_splits=1)
    assert choice.strength == choice.strengths.max() > 0.7
    assert choose_cut(rows, num_splits=1).cosine == choice.cosine
    assert choose_cut(rows, seed=1, num_splits=2).strength == pytest.approx(choice.strength, abs=0.2)
    with pytest.raises(ConfigurationError, match="too few"):
        choose_cut(rows[:3])
    with pytest.raises(ConfigurationError, match="1 documents"):
        choose_cut(rows, np.zeros(len(rows), np.int64))


def test_near_copies_within_a_document_do_not_make_quanta():
    """Each document repeats its own variant of the planted direction: only what comes back elsewhere counts."""
    generator = np.random.default_rng(0)
    documents = np.repeat(np.arange(60), 8)
    kind = documents % 8
    variants = generator.standard_normal((8, 1_000))[np.arange(60) % 8] + 0.7 * generator.standard_normal((60, 1_000))
    rows = unit_rows(variants[documents] + 0.2 * generator.standard_normal((480, 1_000)))
    by_document = AverageLinkage().cluster(rows.astype(np.float32), documents)
    assert by_document.num_quanta == 8
    assert adjusted_rand_score(kind, by_document.assignments) == 1


def test_micro_clusters_recover_planted_quanta():
    rows, labels = planted(30, 200, 2)
    clusterer = AverageLinkage(num_quanta=30, max_pairs_rows=100, micro_clusters=180)
    result = clusterer.cluster(rows)
    assert result.tree.num_leaves <= 180
    assert adjusted_rand_score(labels, result.assignments) > 0.85
    assert np.array_equal(clusterer.cluster(rows).assignments, result.assignments)


@pytest.mark.parametrize(
    "options",
    [{"num_quanta": 3, "min_cosine": 0.1}, {"num_quanta": 0}, {"min_cosine": 1.5}, {"micro_clusters": 0}],
)
def test_refuses_options_that_cannot_work(options):
    with pytest.raises(ConfigurationError):
        AverageLinkage(**options)


def test_refuses_more_quanta_than_rows_and_no_rows():
    with pytest.raises(ConfigurationError):
        AverageLinkage(num_quanta=9).cluster(np.eye(4, dtype=np.float32))
    with pytest.raises(ConfigurationError):
        AverageLinkage().cluster(np.empty((0, 4), dtype=np.float32))


def test_every_public_name_resolves():
    assert all(getattr(clustering, name) is not None for name in clustering.__all__)


@pytest.mark.parametrize(
    ("strengths", "chosen"),
    [
        ({0.15: 0.94, 0.4: 0.75}, 0.4),  # skills come back strongly, the broad grain above them even more so
        ({0.15: 0.94, 0.3: 0.72, 0.4: 0.6}, 0.3),
        ({0.2: 0.5, 0.25: 0.46, 0.4: 0.3}, 0.25),  # nothing is strong: the strongest, or what is no worse
    ],
)
def test_the_finest_grain_that_comes_back_is_not_given_up_for_a_broader_one(strengths, chosen, monkeypatch):
    values = np.array([strengths.get(round(float(cut), 2), 0.1) for cut in choose.CUTS])
    monkeypatch.setattr(choose, "_measured", lambda *_: np.stack([values, values]))
    rows, _ = planted(5, 20, 2)
    assert choose_cut(rows).cosine == pytest.approx(chosen)
