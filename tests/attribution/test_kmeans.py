"""k-means over streams: it finds planted clusters, counts only rows that count, and threads change nothing."""

import numpy as np
import pytest
from sklearn.cluster import MiniBatchKMeans

from quantascope.attribution.search.kmeans import KMeansConfig, assign, kmeans
from quantascope.attribution.search.tiles import Chunk
from quantascope.errors import ConfigurationError

PRECISIONS = ("bfloat16", "float32")


def planted(num_rows, num_clusters, *, noise, dim=16, zipf=False, seed=0):
    generator = np.random.default_rng(seed)
    share = 1 / np.arange(1, num_clusters + 1) if zipf else np.ones(num_clusters)
    label = generator.choice(num_clusters, num_rows, p=share / share.sum())
    centres = 4 * generator.standard_normal((num_clusters, dim))
    return (centres[label] + noise * generator.standard_normal((num_rows, dim))).astype(np.float16), label


def reader(rows, size=700, keep=None):
    def read():
        for first in range(0, len(rows), size):
            part = slice(first, first + size)
            yield Chunk(first, rows[part], None if keep is None else keep[part])

    return read


def objective(rows, centroids):
    wide = rows.astype(np.float64)
    return ((wide[:, None] - centroids[None].astype(np.float64)) ** 2).sum(axis=2).min(axis=1).sum()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_planted_clusters_are_found_where_a_plain_start_misses_some(precision):
    rows, label = planted(6_000, 60, noise=0.4)
    config = KMeansConfig(num_clusters=60, precision=precision)
    found = kmeans(reader(rows), 16, config)
    assert np.array_equal(np.sort(found.sizes), np.sort(np.bincount(label)))
    plain = kmeans(reader(rows), 16, KMeansConfig(num_clusters=60, start="random", num_rounds=0, precision=precision))
    assert objective(rows, plain.centroids) > 1.5 * objective(rows, found.centroids)
    repaired = kmeans(reader(rows), 16, KMeansConfig(num_clusters=60, start="random", precision=precision))
    assert objective(rows, repaired.centroids) < 1.2 * objective(rows, found.centroids)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_objective_is_what_brute_force_gives_and_falls(precision):
    rows, _ = planted(4_000, 40, noise=3.0, zipf=True)
    found = kmeans(reader(rows), 16, KMeansConfig(num_clusters=40, precision=precision, num_passes=8))
    assert list(found.objectives) == sorted(found.objectives, reverse=True)
    assert objective(rows, found.centroids) == pytest.approx(found.objectives[-1], rel=2e-3)
    theirs = MiniBatchKMeans(40, random_state=0, n_init=1).fit(rows.astype(np.float32)).cluster_centers_
    assert objective(rows, found.centroids) < objective(rows, theirs)


def test_threads_change_nothing_and_seeds_something():
    rows, _ = planted(9_000, 30, noise=3.0)
    ours = [
        kmeans(reader(rows, 5_000), 16, KMeansConfig(num_clusters=30, seed=seed), num_threads=threads)
        for seed, threads in ((0, 1), (0, 3), (1, 1))
    ]
    for name in ("centroids", "sizes", "sample"):
        assert np.array_equal(getattr(ours[0], name), getattr(ours[1], name))
    assert ours[0].objectives == ours[1].objectives
    assert not np.array_equal(ours[0].sample, ours[2].sample)


def test_rows_that_are_not_kept_or_not_finite_belong_to_no_cluster():
    rows, _ = planted(2_000, 10, noise=0.4)
    spoiled = np.concatenate([rows, np.full((500, 16), 60_000, np.float16), np.full((500, 16), np.nan, np.float16)])
    order = np.random.default_rng(0).permutation(len(spoiled))
    keep = (order < 2_000) | (order >= 2_500)
    found = kmeans(reader(spoiled[order], keep=keep), 16, KMeansConfig(num_clusters=10))
    assert found.sizes.sum() == 2_000
    assert abs(found.centroids).max() < 30
    assert (order[found.sample] < 2_000).all()


def test_spherical_centroids_are_unit_directions():
    rows, _ = planted(3_000, 20, noise=1.0)
    unit = rows.astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    found = kmeans(reader(unit), 16, KMeansConfig(num_clusters=20, spherical=True, precision="float32"))
    np.testing.assert_allclose(np.linalg.norm(found.centroids, axis=1), 1, atol=1e-5)
    best = (unit @ found.centroids.T).max(axis=1)
    assert found.objectives[-1] == pytest.approx((1 - best).sum(), rel=1e-2)
    nearest = assign(unit, found.centroids, spherical=True)
    assert np.array_equal(nearest, (unit @ found.centroids.T).argmax(axis=1))


def test_the_sample_is_even_recorded_and_drawn_without_replacement():
    rows, _ = planted(5_000, 4, noise=1.0)
    found = kmeans(reader(rows), 16, KMeansConfig(num_clusters=4, sample_per_cluster=250, num_passes=0))
    assert len(np.unique(found.sample)) == len(found.sample) == 1_000
    assert found.objectives == ()
    counts = np.histogram(found.sample, bins=5, range=(0, 5_000))[0]
    assert (abs(counts - 200) < 5 * np.sqrt(200)).all()


def test_what_cannot_be_clustered_is_refused():
    rows, _ = planted(20, 2, noise=1.0)
    with pytest.raises(ConfigurationError, match="21 clusters from 20 rows"):
        kmeans(reader(rows), 16, KMeansConfig(num_clusters=21))
    with pytest.raises(ConfigurationError, match="num_clusters is 0"):
        KMeansConfig(num_clusters=0)
    found = kmeans(reader(rows), 16, KMeansConfig(num_clusters=20))
    assert objective(rows, found.centroids) == pytest.approx(0, abs=1e-3)
    same = kmeans(reader(rows[:1].repeat(30, axis=0)), 16, KMeansConfig(num_clusters=3))
    assert same.sizes.sum() == 30
