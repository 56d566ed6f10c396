import numpy as np
import pytest
from jaxtyping import TypeCheckError

from quantascope.attribution.quanta.labels import LabelConfig, escape, label_quanta
from quantascope.errors import ConfigurationError

REFUSED = (ConfigurationError, TypeCheckError)  # shapes and literals, where annotations are checked at run time


def test_names_a_quantum_by_what_stands_before_its_target():
    contexts = [["x", " def", f" name{i}", "("] for i in range(8)]
    contexts += [["y", " if", f" test{i}", ":"] for i in range(8)]
    targets = ["self"] * 7 + ["cls"] + ["\n    "] * 8
    labels = label_quanta(contexts, targets, np.repeat([0, 1], 8))
    assert labels[0].phrase == "self after x def … ("
    assert labels[0].target == "self"
    assert labels[0].target_share == 7 / 8
    assert labels[0].pattern == (None, None, "x", " def", None, "(")
    assert labels[1].phrase == "\n     after y if … :"
    assert " def" in labels[0].top_tokens
    assert " if" not in labels[0].top_tokens


def test_a_token_needs_half_of_all_units_to_stand_in_the_pattern():
    contexts = [["a", "("]] * 5 + [["b", "("]] * 3 + [["("]] * 2
    label = label_quanta(contexts, ["x"] * 10, np.zeros(10, dtype=int))[0]
    assert label.pattern[-2:] == ("a", "(")
    stricter = label_quanta(contexts, ["x"] * 10, np.zeros(10, dtype=int), LabelConfig(min_share=0.6))[0]
    assert stricter.pattern[-2:] == (None, "(")


def test_equal_labels_get_what_distinguishes_them():
    def filler(i):
        return f"w{i}"

    contexts = [["json" if i % 3 == 0 else filler(i), filler(i + 50), "("] for i in range(30)]
    contexts += [["far", *([filler(i) for i in range(j, j + 6)]), "("] for j in range(30)]
    contexts += [["near", *([filler(i) for i in range(j, j + 6)]), "("] for j in range(30)]
    labels = label_quanta(contexts, [")"] * 90, np.repeat([0, 1, 2], 30))
    phrases = [label.phrase for label in labels]
    assert len(set(phrases)) == 3
    assert all(phrase.startswith(") after (") for phrase in phrases)
    assert phrases[0] == ") after (, often json 3 before"
    assert phrases[1] == ") after (, near far"
    assert phrases[2] == ") after (, near near"


def test_nothing_to_tell_apart_leaves_numbers():
    labels = label_quanta([["a"]] * 6, ["b"] * 6, np.repeat([0, 1, 2], 2))
    assert len({label.phrase for label in labels}) == 3


def test_units_without_context_have_labels():
    labels = label_quanta([[], ["a"]], ["x", "y"], np.array([0, 1]))
    assert [label.phrase for label in labels] == ["x", "y after a"]
    assert labels[0].top_tokens == ()


def test_top_tokens_set_a_quantum_apart_from_the_others():
    contexts = [["the", "the", "the", "cat"]] * 4 + [["the", "the", "the", "dog"]] * 4
    labels = label_quanta(contexts, ["x"] * 8, np.repeat([0, 1], 4), LabelConfig(num_top_tokens=2))
    # "the": 12/16 · ln(1 + 16/24) = 0.383; "cat": 4/16 · ln(1 + 16/4) = 0.402
    assert labels[0].top_tokens == ("cat", "the")
    assert labels[1].top_tokens == ("dog", "the")


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" \t\n", " \t\n"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\x00b", "a\\x00b"),
        ("\u202eabc", "\\u202eabc"),
        ("\ud800", "\\ud800"),
        ("\u2028", "\\u2028"),
        ("é→語", "é→語"),
        ("\u00a0", "\u00a0"),
    ],
)
def test_control_characters_are_escaped_and_whitespace_is_not(token, shown):
    assert escape(token) == shown
    label = label_quanta([[token]], ["x" + token], np.array([0]))[0]
    assert label.target == "x" + shown
    assert label.pattern[-1] == shown


def test_order_of_units_does_not_matter():
    rng = np.random.default_rng(0)
    contexts = [[f"t{j}" for j in rng.integers(0, 5, 8)] for _ in range(60)]
    targets = [f"t{j}" for j in rng.integers(0, 3, 60)]
    assignments = np.repeat(np.arange(6), 10)
    order = rng.permutation(60)
    shuffled = label_quanta([contexts[i] for i in order], [targets[i] for i in order], assignments[order])
    assert label_quanta(contexts, targets, assignments) == shuffled


def test_refuses_what_does_not_fit():
    with pytest.raises(REFUSED):
        label_quanta([["a"]], ["b", "c"], np.array([0]))
    with pytest.raises(ConfigurationError, match="quantum 1"):
        label_quanta([["a"], ["a"]], ["b", "c"], np.array([0, 2]))
    with pytest.raises(ConfigurationError):
        LabelConfig(min_share=0.0)
