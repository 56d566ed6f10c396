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
    backend._is_installed.cache_clear()
    try:
        with pytest.raises(MissingDependencyError, match=message):
            backend.require_faiss()
    finally:
        backend._is_installed.cache_clear()


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
