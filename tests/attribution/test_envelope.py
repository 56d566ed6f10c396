import numpy as np
import pytest

from quantascope.attribution.clustering import Tree, average_linkage
from quantascope.attribution.quanta.envelope import fit_envelope
from quantascope.attribution.whitening import unit_rows
from quantascope.errors import ConfigurationError


def planted_tree(shuffled=False):
    """Eighty directions of sizes that fall with rank to the power -1."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(80), 200 // np.arange(1, 81))
    rows = unit_rows(rng.standard_normal((80, 200))[labels] + 0.5 * rng.standard_normal((len(labels), 200)))
    return average_linkage(unit_rows(rng.permuted(rows, axis=0)) if shuffled else rows), np.bincount(labels)


def test_the_envelope_is_the_largest_size_of_any_cut_at_each_rank():
    tree, _ = planted_tree()
    found = fit_envelope(tree, num_resamples=20)
    expected = []
    for rank in range(len(found.sizes)):
        sizes = [np.sort(np.bincount(tree.cut(count)))[::-1] for count in found.counts.tolist()]
        expected.append(max(int(own[rank]) for own in sizes if rank < len(own)))
    assert found.sizes.tolist() == expected
    ranks = np.arange(found.first_rank, found.last_rank + 1)
    slope = np.polyfit(np.log(ranks), np.log(found.sizes[ranks - 1]), 1)[0]
    assert found.slope == pytest.approx(slope)
    assert found.slope_low < found.slope_high
    assert np.isnan(found.null_slopes).tolist() == []


def test_planted_sizes_show_beside_shuffled_rows():
    tree, sizes = planted_tree()
    found = fit_envelope(tree, null_trees=[planted_tree(shuffled=True)[0]], num_resamples=50)
    true = np.polyfit(np.log(np.arange(1, 81)), np.log(sizes), 1)[0]
    assert found.slope == pytest.approx(true, abs=0.25)
    assert abs(found.null_slopes[0] - true) > abs(found.slope - true)
    assert f"nulls give {found.null_slopes[0]:.2f}" in found.sentence()


def test_at_ten_thousand_units_the_ranks_are_the_papers():
    merges = np.zeros((9_999, 4))
    merges[:, 0] = [0, *range(10_000, 19_998)]
    merges[:, 1] = np.arange(1, 10_000)
    merges[:, 2] = np.linspace(1, 0, 9_999)
    merges[:, 3] = np.arange(2, 10_001)
    found = fit_envelope(Tree(merges=merges, leaf_counts=np.ones(10_000, np.int64)), num_resamples=2)
    assert (found.first_rank, found.last_rank) == (101, 1_000)
    assert (found.counts[0], found.counts[-1], len(found.counts)) == (10, 1_500, 30)


def test_too_few_units_are_refused():
    with pytest.raises(ConfigurationError, match="too few"):
        fit_envelope(average_linkage(unit_rows(np.random.default_rng(0).standard_normal((40, 8)))))
