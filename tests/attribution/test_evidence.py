from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from quantascope.attribution.quanta.evidence import (
    majority_elsewhere,
    next_token_evidence,
    role_evidence,
    role_information,
)
from quantascope.errors import ConfigurationError

REFUSED = (ConfigurationError, TypeCheckError)  # shapes and literals, where annotations are checked at run time


def slow_majority(group, document, label):
    votes = []
    for unit in range(len(group)):
        others = Counter(label[(group == group[unit]) & (document != document[unit])].tolist())
        votes.append(min(others, key=lambda value: (-others[value], value)) if others else -1)
    return votes


@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 6), st.integers(1, 5), st.integers(1, 8))
@settings(max_examples=80, deadline=None)
def test_majority_equals_the_plain_loop(seed, num_units, num_groups, num_labels, num_documents):
    rng = np.random.default_rng(seed)
    group, label, document = (rng.integers(0, high, num_units) for high in (num_groups, num_labels, num_documents))
    assert majority_elsewhere(group, document, label).tolist() == slow_majority(group, document, label)


@pytest.fixture(scope="module")
def units():
    """Target tokens with four roles each; the true quantum is the pair of both."""
    rng = np.random.default_rng(0)
    target, role, document = rng.integers(0, 10, 1_500), rng.integers(0, 4, 1_500), rng.integers(0, 150, 1_500)
    return target, role, document, target * 4 + role


def test_true_quanta_tell_tokens_and_roles_apart(units):
    target, role, document, quanta = units
    for evidence in (next_token_evidence(quanta, target, document), role_evidence(quanta, target, role, document)):
        assert evidence.value == evidence.low == evidence.high == 1
        assert evidence.null_99 < 0.4
        assert evidence.beats_null
        assert evidence.num_units == 1_500
    assert role_information(quanta, target, role) == pytest.approx(1)


def test_clusters_by_target_token_alone_do_not_beat_the_role_null(units):
    target, role, document, _ = units
    assert next_token_evidence(target, target, document).value == 1
    evidence = role_evidence(target, target, role, document, name="target token")
    assert evidence.name == "target token"
    assert evidence.value == pytest.approx(evidence.null_99)
    assert not evidence.beats_null
    assert abs(role_information(target, target, role)) < 0.01


def test_random_clusters_stay_within_the_null(units):
    target, role, document, _ = units
    random = np.random.default_rng(5).integers(0, 40, 1_500)
    assert next_token_evidence(random, target, document).low < next_token_evidence(random, target, document).null_99
    evidence = role_evidence(random, target, role, document)
    assert evidence.value <= evidence.null_99
    assert abs(role_information(random, target, role)) < 0.05


def test_a_document_does_not_vote_on_itself():
    document = np.repeat(np.arange(40), 3)
    target = document.copy()  # each document has one token of its own, and one quantum of its own
    assert next_token_evidence(document, target, document).value == 0


def test_only_ambiguous_and_frequent_targets_count(units):
    target, role, document, quanta = units
    roles = np.where(target == 0, 0, role)
    rare = target.copy()
    rare[:5] = 99
    left = int(((rare != 0) & (rare != 99)).sum())
    assert role_evidence(quanta, rare, roles, document).num_units == left
    with pytest.raises(ConfigurationError, match="two roles"):
        role_evidence(quanta, target, np.zeros_like(role), document)
    assert np.isnan(role_information(quanta, target, np.zeros_like(role)))


def test_the_interval_resamples_documents_not_units(units):
    target, _, _, quanta = units
    noisy = np.where(np.arange(1_500) % 3 == 0, 0, quanta)
    documents = np.arange(1_500) % 3 + 3 * (np.arange(1_500) % 2)  # the noise falls on whole documents
    wide = next_token_evidence(noisy, target, documents)
    narrow = next_token_evidence(noisy, target, np.random.default_rng(0).permutation(1_500))
    assert wide.high - wide.low > 4 * (narrow.high - narrow.low)


def test_labels_of_any_codes_and_seeds(units):
    target, role, document, quanta = units
    half = np.where(np.random.default_rng(1).random(1_500) < 0.5, quanta, 0)
    straight = role_evidence(half, target, role, document)
    assert straight == role_evidence(half, target, role, document)
    assert role_evidence(half * 7 + 3, target * 11, role, document + 5).value == straight.value
    assert "95 % interval over documents" in straight.sentence()
    with pytest.raises(REFUSED):
        next_token_evidence(half[:10], target, document)
