import numpy as np
import pytest
from jaxtyping import TypeCheckError
from sklearn.metrics import adjusted_rand_score

from quantascope.attribution.clustering import (
    METHODS,
    AverageLinkage,
    Clusterer,
    Density,
    Leiden,
    MethodConfig,
    Refined,
    Spectral,
)
from quantascope.attribution.quanta.rivals import cluster_alike, tfidf_rows
from quantascope.attribution.quanta.stability import agreement, half_agreement, random_directions, with_seed
from quantascope.attribution.whitening import unit_rows
from quantascope.errors import ConfigurationError

REFUSED = (ConfigurationError, TypeCheckError)  # shapes, where annotations are checked at run time


@pytest.fixture(scope="module")
def planted():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 30)
    return unit_rows(rng.standard_normal((6, 100))[labels] + rng.standard_normal((180, 100))), labels


def test_planted_quanta_come_out_of_halves_again_and_noise_does_not(planted):
    rows, labels = planted
    documents = np.arange(180) // 2
    clusterer = Refined(inner=AverageLinkage(num_quanta=6))
    assert min(half_agreement(clusterer, rows, documents, labels)) > 0.95
    noise = random_directions(180, 100, seed=1)
    linkage = AverageLinkage(num_quanta=6)  # refined, noise becomes one quantum, and one agrees with one
    assert max(half_agreement(linkage, noise, documents, linkage.cluster(noise).assignments)) < 0.3
    assert half_agreement(clusterer, rows, np.zeros(180, np.int64), labels) == []
    assert agreement(labels, labels) == 1
    with pytest.raises(REFUSED):
        agreement(labels, labels[:3])


def test_halves_are_of_documents(planted):
    rows, labels = planted
    seen = []

    class Spy:
        seed = 0

        def cluster(self, rows, documents):
            seen.append(set(documents.tolist()))
            return Refined(inner=AverageLinkage(num_quanta=2)).cluster(rows)

    half_agreement(Spy(), rows, np.arange(180) // 6, labels, num_halves=2)
    assert seen[0] | seen[1] == set(range(30))
    assert not seen[0] & seen[1]


def test_another_seed_is_the_inner_clusterers():
    again = with_seed(Refined(inner=AverageLinkage(num_quanta=4, seed=3)), 9)
    assert again == Refined(inner=AverageLinkage(num_quanta=4, seed=9))
    assert with_seed(Leiden(resolution=2.0), 5) == Leiden(resolution=2.0, seed=5)


def test_words_tell_texts_of_two_vocabularies_apart():
    rng = np.random.default_rng(0)
    topic = np.arange(60) % 2
    contexts = [rng.integers(0, 40, 20) + 1_000 * t for t in topic]
    labels = cluster_alike(tfidf_rows(contexts), 2)
    assert adjusted_rand_score(topic, labels) == 1
    rows = tfidf_rows([*contexts[:4], np.empty(0, np.int64)])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(tfidf_rows([np.array([7])] * 3), axis=1), 1, rtol=1e-5)
    with pytest.raises(ConfigurationError):
        tfidf_rows([])


def test_every_method_has_its_name():
    kinds = {
        "default": Refined, "average": AverageLinkage, "graph": Leiden, "density": Density, "spectral": Spectral,
        "spectral-squared": Spectral,
    }  # fmt: skip
    for method in METHODS:
        number = 5 if method.startswith("spectral") else None
        made = MethodConfig(method=method, num_quanta=number, seed=4).clusterer()
        assert isinstance(made, kinds[method])
        assert isinstance(made, Clusterer)
        assert made.seed == 4
    assert MethodConfig(num_quanta=5).clusterer() == Refined(inner=AverageLinkage(num_quanta=5), keep_all=True)
    assert MethodConfig(method="spectral-squared", num_quanta=3).clusterer().affinity == "squared cosine"
    assert MethodConfig(method="graph", resolution=2.5).clusterer().resolution == 2.5
    assert MethodConfig(method="density", min_size=9).clusterer().min_size == 9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "kmeans"}, "accepted are default"),
        ({"method": "graph", "num_quanta": 5}, "num_quanta does not belong"),
        ({"method": "density", "min_cosine": 0.5}, "min_cosine does not belong"),
        ({"resolution": 2.0}, "resolution does not belong"),
        ({"method": "spectral"}, "give num_quanta"),
    ],
)
def test_settings_of_another_method_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        MethodConfig(**settings)
