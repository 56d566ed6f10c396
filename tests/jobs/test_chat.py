"""A chat's text is the template's, and its spans are exactly what the assistant wrote."""

import pytest

from quantascope.errors import BadRowError, ConfigurationError
from quantascope.jobs.data.chat import render_chat
from quantascope.jobs.data.source import DataSource, check_data, read_documents
from quantascope.jobs.data.tokens import tokenise
from tests.tiny import tiny_tokenizer, write_jsonl

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "assistant"},
    {"role": "assistant", "content": "assistant"},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "  Yes. "},
]
MARKED = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TRIMMING = "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}\n{% endfor %}"
LAST_ONLY = (
    "{% for m in messages %}{% if m.role != 'assistant' or loop.last %}{{ m.role }}={{ m.content }};"
    "{% endif %}{% endfor %}"
)
FORGETFUL = (
    "{% for m in messages %}{% set c = m.content.split('</think>')[-1] if not loop.last else m.content %}"
    "{{ m.role }}={{ c }};{% endfor %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}{% endfor %}"
)
LENGTHS = "{% for m in messages %}{{ m.content | length }}:{{ m.content }}{% endfor %}"


def with_template(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def answers(text, spans):
    return [text[first:last] for first, last in spans]


def test_without_a_template_roles_are_written_out():
    text, spans = render_chat(CHAT[:3])
    assert text == "system: Be brief.\nuser: assistant\nassistant: assistant\n"
    assert spans == ((len(text) - 10, len(text) - 1),)
    assert render_chat(CHAT[:3], tiny_tokenizer()) == (text, spans)


def test_spans_are_the_answers_even_where_the_words_come_up_elsewhere():
    tokenizer = with_template(MARKED)
    text, spans = render_chat(CHAT, tokenizer)
    assert text == tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert answers(text, spans) == ["assistant", "  Yes. "]
    assert all(text[:first].endswith("<|assistant|>\n") for first, _ in spans)


def test_templates_that_trim():
    text, spans = render_chat(CHAT, with_template(TRIMMING))
    assert answers(text, spans) == ["assistant", "Yes."]


def test_templates_that_leave_answers_out_or_shorten_them():
    text, spans = render_chat(CHAT, with_template(LAST_ONLY))
    assert answers(text, spans) == ["  Yes. "]
    chat = [{"role": "assistant", "content": "<think>hm</think>A"}, {"role": "user", "content": "B"}, CHAT[2]]
    text, spans = render_chat(chat, with_template(FORGETFUL))
    assert answers(text, spans) == ["A", "assistant"]


def test_templates_that_change_their_surroundings_are_refused():
    with pytest.raises(BadRowError, match="changes the text around message 2"):
        render_chat(CHAT, with_template(LENGTHS))


def test_templates_that_refuse_the_messages():
    with pytest.raises(BadRowError, match="no system role"):
        render_chat(CHAT, with_template(NO_SYSTEM))


def test_broken_templates_are_no_fault_of_the_row():
    with pytest.raises(ConfigurationError, match="chat template is broken"):
        render_chat(CHAT, with_template("{% for %}"))


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        (None, "empty"),
        ([], "empty"),
        ("hello", "not a list"),
        (["hello"], "message 0 is not an object"),
        ([{"from": "human", "value": "hi"}], "no text as its role .it has from, value"),
        ([{"role": "assistant", "content": None}], "message 0 has no text as its content"),
        ([{"role": "user", "content": "hi"}], "no message by the assistant"),
        ([{"role": "assistant", "content": " "}], "no message by the assistant"),
    ],
)
def test_bad_messages(messages, why):
    with pytest.raises(BadRowError, match=why):
        render_chat(messages)


def test_chats_are_read_and_tokenised_without_a_second_set_of_special_tokens(tmp_path):
    path = write_jsonl(tmp_path / "chat.jsonl", [{"messages": CHAT}, {"messages": []}])
    source = DataSource(dataset=str(path), messages_field="messages", bad_rows="skip")
    assert check_data(source).text_fields == ("messages",)
    tokenizer = with_template(MARKED)
    reader = read_documents(source, tokenizer)
    [document] = reader
    assert [skipped.reason for skipped in reader.skipped] == ["messages are empty"]
    assert not document.adds_special_tokens
    tokens = tokenise(tokenizer, document)
    counted = "".join(
        document.text[s:e] for s, e, c in zip(tokens.starts, tokens.ends, tokens.counts, strict=True) if c
    )
    assert "assistant" in counted
    assert "Yes." in counted
    assert "brief" not in counted
    [plain] = read_documents(source)
    assert plain.adds_special_tokens
    assert plain.text.startswith("system: Be brief.\n")
