"""The documents of an imported run: one for each that the store's rows are of, with its text where there is one.

Row i of the data set is document i, whatever is wrong with it: a row without usable text becomes an empty document, so
that no row of gradients is ever put beside another text. Knows no store's format.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import BadRowError, ModelNotFoundError, RunMismatchError
from ...storage.documents import StoredDocument
from ..data.source import DataFingerprint, DataSource, Document, read_documents
from ..data.tokens import TokenisedDocument, tokenise

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...storage.run import Run
    from ..workers.progress import Stage
    from .stores import ForeignStore

_SHARD_TOKENS = 1_000_000
_SHARD_DOCUMENTS = 20_000
_WORD = r"\s*\w+|\s*[^\w\s]+|\s+"
_MOST_WORDS = 65_536
_OTHER = "(other)"
_NO_TEXT = "(no text)"


@dataclass(slots=True, kw_only=True)
class Words:
    """Words and punctuation, each with the white space before it, as tokens: where no tokenizer was given.

    Numbers go to words in the order of their first appearance; those past the first 65,535 share the number 0.
    """

    numbers: dict[str, int] = field(default_factory=lambda: {_OTHER: 0})

    def tokenise(self, document: Document) -> TokenisedDocument:
        """Tokens of one document; none of its words is cut or left out."""
        found = list(re.finditer(_WORD, document.text))
        return TokenisedDocument(
            ids=np.array([self._number(match[0]) for match in found], np.int32),
            starts=np.array([match.start() for match in found], np.int32),
            ends=np.array([match.end() for match in found], np.int32),
            counts=np.ones(len(found), np.bool_),
        )

    def serialise(self) -> str:
        """As the tokenizers library reads it."""
        return _word_level(self.numbers, _OTHER, split=True)

    def _number(self, word: str) -> int:
        if len(self.numbers) < _MOST_WORDS:
            return self.numbers.setdefault(word, len(self.numbers))
        return self.numbers.get(word, 0)


class GivenTokenizer:
    """A tokenizer.json, read without transformers and without running any code of its own."""

    def __init__(self, path: str | Path) -> None:
        from tokenizers import Tokenizer

        file = Path(path).expanduser()
        file = file / "tokenizer.json" if file.is_dir() else file
        try:
            self.backend_tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing narrower
            raise ModelNotFoundError(f"There is no readable tokenizer.json at {path}: give its folder.") from error
        self.backend_tokenizer.no_truncation()
        self.backend_tokenizer.no_padding()
        self.is_fast = True

    def __call__(self, texts: Sequence[str], *, add_special_tokens: bool, **_: Any) -> dict[str, Any]:  # noqa: ANN401
        """Encode as transformers' fast tokenizers do."""
        encoded = self.backend_tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
        return {
            "input_ids": [own.ids for own in encoded],
            "offset_mapping": [own.offsets for own in encoded],
            "special_tokens_mask": [own.special_tokens_mask for own in encoded],
        }

    def tokenise(self, document: Document) -> TokenisedDocument:
        """Tokens of one document."""
        return tokenise(self, document)

    def serialise(self) -> str:
        """As the tokenizers library reads it."""
        text: str = self.backend_tokenizer.to_str()
        return text


def write_documents(
    run: Run, store: ForeignStore, source: DataSource | None, tokenizer: Words | GivenTokenizer, stage: Stage
) -> None:
    """Write the run's documents; RunMismatchError if the data set cannot be the one that the store was built from."""
    fingerprint = DataFingerprint()
    skipped: list[dict[str, Any]] = []
    documents = (
        _without_text(store)
        if source is None
        else _with_text(store, source, tokenizer, fingerprint=fingerprint, skipped=skipped)
    )
    label_names = source.label_fields if source else ()
    totals = run.documents.write(_shards(documents, stage), label_names=label_names)
    run.documents.finish(
        totals,
        tokenizer=_word_level({_NO_TEXT: 0}, _NO_TEXT, split=False) if source is None else tokenizer.serialise(),
        fingerprint=fingerprint.hexdigest(),
        skipped=skipped,
    )


