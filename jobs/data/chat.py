"""Chat messages to text, with the characters that the assistant wrote.

Knows chat templates by a tokenizer's `apply_chat_template` alone. Knows no files and no models.
"""

from __future__ import annotations

from typing import Any

from ...errors import BadRowError, ConfigurationError

_STAND_INS = ("QUANTASCOPE-STANDS-HERE", "quantascope stood there")


def render_chat(messages: Any, tokenizer: Any = None) -> tuple[str, tuple[tuple[int, int], ...]]:  # noqa: ANN401
    """Return a conversation's text, and (first, last exclusive) characters of each assistant's content.

    messages is a list of objects with role and content, both text. A tokenizer with a chat template renders it; else
    each message becomes "role: content" and a line break. Spans hold what the assistant wrote without the template's
    marks around it; a template that shortens earlier answers (reasoning, for instance) shortens their spans, and an
    answer that it leaves out has none.

    Where an answer stands is found by rendering the conversation with a stand-in for it: what stays the same before and
    after the stand-in encloses the answer.

    Raises BadRowError for messages of another form, for none by the assistant, and where the template refuses them.
    """
    checked = _check_messages(messages)
    text = _render(checked, tokenizer)
    spans = [
        span
        for index, message in enumerate(checked)
        if message["role"] == "assistant" and (span := _find_answer(checked, index, text, tokenizer))
    ]
    if not spans:
        raise BadRowError("no message by the assistant has any content")
    return text, tuple(spans)


def _check_messages(messages: Any) -> list[dict[str, str]]:  # noqa: ANN401 - whatever the data set holds
    if not isinstance(messages, list) or not messages:
        raise BadRowError("messages are empty" if messages in (None, []) else "messages are not a list")
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            raise BadRowError(f"message {number} is not an object with role and content")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise BadRowError(f"message {number} has no text as its {key} (it has {', '.join(message)})")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _render(messages: list[dict[str, str]], tokenizer: Any) -> str:  # noqa: ANN401 - partial annotations
    if getattr(tokenizer, "chat_template", None) is None:
        return "".join(f"{message['role']}: {message['content']}\n" for message in messages)
    import jinja2

    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigurationError(f"The tokenizer's chat template is broken ({error}). Mend or remove it.") from error
    except (jinja2.TemplateError, ValueError) as error:
        raise BadRowError(f"the chat template refuses these messages ({error})") from error
    return str(text)


def _find_answer(messages: list[dict[str, str]], index: int, text: str, tokenizer: Any) -> tuple[int, int] | None:  # noqa: ANN401
    stand_in = next((word for word in _STAND_INS if word not in text), None)
    if stand_in is None:
        raise BadRowError("it contains the words that stand in for answers while the chat is rendered")
    replaced = [*messages[:index], {"role": "assistant", "content": stand_in}, *messages[index + 1 :]]
    before, found, after = _render(replaced, tokenizer).partition(stand_in)
    if not found:
        return None
    end = len(text) - len(after)
    if not (text.startswith(before) and text.endswith(after) and len(before) <= end):
        raise BadRowError(f"the chat template changes the text around message {index} with its content")
    return (len(before), end) if text[len(before) : end].strip() else None
