"""Tokens remember their characters and whether they count; windows cover a document."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import ByteLevel, Sequence, TemplateProcessing

from quantascope.errors import BadRowError, ConfigurationError
from quantascope.jobs.data.source import Document
from quantascope.jobs.data.tokens import tokenise, windows
from tests.tiny import SENTENCES, tiny_tokenizer


def document(text, completion=None, **options):
    return Document(row=3, user_id="3", text=text, labels={}, completion=completion, source="here", **options)


@pytest.fixture(scope="module")
def plain():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def adding():
    """Adds a beginning and an end, and trims white space off the offsets, as many published tokenizers do."""
    tokenizer = tiny_tokenizer()
    ends = TemplateProcessing(single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)])
    tokenizer.backend_tokenizer.post_processor = Sequence([ByteLevel(trim_offsets=True), ends])
    return tokenizer


@pytest.mark.parametrize("text", SENTENCES)
def test_ids_and_offsets_are_the_tokenizers(plain, text):
    tokens = tokenise(plain, document(text))
    assert tokens.ids.tolist() == plain(text)["input_ids"]
    assert {a.dtype for a in (tokens.ids, tokens.starts, tokens.ends)} == {np.dtype(np.int32)}
    assert tokens.counts.dtype == np.bool_
    assert len(tokens.ids) == len(tokens.starts) == len(tokens.ends) == len(tokens.counts)
    assert tokens.counts.all()
    covered = {i for s, e in zip(tokens.starts, tokens.ends, strict=True) for i in range(s, e)}
    assert covered == set(range(len(text)))


def test_added_tokens_have_no_characters_and_do_not_count(adding):
    tokens = tokenise(adding, document("One, two"))
    assert tokens.ids[[0, -1]].tolist() == [0, 0]
    assert tokens.starts[[0, -1]].tolist() == tokens.ends[[0, -1]].tolist() == [0, 0]
    assert not tokens.counts[[0, -1]].any()
    assert tokens.counts[1:-1].all()


def test_special_tokens_in_a_rendered_chat_keep_their_characters(adding):
    text = "<|endoftext|>One"
    tokens = tokenise(adding, document(text, adds_special_tokens=False))
    assert tokens.ids[0] == 0
    assert (tokens.starts[0], tokens.ends[0]) == (0, 13)
    assert tokens.counts.all()
    assert tokens.ids[-1] != 0


def test_a_token_counts_if_it_touches_the_completion(plain):
    text = "One, two, three"
    for first in range(len(text)):
        for last in range(first + 1, len(text) + 1):
            tokens = tokenise(plain, document(text, ((first, last),)))
            touches = [
                bool(set(range(s, e)) & set(range(first, last)))
                for s, e in zip(tokens.starts, tokens.ends, strict=True)
            ]
            assert tokens.counts.tolist() == touches


def test_several_spans(plain):
    text = "One, two, three"
    tokens = tokenise(plain, document(text, ((0, 3), (10, 15))))
    alone = [tokenise(plain, document(text, (span,))).counts for span in ((0, 3), (10, 15))]
    assert tokens.counts.tolist() == (alone[0] | alone[1]).tolist()
    assert not tokens.counts.all()


def test_white_space_without_offsets_belongs_where_it_stands(adding):
    text = "a   b"
    tokens = tokenise(adding, document(text, ((1, 4),)))
    inner = slice(1, -1)
    assert (tokens.starts == tokens.ends)[inner].any()
    assert tokens.counts.tolist() == [False, False, *[True] * (len(tokens.ids) - 4), False, False]
    prompt = tokenise(adding, document(text, ((4, 5),)))
    assert prompt.counts.sum() == 1


def test_parts_of_one_character_share_it(plain):
    tokens = tokenise(plain, document("a🍄b", ((1, 2),)))
    assert tokens.counts.sum() == ((tokens.starts == 1) & (tokens.ends == 2)).sum() > 1


def test_long_documents_are_whole_and_silent(plain, caplog):
    text = "One, two, three. " * 500
    plain.model_max_length = 16
    try:
        tokens = tokenise(plain, document(text))
    finally:
        plain.model_max_length = int(1e30)
    assert tokens.ends[-1] == len(text)
    assert not caplog.records


def test_truncation_left_on_by_others_does_not_cut(plain):
    plain(["One, two, three"], truncation=True, max_length=2)
    assert tokenise(plain, document("One, two, three")).ends[-1] == 15


def test_no_token_names_the_row(plain):
    with pytest.raises(BadRowError, match="Row 3 of here"):
        tokenise(plain, document(""))


def test_a_tokenizer_of_another_model(plain):
    largest = int(tokenise(plain, document("One")).ids.max())
    tokenise(plain, document("One"), vocab_size=largest + 1)
    with pytest.raises(ConfigurationError, match=f"token {largest}.*below {largest}"):
        tokenise(plain, document("One"), vocab_size=largest)


def test_slow_tokenizers_are_refused():
    class Slow:
        is_fast = False

    with pytest.raises(ConfigurationError, match="Slow is a slow tokenizer"):
        tokenise(Slow(), document("One"))


def test_windows_follow_each_other():
    assert windows(10, 4) == [(0, 4), (4, 8), (8, 10)]
    assert windows(8, 4) == [(0, 4), (4, 8)]
    assert windows(3, 4) == [(0, 3)]
    assert windows(10, 4, stride_tokens=3) == [(0, 4), (3, 7), (6, 10)]
    assert windows(10, 4, stride_tokens=2) == [(0, 4), (2, 6), (4, 8), (6, 10)]


def test_windows_of_one_token_are_dropped():
    assert windows(9, 4) == [(0, 4), (4, 8)]
    assert windows(1, 4) == windows(0, 4) == []


@given(num=st.integers(0, 200), window=st.integers(2, 40), stride=st.integers(1, 40))
def test_windows_cover_the_document(num, window, stride):
    stride = min(stride, window)
    cut = windows(num, window, stride_tokens=stride)
    assert all(2 <= last - first <= window for first, last in cut)
    assert [first for first, _ in cut] == [i * stride for i in range(len(cut))]
    covered = {i for first, last in cut for i in range(first, last)}
    assert covered >= set(range(num - 1 if num else 0)) or num < 2
    targets = [i for first, last in cut for i in range(first + 1, last)]
    if stride == window - 1:
        assert sorted(targets) == list(range(1, num))
    if stride == window:
        assert len(targets) == len(set(targets))


@pytest.mark.parametrize(("num", "window", "stride"), [(5, 1, None), (5, 0, None), (5, 4, 0), (5, 4, 5), (-1, 4, None)])
def test_bad_windows(num, window, stride):
    with pytest.raises(ConfigurationError, match="window"):
        windows(num, window, stride_tokens=stride)