def _with_text(
    store: ForeignStore,
    source: DataSource,
    tokenizer: Words | GivenTokenizer,
    *,
    fingerprint: DataFingerprint,
    skipped: list[dict[str, Any]],
) -> Iterator[StoredDocument]:
    number = 0
    reader = read_documents(source)
    for document in reader:
        for row in range(number, document.row):
            yield _empty(row, source)
        number = document.row + 1
        if number > store.num_documents:
            break
        try:
            tokens = tokenizer.tokenise(document)
        except BadRowError as error:
            skipped.append({"row": document.row, "source": document.source, "reason": str(error)})
            yield _empty(document.row, source)
            continue
        if isinstance(tokenizer, GivenTokenizer):
            _require_length(store, document, len(tokens.ids))
        yield StoredDocument(
            index=document.row,
            row=document.row,
            source=document.source,
            user_id=document.user_id,
            labels=dict(document.labels),
            sha256=fingerprint.add(document),
            text=document.text,
            tokens=tokens.ids.astype(np.int32),
            starts=tokens.starts,
            ends=tokens.ends,
            counts=tokens.counts,
        )
    skipped += [{"row": s.row, "source": s.source, "reason": s.reason} for s in reader.skipped]
    last = max([number, *(s.row + 1 for s in reader.skipped)])
    for row in range(number, min(last, store.num_documents)):
        yield _empty(row, source)
    if last != store.num_documents:
        more = "more than" if last > store.num_documents else f"{last:,} of"
        raise RunMismatchError(
            f"{source.dataset} has {more} the {store.num_documents:,} documents that {store.path} has rows of: give "
            "the data set (and split) that the store was built from, row for row, or none."
        )


def _require_length(store: ForeignStore, document: Document, num_tokens: int) -> None:
    """RunMismatchError unless the tokenizer gives a document as many tokens as the store says (or more, if it cut)."""
    if store.lengths is None:
        return
    said = int(store.lengths[document.row])
    is_cut = bool(store.settings.get("truncation"))
    if num_tokens != said and not (is_cut and num_tokens > said):
        raise RunMismatchError(
            f"Row {document.row} of {document.source} has {num_tokens} tokens under the given tokenizer; {store.path} "
            f"says {said}. The data set or the tokenizer is not the one that the store was built with: give that one, "
            "or leave --tokenizer out, where rows are of whole documents."
        )


def _without_text(store: ForeignStore) -> Iterator[StoredDocument]:
    """Documents of which only the number is known, each with as many nameless tokens as its rows need."""
    for row in range(store.num_documents):
        num_tokens = 1 if store.offsets is None else int(store.offsets[row + 1] - store.offsets[row]) + 1
        yield _nameless(row, store.path.name, num_tokens, text=None)


def _empty(row: int, source: DataSource) -> StoredDocument:
    """Stands for a row of the data set that has no usable text."""
    return _nameless(row, source.dataset, 1, text="", labels=dict.fromkeys(source.label_fields))


def _nameless(
    row: int, source: str, num_tokens: int, *, text: str | None, labels: dict[str, str | None] | None = None
) -> StoredDocument:
    document = Document(row=row, user_id=str(row), text="", labels={}, completion=None, source=source)
    return StoredDocument(
        index=row,
        row=row,
        source=source,
        user_id=str(row),
        labels=labels or {},
        sha256=DataFingerprint().add(document),
        text=text,
        tokens=np.zeros(num_tokens, np.int32),
        starts=np.zeros(num_tokens, np.int32),
        ends=np.zeros(num_tokens, np.int32),
        counts=np.zeros(num_tokens, np.bool_),
    )


def _shards(documents: Iterator[StoredDocument], stage: Stage) -> Iterator[list[StoredDocument]]:
    shard: list[StoredDocument] = []
    num_tokens = 0
    for document in documents:
        shard.append(document)
        num_tokens += len(document.tokens)
        if num_tokens >= _SHARD_TOKENS or len(shard) >= _SHARD_DOCUMENTS:
            yield shard
            stage.advance(len(shard))
            shard, num_tokens = [], 0
    if shard:
        yield shard
        stage.advance(len(shard))


def _word_level(numbers: dict[str, int], unknown: str, *, split: bool) -> str:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=unknown))
    if split:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), behavior="isolated")
    return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False)
