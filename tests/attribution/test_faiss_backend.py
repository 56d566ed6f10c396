from importlib import metadata

import numpy as np
import pytest

from quantascope.attribution.search import faiss_backend as backend
from quantascope.attribution.whitening import unit_rows
from quantascope.errors import ConfigurationError, DamagedRunError, MissingDependencyError


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return unit_rows(rng.standard_normal((8, 20))[rng.integers(0, 8, 400)] + 0.3 * rng.standard_normal((400, 20)))


def test_kmeans_equals_its_twin(rows):
    for seed in (1, 2, 3):
        ours = backend.spherical_kmeans(rows, 8, seed=seed)
        twin = backend.spherical_kmeans_numpy(rows, 8, seed=seed)
        np.testing.assert_allclose(ours[0], twin[0], atol=1e-5)
        assert np.array_equal(ours[1], twin[1])
        np.testing.assert_allclose(np.linalg.norm(ours[0], axis=1), 1, atol=1e-5)


def test_the_best_start_wins(rows):
    for kmeans in (backend.spherical_kmeans, backend.spherical_kmeans_numpy):
        _, poor = kmeans(rows, 8, seed=3)
        _, good = kmeans(rows, 8, seed=3, num_redo=8)
        assert np.bincount(poor, minlength=8).min() < 10 < np.bincount(good, minlength=8).min()


def test_kmeans_is_deterministic_and_prints_nothing(rows, capfd):
    first = backend.spherical_kmeans(rows, 100, seed=3, sample_size=150)
    again = backend.spherical_kmeans(rows, 100, seed=3, sample_size=150)
    assert np.array_equal(first[1], again[1])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kmeans", [backend.spherical_kmeans, backend.spherical_kmeans_numpy])
def test_kmeans_trains_on_all_rows_unless_told(kmeans, rows):
    many = np.repeat(rows, 3, axis=0)
    whole = kmeans(many, 2, seed=0)[0]
    assert np.array_equal(whole, kmeans(many, 2, seed=0, sample_size=len(many))[0])
    assert not np.array_equal(whole, kmeans(many, 2, seed=0, sample_size=300)[0])
    with pytest.raises(ConfigurationError, match="50 rows"):
        kmeans(many, 60, seed=0, sample_size=50)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-6), ("float16", 1e-3)])
def test_search_equals_its_twin(rows, precision, tolerance):
    queries = rows[:30]
    ours = backend.search_index(backend.build_index(rows, precision=precision), queries, num_neighbours=5)
    twin = backend.search_index_numpy(backend.build_index_numpy(rows, precision=precision), queries, num_neighbours=5)
    np.testing.assert_allclose(ours[0], twin[0], atol=tolerance)
    assert (ours[1] == twin[1]).mean() > 0.95  # float16 sums in another order may swap near ties
    assert np.array_equal(ours[1][:, 0], np.arange(30))


def test_half_precision_halves_the_bytes(rows):
    assert len(backend.build_index(rows)) < 0.6 * len(backend.build_index(rows, precision="float32"))


@pytest.mark.parametrize(
    ("build", "search"),
    [(backend.build_index, backend.search_index), (backend.build_index_numpy, backend.search_index_numpy)],
)
def test_search_has_bounds(rows, build, search):
    index = build(rows[:3])
    assert search(index, rows[:2], num_neighbours=10)[1].shape == (2, 3)
    with pytest.raises(ConfigurationError, match="at least 1"):
        search(index, rows[:2], num_neighbours=0)
    with pytest.raises(ConfigurationError, match="19 wide"):
        search(index, rows[:2, :19], num_neighbours=1)
    with pytest.raises(DamagedRunError):
        search(b"nothing of the kind", rows[:2], num_neighbours=1)


@pytest.mark.parametrize(("installed", "message"), [((), "quantascope\\[cpu\\]"), (("faiss-cpu", "faiss-gpu"), "over")])
def test_refuses_no_faiss_and_two(monkeypatch, installed, message):
    def version(name):
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(MissingDependencyError, match=message):
        backend.require_faiss()


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_sizes_that_cannot_be_are_refused_and_not_believed(rows, precision):
    """Whatever FAISS makes of them: no index, no memory for it, or one that says that it is not trained."""
    index = backend.build_index(rows[:20], precision=precision)
    refused = 0
    for place in range(0, 80, 4):
        for size in (1 << 30, 1 << 34, 1 << 38, (1 << 62) - 1):
            bad = index[:place] + size.to_bytes(8, "little") + index[place + 8 :]
            try:
                backend.search_index(bad, rows[:1], num_neighbours=1)
            except (DamagedRunError, ConfigurationError):
                refused += 1
    assert refused > 0
