import numpy as np
import pytest
from jaxtyping import TypeCheckError

from quantascope.attribution.clustering import AverageLinkage
from quantascope.attribution.quanta.layout import lay_out
from quantascope.attribution.whitening import unit_rows
from quantascope.errors import ConfigurationError

REFUSED = (ConfigurationError, TypeCheckError)  # shapes and literals, where annotations are checked at run time


def clustered(num_families, per_family, num_rows, seed=0):
    """Quanta in families of like direction."""
    rng = np.random.default_rng(seed)
    families = rng.standard_normal((num_families, 60)).repeat(per_family, axis=0)
    centres = families + 0.5 * rng.standard_normal(families.shape)
    rows = unit_rows(centres[np.arange(num_rows) % len(centres)] + 0.2 * rng.standard_normal((num_rows, 60)))
    return rows, AverageLinkage(num_quanta=len(centres)).cluster(rows)


@pytest.mark.parametrize(("num_families", "per_family"), [(1, 1), (1, 2), (1, 5), (4, 4)])
def test_coordinates_are_bounded_centred_and_deterministic(num_families, per_family):
    rows, result = clustered(num_families, per_family, 160)
    layout = lay_out(rows, result.assignments, result.centroids)
    again = lay_out(rows, result.assignments, result.centroids)
    assert np.array_equal(layout.units, again.units)
    assert layout.units.dtype == layout.quanta.dtype == np.float32
    assert layout.units.shape == (160, 2)
    assert layout.quanta.shape == (num_families * per_family, 2)
    both = np.concatenate([layout.units, layout.quanta])
    assert np.abs(both).max() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(both.max(axis=0), -both.min(axis=0), atol=1e-5)
    assert len(np.unique(layout.units, axis=0)) > 100


def test_quanta_that_point_alike_lie_near_each_other():
    rows, result = clustered(5, 4, 400)
    layout = lay_out(rows, result.assignments, result.centroids)
    cosines = result.centroids @ result.centroids.T
    distances = np.linalg.norm(layout.quanta[:, None] - layout.quanta, axis=2)
    np.fill_diagonal(cosines, -1)
    np.fill_diagonal(distances, 9)
    same_family = cosines > 0.5
    assert (np.take_along_axis(same_family, distances.argmin(axis=1)[:, None], axis=1)).mean() > 0.9


def test_units_lie_nearest_their_own_quantum():
    rows, result = clustered(5, 4, 400)
    layout = lay_out(rows, result.assignments, result.centroids)
    distances = np.linalg.norm(layout.units[:, None] - layout.quanta, axis=2)
    assert np.array_equal(distances.argmin(axis=1), result.assignments)


def test_refuses_what_does_not_fit():
    rows, result = clustered(1, 2, 20)
    with pytest.raises(REFUSED):
        lay_out(rows[:5], result.assignments, result.centroids)
