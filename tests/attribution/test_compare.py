import numpy as np
import pytest

from quantascope.attribution.change.compare import (
    changes_against_documents,
    changes_against_seeds,
    false_discovery_rate,
    match_quanta,
    moderated_variance,
)
from quantascope.errors import ConfigurationError


def models(num_quanta=120, *, pairs=1, between=0.05, within=0.3, seed=0):
    """Per-unit changes between models of other seeds: some for each pair, one to test; quanta of 5 to 100 units.

    Each quantum has a seed variance of its own.
    """
    chance = np.random.default_rng(seed)
    sizes = chance.integers(5, 100, num_quanta)
    quantum = np.repeat(np.arange(num_quanta), sizes)
    own = between * np.sqrt(chance.chisquare(8, num_quanta) / 8)

    def pair():
        return chance.normal(0, own)[quantum] + chance.normal(0, within, len(quantum))

    return [pair() for _ in range(pairs)], pair(), quantum


def test_quanta_are_matched_through_their_units():
    chance = np.random.default_rng(0)
    first = chance.integers(0, 12, 2_000)
    names = chance.permutation(12)
    second = names[first]
    second[first == 3] = chance.integers(0, 12, (first == 3).sum())  # lost
    moved = chance.random(2_000) < 0.1
    second[moved] = chance.integers(0, 12, moved.sum())
    found = match_quanta(first, second)
    kept = np.arange(12) != 3
    np.testing.assert_array_equal(found.partner[kept], names[kept])
    assert found.partner[3] == -1 or found.jaccard[3] < 0.2
    assert (found.jaccard[kept] > 0.6).all()
    assert found.null_99 < 0.2
    shuffled = match_quanta(first, chance.permutation(second))
    assert (shuffled.partner >= 0).sum() <= 1


@pytest.mark.parametrize("pairs", [1, 3])
def test_two_seeds_show_no_change_and_a_planted_one_is_found(pairs):
    false, shares = 0, []
    for seed in range(20):
        null, change, quantum = models(pairs=pairs, seed=seed)
        false += int(changes_against_seeds(change, null, quantum).changed().any())
        planted = quantum < 10
        found = changes_against_seeds(change + 0.8 * planted, null, quantum).changed()
        assert found[:10].sum() >= 8
        shares.append(found[10:].sum() / found.sum())
    assert false <= 4  # a twentieth of the trials, by what a q-value means where nothing changed
    assert np.mean(shares) < 0.1  # and a twentieth of what was found, where something did


def test_moderated_variances_lie_between_each_quantum_s_own_and_the_common_one():
    chance = np.random.default_rng(1)
    own = chance.chisquare(4, 400) / 4
    sizes = np.full(400, 50)
    variance, degrees = moderated_variance(chance.normal(0, np.sqrt(own), (6, 400)), sizes)
    assert 6 < degrees < 16  # six pairs and a prior of four or so
    assert np.abs(variance - own).mean() < np.abs(own.mean() - own).mean()
    equal, degrees = moderated_variance(chance.normal(0, 1, (6, 400)), sizes)
    assert degrees > 60
    np.testing.assert_allclose(equal, 1, rtol=0.25)


def test_variances_follow_the_size_of_quanta():
    chance = np.random.default_rng(2)
    sizes = np.repeat([4, 400], 300)
    variance, _ = moderated_variance(chance.normal(0, np.sqrt(0.01 + 1 / sizes), (2, 600)), sizes)
    assert np.median(variance[:300]) == pytest.approx(0.26, rel=0.3)
    assert np.median(variance[300:]) == pytest.approx(0.0125, rel=0.3)


def test_flipping_documents_counts_documents_and_not_units():
    chance = np.random.default_rng(3)
    quantum = np.repeat([0, 1, 2], 300)
    document = chance.integers(0, 30, 900)
    change = chance.normal(0, 1, 900)
    change[quantum == 1] += 0.5
    change[(quantum == 2) & (document == 7)] += 100  # one document alone
    found = changes_against_documents(change, quantum, document, num_flips=1_000)
    assert found.p_value[1] < 0.005
    assert found.p_value[2] > 0.05
    assert found.change[2] > found.change[1]
    null = [
        changes_against_documents(chance.normal(0, 1, 900), quantum, document, num_flips=200).p_value for _ in range(60)
    ]
    assert np.mean(np.array(null) < 0.1) == pytest.approx(0.1, abs=0.06)


def test_false_discovery_rates_are_benjamini_and_hochberg_s():
    p = np.array([0.02, 0.8, 0.001, 0.03])
    np.testing.assert_allclose(false_discovery_rate(p), [0.04, 0.8, 0.004, 0.04])


def test_what_cannot_be_compared_is_refused():
    null, change, quantum = models()
    with pytest.raises(ConfigurationError, match="at least one pair"):
        changes_against_seeds(change, [], quantum)
    with pytest.raises(ConfigurationError, match="are equal"):
        changes_against_seeds(change, [0 * change], quantum)
    with pytest.raises(ConfigurationError, match="There are 2 quanta"):
        changes_against_seeds(change[quantum < 2], [null[0][quantum < 2]], quantum[quantum < 2])
    with pytest.raises(ConfigurationError, match="numbered from 0"):
        changes_against_seeds(change, null, quantum + 1)
