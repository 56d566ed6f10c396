"""From a document to tokens that remember their characters, and from many tokens to windows that fit.

Knows fast tokenizers by their interface alone (no import of transformers). Knows no model, no file, no Ray.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import BadRowError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from .source import Document


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenisedDocument:
    """The tokens of one document; four arrays of one length."""

    ids: NDArray[np.int32]
    """Token ids."""
    starts: NDArray[np.int32]
    """First character of each token in the document's text; 0 for a token that the tokenizer added."""
    ends: NDArray[np.int32]
    """One past its last character; 0 for an added token. Tokens that are parts of one character share both numbers."""
    counts: NDArray[np.bool_]
    """Whether the token belongs to the loss, as a target: False for added tokens and outside the completion."""


def tokenise(tokenizer: Any, document: Document, *, vocab_size: int | None = None) -> TokenisedDocument:  # noqa: ANN401
    """Return the document's tokens, whole: nothing is cut off (see `windows`).

    The tokenizer adds its special tokens unless the chat template has written them. A token counts if at least one of
    its characters lies in the completion; one that reaches from the prompt into the completion therefore counts. The
    very first token has no loss whatever `counts` says, since nothing precedes it.

    Raises ConfigurationError for a slow tokenizer, or an id that is not below vocab_size; BadRowError for a document
    that gives no token.
    """
    tokens = tokenise_all(tokenizer, [document])[0]
    require_tokens(tokens, document, vocab_size=vocab_size)
    return tokens


def tokenise_all(tokenizer: Any, documents: Sequence[Document]) -> list[TokenisedDocument]:  # noqa: ANN401
    """Tokenise several documents, on all cores of this machine (RAYON_NUM_THREADS bounds them).

    Like `tokenise`, but what a document gives is not looked at: `require_tokens` does that.
    """
    require_fast(tokenizer)
    # The tokenizer's threads are at rest when a process is forked: without a word here it warns of them in each child.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    found: list[TokenisedDocument] = []
    for adds_special_tokens, group in groupby(documents, lambda document: document.adds_special_tokens):
        own = list(group)
        encoded = tokenizer(
            [document.text for document in own],
            add_special_tokens=adds_special_tokens,
            return_attention_mask=False,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            truncation=False,
            verbose=False,  # else it warns of texts longer than the context, which windows take care of
        )
        columns = (encoded["input_ids"], encoded["offset_mapping"], encoded["special_tokens_mask"])
        for document, ids, offsets, special in zip(own, *columns, strict=True):
            starts, ends = np.asarray(offsets, dtype=np.int32).reshape(-1, 2).T.copy()
            added = np.asarray(special, dtype=np.bool_) & adds_special_tokens
            counts = _counted(starts, ends, document.completion) & ~added
            found.append(
                TokenisedDocument(ids=np.asarray(ids, dtype=np.int32), starts=starts, ends=ends, counts=counts)
            )
    return found


def require_tokens(tokens: TokenisedDocument, document: Document, *, vocab_size: int | None = None) -> None:
    """Raise BadRowError for a document without a token, ConfigurationError for an id that is not below vocab_size."""
    if not len(tokens.ids):
        raise BadRowError(f"Row {document.row} of {document.source} gives no token. Remove it, or skip bad rows.")
    if vocab_size is not None and tokens.ids.max() >= vocab_size:
        raise ConfigurationError(
            f"The tokenizer gives token {tokens.ids.max()}, but the model knows tokens below {vocab_size} only. They "
            "do not belong together: save the model's own tokenizer in its folder."
        )


def _counted(
    starts: NDArray[np.int32], ends: NDArray[np.int32], completion: tuple[tuple[int, int], ...] | None
) -> NDArray[np.bool_]:
    if completion is None:
        return np.ones(len(starts), dtype=np.bool_)
    counts = np.zeros(len(starts), dtype=np.bool_)
    # Some tokenizers trim white space off the offsets: a token of nothing else is then as wide as nothing, and stands
    # at the end of the space that it covers.
    first = np.where(starts == ends, starts - 1, starts)
    for begin, end in completion:
        counts |= (first < end) & (ends > begin)
    return counts


def spans(counts: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Cut a document into (first, last exclusive) runs of tokens that count: its completions, in their order.

    Two completions with no other token between them are one span; so is a document without a prompt.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], counts, [False]]).astype(np.int8)))
    return [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]


def windows(num_tokens: int, window_tokens: int, *, stride_tokens: int | None = None) -> list[tuple[int, int]]:
    """Cut a document into (first, last exclusive) windows of at most window_tokens tokens each.

    Windows follow each other without overlap unless stride_tokens (1 to window_tokens) says how far each starts after
    the one before. The last may be shorter. A window's first token is never a target within it: with a stride of
    window_tokens − 1, every token but the document's first is a target exactly once; with none, one token per window is
    lost; with a smaller stride, some are targets twice. A window of one token has no loss and is dropped, so the result
    is empty for fewer than two tokens. Raises ConfigurationError for lengths out of range.
    """
    stride = window_tokens if stride_tokens is None else stride_tokens
    if num_tokens < 0 or window_tokens < 2 or not 1 <= stride <= window_tokens:
        raise ConfigurationError(
            f"windows of {window_tokens} tokens every {stride} over {num_tokens} tokens: a window has 2 tokens or "
            "more, a stride is between 1 and the window's length, a document has no fewer than 0."
        )
    cut = []
    for first in range(0, num_tokens - 1, stride):
        cut.append((first, min(first + window_tokens, num_tokens)))
        if first + window_tokens >= num_tokens:
            break
    return cut


def require_fast(tokenizer: Any) -> None:  # noqa: ANN401 - any tokenizer is asked
    """Raise ConfigurationError unless the tokenizer is a fast one, which alone knows its tokens' characters."""
    if getattr(tokenizer, "is_fast", False) and hasattr(tokenizer, "backend_tokenizer"):
        return
    raise ConfigurationError(
        f"{type(tokenizer).__name__} is a slow tokenizer, which does not say which characters a token covers. A fast "
        "one is needed: a tokenizer.json beside the model (convert it with tokenizers or transformers)."
    )


def tokenizer_fingerprint(tokenizer: Any) -> str:  # noqa: ANN401 - any tokenizer is asked
    """Return the SHA-256, in hex, of all that decides which tokens a text becomes.

    Truncation and padding are left out (a mere call changes them, and `tokenise` uses neither), and so is the chat
    template (its text is in the documents). A slow tokenizer gives its vocabulary.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content: dict[str, Any] = {"vocab": tokenizer.get_vocab(), "class": type(tokenizer).__name__}
    else:
        content = json.loads(backend.to_str())
        content.pop("truncation", None)
        content.pop("padding", None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
